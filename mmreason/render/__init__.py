"""Messages and decoded media -> ids, roles, masks and media tensors. The only place that makes masks."""

from mmreason.render.media import sampling_rate_of
from mmreason.render.renderer import Renderer, with_completion
from mmreason.render.template import RenderError

__all__ = ["RenderError", "Renderer", "sampling_rate_of", "with_completion"]
