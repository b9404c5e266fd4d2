"""Rows packed into one: of those that share a prompt the prompt once, with its media, then what each goes on with.

A row that shares nothing is a prompt that nothing goes on from; one of several questions (`Rendered.segments`) is a
prompt that its questions go on from.

Shapes: T tokens of the packed row; A axes of positions (1, or text, time, height and width).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mmreason.model.family import Family, bare, media_inputs
from mmreason.model.shared_attention import Layout, Span
from mmreason.model.shared_fit import Unfit
from mmreason.render import apart
from mmreason.types import Rendered

Media = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Shared:
    """Rows, or questions of a row, that begin alike: the prompt's length and media, and what media each has behind it.

    Example: prompts of 5 tokens with one picture, and two rows: `Shared(5, {"pixel_values": ...}, ({}, {}))`.
    """

    prompt: int
    media: Media
    later: tuple[Media, ...]

    def tokens(self, rows: Sequence[Rendered]) -> int:
        """Tokens of the packed row."""
        return self.prompt + sum(len(row) - self.prompt for row in rows)


@dataclass(frozen=True)
class Packed:
    """What the model reads: all groups in one row.

    Example: prompt [5, 6] with rows [5, 6, 8] and [5, 6, 9, 2] gives ids [[5, 6, 8, 9, 2]], positions [[0, 1, 2, 2, 3]]
    and places [0, 1, 2] and [0, 1, 3, 4].
    """

    layout: Layout
    ids: torch.Tensor  # int64 [1, T]
    token_types: torch.Tensor  # int64 [1, T]
    positions: torch.Tensor  # int64 [A, T]
    media: Media
    places: tuple[torch.Tensor, ...]  # row -> where each of its tokens stands, int64 [tokens of the row]


def beginning(model: Any, family: Family, rows: Sequence[Rendered]) -> Shared | Unfit:
    """What rows of one group share: all up to the first token that some row's policy wrote, or why it is nothing."""
    if any(row.segments is not None for row in rows):
        return Unfit("segments", "rows hold several questions side by side")
    cut = min(min(len(row), _first_written(row)) for row in rows)
    first = rows[0]
    if cut == 0 or any(not torch.equal(row.ids[:cut], first.ids[:cut]) for row in rows[1:]):
        return Unfit("beginnings", "rows of a group do not begin alike")
    divided = [_divide(model, family, row, cut) for row in rows]
    if any(parts is None for parts in divided):
        return Unfit(
            "later_media",
            f"rows hold media behind their prompt, which cannot be told from the prompt's in a {family.name} model",
        )
    before, later = zip(*(parts for parts in divided if parts is not None), strict=True)
    if any(not _same(media, before[0]) for media in before[1:]):
        return Unfit("media", "rows of a group do not show the same media")
    return Shared(cut, before[0], later)


def alone(row: Rendered) -> Shared:
    """What a row of no group shares: its questions their beginning; without questions all of it is one run."""
    if row.segments is None:
        return Shared(len(row), row.media, ({},))
    return Shared(int((row.segments == 0).sum()), row.media, ({},) * int(row.segments.max()))


def pack_rows(
    model: Any, family: Family, groups: Sequence[tuple[Shared, Sequence[Rendered]]], device: torch.device
) -> Packed:
    """One packed row of several groups, their rows in the order given; a row of several questions is a group itself."""
    spans: list[Span] = []
    ids, types, positions, media, places = [], [], [], [], []
    start = 0
    for shared, rows in groups:
        own = [question for row in rows for question in apart(row)]
        first, cut = own[0], shared.prompt
        span = Span(start, cut, tuple(len(row) - cut for row in own))
        body, behind_body = _prompt_positions(model, family, own, shared, device)
        ids += [first.ids[:cut], *(row.ids[cut:] for row in own)]
        types += [first.token_types[:cut], *(row.token_types[cut:] for row in own)]
        media += [shared.media, *shared.later]
        positions.append(body)
        for row, later in zip(own, shared.later, strict=True):
            positions.append(_suffix_positions(model, family, row, shared, later, behind_body))
        places += _places(span, [len(row) for row in rows])
        spans.append(span)
        start = span.end
    names = sorted({name for part in media for name in part})
    return Packed(
        layout=Layout(tuple(spans)),
        ids=torch.cat(ids).unsqueeze(0),
        token_types=torch.cat(types).unsqueeze(0),
        positions=torch.cat(positions, dim=1),
        media={name: torch.cat([part[name] for part in media if name in part]) for name in names},
        places=tuple(places),
    )


def _places(span: Span, lengths: Sequence[int]) -> list[torch.Tensor]:
    """Where the tokens of each row stand; a row alone in its group stands there as it is."""
    if len(lengths) == 1:
        return [torch.arange(span.start, span.end)]
    body = torch.arange(span.start, span.start + span.prompt)
    return [
        torch.cat([body, torch.arange(begin, begin + length - span.prompt)])
        for begin, length in zip(span.begins, lengths, strict=True)
    ]


def _first_written(row: Rendered) -> int:
    return int(row.sampled.float().argmax()) if bool(row.sampled.any()) else len(row)


def _same(one: Media, other: Media) -> bool:
    if one is other:
        return True
    return one.keys() == other.keys() and all(
        x is other[name] or torch.equal(x, other[name]) for name, x in one.items()
    )


