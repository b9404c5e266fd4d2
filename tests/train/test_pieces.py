"""Groups that several ranks write: rewards, statistics and parameters are those of one process."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from mmreason.curriculum.gates import BalancedGate
from mmreason.objective import advantages
from mmreason.rollout.vllm_requests import Prompt
from mmreason.train import grpo
from mmreason.train.distributed import Backend
from mmreason.train.pieces import Held, Piece, known_to_all, to_score
from mmreason.train.run import train
from mmreason.types import Group, Rendered, Sample, Trajectory
from tests.rollout.fake_vllm import Holder
from tests.rollout.vllm_prompts import loaded, tiny_served
from tests.train import small
from tests.train.engines import RELEASING
from tests.train.pictures import break_picture, write_pictures
from tests.train.ranks import train_in_ranks
from tests.train.served import served_recipe

TOLERANCE = 1e-6  # of parameters after three steps of SGD with momentum, as in test_deepspeed
ORDER = f"{Path(__file__).with_name('ordering_reward.py')}:order"
GRPO: dict[str, Any] = {
    "type": "grpo",
    "name": "grpo",
    "data": ["rows"],
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "max_steps": 3,
    "num_generations": 4,
    "max_completion_length": 8,
    "reward_funcs": [small.REWARD, ORDER],
    "gradient_accumulation_steps": 1,
    "save_steps": 1,
    "evaluate": False,
}
EVERYTHING = {
    "scale_rewards": "batch",
    "token_weight": {"name": "tw_grpo"},
    "num_iterations": 2,
    "beta": 0.04,
    "max_steps": 6,
    "gate": {"name": "balanced", "max_rounds": 4},  # as `strict` has it
    "sampler": {"name": "easy_to_hard", "window": 0.5},
}
# rows of a process of two; two rows are half a group, six are one group and half of another
STAGES = {
    "half": GRPO | {"per_device_train_batch_size": 2},
    "uneven": GRPO | {"per_device_train_batch_size": 6},
    "everything": GRPO | EVERYTHING | {"per_device_train_batch_size": 2},
}


# --- what is changed in every rank, by name


def strict() -> None:
    """A gate that admits some groups, by all of their texts: no answer of an untrained model is right."""
    BalancedGate.judge = _by_all_texts  # type: ignore[assignment,method-assign]


def _by_all_texts(gate: BalancedGate, group: Group) -> str:
    letters = "".join(t.text for t in group.trajectories)
    return "admitted" if sum(map(ord, letters)) % 3 else "dropped_hard"


def of_the_piece() -> None:
    """The mutant: means and deviations of two completions, not of the group's four."""

    def local(groups: Sequence[Sequence[float | None]], scale: str) -> list[list[float]]:
        pieces = [group[i : i + 2] for group in groups for i in (0, 2)]
        found = advantages(pieces, scale)
        return [found[i] + found[i + 1] for i in range(0, len(found), 2)]

    grpo.advantages = local  # type: ignore[assignment]


def strict_and_of_the_piece() -> None:
    """The mutant in token weights: a rank compares what it wrote itself only."""
    strict()
    whole = grpo.GRPO._rows_of

    def own(self: Any, held: Held, values: Sequence[float], number: int) -> Any:
        return [row for row in whole(self, held, values, number) if not row.beside]

    grpo.GRPO._rows_of = own  # type: ignore[method-assign]


