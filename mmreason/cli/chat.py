"""`mmreason chat`: one question to a model, with media."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmreason.data.media import decode, limits_of
from mmreason.model.load import load_model
from mmreason.plugins import load_plugins
from mmreason.render import Renderer
from mmreason.rollout.engine import engine
from mmreason.rollout.sampling import SamplingParams
from mmreason.schema import ModelConfig
from mmreason.types import MediaKind, MediumRef, Message, Part, Sample


def answer(
    model: str,
    question: str,
    media: list[tuple[MediaKind, Path]],
    *,
    max_completion_length: int,
    system_prompt: str | None = None,
) -> str:
    """The model's greedy completion of one user turn: the media as `together` puts them, then the question."""
    load_plugins()
    loaded = load_model(ModelConfig(model_name_or_path=model), texts=lambda: (), seed=0)
    renderer = Renderer(loaded.processor, system_prompt=system_prompt)
    refs = tuple(MediumRef(kind, path.name, root=str(path.parent)) for kind, path in together(media))
    parts = tuple(Part(ref.kind, medium=i) for i, ref in enumerate(refs))
    turn = Message("user", (*parts, Part("text", text=question)))
    sample = Sample("chat:1", "chat", (turn,), refs)
    limits = limits_of(processor=loaded.processor)
    prompt = renderer.prompt(sample, [decode(ref, limits) for ref in refs])
    params = SamplingParams(max_completion_length, greedy=True)
    (group,) = engine(loaded.model, "auto")(loaded.model, loaded.family, renderer, [prompt], 1, params)
    return group[0].text


def together(media: Sequence[tuple[MediaKind, Path]]) -> list[tuple[MediaKind, Path]]:
    """Videos last, the sound of a video's own file directly behind it, which is heard so; no other sound can be.

    Example: of a.mp4 and b.mp4 and the sounds of b.mp4 and c.wav: c.wav, a.mp4, b.mp4, its sound.
    """
    films = [path for kind, path in media if kind == "video"]
    sounds = [path for kind, path in media if kind == "audio"]
    alone = [kind == "image" or (kind == "audio" and path not in films) for kind, path in media]
    out = [medium for medium, single in zip(media, alone, strict=True) if single]
    for film in films:
        out.append(("video", film))
        if film in sounds:
            out.append(("audio", film))
    return out
