"""From samples to rendered rows: decode, render, remember; what cannot be read is quarantined by name."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from mmreason.data.media import MediaError, MediaLimits
from mmreason.data.media.ahead import Decoders
from mmreason.data.media.patience import Here
from mmreason.data.quarantine import Quarantine
from mmreason.render import Renderer, RenderError
from mmreason.schema import SFTStage, StageConfig
from mmreason.types import DecodedMedium, MediumRef, Rendered, Sample

CACHE_BYTES = 512 * 2**20  # of rendered rows
MEDIA_BYTES = 64 * 2**20  # of decoded media


class Feed:
    """Renders samples once and keeps the latest within CACHE_BYTES.

    Example: `feed.prompt(sample)` is a `Rendered`, or None when the sample went to quarantine.
    """

    def __init__(
        self,
        renderer: Renderer,
        limits: MediaLimits,
        quarantine: Quarantine,
        *,
        stop: bool,
        workers: int = 0,
    ) -> None:
        self.renderer = renderer
        self.limits = limits
        self.quarantine = quarantine
        self.stop = stop  # the recipe's on_bad_media: stop
        self._decoders = Decoders(workers, limits) if workers else None
        self._here = Here(limits)
        self._cache: OrderedDict[tuple[str, str, str], Rendered] = OrderedDict()
        self._bytes = 0
        self._media: OrderedDict[tuple[str, str, str], DecodedMedium] = OrderedDict()
        self._media_bytes = 0

    def prompt(self, sample: Sample, stage: StageConfig | None = None) -> Rendered | None:
        """The sample up to the generation prompt, within the stage's bound; nothing is sampled yet."""
        rendered = self._get(sample, "prompt")
        if rendered is None or stage is None:
            return rendered
        fits = self._fits(sample, len(rendered), stage, "max_prompt_length")
        return rendered if fits else None

    def media(self, sample: Sample) -> list[DecodedMedium] | None:
        """The decoded media of a sample whose prompt was rendered; None when one is gone by now."""
        try:
            return [self._decoded(ref) for ref in sample.media]
        except MediaError as error:
            self._refuse(sample, error)
            return None

    def full(self, sample: Sample, stage: SFTStage) -> Rendered | None:
        """The sample with its target turns: loss on the assistant's tokens only."""
        rendered = self._get(sample, _how(stage))
        if rendered is None:
            return None
        prompt = int(rendered.sampled.float().argmax())
        fits = self._fits(sample, prompt, stage, "max_prompt_length")
        return rendered if fits and self._fits(sample, len(rendered), stage, "max_length") else None

    def ahead(self, draw: Callable[[], Iterable[Sample]], stage: StageConfig | None = None) -> None:
        """Let the worker processes decode what will be asked for next, `stage` as in `prompt` and `full`.

        Without workers nothing happens, and `draw` is not called.
        """
        if self._decoders is None:
            return
        new = [sample for sample in draw() if (sample.source, sample.id, _how(stage)) not in self._cache]
        self._decoders.ahead(list(dict.fromkeys(ref for sample in new for ref in sample.media)))

    def close(self) -> None:
        """End the worker processes."""
        if self._decoders is not None:
            self._decoders.close()

    def _fits(self, sample: Sample, length: int, stage: StageConfig, key: str) -> bool:
        most = getattr(stage, key)
        if length > most:
            where = f"stages.{stage.name}.{key}"
            self._refuse(
                sample, RenderError(f"row {sample.id}: got {length} tokens; allowed are {most} ({where})")
            )
        return length <= most

    def _get(self, sample: Sample, how: str) -> Rendered | None:
        key = (sample.source, sample.id, how)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        rendered = self._render(sample, how)
        if rendered is not None:
            self._cache[key] = rendered
            self._bytes += size(rendered)
            while self._bytes > CACHE_BYTES:
                _, old = self._cache.popitem(last=False)
                self._bytes -= size(old)
        return rendered

    def _render(self, sample: Sample, how: str) -> Rendered | None:
        try:
            media = [self._decoded(ref) for ref in sample.media]
            if how == "prompt":
                return self.renderer.prompt(sample, media)
            return self.renderer.full(sample, media)
        except (MediaError, RenderError) as error:
            self._refuse(sample, error)
            return None

    def _decoded(self, ref: MediumRef) -> DecodedMedium:
        """The medium; questions on the same one come together, so the latest are kept."""
        if ref.content is not None:
            return self._decode(ref)
        key = (ref.kind, ref.root, ref.path)
        if key in self._media:
            self._media.move_to_end(key)
            return self._media[key]
        medium = self._media[key] = self._decode(ref)
        self._media_bytes += medium.bytes
        while self._media_bytes > MEDIA_BYTES:
            _, old = self._media.popitem(last=False)
            self._media_bytes -= old.bytes
        return medium

    def _decode(self, ref: MediumRef) -> DecodedMedium:
        return (self._decoders or self._here).decode(ref)

    def _refuse(self, sample: Sample, error: ValueError) -> None:
        """Name the row in quarantine, or stop where the recipe says so."""
        if self.stop:
            raise error
        names = ", ".join(ref.path or "inline bytes" for ref in sample.media)
        self.quarantine.add(sample.id, names, str(error), source=sample.source)


def _how(stage: StageConfig | None) -> str:
    """How a stage renders a row: its prompt alone, or with its target turns, which the stage has made."""
    return f"full/{stage.name}" if isinstance(stage, SFTStage) else "prompt"


def size(rendered: Rendered) -> int:
    """Bytes held by a rendered row."""
    tensors: Sequence = (
        rendered.ids,
        rendered.roles,
        rendered.sampled,
        rendered.token_types,
        *rendered.media.values(),
    )
    return sum(t.numel() * t.element_size() for t in tensors)
