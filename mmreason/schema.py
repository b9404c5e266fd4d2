"""The recipe's typed, closed schema. Keys carry the Hugging Face / TRL names; nothing here does any work.

`recipe.py` loads, overrides and dumps; this file only says what a recipe may hold and what its defaults are.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from mmreason.names import unresolved_names

StopString = Annotated[str, Field(min_length=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Style = Literal["structured", "free", "none"]
DEEPSPEED_PRESETS = ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")


def _deepspeed(value: Any) -> Any:
    if isinstance(value, str) and value not in DEEPSPEED_PRESETS and not value.endswith(".json"):
        raise ValueError(
            f"{value!r}; allowed are {', '.join(DEEPSPEED_PRESETS)}, or a file of settings (PATH.json)"
        )
    return value


SharedPrefix = Annotated[
    Literal["auto", "require", "off"],
    BeforeValidator(lambda value: "off" if value is False else value),  # YAML reads a bare off as false
]


class Closed(BaseModel):
    """A model whose unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


class TokenizerConfig(Closed):
    """A tokenizer to load (`path`) or a byte-level BPE to train on the recipe's own rows."""

    path: str | None = None
    vocab_size: PositiveInt = 512
    whole_words: bool = False  # a word is one token wherever it stands, and so is "a3"; decoding adds a space


class AssembleConfig(Closed):
    """A new multimodal model: encoders, projectors and a causal LLM, pretrained by path or fresh from a config.

    `vision`, each entry of `audio`, and `llm` are either `{pretrained: NAME_OR_PATH}` or a transformers config
    as a mapping with `model_type`. An entry of `audio` may also hold `audio_merge`: how many moments of that encoder
    become one token of the LLM.
    """

    vision: dict[str, Any] | None = None
    audio: list[dict[str, Any]] = []
    llm: dict[str, Any]
    tokenizer: TokenizerConfig = TokenizerConfig()
    image_size: PositiveInt = 64
    spatial_merge: PositiveInt = 1  # side of the square of patches that become one token of the LLM
    temporal_merge: PositiveInt = 1  # frames of a video that share the tokens of one
    temporal_context: NonNegativeInt = 0  # frames before each one that its projector sees too: what changed
    time_embedding: bool = True  # a learned signal of the moment is added to frames and sound
    projector_hidden: PositiveInt | None = (
        None  # width of the projector's hidden layer; default: the LLM's width
    )
    initializer_range: float = 0.05


class ModelConfig(Closed):
    """Which model, how it is loaded, what of it learns."""

    model_name_or_path: str | None = None
    assemble: AssembleConfig | None = None
    torch_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"] = "sdpa"
    trust_remote_code: bool = False
    chat_template: str | None = None  # a jinja file that replaces the tokenizer's own
    min_pixels: PositiveInt | None = None
    max_pixels: PositiveInt | None = None
    fps: float | None = Field(
        None, gt=0
    )  # frames kept of a second of video; None: the checkpoint's own, or 2
    max_frames: PositiveInt | None = None  # of one video; None: the checkpoint's own, or 16
    freeze_vision_tower: bool = False
    freeze_audio_tower: bool = False
    freeze_multi_modal_projector: bool = False
    freeze_llm: bool = False
    vision_learning_rate: float | None = None  # None: the stage's learning_rate
    audio_learning_rate: float | None = None
    projector_learning_rate: float | None = None
    use_peft: bool = False
    lora_r: PositiveInt = 16
    lora_alpha: PositiveInt = 32
    lora_dropout: Fraction = 0.0
    lora_target_modules: list[str] | Literal["all-linear"] = "all-linear"
    load_in_4bit: bool = False  # QLoRA: the LLM's linear layers in 4 bits (bitsandbytes)

    @model_validator(mode="after")
    def _one_origin(self) -> ModelConfig:
        if (self.model_name_or_path is None) == (self.assemble is None):
            raise ValueError("give exactly one of model.model_name_or_path and model.assemble")
        return self

    @model_validator(mode="after")
    def _adapted(self) -> ModelConfig:
        if self.load_in_4bit and not self.use_peft:
            raise ValueError("load_in_4bit holds weights that cannot learn; add use_peft: true, or remove it")
        if self.load_in_4bit and self.assemble is not None:
            raise ValueError(
                "load_in_4bit is for a pretrained model (model_name_or_path); an assembled one has parts to train whole"
            )
        return self


