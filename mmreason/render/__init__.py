"""Messages and decoded media -> ids, roles, masks and media tensors. The only place that makes masks."""

from mmreason.render.media import audio_window, within_window
from mmreason.render.packing import apart, question_places, side_by_side
from mmreason.render.renderer import Renderer, with_completion
from mmreason.render.template import RenderError

__all__ = [
    "RenderError",
    "Renderer",
    "apart",
    "audio_window",
    "question_places",
    "side_by_side",
    "with_completion",
    "within_window",
]
