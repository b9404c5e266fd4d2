"""Curriculum GRPO: sampler -> rollouts -> rewards -> gate and refill -> advantages -> per-token streams.

Group-relative policy optimisation (arXiv 2402.03300) with the switches of DAPO (2503.14476), Dr. GRPO (2503.20783)
and TW-GRPO (2505.24718). The step that trains on the streams is the same as SFT's.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch

from mmreason.curriculum import make_gate, make_sampler, peek
from mmreason.objective import advantages, grpo_samples, tw_grpo
from mmreason.rewards import reward_labels, score_group, user_rewards
from mmreason.rollout.engine import engine
from mmreason.rollout.sampling import SamplingParams, row_seeds
from mmreason.rollout.vllm_requests import Prompt, draw_seeds
from mmreason.rollout.vllm_rollout import VLLMRollout
from mmreason.schema import GRPOStage
from mmreason.train.apart import complete_in_step, gathering
from mmreason.train.completions import add_token_weights, group_metrics, records, write_completions
from mmreason.train.context import Batch, Context
from mmreason.train.deal import Dealer
from mmreason.train.in_flight import InFlight, parted, restored
from mmreason.train.pieces import Held, Piece, known_to_all, to_score
from mmreason.train.remote import correction_of
from mmreason.train.step import Objective, Trainer, fixed_logprobs, shown_weights
from mmreason.types import Group, Sample, TrainingSample, Trajectory

log = logging.getLogger(__name__)
WEIGHED = 12  # rollouts of a stage, evenly spaced, whose logged completions tell each token's weight


class GRPO:
    """The `grpo` method. State: sampler, gate, the rollouts that are still in use, and those on their way."""

    def __init__(self, context: Context, stage: GRPOStage, steps: int, reference: Callable[[], Any]) -> None:
        self.context = context
        self.stage = stage
        pool = [sample for name in stage.data for sample in context.sources[name]]
        rollouts = -(-steps // stage.num_iterations)
        self.sampler = make_sampler(stage.sampler, pool, rollouts, context.recipe.seed)
        self._of_stage = rollouts
        self._weighed = {round(i * (rollouts - 1) / (WEIGHED - 1)) for i in range(WEIGHED)}
        self.gate = make_gate(stage.gate)
        self.dealer = Dealer(context.backend)
        self.user_functions = user_rewards(stage.reward_funcs)
        self.labels = reward_labels(stage.reward_funcs)
        self.reference = reference() if stage.beta > 0 else None
        self.trainer: Trainer | None = None  # set by the run once the optimizer exists
        self._rows: list[TrainingSample] = []
        self._uses_left = 0
        self._metrics: dict[str, float] = {}
        self._rollouts = 0
        self._bad_rewards = 0
        self._in_flight: InFlight | None = None  # asked for ahead, where the recipe allows staleness
        self._versions: list[int] = []  # of the weights that wrote each group of the present rollouts
        self._waited = 0.0  # seconds for what was in flight
        own = stage.per_device_train_batch_size * stage.gradient_accumulation_steps
        self._groups_of_step, left = divmod(own * context.backend.world_size, stage.num_generations)
        assert not left, "settings_problems refuses groups that do not fill a step"
        self._own_rows = own  # that a rank learns from in a step
        self._size = math.gcd(own, stage.num_generations)  # completions of a group that stay on one rank

    # --- the method's contract

    def collect(self, progress: float, step: int) -> Batch:
        """Fresh rollouts, or the present ones again while `num_iterations` lasts."""
        if self._uses_left == 0:
            with gathering(self.context.backend, self.context.recipe.rollout):
                self._rows, self._metrics = self._rollout(step)
            self._uses_left = self.stage.num_iterations
        self._uses_left -= 1
        return Batch(self._rows, self._objective(), self._metrics | self._staleness(step))

    def buffered(self) -> list[TrainingSample]:
        """The rollouts of the present buffer while a later step still needs them, then those on their way."""
        used = self._rows if self._uses_left else []
        if self._in_flight is None:
            return used
        return used + self._in_flight.rows(max((row.group for row in used), default=-1) + 1)

    def state_dict(self) -> dict[str, Any]:
        return {
            "sampler": self.sampler.state_dict(),
            "gate": self.gate.state_dict(),
            "dealer": self.dealer.state_dict(),
            "uses_left": self._uses_left,
            "metrics": self._metrics,
            "rollouts": self._rollouts,
            "versions": self._versions,
            "in_flight": None if self._in_flight is None else self._in_flight.version,
        }

    def load_state_dict(self, state: dict[str, Any], rows: list[TrainingSample]) -> None:
        self.sampler.load_state_dict(state["sampler"])
        self.gate.load_state_dict(state["gate"])
        self.dealer.load_state_dict(state.get("dealer"))
        self._uses_left, self._metrics = state["uses_left"], state["metrics"]
        self._rollouts = state["rollouts"]
        self._versions = state.get("versions", [])  # this and the next are newer than some checkpoints
        self._rows, coming = parted(rows)
        if (version := state.get("in_flight")) is not None:
            renderer, stop = self.context.renderer, self.stage.stop_strings
            self._in_flight = restored(version, coming, self._named(), renderer, stop)

    # --- one batch of rollouts

    def _rollout(self, step: int) -> tuple[list[TrainingSample], dict[str, float]]:
        stage, backend, remote = self.stage, self.context.backend, self.context.remote
        self._bad_rewards, self._waited = 0, 0.0
        admitted, seen = self._groups(step)
        told = {} if remote is None else {**remote.end_rollout(), "time/wait": self._waited}
        weighed = self._rollouts in self._weighed
        self._rollouts += 1
        if self.context.recipe.rollout.staleness and self._rollouts < self._of_stage:
            self._launch(step)
        later = self._rollouts + (self._in_flight is not None)
        self.context.feed.ahead(lambda: self._next_samples(later), stage)
        groups = [held.group for held in admitted]
        per_group = advantages([[t.reward for t in g.trajectories] for g in groups], stage.scale_rewards)
        rows: list[TrainingSample] = []
        for number, (held, values) in enumerate(zip(admitted, per_group, strict=True)):
            rows += self._rows_of(held, values, number)
        rows = self._with_fixed_logprobs(rows)
        kept = records(groups, step, self.labels, per_group)
        if weighed:
            self._weigh(kept, rows)
        if backend.is_main and kept:
            write_completions(self.context.run_dir, stage.name, step, kept[: stage.num_completions_to_log])
        curriculum = {**self.sampler.metrics(), **self.gate.metrics()}
        return rows, {
            **group_metrics(records(seen, step, self.labels)),
            **curriculum,
            "groups": float(len(groups)),
            "rewards/bad_values": backend.sum(self._bad_rewards),
            **told,
        }

    def _rows_of(self, held: Held, values: Sequence[float], number: int) -> list[TrainingSample]:
        """What this rank learns of a group with these advantages.

        Where token weights compare a group's completions, those that others wrote go along, and teach nothing here.
        """
        if held.prompt is None:
            return []
        stage, everyone = self.stage, range(len(values))
        chosen = held.own if stage.token_weight.name == "none" else tuple(everyone)
        trajectories = tuple(held.group.trajectories[i] for i in chosen)
        rows = grpo_samples(
            replace(held.group, prompt=held.prompt, trajectories=trajectories),
            [values[i] for i in chosen],
            loss_type=stage.loss_type,
            beta=stage.beta,
            max_completion_length=stage.max_completion_length,
            mask_truncated=stage.mask_truncated_completions,
            group_id=number,
            keep_sampling=self.context.remote is not None,
        )
        return [
            row if i in held.own else replace(row, count=0.0, beside=True)
            for i, row in zip(chosen, rows, strict=True)
        ]

    def _weigh(self, lines: list[dict[str, Any]], rows: list[TrainingSample]) -> None:
        """Token weights for the records that are logged; one process only: sharded ones would wait for each other."""
        stage, objective = self.stage, self._objective()
        if objective.token_weights is None or self.context.backend.world_size > 1:
            return
        assert self.trainer is not None
        count = -(-stage.num_completions_to_log // stage.num_generations) * stage.num_generations
        logged = rows[:count]
        if logged:
            ids = [row.rendered.ids for row in logged]
            weights = shown_weights(self.trainer, logged, objective)
            add_token_weights(lines[: len(logged)], ids, weights, self.context.renderer.decode)

    def _groups(self, step: int) -> tuple[list[Held], list[Group]]:
        """Groups that the gate admits, refilled for at most `max_rounds`; and all groups that were rolled out."""
        admitted: list[Held] = []
        seen: list[Group] = []
        self._versions = []
        for _ in range(self.stage.gate.max_rounds):
            missing = self._groups_of_step - len(admitted)
            if missing <= 0:
                break
            fresh, version = self._round(missing, sum(len(held.own) for held in admitted), step)
            groups = [held.group for held in fresh]
            seen += groups
            admitted += [held for held in fresh if self.gate.admit(held.group)]
            self._versions += [version] * (len(admitted) - len(self._versions))
            self.sampler.observe(groups)
            self.gate.observe(groups)
        return admitted, seen

    def _round(self, missing: int, rows: int, step: int) -> tuple[list[Held], int]:
        """Scored groups of the round in flight, or of a fresh one under the present weights; and their version.

        `rows`: completions of this rank that are admitted already.
        """
        if self._in_flight is not None:
            flight, self._in_flight = self._in_flight, None
            began = time.perf_counter()
            written = flight.take()
            self._waited = time.perf_counter() - began
            return self._judged(flight.pieces, written), flight.version
        self._publish(step)
        pieces, seeds = self._draw(missing, rows)
        return self._judged(pieces, self._complete(pieces, seeds)), step

    def _launch(self, step: int) -> None:
        """Ask for the next rollout's first round under the present weights, and do not wait for it."""
        remote = self.context.remote
        assert isinstance(remote, VLLMRollout), (
            "rollout.staleness needs an engine that works beside this process"
        )
        self._publish(step)
        pieces, seeds = self._draw(self._groups_of_step, 0)
        prompts = [piece.prompt for piece in pieces]
        started = remote.start(prompts, self._size, self._params(), self.context.renderer, seeds.tolist())
        self._in_flight = InFlight(pieces, step, started.get)

    def _publish(self, step: int) -> None:
        """Give an engine outside this process the weights from before `step`, which are their version."""
        remote = self.context.remote
        if remote is not None and remote.version != step:
            remote.publish(self.context.model, step)
            self.context.backend.barrier()

    def _draw(self, count: int, rows: int) -> tuple[list[Piece], torch.Tensor]:
        """The sampler's next `count` prompts: this rank's pieces of their groups that can be read, and their seeds.

        `rows`: completions that this rank has already.
        """
        drawn = self.sampler.next(count, step=self._rollouts)
        mine = self._dealt(drawn, self.context.backend.gather(self._own_rows - rows))
        chosen = {number: drawn[number] for number, _ in mine}
        self.context.feed.ahead(chosen.values, self.stage)
        read = {number: self._prompt(sample) for number, sample in chosen.items()}
        pieces = [
            Piece(number, piece * self._size, prompt)
            for number, piece in mine
            if (prompt := read[number]) is not None
        ]
        self.dealer.observe(((piece.prompt.sample,), len(piece.prompt.rendered)) for piece in pieces)
        return pieces, self._seeds(pieces, count)

    def _dealt(self, samples: Sequence[Sample], rooms: Sequence[int]) -> list[tuple[int, int]]:
        """(number, piece) of this rank's part of samples that all ranks drew; `rooms`: rows that each rank lacks."""
        each = self.stage.num_generations // self._size
        return self.dealer.pieces(samples, [room // self._size for room in rooms], each)

    def _next_samples(self, step: int) -> list[Sample]:
        """This rank's part of what the sampler draws next, at the beginning of rollout `step`."""
        drawn = peek(self.sampler, self._groups_of_step, step)
        mine = self._dealt(drawn, [self._own_rows] * self.context.backend.world_size)
        return [drawn[number] for number in dict.fromkeys(number for number, _ in mine)]

    def _seeds(self, pieces: Sequence[Piece], groups: int) -> torch.Tensor:
        """int64, of each piece's completions [pieces, size]; for vLLM one for each piece, from which it counts on.

        The first rank draws them for all groups of a round: what is written does not depend on who writes it.
        """
        backend, count = self.context.backend, self.stage.num_generations
        numbers = torch.tensor([piece.group for piece in pieces], dtype=torch.long)
        first = torch.tensor([piece.first for piece in pieces], dtype=torch.long)
        if self.context.remote is not None:
            told = backend.gather(draw_seeds(groups) if backend.is_main else None)[0]
            return torch.tensor(told)[numbers] + first
        told = backend.gather(row_seeds(groups * count) if backend.is_main else None)[0]
        columns = first.unsqueeze(-1) + torch.arange(self._size)
        return told.view(groups, count)[numbers.unsqueeze(-1), columns]

    def _prompt(self, sample: Sample) -> Prompt | None:
        """A sample rendered, with its media where they are sent; None when it went to quarantine."""
        feed = self.context.feed
        rendered = feed.prompt(sample, self.stage)
        media = None if rendered is None else [] if self.context.remote is None else feed.media(sample)
        return None if rendered is None or media is None else Prompt(sample, media, rendered)

    def _named(self) -> Callable[[str, str], Prompt | None]:
        """(source, id) -> the prompt."""
        pool = {(s.source, s.id): s for name in self.stage.data for s in self.context.sources[name]}
        return lambda source, name: self._prompt(pool[source, name])

    def _params(self) -> SamplingParams:
        stage, rollout = self.stage, self.context.recipe.rollout
        return SamplingParams(
            stage.max_completion_length,
            stage.temperature,
            stage.top_p,
            stage.top_k,
            stage.min_p,
            stop=tuple(stage.stop_strings),
            max_rows=rollout.max_rows,
            kv_bytes=rollout.kv_cache_memory_bytes,
        )

    def _complete(self, pieces: Sequence[Piece], seeds: torch.Tensor) -> list[list[Trajectory]]:
        """The completions of every piece, from the engine of the recipe."""
        context, count, params = self.context, self._size, self._params()
        prompts = [piece.prompt for piece in pieces]
        if context.remote is not None:
            return context.remote.complete(prompts, count, params, context.renderer, seeds.tolist())
        rendered = [prompt.rendered for prompt in prompts]
        if context.backend.apart():
            assert self.trainer is not None
            return complete_in_step(self.trainer, context.renderer, rendered, count, params, seeds)
        if not prompts:
            return []
        complete = engine(context.model, context.recipe.shared_prefix)
        return complete(context.model, context.family, context.renderer, rendered, count, params, seeds)

    def _judged(self, pieces: Sequence[Piece], written: Sequence[Sequence[Trajectory]]) -> list[Held]:
        """All ranks' groups of a round, scored whole."""
        backend = self.context.backend
        whole = to_score(backend, pieces, written, self.stage.num_generations)
        scored = [(number, self._score(group)) for number, group in whole]
        return known_to_all(backend, scored, pieces, written)

    def _staleness(self, step: int) -> dict[str, float]:
        """How many optimizer steps the weights that wrote the groups lie behind those that train on them."""
        if self.context.remote is None or not self._versions:
            return {}
        behind = [step - version for version in self._versions]
        newest = float(max(self._versions))
        return {
            "rollout/version": newest,
            "rollout/staleness": fmean(behind),
            "rollout/staleness_max": float(max(behind)),
        }

    def _score(self, group: Group) -> Group:
        """Accuracy and rewards of a group; what a user's reward did wrong is named in the log."""
        stage = self.stage
        scored, problems = score_group(
            group, stage.reward_funcs, stage.reward_weights, stage.reward_args, self.user_functions
        )
        for problem in problems:
            log.warning("%s", problem)
        self._bad_rewards += len(problems)
        return scored

    def _with_fixed_logprobs(self, rows: list[TrainingSample]) -> list[TrainingSample]:
        """Old log-probabilities when the rollouts are used more than once, and the reference's when KL is on."""
        assert self.trainer is not None
        objective = self._objective()
        if self.stage.num_iterations > 1:
            old = fixed_logprobs(self.context.model, self.trainer, rows, objective)
            rows = [replace(row, old_logprobs=line) for row, line in zip(rows, old, strict=True)]
        if self.reference is not None:
            with self.context.encoding(self.reference):
                ref = fixed_logprobs(self.reference, self.trainer, rows, objective)
            rows = [replace(row, ref_logprobs=line) for row, line in zip(rows, ref, strict=True)]
        return rows

    def _objective(self) -> Objective:
        stage = self.stage
        weights = None
        if stage.token_weight.name == "tw_grpo":
            weights = tw_grpo(stage.token_weight.alpha_max, stage.token_weight.form)
        return Objective(
            banned=tuple(sorted(self.context.renderer.placeholder_ids)),
            temperature=stage.temperature,
            epsilon=stage.epsilon,
            epsilon_high=stage.epsilon if stage.epsilon_high is None else stage.epsilon_high,
            token_weights=weights,
            correction=correction_of(self.context.recipe),
        )
