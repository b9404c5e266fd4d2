"""The loader loses no row, resumes exactly and keeps replay shares; packing and collating by hand-computed values."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

from mmreason.data.loader import Loader, collate, pack
from mmreason.types import Message, Part, Rendered, Sample, TrainingSample


def rows(name: str, count: int) -> list[Sample]:
    asked = (Message("user", (Part("text", text="x"),)),)
    return [Sample(f"{name}:{i}", name, asked) for i in range(count)]


SOURCES = {"a": rows("a", 5), "b": rows("b", 3), "old": rows("old", 4)}


def ids(samples: list[Sample]) -> list[str]:
    return [sample.id for sample in samples]


def test_every_epoch_holds_every_row_once_in_another_order() -> None:
    loader = Loader(SOURCES, ["a", "b"], {}, seed=0)
    drawn = ids(loader.next(3) + loader.next(8) + loader.next(13))  # across the borders of the epochs
    epochs = [drawn[i : i + 8] for i in (0, 8, 16)]
    assert all(sorted(epoch) == sorted(ids(SOURCES["a"] + SOURCES["b"])) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert loader.epoch == 3.0
    assert ids(Loader(SOURCES, ["a", "b"], {}, seed=0).next(24)) == drawn
    assert ids(Loader(SOURCES, ["a", "b"], {}, seed=1).next(24)) != drawn


@pytest.mark.parametrize("taken", [0, 1, 7, 8, 9, 23])
def test_resume_is_exact(taken: int) -> None:
    loader = Loader(SOURCES, ["a", "b"], {"old": 0.3}, seed=4)
    loader.next(taken)
    state = json.loads(json.dumps(loader.state_dict()))
    other = Loader(SOURCES, ["a", "b"], {"old": 0.3}, seed=4)
    other.load_state_dict(state)
    assert other.epoch == loader.epoch
    assert ids(other.next(30)) == ids(loader.next(30))


def test_resume_over_other_data_is_refused() -> None:
    state = Loader(SOURCES, ["a"], {"old": 0.25}, seed=0).state_dict()
    with pytest.raises(ValueError, match="data a: the checkpoint was made with 5 rows, now there are 6"):
        Loader({**SOURCES, "a": rows("a", 6)}, ["a"], {"old": 0.25}, seed=0).load_state_dict(state)
    with pytest.raises(ValueError, match="replays"):
        Loader(SOURCES, ["a"], {}, seed=0).load_state_dict(state)


def test_replay_shares_are_exact_and_evenly_spread() -> None:
    loader = Loader(SOURCES, ["a"], {"old": 0.25, "b": 0.125}, seed=0)
    drawn = [sample.source for sample in loader.next(80)]
    assert Counter(drawn) == {"a": 50, "old": 20, "b": 10}
    for start in range(0, 80, 16):
        assert Counter(drawn[start : start + 16])["old"] in (3, 4, 5)
    assert loader.epoch == 10.0  # of the pool alone
    assert loader.epoch_rows * loader.epoch == len(drawn)
    with pytest.raises(ValueError, match="allowed is less than 1"):
        Loader(SOURCES, ["a"], {"old": 0.5, "b": 0.5}, seed=0)
    with pytest.raises(ValueError, match=r"no data sources \['c'\]"):
        Loader(SOURCES, ["c"], {}, seed=0)
    with pytest.raises(ValueError, match="no rows"):
        Loader({"a": []}, ["a"], {}, seed=0)


def sample(
    length: int, *, group: int = -1, media: int = 0, old: bool = False, rl: float = 0.0
) -> TrainingSample:
    tensors = {"pixel_values": torch.full((media, 2), float(length))} if media else {}
    rendered = Rendered(
        f"row-{length}",
        ids=torch.arange(1, length + 1),
        roles=torch.ones(length, dtype=torch.int8),
        sampled=torch.ones(length, dtype=torch.bool),
        token_types=torch.tensor([1] * media + [0] * (length - media)),
        media=tensors,
    )
    stream = torch.ones(length)
    old_logprobs = torch.full((length,), -1.0) if old else None
    return TrainingSample(
        rendered,
        stream,
        float(length),
        ce=stream,
        rl=stream * rl,
        kl=stream * 0,
        old_logprobs=old_logprobs,
        group=group,
    )


def test_packing_by_hand() -> None:
    assert pack([sample(n) for n in (4, 6, 3)], 12) == [[1, 0], [2]]
    assert pack([sample(n) for n in (4, 6, 3)], 18) == [[1, 0, 2]]
    assert pack([sample(n) for n in (4, 6, 3)], 5) == [[1], [0], [2]]  # over the budget: alone, never dropped
    assert pack([], 10) == []


def test_groups_are_never_split() -> None:
    made = [sample(3 + i % 4, group=i // 4) for i in range(16)] + [sample(5), sample(9)]
    for budget in (1, 20, 40, 60, 1000):
        batches = pack(made, budget)
        assert sorted(i for batch in batches for i in batch) == list(range(18))
        for group in range(4):
            assert sum(any(made[i].group == group for i in batch) for batch in batches) == 1
        for batch in batches:
            width = max(len(made[i]) for i in batch)
            units = {made[i].group if made[i].group >= 0 else -i - 1 for i in batch}
            assert width * len(batch) <= budget or len(units) == 1


def test_collate_by_hand() -> None:
    batch = collate([sample(3, media=1), sample(5), sample(4, media=2, group=7)], pad_id=99)
    assert batch.ids.tolist() == [[1, 2, 3, 99, 99], [1, 2, 3, 4, 5], [1, 2, 3, 4, 99]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0, 0], [1] * 5, [1, 1, 1, 1, 0]]
    assert batch.token_types.tolist() == [[1, 0, 0, 0, 0], [0] * 5, [1, 1, 0, 0, 0]]
    assert batch.media["pixel_values"].tolist() == [[3, 3], [4, 4], [4, 4]]  # in row order
    assert batch.ce.tolist() == [[1, 1, 1, 0, 0], [1] * 5, [1, 1, 1, 1, 0]]
    assert batch.aggregation.sum() == 12 and batch.count == 12.0
    assert batch.groups.tolist() == [-1, -1, 7]
    assert batch.old_logprobs is None and batch.ref_logprobs is None
    assert collate([sample(2)], 0).media == {}


def test_rows_without_old_logprobs_may_only_join_when_they_have_no_advantage() -> None:
    batch = collate([sample(2, old=True, rl=1.0), sample(3)], 0)
    assert batch.old_logprobs is not None and batch.old_logprobs.tolist() == [[-1, -1, 0], [0, 0, 0]]
    with pytest.raises(ValueError, match="row row-3: no old log-probabilities"):
        collate([sample(2, old=True, rl=1.0), sample(3, rl=0.5)], 0)


def test_a_peek_shows_what_comes_and_draws_nothing() -> None:
    rows = {"a": list(range(7)), "b": list(range(100, 104))}
    loader, twin = (Loader(rows, ["a"], {"b": 0.3}, seed=5) for _ in range(2))
    for count in (3, 5, 9, 1):  # over the end of an epoch too
        shown = loader.peek(count)
        assert loader.state_dict() == twin.state_dict()
        assert loader.next(count) == shown == twin.next(count)
