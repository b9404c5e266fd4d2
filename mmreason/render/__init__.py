"""Messages and decoded media -> ids, roles, masks and media tensors. The only place that makes masks."""

from mmreason.render.renderer import Renderer, with_completion
from mmreason.render.template import RenderError

__all__ = ["RenderError", "Renderer", "with_completion"]