HERE = f"{__name__}:"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine rows; the picture of one is broken."""
    path = write_pictures(tmp_path_factory.mktemp("rows"), 9)
    break_picture(path.parent / "5.png")
    return path


def tree(out: Path, rows: Path, stage: dict[str, Any], world: int, **keys: Any) -> dict[str, Any]:
    """The recipe of one of `world` processes, which all together learn from as many rows as two of `stage`."""
    share = {"per_device_train_batch_size": stage["per_device_train_batch_size"] * 2 // world}
    keys |= {"data": {"rows": {"path": str(rows)}}, "eval": {"data": []}, "max_bad_fraction": 0.34}
    return small.recipe(out, stages=[stage | share], **keys).model_dump()


Alone = tuple[dict[str, Any], Path]


def run_alone(name: str, rows: Path, folder: Path) -> Alone:
    """A stage, and the run of it in one process."""
    with pytest.MonkeyPatch.context() as patch:
        small.without_probe(patch)
        patch.setattr(BalancedGate, "judge", _by_all_texts)
        train(small.Recipe.model_validate(tree(folder / "one", rows, STAGES[name], 1)))
    return STAGES[name], folder / "one"


@pytest.fixture(scope="module", params=STAGES)
def alone(request: pytest.FixtureRequest, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    return run_alone(request.param, rows, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def half(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    return run_alone("half", rows, tmp_path_factory.mktemp("half"))


@pytest.fixture(scope="module")
def everything(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    return run_alone("everything", rows, tmp_path_factory.mktemp("everything"))


def apart(one: Path, other: Path) -> float:
    """The largest difference of any parameter."""
    found, wanted = (small.weights(run / "stages" / "grpo") for run in (one, other))
    assert found.keys() == wanted.keys()
    return max(float((found[name] - wanted[name]).abs().max()) for name in found)


def judged(run: Path) -> list[tuple[Any, ...]]:
    """What every logged completion says and earned."""
    texts = dict(sorted(small.completions(run).items())).values()
    lines = [json.loads(line) for text in texts for line in text.splitlines()]
    keys = ("group", "id", "completion", "accuracy", "rewards", "reward", "advantage")
    return [tuple(line[key] for key in keys) for line in lines]


EQUAL = ("reward", "completions/", "curriculum/", "accuracy", "groups", "frac_", "hedge", "think")
CLOSE = ("loss", "grad_norm", "entropy", "kl", "tokens/learned", "token_weight/mean")


def assert_as_alone(one: Path, run: Path) -> None:
    assert judged(run) == judged(one)
    for line, wanted in zip(small.metrics(run), small.metrics(one), strict=True):
        for name, value in wanted.items():
            if name.startswith(EQUAL):
                assert line[name] == value, name
            elif name in CLOSE:
                assert line[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert apart(one, run) <= TOLERANCE


def test_two_ranks_write_the_groups_of_one(alone: Alone, rows: Path, tmp_path: Path) -> None:
    stage, one = alone
    assert train_in_ranks(tree(tmp_path / "two", rows, stage, 2), mutant=HERE + "strict") == [0, 0]
    assert_as_alone(one, tmp_path / "two")


def test_there_is_something_to_tell(everything: Alone) -> None:
    """Rewards differ, the gate drops groups and refills, a row goes to quarantine, and weights are not all one."""
    lines = small.metrics(everything[1])
    assert len({reward for *_, reward, _ in judged(everything[1])}) > 3
    assert lines[-1]["curriculum/dropped"] >= 1 and all(line["groups"] == 1 for line in lines)
    assert (everything[1] / "quarantine.jsonl").read_text().count("row-5") == 1
    assert max(line["token_weight/mean"] for line in lines) > 1.05


def test_the_mutant_is_seen(half: Alone, rows: Path, tmp_path: Path) -> None:
    stage, one = half
    mutant = HERE + "of_the_piece"
    assert train_in_ranks(tree(tmp_path / "two", rows, stage, 2), mutant=mutant) == [0, 0]
    assert apart(one, tmp_path / "two") > 100 * TOLERANCE


@pytest.mark.slow
def test_the_mutant_in_token_weights_is_seen(everything: Alone, rows: Path, tmp_path: Path) -> None:
    stage, one = everything
    mutant = HERE + "strict_and_of_the_piece"
    assert train_in_ranks(tree(tmp_path / "two", rows, stage, 2), mutant=mutant) == [0, 0]
    assert apart(one, tmp_path / "two") > 100 * TOLERANCE


# --- killed, and gone on


@pytest.mark.parametrize(
    "starts", [((2, 4), (1, None)), pytest.param(((2, 2), (2, 4), (1, 5), (2, None)), marks=pytest.mark.slow)]
)
def test_killed_and_resumed(
    starts: Sequence[tuple[int, int | None]], everything: Alone, rows: Path, tmp_path: Path
) -> None:
    """(processes, the step in which they are killed): at the end of a rollout, and between its uses."""
    stage, one = everything
    for world, step in starts:
        recipe = tree(tmp_path / "run", rows, stage, world)
        codes = train_in_ranks(recipe, world=world, step=step, mutant=HERE + "strict")
        assert codes[0] == (0 if step is None else -signal.SIGKILL)
    assert_as_alone(one, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("way", ["zero0", "zero1", "zero2", "zero3", "zero3 modules", "zero2_offload"])
def test_under_deepspeed(name: str, way: str, rows: Path, tmp_path: Path) -> None:
    """Every row shows a picture: where a step shows none, one process without DeepSpeed moves no encoder."""
    lines = [line for line in rows.read_text().splitlines() if json.loads(line)["images"]]
    rows = rows.with_name("pictured.jsonl")
    rows.write_text("".join(line + "\n" for line in lines))
    stage, one = run_alone(name, rows, tmp_path)
    engine, _, gather = way.partition(" ")
    if engine == "zero3":
        path = tmp_path / "zero3.json"
        path.write_text(json.dumps({"zero_optimization": RELEASING}))
        engine = str(path)
    keys = {"deepspeed": engine, "rollout": {"gather": gather or "auto"}}
    recipe = tree(tmp_path / "two", rows, stage, 2, **keys)
    assert train_in_ranks(recipe, step=3, mutant=HERE + "strict")[0] == -signal.SIGKILL
    assert train_in_ranks(recipe, mutant=HERE + "strict") == [0, 0]
    assert_as_alone(one, tmp_path / "two")


@pytest.mark.slow
def test_three_ranks_and_a_group_of_four(half: Alone, rows: Path, tmp_path: Path) -> None:
    """Twelve rows, four of each of three ranks: whole groups; and of six ranks, two of each: none is whole."""
    stage = GRPO | {"per_device_train_batch_size": 6}
    _, one = run_alone("uneven", rows, tmp_path)
    for world in (3, 6):
        out = tmp_path / str(world)
        assert train_in_ranks(tree(out, rows, stage, world), world=world) == [0] * world
        assert_as_alone(one, out)


@pytest.mark.slow
def test_a_server_writes_pieces_ahead(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint holds the pieces of the rollout that is on its way; one process puts those of two together."""
    small.without_probe(monkeypatch)
    folder = tiny_served(tmp_path / "served")
    keys = {"optimizer": "sgd", "learning_rate": 0.1, "max_steps": 5, "num_iterations": 1, "beta": 0.0}
    keys |= {"num_generations": 4, "save_steps": 1, "evaluate": False}

    def recipe(name: str, batch: int) -> small.Recipe:
        stage = keys | {"per_device_train_batch_size": batch}
        return served_recipe(tmp_path / name, rows, folder, server.url, stage, staleness=1)

    with closing(Holder(loaded(folder))) as server:
        train(recipe("one", 4))
    with closing(Holder(loaded(folder))) as server:
        two, one = (recipe("two", batch).model_dump() for batch in (2, 4))
        assert train_in_ranks(two, step=3)[0] == -signal.SIGKILL
        assert train_in_ranks(one, world=1, step=4) == [-signal.SIGKILL]
        assert train_in_ranks(two) == [0, 0]
        asked = [body["n"] for path, body in server.asked if path == "/v1/chat/completions"]
        assert {2, 4} == set(asked)
    assert [line["rollout/staleness"] for line in small.metrics(tmp_path / "two")] == [0, 1, 1, 1, 1]
    assert judged(tmp_path / "one") == judged(tmp_path / "two")
    assert apart(tmp_path / "one", tmp_path / "two") <= TOLERANCE