class SourceConfig(Closed):
    """Rows: a JSONL or parquet file (`path`), or a procedural world to be made (`world`)."""

    path: str | None = None
    media_root: str | None = None  # default: the folder of `path`; media outside it are refused
    limit: PositiveInt | None = None
    world: str | None = None
    count: PositiveInt = 1000
    seed: int = 0
    split: Literal["train", "test"] = "train"
    options: Literal["named", "lettered"] = "named"
    kinds: list[str] = []  # question kinds of the world; empty: all of them
    difficulty: tuple[Fraction, Fraction] = (0.0, 1.0)
    rationale: bool = True  # False: rows carry no rationale (GRPO prompts)
    recordings: str | None = None  # folder of the recordings of world `spoken`; None: $MMREASON_DATA
    speaker: Literal["known", "unseen"] = "known"  # of those recordings; unseen: only in the test split

    @model_validator(mode="after")
    def _one_origin(self) -> SourceConfig:
        if (self.path is None) == (self.world is None):
            raise ValueError("give exactly one of path and world")
        return self


class EvalConfig(Closed):
    """Held-out evaluation: greedy, before training and after every stage."""

    data: list[str] = []
    max_completion_length: PositiveInt = 256
    batch_size: PositiveInt = 64
    limit: PositiveInt | None = None  # rows, evenly over the sources
    stop_strings: list[StopString] = []  # text that ends an answer, beside the end token
    before: bool = True
    ablate: list[
        str
    ] = []  # asked again at the end, without a sense or with letters: `mmreason eval --ablate`
    ablate_limit: PositiveInt | None = None  # rows of `data` that are asked again, evenly over the sources


class RolloutConfig(Closed):
    """Which engine writes the completions of GRPO: `local`, this process; or `vllm`, a server (`mmreason serve`).

    Locally, rows above the bounds are decoded one batch after the other, with the same samples: each row has its own
    seed. After running out of memory the batches are made smaller by themselves."""

    engine: Literal["local", "vllm"] = "local"
    max_rows: PositiveInt = 256
    kv_cache_memory_bytes: PositiveInt | None = None  # of keys and values at once; None: what max_rows need
    # under ZeRO-3: gather all weights once for a rollout, or each module's as it runs; auto: all where they fit
    gather: Literal["auto", "whole", "modules"] = "auto"
    # of engine vllm:
    mode: Literal["server", "colocate"] = "server"  # colocate: in this very process
    base_url: str = Field("http://127.0.0.1:8000", pattern=r"^https?://[^/]+/?$")
    timeout: float = Field(240.0, gt=0)  # seconds for one prompt's completions
    max_wait: float = Field(300.0, ge=0)  # seconds without any answer after which the run stops
    max_concurrency: PositiveInt = 64  # prompts on the way at once
    weights_dir: str | None = None  # where both see the weights; None: in output_dir
    # what it sampled is weighted by exp(trainer's - server's log-probability), truncated or masked; none: measured only
    importance_sampling_mode: Literal[
        "none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"
    ] = "token_truncate"
    importance_sampling_clip_max: float | None = Field(2.0, gt=0)
    importance_sampling_clip_min: float | None = Field(None, ge=0)
    # 0: each step's completions come from its own weights. 1: the next rollout is written while this one is trained on
    staleness: Literal[0, 1] = 0

    @model_validator(mode="after")
    def _overlap(self) -> RolloutConfig:
        if self.mode == "colocate" and self.engine == "local":
            raise ValueError("mode=colocate is one of engine vllm; take engine: vllm, or remove it")
        if self.staleness and (self.engine == "local" or self.mode == "colocate"):
            what = "engine local" if self.engine == "local" else "mode colocate"
            raise ValueError(
                f"staleness=1 writes the next completions beside the training, and {what} is this very process; take "
                "engine: vllm with mode: server, or staleness: 0"
            )
        if self.staleness and self.importance_sampling_mode == "none":
            raise ValueError(
                "staleness=1 trains on what older weights wrote, which importance_sampling_mode none would leave as "
                "it is; take token_truncate (or another mode), or staleness: 0"
            )
        return self

    @model_validator(mode="after")
    def _bounds(self) -> RolloutConfig:
        low, high = self.importance_sampling_clip_min, self.importance_sampling_clip_max
        if low is not None and high is not None and low > high:
            raise ValueError(
                f"importance_sampling_clip_min={low:g} is above importance_sampling_clip_max={high:g}; exchange them"
            )
        return self


class SamplerConfig(Closed):
    """Which prompts come next: `uniform`, or `easy_to_hard` (a window that slides up the difficulty order)."""

    name: Literal["uniform", "easy_to_hard"] = "uniform"
    window: Fraction = 0.4  # share of the sorted pool that is open at a time
    steps: PositiveInt | None = None  # sampler steps to slide from easy to hard; None: the stage's max_steps


