"""Curriculum GRPO: sampler -> rollouts -> rewards -> gate and refill -> advantages -> per-token streams.

Group-relative policy optimisation (arXiv 2402.03300) with the switches of DAPO (2503.14476), Dr. GRPO (2503.20783)
and TW-GRPO (2505.24718). The step that trains on the streams is the same as SFT's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from mmreason.curriculum import make_gate, make_sampler, peek
from mmreason.objective import advantages, grpo_samples, tw_grpo
from mmreason.rewards import reward_labels, score_group, user_rewards
from mmreason.rollout.engine import engine
from mmreason.rollout.sampling import SamplingParams
from mmreason.rollout.vllm_requests import Prompt
from mmreason.rollout.vllm_rollout import VLLMRollout
from mmreason.schema import GRPOStage
from mmreason.train.apart import complete_in_step, gathering
from mmreason.train.completions import add_token_weights, group_metrics, records, write_completions
from mmreason.train.context import Batch, Context
from mmreason.train.deal import Dealer
from mmreason.train.in_flight import InFlight, parted, restored
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
        groups, seen = self._groups(step)
        told = {} if remote is None else {**remote.end_rollout(), "time/wait": self._waited}
        weighed = self._rollouts in self._weighed
        self._rollouts += 1
        if self.context.recipe.rollout.staleness and self._rollouts < self._of_stage:
            self._launch(step)
        coming, later = self._per_rank * backend.world_size, self._rollouts + (self._in_flight is not None)
        self.context.feed.ahead(lambda: self._dealt(peek(self.sampler, coming, later)), stage)
        rewards = [[t.reward for t in group.trajectories] for group in groups]
        per_group = advantages(self._over_ranks(rewards), stage.scale_rewards)[self._mine(groups)]
        rows: list[TrainingSample] = []
        for index, (group, values) in enumerate(zip(groups, per_group, strict=True)):
            rows += grpo_samples(
                group,
                values,
                loss_type=stage.loss_type,
                beta=stage.beta,
                max_completion_length=stage.max_completion_length,
                mask_truncated=stage.mask_truncated_completions,
                group_id=index,
                keep_sampling=self.context.remote is not None,
            )
        rows = self._with_fixed_logprobs(rows)
        lines = [line for part in backend.gather(records(seen, step, self.labels)) for line in part]
        mine = records(groups, step, self.labels, per_group)
        if weighed:
            self._weigh(mine, rows)
        kept = [line for part in backend.gather(mine) for line in part]
        if backend.is_main and kept:
            write_completions(self.context.run_dir, stage.name, step, kept[: stage.num_completions_to_log])
        curriculum = {**self.sampler.metrics(), **self.gate.metrics()}
        return rows, {
            **group_metrics(lines),
            **curriculum,
            "groups": len(kept) / stage.num_generations,
            "rewards/bad_values": backend.sum(self._bad_rewards),
            **told,
        }

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

    @property
    def _per_rank(self) -> int:
        """Groups that a rank learns from in a step."""
        stage = self.stage
        return stage.per_device_train_batch_size * stage.gradient_accumulation_steps // stage.num_generations

    def _groups(self, step: int) -> tuple[list[Group], list[Group]]:
        """Groups that the gate admits, refilled for at most `max_rounds`; and all groups that were rolled out."""
        stage, backend, per_rank = self.stage, self.context.backend, self._per_rank
        admitted: list[Group] = []
        versions: list[int] = []
        seen: list[Group] = []
        for _ in range(stage.gate.max_rounds):
            missing = backend.max(per_rank - len(admitted))
            if missing <= 0:
                break
            fresh, version = self._round(missing, step)
            seen += fresh
            admitted += [group for group in fresh if self.gate.admit(group)]
            versions += [version] * (len(admitted) - len(versions))
            bare = [replace(g, prompt=replace(g.prompt, media={})) for g in fresh]
            everyone = [g for part in backend.gather(bare) for g in part]
            self.sampler.observe(everyone)
            self.gate.observe(everyone)
        self._versions = [v for part in backend.gather(versions[:per_rank]) for v in part]
        return admitted[:per_rank], seen

    def _round(self, missing: int, step: int) -> tuple[list[Group], int]:
        """Scored groups of the round in flight, or of a fresh one under the present weights; and their version."""
        if self._in_flight is not None:
            flight, self._in_flight = self._in_flight, None
            began = time.perf_counter()
            completed = flight.take()
            self._waited = time.perf_counter() - began
            return self._scored(flight.prompts, completed), flight.version
        self._publish(step)
        prompts = self._draw(missing)
        return self._scored(prompts, self._complete(prompts)), step

    def _launch(self, step: int) -> None:
        """Ask for the next rollout's first round under the present weights, and do not wait for it."""
        remote = self.context.remote
        assert isinstance(remote, VLLMRollout), (
            "rollout.staleness needs an engine that works beside this process"
        )
        self._publish(step)
        prompts = self._draw(self._per_rank)
        count, params, renderer = self.stage.num_generations, self._params(), self.context.renderer
        self._in_flight = InFlight(prompts, step, remote.start(prompts, count, params, renderer).get)

    def _publish(self, step: int) -> None:
        """Give an engine outside this process the weights from before `step`, which are their version."""
        remote = self.context.remote
        if remote is not None and remote.version != step:
            remote.publish(self.context.model, step)
            self.context.backend.barrier()

    def _draw(self, each: int) -> list[Prompt]:
        """The sampler's next prompts, `each` on every rank; this rank's that can be read."""
        drawn = self.sampler.next(each * self.context.backend.world_size, step=self._rollouts)
        samples = self._dealt(drawn)
        self.context.feed.ahead(lambda: samples, self.stage)
        prompts = [prompt for sample in samples if (prompt := self._prompt(sample)) is not None]
        self.dealer.observe(((prompt.sample,), len(prompt.rendered)) for prompt in prompts)
        return prompts

    def _dealt(self, samples: Sequence[Sample]) -> list[Sample]:
        """This rank's part of samples that all ranks drew."""
        return [sample for (sample,) in self.dealer.mine([(sample,) for sample in samples])]

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

    def _complete(self, prompts: Sequence[Prompt]) -> list[list[Trajectory]]:
        """A group's completions for every prompt, from the engine of the recipe."""
        context, count, params = self.context, self.stage.num_generations, self._params()
        if context.remote is not None:
            return context.remote.complete(prompts, count, params, context.renderer)
        rendered = [prompt.rendered for prompt in prompts]
        if context.backend.apart():
            assert self.trainer is not None
            return complete_in_step(self.trainer, context.renderer, rendered, count, params)
        if not prompts:
            return []
        complete = engine(context.model, context.recipe.shared_prefix)
        return complete(context.model, context.family, context.renderer, rendered, count, params)

    def _scored(self, prompts: Sequence[Prompt], completed: Sequence[Sequence[Trajectory]]) -> list[Group]:
        return [
            self._score(Group(prompt.sample, prompt.rendered, tuple(trajectories)))
            for prompt, trajectories in zip(prompts, completed, strict=True)
        ]

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

    def _over_ranks(self, rewards: list[list[float | None]]) -> list[list[float | None]]:
        """Every rank's rewards, in rank order: batch scaling needs them all."""
        return [group for part in self.context.backend.gather(rewards) for group in part]

    def _mine(self, groups: Sequence[Group]) -> slice:
        """Where this rank's groups lie in the list of all ranks' groups."""
        sizes = self.context.backend.gather(len(groups))
        start = sum(sizes[: self.context.backend.rank])
        return slice(start, start + len(groups))

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
