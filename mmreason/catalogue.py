"""What `mmreason methods` lists: every method built, its slots, its paper, the recipe key that turns it on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """One line of the catalogue.

    Example: `METHODS["dapo"].key == "loss_type: dapo"`.
    """

    slots: tuple[str, ...]  # of the training step's slots
    paper: str  # arXiv number, or "" where there is none
    key: str  # as it stands in a stage of a recipe
    summary: str
    recipe: str  # a file under recipes/ that uses it; any recipe takes the key


METHODS: dict[str, Method] = {
    "sft": Method(("sft",), "", "type: sft", "Cross-entropy on the assistant's tokens only.", "debug.yaml"),
    "dense_word_alignment": Method(
        ("pretask",),
        "",
        "type: pretask",
        "Features of cells and moments learn the embeddings of the words that describe them, before any question.",
        "base.yaml",
    ),
    "side_by_side": Method(
        ("sft",),
        "",
        "questions_per_row: 4",
        "Questions on the same media share their prompt's beginning in one row, exactly as if each had its own.",
        "base.yaml",
    ),
    "muon": Method(
        ("optimizer",),
        "2502.16982",
        "optimizer: muon",
        "Hidden matrices step along their orthogonalized momentum; AdamW has embeddings, norms and biases.",
        "base.yaml",
    ),
    "thought_dropout": Method(
        ("rollout transform",),
        "2505.16854",
        "thought_dropout: 0.5",
        "TON: a share of the SFT thoughts is emptied, so that skipping thought becomes a legal answer.",
        "debug.yaml",
    ),
    "structured_rationale": Method(
        ("sft",),
        "2504.15900",
        "rationale: structured",
        "SARI: planning, caption, reasoning and summary inside the thought; `free` gives plain words.",
        "grpo.yaml",
    ),
    "grpo": Method(
        ("advantage", "aggregation"),
        "2402.03300",
        "loss_type: grpo",
        "Group z-scored advantages, clipped ratio, mean over rows of each row's token mean.",
        "grpo.yaml",
    ),
    "dapo": Method(
        ("aggregation",),
        "2503.14476",
        "loss_type: dapo",
        "The mean over all tokens of the global batch.",
        "dapo.yaml",
    ),
    "dr_grpo": Method(
        ("aggregation",),
        "2503.20783",
        "loss_type: dr_grpo",
        "A constant length divisor; use with scale_rewards: none for the paper's method.",
        "dr_grpo.yaml",
    ),
    "unscaled_advantage": Method(
        ("advantage",),
        "2503.20783",
        "scale_rewards: none",
        "Rewards are centred on the group and not divided.",
        "dr_grpo.yaml",
    ),
    "batch_scaled_advantage": Method(
        ("advantage",),
        "",
        "scale_rewards: batch",
        "Centred on the group, divided by the whole batch's deviation.",
        "soft_rewards.yaml",
    ),
    "clip_higher": Method(
        ("policy term",),
        "2503.14476",
        "epsilon_high: 0.28",
        "DAPO: more room for raising a token than for lowering it.",
        "dapo.yaml",
    ),
    "overlong_filtering": Method(
        ("token weight",),
        "2503.14476",
        "mask_truncated_completions: true",
        "DAPO: completions cut at the length limit teach nothing.",
        "dapo.yaml",
    ),
    "overlong_punishment": Method(
        ("shaping terms",),
        "2503.14476",
        "reward_funcs: [overlong]",
        "DAPO: a linear penalty before the length limit.",
        "dapo.yaml",
    ),
    "k3_kl": Method(
        ("regulariser",),
        "2402.03300",
        "beta: 0.04",
        "KL to the stage's starting model, k3 estimator in the loss.",
        "debug.yaml",
    ),
    "tw_grpo": Method(
        ("token weight",),
        "2505.24718",
        "token_weight: {name: tw_grpo}",
        "Tokens where the group's next-token distributions disagree weigh up to alpha_max.",
        "debug.yaml",
    ),
    "soft_multi_choice": Method(
        ("shaping terms",),
        "2505.24718",
        "reward_funcs: [subset]",
        "TW-GRPO: |S|/|Y| for a subset of the right answers, 0 with any wrong one.",
        "soft_rewards.yaml",
    ),
    "jaccard": Method(
        ("shaping terms",),
        "",
        "reward_funcs: [jaccard]",
        "Overlap of given and right answers.",
        "soft_rewards.yaml",
    ),
    "f1": Method(
        ("shaping terms",),
        "",
        "reward_funcs: [f1]",
        "Harmonic mean of precision and recall of answers.",
        "soft_rewards.yaml",
    ),
    "blend": Method(
        ("shaping terms",),
        "",
        "reward_funcs: [blend]",
        "Partial credit and the exact verdict, weighted: takes away what hedging earns.",
        "debug.yaml",
    ),
    "exact": Method(
        ("verifier",),
        "",
        "reward_funcs: [exact]",
        "The verifier: set, number or text equality.",
        "grpo.yaml",
    ),
    "numeric": Method(
        ("shaping terms",),
        "2503.21776",
        "reward_funcs: [numeric]",
        "Graded credit for the nearness of a number.",
        "soft_rewards.yaml",
    ),
    "format": Method(
        ("shaping terms",),
        "2505.16854",
        "reward_funcs: [format]",
        "1 for exactly one thought and one answer block.",
        "debug.yaml",
    ),
    "easy_to_hard": Method(
        ("prompt sampler",),
        "2504.15900",
        "sampler: {name: easy_to_hard}",
        "SARI: a window that slides from the easiest to the hardest prompts.",
        "debug.yaml",
    ),
    "balanced_gate": Method(
        ("group gate",),
        "2504.03380",
        "gate: {name: balanced}",
        "Only groups of middling accuracy are trained on; the batch is refilled.",
        "debug.yaml",
    ),
}