class GateConfig(Closed):
    """Which groups are trained on: `none`, or `balanced` (group accuracy in [low, high], refilled)."""

    name: Literal["none", "balanced"] = "none"
    low: Fraction = 0.25
    high: Fraction = 0.75
    max_rounds: PositiveInt = 10  # rollout rounds a step may use to fill its batch

    @model_validator(mode="after")
    def _ordered(self) -> GateConfig:
        if self.low > self.high:
            raise ValueError(f"low={self.low} is above high={self.high}; exchange them")
        return self


class TokenWeightConfig(Closed):
    """Per-token weights on the policy term: `none`, or `tw_grpo` (corrected or released form)."""

    name: Literal["none", "tw_grpo"] = "none"
    alpha_max: float = Field(1.7, ge=1.0)
    form: Literal["corrected", "released"] = "corrected"


class StageConfig(Closed):
    """What every stage has."""

    name: str
    data: list[str]
    init_from: str | None = (
        None  # an earlier stage whose end this one starts from; None: the main line's last
    )
    branch: bool = False  # a side branch for comparison: later stages and the final model do not follow it
    learning_rate: float = Field(1e-5, gt=0)
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_ratio: Fraction = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = Field(1.0, gt=0)
    optimizer: Literal["adamw", "muon", "sgd"] = "adamw"  # muon: of hidden matrices; AdamW has the rest
    muon_lr_scale: float = Field(1.0, gt=0)  # the matrices' rate over `learning_rate`
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    per_device_train_batch_size: PositiveInt = 8
    gradient_accumulation_steps: PositiveInt = 1
    max_tokens_per_micro_batch: PositiveInt = 8192
    max_steps: PositiveInt | None = None
    num_train_epochs: float | None = Field(None, gt=0)
    gradient_checkpointing: bool = False
    activation_offload: bool = False  # in place of that: activations wait in the CPU's memory
    max_prompt_length: PositiveInt = 4096
    save_steps: PositiveInt = 50
    logging_steps: PositiveInt = 1
    evaluate: bool = True
    freeze: list[Literal["vision", "audio", "projector", "llm"]] = []  # beside what `model` freezes

    def sources(self) -> list[str]:
        """Names of every source the stage reads."""
        return list(self.data)

    @model_validator(mode="after")
    def _length(self) -> StageConfig:
        if (
            self.max_steps is None
            and self.num_train_epochs is None
            and getattr(self, "time_of", None) is None
        ):
            self.num_train_epochs = 1.0
        return self

    @model_validator(mode="after")
    def _one_saving(self) -> StageConfig:
        if self.gradient_checkpointing and self.activation_offload:
            raise ValueError(
                "gradient_checkpointing computes activations again, and activation_offload keeps them in the CPU's "
                "memory; give one of the two"
            )
        return self


class SFTStage(StageConfig):
    """Supervised fine-tuning on assistant tokens."""

    type: Literal["sft"]
    rationale: Style = "structured"  # which rationale fills the think block; none: answer only
    thought_dropout: Fraction = 0.0  # TON: share of rows whose thought is emptied, drawn once per row
    replay: dict[str, Fraction] = {}  # source -> share of each batch's rows
    questions_per_row: PositiveInt = 1  # questions on the same media that share their prompt's beginning
    max_length: PositiveInt = 8192
    time_of: str | None = None  # train for the wall time that this earlier stage took (the rival)

    def sources(self) -> list[str]:
        """Names of every source the stage reads."""
        return [*self.data, *self.replay]

    @model_validator(mode="after")
    def _shares(self) -> SFTStage:
        if sum(self.replay.values()) >= 1.0:
            raise ValueError(f"replay: shares sum to {sum(self.replay.values()):g}; allowed is less than 1")
        if self.time_of is not None and self.max_steps is not None:
            raise ValueError("give one of max_steps and time_of; both say how long the stage is")
        return self


class PretaskStage(StageConfig):
    """Perception pretask of an assembled model: features learn the words of the dense truth in rows' `targets`."""

    type: Literal["pretask"]
    targets: list[str] = []  # names of the dense targets to learn; empty: all
    evaluate: bool = False


