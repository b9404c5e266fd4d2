"""Curriculum GRPO: sampler -> rollouts -> rewards -> gate and refill -> advantages -> per-token streams.

Group-relative policy optimisation (arXiv 2402.03300) with the switches of DAPO (2503.14476), Dr. GRPO (2503.20783)
and TW-GRPO (2505.24718). The step that trains on the streams is the same as SFT's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from mmreason.curriculum import make_gate, make_sampler, peek
from mmreason.objective import advantages, grpo_samples, tw_grpo
from mmreason.rewards import reward_labels, score_group, user_rewards
from mmreason.rollout.engine import engine
from mmreason.rollout.sampling import SamplingParams
from mmreason.rollout.vllm_requests import Prompt
from mmreason.rollout.vllm_rollout import VLLMRollout
from mmreason.schema import GRPOStage
from mmreason.train.completions import add_token_weights, group_metrics, records, write_completions
from mmreason.train.context import Batch, Context
from mmreason.train.distributed import shard
from mmreason.train.remote import correction_of
from mmreason.train.step import Objective, Trainer, fixed_logprobs, shown_weights
from mmreason.types import Group, Rendered, Sample, TrainingSample

log = logging.getLogger(__name__)
WEIGHED = 12  # rollouts of a stage, evenly spaced, whose logged completions tell each token's weight


class GRPO:
    """The `grpo` method. State: sampler, gate, and the rollouts that are still in use."""

    def __init__(self, context: Context, stage: GRPOStage, steps: int, reference: Callable[[], Any]) -> None:
        self.context = context
        self.stage = stage
        pool = [sample for name in stage.data for sample in context.sources[name]]
        rollouts = -(-steps // stage.num_iterations)
        self.sampler = make_sampler(stage.sampler, pool, rollouts, context.recipe.seed)
        self._weighed = {round(i * (rollouts - 1) / (WEIGHED - 1)) for i in range(WEIGHED)}
        self.gate = make_gate(stage.gate)
        self.user_functions = user_rewards(stage.reward_funcs)
        self.labels = reward_labels(stage.reward_funcs)
        self.reference = reference() if stage.beta > 0 else None
        self.trainer: Trainer | None = None  # set by the run once the optimizer exists
        self._rows: list[TrainingSample] = []
        self._uses_left = 0
        self._metrics: dict[str, float] = {}
        self._rollouts = 0
        self._bad_rewards = 0

    # --- the method's contract

    def collect(self, progress: float, step: int) -> Batch:
        """Fresh rollouts, or the present ones again while `num_iterations` lasts."""
        if self._uses_left == 0:
            with self.context.backend.whole():
                self._rows, self._metrics = self._rollout(step)
            self._uses_left = self.stage.num_iterations
        self._uses_left -= 1
        return Batch(self._rows, self._objective(), dict(self._metrics))

    def buffered(self) -> list[TrainingSample]:
        """The rollouts of the present buffer while a later step still needs them."""
        return self._rows if self._uses_left else []

    def state_dict(self) -> dict[str, Any]:
        return {
            "sampler": self.sampler.state_dict(),
            "gate": self.gate.state_dict(),
            "uses_left": self._uses_left,
            "metrics": self._metrics,
            "rollouts": self._rollouts,
        }

    def load_state_dict(self, state: dict[str, Any], rows: list[TrainingSample]) -> None:
        self.sampler.load_state_dict(state["sampler"])
        self.gate.load_state_dict(state["gate"])
        self._uses_left, self._metrics, self._rows = state["uses_left"], state["metrics"], rows
        self._rollouts = state["rollouts"]

    # --- one batch of rollouts

    def _rollout(self, step: int) -> tuple[list[TrainingSample], dict[str, float]]:
        stage, backend = self.stage, self.context.backend
        self._bad_rewards = 0
        if self.context.remote is not None:
            self.context.remote.publish(self.context.model, step)
            backend.barrier()
        groups, seen = self._groups()
        weighed = self._rollouts in self._weighed
        self._rollouts += 1
        coming = self._per_rank * backend.world_size
        self.context.feed.ahead(lambda: shard(peek(self.sampler, coming, self._rollouts), backend), stage)
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
            **({} if self.context.remote is None else self.context.remote.take_metrics()),
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

    def _groups(self) -> tuple[list[Group], list[Group]]:
        """Groups that the gate admits, refilled for at most `max_rounds`; and all groups that were rolled out."""
        stage, backend, per_rank = self.stage, self.context.backend, self._per_rank
        admitted: list[Group] = []
        seen: list[Group] = []
        for _ in range(stage.gate.max_rounds):
            missing = backend.max(per_rank - len(admitted))
            if missing <= 0:
                break
            samples = shard(self.sampler.next(missing * backend.world_size, step=self._rollouts), backend)
            fresh = self._complete(samples)
            seen += fresh
            admitted += [group for group in fresh if self.gate.admit(group)]
            bare = [replace(g, prompt=replace(g.prompt, media={})) for g in fresh]
            everyone = [g for part in backend.gather(bare) for g in part]
            self.sampler.observe(everyone)
            self.gate.observe(everyone)
        return admitted[:per_rank], seen

    def _complete(self, samples: Sequence[Sample]) -> list[Group]:
        """Roll out and score one group for every readable sample."""
        context, stage = self.context, self.stage
        context.feed.ahead(lambda: samples, stage)
        pairs: list[tuple[Sample, Rendered]] = []
        for sample in samples:
            prompt = context.feed.prompt(sample, stage)
            if prompt is not None:
                pairs.append((sample, prompt))
        if not pairs:
            return []
        params = SamplingParams(
            stage.max_completion_length,
            stage.temperature,
            stage.top_p,
            stage.top_k,
            stage.min_p,
            stop=tuple(stage.stop_strings),
            max_rows=context.recipe.rollout.max_rows,
            kv_bytes=context.recipe.rollout.kv_cache_memory_bytes,
        )
        if context.remote is not None:
            return self._complete_remotely(context.remote, pairs, params)
        complete = engine(context.model, context.recipe.shared_prefix)
        completed = complete(
            context.model,
            context.family,
            context.renderer,
            [prompt for _, prompt in pairs],
            stage.num_generations,
            params,
        )
        return [
            self._score(Group(sample, prompt, tuple(trajectories)))
            for (sample, prompt), trajectories in zip(pairs, completed, strict=True)
        ]

    def _complete_remotely(
        self, remote: VLLMRollout, pairs: Sequence[tuple[Sample, Rendered]], params: SamplingParams
    ) -> list[Group]:
        """As `_complete`, from the server, which gets the media themselves."""
        feed = self.context.feed
        prompts = [
            Prompt(sample, media, prompt)
            for sample, prompt in pairs
            if (media := feed.media(sample)) is not None
        ]
        completed = remote.complete(prompts, self.stage.num_generations, params, self.context.renderer)
        return [
            self._score(Group(prompt.sample, prompt.rendered, tuple(trajectories)))
            for prompt, trajectories in zip(prompts, completed, strict=True)
        ]

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
