"""Dense word alignment: every feature of a medium should lie near the embeddings of the words that describe it.

A perception pretask for freshly assembled models. Captions give one target per word written; this gives one per cell
of a picture or bin of a sound, and what it teaches is what the LLM reads: the features become sums of word embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

TEMPERATURE = 0.1
IGNORE = -100


def word_vectors(embeddings: torch.Tensor, words: Sequence[Sequence[int]]) -> torch.Tensor:
    """One vector per word, the mean of its tokens' embeddings: table [V, H], token ids by word -> [W, H]."""
    return torch.stack([embeddings[list(ids)].mean(dim=0) for ids in words])


def word_logits(features: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """How near each feature is to each word: [..., H] and [W, H] -> [..., W].

    The words' directions, with features measured in the words' mean norm, so that a feature that is the sum of a few
    word embeddings, at their own scale, already gives a confident answer.
    """
    norms = vectors.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    return features @ (vectors / norms).T / (norms.mean().detach() * TEMPERATURE)


def labels_at(
    labels: torch.Tensor, seconds: float, moments: torch.Tensor, cells: Sequence[int]
) -> torch.Tensor:
    """Labels [T, R, C] over `seconds` as features [moments, rows, columns] are asked for them.

    A moment (in seconds) takes the bin it falls into, and IGNORE where the labels have ended; a cell takes the label
    at its centre. Labels of 0 seconds are those of a still: its one bin holds at every moment.

    Example: labels [[[0, 1]]] of a still at one moment on cells (1, 4) are [[[0, 0, 1, 1]]].
    """
    for axis, (old, new) in enumerate(zip(labels.shape[1:], cells, strict=True), start=1):
        centres = (2 * torch.arange(new) + 1) * old // (2 * new)
        labels = labels.index_select(axis, centres)
    if not seconds:
        return labels[:1].expand(len(moments), -1, -1)
    bins = (moments.double() / seconds * len(labels)).floor().long()
    asked = labels[bins.clamp(max=len(labels) - 1)]
    return torch.where((bins < len(labels))[:, None, None], asked, IGNORE)


def word_loss(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, dict[str, int]]:
    """Sum of cross-entropies [N, W] against [N], and the counts its metrics are made of.

    `asked` are the labels that count, `right` those met; `things` and `things_right` leave out word 0, "nothing".
    """
    asked = labels != IGNORE
    loss = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="sum")
    right = logits.argmax(dim=-1) == labels
    things = labels > 0
    return loss, {
        "asked": int(asked.sum()),
        "right": int((right & asked).sum()),
        "things": int(things.sum()),
        "things_right": int((right & things).sum()),
    }