class GRPOStage(StageConfig):
    """Curriculum GRPO with verifiable rewards."""

    type: Literal["grpo"]
    learning_rate: float = Field(1e-6, gt=0)
    num_generations: int = Field(8, ge=2)
    max_completion_length: PositiveInt = 512
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    min_p: Fraction = 0.0
    stop_strings: list[StopString] = []  # text that ends a completion, beside the end token; it stays in it
    beta: float = Field(0.0, ge=0)
    epsilon: float = Field(0.2, ge=0)
    epsilon_high: float | None = None
    num_iterations: PositiveInt = 1
    loss_type: Literal["grpo", "dapo", "dr_grpo"] = "dapo"
    scale_rewards: Literal["group", "batch", "none"] = "group"
    mask_truncated_completions: bool = False
    reward_funcs: list[str] = ["exact", "format"]
    reward_weights: list[float] | None = None
    reward_args: dict[str, dict[str, Any]] = {}
    sampler: SamplerConfig = SamplerConfig()
    gate: GateConfig = GateConfig()
    token_weight: TokenWeightConfig = TokenWeightConfig()
    num_completions_to_log: PositiveInt = 8

    @model_validator(mode="after")
    def _weights_fit(self) -> GRPOStage:
        if self.reward_weights is not None and len(self.reward_weights) != len(self.reward_funcs):
            raise ValueError(
                f"reward_weights has {len(self.reward_weights)} entries for {len(self.reward_funcs)} reward_funcs; "
                "give one weight per reward"
            )
        return self


def undivided(stage: GRPOStage, processes: int) -> str | None:
    """Why the groups of a stage do not fill a step of all processes together; None when they do."""
    own = stage.per_device_train_batch_size * stage.gradient_accumulation_steps
    rows, group = own * processes, stage.num_generations
    if rows % group == 0:
        return None
    enough = math.lcm(own, group) // own
    return (
        f"num_generations={group} does not divide per_device_train_batch_size x gradient_accumulation_steps x processes"
        f" = {own} x {processes}; for these {rows} rows num_generations may be one of "
        f"{[g for g in range(2, rows + 1) if rows % g == 0]}, or the number of processes a multiple of {enough} "
        "(mmreason launch --nproc, mmreason validate --processes)"
    )


STAGES: dict[str, type[StageConfig]] = {"sft": SFTStage, "pretask": PretaskStage, "grpo": GRPOStage}
Stage = Annotated[SFTStage | PretaskStage | GRPOStage, Field(discriminator="type")]


class Recipe(Closed):
    """One run."""

    output_dir: str
    seed: int = 0
    model: ModelConfig
    data: dict[str, SourceConfig]
    stages: list[Stage] = Field(min_length=1)
    eval: EvalConfig = EvalConfig()
    rollout: RolloutConfig = RolloutConfig()
    system_prompt: str | None = None
    backend: Literal["auto", "plain", "ddp"] = "auto"
    ddp_timeout: float = Field(1800.0, gt=0)  # seconds that processes wait for the slowest of them
    # train by DeepSpeed: what it spreads over processes (zero0 ... zero3_offload), or a file of its settings
    deepspeed: Annotated[str, BeforeValidator(_deepspeed)] | None = None
    num_threads: PositiveInt | None = None
    bf16: bool = False
    # a prompt is computed once for all that goes on from it (completions; questions of a row), and training's rows lie
    # behind each other without padding; off: once for each, rows padded to one length
    shared_prefix: SharedPrefix = "auto"
    feature_cache_bytes: int = Field(
        2**30, ge=0
    )  # of what frozen encoders made, kept over steps; unused where off
    shared_prefix_check: bool = True  # a stage's first such training step is held against the plain one
    save_total_limit: PositiveInt = 2
    resume_from_checkpoint: bool = True
    report_to: list[Literal["none", "tensorboard", "wandb"]] = []
    dataloader_num_workers: NonNegativeInt = (
        0  # processes that decode the next steps' media; 0: the run's own
    )
    on_bad_media: Literal["quarantine", "stop"] = "quarantine"
    max_bad_fraction: Fraction = 0.1  # quarantined share of a source above which the run stops
    max_image_pixels: PositiveInt = 16_777_216  # refused from the header, before decoding
    max_video_pixels: PositiveInt = 134_217_728  # likewise: frames that are kept x width x height
    max_media_seconds: float = Field(600.0, gt=0)  # likewise: a longer video or sound
    # seconds that decoding one medium may take; a decoder that hangs is ended, in the run's own process left
    max_decode_seconds: float = Field(60.0, gt=0, le=86_400)
    plugins: list[str] = ["mmreason_encoders", "mmreason_tools"]

    @model_validator(mode="after")
    def _names_resolve(self) -> Recipe:
        problems = unresolved_names(self.model_dump())
        if problems:
            raise ValueError("; ".join(problems))
        return self