def _positions(
    model: Any, family: Family, ids: torch.Tensor, types: torch.Tensor, media: Media, device: torch.device
) -> torch.Tensor:
    """Where a row's tokens stand, by the model's own word, M-RoPE included: [tokens] -> [A, tokens]."""
    inputs = {
        **media_inputs(family, media, types.unsqueeze(0)),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
    }
    inputs = {name: x.to(device) for name, x in inputs.items()}
    places = bare(model)._prepare_position_ids_for_generation(ids.unsqueeze(0).to(device), inputs)
    return places.reshape(-1, len(ids))


def _prompt_positions(
    model: Any, family: Family, rows: Sequence[Rendered], shared: Shared, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of the prompt [A, prompt], and of a text token right behind it [A, 1], as the model counts them.

    Where text goes on after a medium differs by model (behind the largest place of any axis, or of height and width
    only), so the model is asked with the first text token of some row behind the prompt.
    """
    cut = shared.prompt
    goes_on = (row for row, later in zip(rows, shared.later, strict=True) if len(row) > cut and not later)
    row = next(goes_on, rows[0])
    end = cut + 1 if len(row) > cut and not bool(row.token_types[cut]) else cut
    found = _positions(model, family, row.ids[:end], row.token_types[:end], shared.media, device)
    return found[:, :cut], found[:, cut:]


def _suffix_positions(
    model: Any, family: Family, row: Rendered, shared: Shared, later: Media, behind: torch.Tensor
) -> torch.Tensor:
    """Positions of a row behind its prompt, as they are in a row of its own: [A, tokens].

    `behind` is where a text token right behind the prompt stands; a row that goes on in text counts from there.
    """
    cut = shared.prompt
    if later:
        media = {**shared.media, **{n: _join(shared.media.get(n), x) for n, x in later.items()}}
        return _positions(model, family, row.ids, row.token_types, media, behind.device)[:, cut:]
    return behind[:, :1] + torch.arange(len(row) - cut, device=behind.device)


def _join(before: torch.Tensor | None, later: torch.Tensor) -> torch.Tensor:
    return later if before is None else torch.cat([before, later])


def _divide(model: Any, family: Family, row: Rendered, cut: int) -> tuple[Media, Media] | None:
    """The row's media before and behind token `cut`; None when they cannot be told apart."""
    if not bool(row.token_types[cut:].any()):
        return row.media, {}
    counts = _rows_before(model, family, row, cut)
    if set(counts) != set(row.media):
        return None
    before = {name: x[: counts[name]] for name, x in row.media.items() if counts[name]}
    later = {name: x[counts[name] :] for name, x in row.media.items() if counts[name] < len(x)}
    return before, later


def _rows_before(model: Any, family: Family, row: Rendered, cut: int) -> dict[str, int]:
    """Of each media tensor, how many rows belong to placeholders before `cut`; one that cannot be told is left out."""
    whole = bare(model)
    if family.name == "assembled":
        sizes = {name: size for name, size in whole.media_names.items() if name in row.media}
        return {
            n: int(row.ids[:cut].eq(token).sum()) // tokens * each
            for n, (token, each, tokens) in sizes.items()
        }
    return _seen_by_grids(whole, family, row, cut) | _heard_by_lengths(whole, family, row, cut)


def _seen_by_grids(whole: Any, family: Family, row: Rendered, cut: int) -> dict[str, int]:
    """Of patches and grids (Qwen-VL), how many belong to placeholders before `cut`."""
    merge = getattr(getattr(whole.config, "vision_config", None), "spatial_merge_size", None)
    counts: dict[str, int] = {}
    for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        grid = row.media.get(f"{kind}_grid_thw")
        if grid is None or merge is None:
            continue
        patches = grid.prod(dim=1)
        shown = _shown(row, cut, family.placeholders.get(kind), patches // merge**2)
        if shown is None:
            continue
        counts |= {pixels: int(patches[:shown].sum()), f"{kind}_grid_thw": shown}
        if kind == "video":
            counts |= {
                name: shown for name in ("second_per_grid_ts", "video_second_per_grid") if name in row.media
            }
    return counts


def _heard_by_lengths(whole: Any, family: Family, row: Rendered, cut: int) -> dict[str, int]:
    """Of spectrograms and their masks (Qwen2-Audio, Qwen2.5-Omni), how many belong to placeholders before `cut`."""
    mask = row.media.get("feature_attention_mask")
    towers = (m for m in whole.modules() if hasattr(m, "_get_feat_extract_output_lengths"))
    tower: Any = next(towers, None)
    if mask is None or tower is None:
        return {}
    tokens = tower._get_feat_extract_output_lengths(mask.sum(-1))[1]
    before = _shown(row, cut, family.placeholders.get("audio"), tokens)
    return {} if before is None else {"input_features": before, "feature_attention_mask": before}


def _shown(row: Rendered, cut: int, placeholder: int | None, tokens: torch.Tensor) -> int | None:
    """How many of the media, of so many tokens each, stand before `cut`; None where those are not the row's."""
    if placeholder is None or int(row.ids.eq(placeholder).sum()) != int(tokens.sum()):
        return None
    return int((tokens.cumsum(0) <= row.ids[:cut].eq(placeholder).sum()).sum())