# --- one round


class Told(Backend):
    """One rank of several; what all say in each `gather` is given, None where this rank's own stands."""

    def __init__(self, rank: int, others: list[list[Any]]) -> None:
        super().__init__(torch.device("cpu"))
        self.rank, self.world_size, self.others = rank, len(others[0]), others

    def gather(self, value: Any) -> list[Any]:
        return [value if said is None else said for said in self.others.pop(0)]


def rendered(name: str) -> Rendered:
    ids = torch.tensor([5, 7])
    zeros = torch.zeros_like(ids)
    return Rendered(name, ids, zeros.to(torch.int8), zeros.bool(), zeros, {"pixel_values": torch.ones(1)})


def piece(number: int, first: int) -> Piece:
    name = f"row-{number}"
    return Piece(number, first, Prompt(Sample(name, "rows", ()), [], rendered(name)))


def written(*texts: str) -> list[Trajectory]:
    return [Trajectory(torch.tensor([9]), torch.tensor([True]), text, "stop") for text in texts]


def test_a_round_is_put_together() -> None:
    """Of rank 0 of two: group 0 is cut, 1 whole on rank 1, 2 lacks what rank 1 could not read, 3 is cut."""
    pieces = [piece(0, 0), piece(2, 0), piece(3, 2)]
    ours = [written("a", "b"), written("e", "f"), written("i", "j")]
    parts = [(0, 2, written("c", "d")), (3, 0, written("g", "h"))]
    found = to_score(Told(0, [[None, parts]]), pieces, ours, 4)
    # groups 0 and 3 have two writers each, who take turns: 0 is rank 0's, and 3 rank 1's
    assert [(number, [t.text for t in group.trajectories]) for number, group in found] == [(0, list("abcd"))]
    theirs = [(n, Group(piece(n, 0).prompt.sample, rendered("x"), tuple(written(*"ghij")))) for n in (3, 1)]
    held = known_to_all(Told(0, [[None, theirs]]), found, pieces, ours)
    assert [[t.text for t in h.group.trajectories] for h in held] == [
        list("abcd"),
        list("ghij"),
        list("ghij"),
    ]
    assert [h.own for h in held] == [(0, 1), (), (2, 3)]
    assert [h.prompt is None for h in held] == [False, True, False]
    assert held[0].prompt is not None and held[0].prompt.media and not held[0].group.prompt.media
