"""Dense word alignment against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from mmreason.objective.dense import IGNORE, TEMPERATURE, labels_at, word_logits, word_loss, word_vectors

TABLE = torch.tensor([[2.0, 0.0], [0.0, 2.0], [4.0, 0.0], [0.0, 0.0]])


def test_a_word_of_several_tokens_is_their_mean() -> None:
    assert word_vectors(TABLE, [[0], [0, 1]]).tolist() == [[2.0, 0.0], [1.0, 1.0]]


def test_logits_are_directions_in_units_of_the_mean_norm() -> None:
    vectors = torch.tensor([[2.0, 0.0], [0.0, 4.0]])  # norms 2 and 4, mean 3
    logits = word_logits(torch.tensor([[3.0, 1.5]]), vectors)
    assert logits.tolist() == [pytest.approx([1.0 / TEMPERATURE, 0.5 / TEMPERATURE])]


def test_a_sum_of_two_words_names_both() -> None:
    torch.manual_seed(0)
    table = torch.randn(12, 128) * 0.08
    feature = (table[3] + table[9])[None]
    for words, right in (((0, 3, 5), 1), ((7, 8, 9), 2)):
        loss, counts = word_loss(word_logits(feature, table[list(words)]), torch.tensor([right]))
        assert counts["right"] == 1 and float(loss) < 0.01


def test_cells_take_the_label_at_their_centre() -> None:
    still = torch.tensor([[[0, 1]]])
    assert labels_at(still, 0.0, torch.zeros(1), (1, 4)).tolist() == [[[0, 0, 1, 1]]]
    assert labels_at(still, 0.0, torch.zeros(2), (2, 1)).tolist() == [[[1], [1]]] * 2
    rows = torch.arange(6).view(1, 6, 1)
    assert labels_at(rows, 0.0, torch.zeros(1), (3, 1)).flatten().tolist() == [1, 3, 5]


def test_moments_take_the_bin_they_fall_into() -> None:
    """Six bins of half a second; a window of encoder that is longer than the clip asks nothing of what is beyond."""
    bins = torch.arange(6).view(6, 1, 1)
    moments = torch.tensor([0.0, 0.49, 0.5, 1.7, 2.99, 3.0, 9.0])
    assert labels_at(bins, 3.0, moments, (1, 1)).flatten().tolist() == [0, 0, 1, 3, 5, IGNORE, IGNORE]


def test_loss_counts_what_is_asked_and_tells_things_from_nothing() -> None:
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 0.0]])
    loss, counts = word_loss(logits, torch.tensor([0, 1, -100]))
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-2)) + math.log(1 + math.exp(2)))
    assert counts == {"asked": 2, "right": 1, "things": 1, "things_right": 0}
