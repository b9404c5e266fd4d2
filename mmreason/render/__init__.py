"""Messages and decoded media -> ids, roles, masks and media tensors. The only place that makes masks."""

from mmreason.render.renderer import Renderer
from mmreason.render.template import RenderError

__all__ = ["RenderError", "Renderer"]
