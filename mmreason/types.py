"""The values that travel between the rooms: one dataclass per boundary, each with a worked example.

Shapes: T tokens of one rendered row, P prompt tokens, C completion tokens, B rows of a micro-batch, L its padded
length. Every tensor here lives on the CPU until `train.step` moves a micro-batch to its device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

MediaKind = Literal["image", "video", "audio"]
PartType = Literal["text", "image", "video", "audio"]
RoleName = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length"]
PROBLEM_TYPES = ("single_choice", "multi_choice", "numeric", "text")
ROLE_CODES: dict[str, int] = {"system": 0, "user": 1, "assistant": 2, "tool": 3}


@dataclass(frozen=True)
class MediumRef:
    """Where one medium lives: a path inside the data root, a member of a zip file, or bytes held by the row.

    Example: `MediumRef("image", "images-000.zip#000012.png", root="/data/world")`.
    """

    kind: MediaKind
    path: str  # relative to root; "archive.zip#member" names a member of an archive; "" when `content` is set
    root: str = "."
    content: bytes | None = None


@dataclass(frozen=True)
class DecodedMedium:
    """A decoded medium, ready for a processor.

    Example: `DecodedMedium("image", "a.png", image=Image.new("RGB", (64, 64)))`.
    """

    kind: MediaKind
    name: str
    image: Image.Image | None = None
    frames: np.ndarray | None = None  # uint8 [F, H, W, 3]
    timestamps: np.ndarray | None = None  # float64 [F], seconds
    frame_indices: np.ndarray | None = None  # int64 [F], which frames of the file they are
    video_fps: float | None = None  # of the file
    total_frames: int | None = None  # of the file
    waveform: np.ndarray | None = None  # float32 [S], mono, -1..1; of a video on the same clock
    sampling_rate: int | None = None  # Hz
    min_pixels: int | None = (
        None  # the recipe's bounds for processors of free picture size; None: the processor's own
    )
    max_pixels: int | None = None

    @property
    def bytes(self) -> int:
        """Bytes of its pixels and samples."""
        picture = (
            0 if self.image is None else self.image.width * self.image.height * len(self.image.getbands())
        )
        return picture + sum(x.nbytes for x in (self.frames, self.waveform) if x is not None)


@dataclass(frozen=True)
class Part:
    """One typed content part of a message; media parts point into `Sample.media` in order of appearance.

    Example: `Part("text", text="How many?")`, `Part("image", medium=0)`.
    """

    type: PartType
    text: str = ""
    medium: int = -1


@dataclass(frozen=True)
class Message:
    """One chat turn. Example: `Message("user", (Part("image", medium=0), Part("text", text="How many?")))`."""

    role: RoleName
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Sample:
    """One question with its media and its truth; the same for every modality.

    `messages` hold the prompt; an assistant turn is present only when the row itself gave one (plain SFT data).
    With `rationale` and `solution` given, the SFT target is built from them (`data.transforms`).

    Example: `Sample("rows:3", "rows", (Message("user", (Part("image", medium=0), Part("text", text="How many?"))),),
    (MediumRef("image", "3.png"),), solution="2", problem_type="numeric")`.
    """

    id: str
    source: str
    messages: tuple[Message, ...]
    media: tuple[MediumRef, ...] = ()
    solution: str | None = None  # letters or option words comma-joined for several answers
    problem_type: str = "text"  # one of PROBLEM_TYPES
    options: tuple[str, ...] = ()  # option texts without letters
    rationale: Mapping[str, str] = field(default_factory=dict)  # style -> body of the think block
    evidence: tuple[
        Mapping[str, Any], ...
    ] = ()  # {"box": [x0, y0, x1, y1], "label": ...}, {"span": [start, end]}
    difficulty: float | None = None  # 0 easy .. 1 hard
    columns: Mapping[str, Any] = field(default_factory=dict)  # every other column, handed to rewards

    @property
    def modality(self) -> str:
        """`text`, `image`, `video`, `audio`, or `av` (video with its sound)."""
        kinds = {m.kind for m in self.media}
        if not kinds:
            return "text"
        if kinds >= {"video", "audio"} or self.columns.get("modality") == "av":
            return "av"
        return "video" if "video" in kinds else "audio" if "audio" in kinds else "image"


@dataclass(frozen=True)
class Rendered:
    """Token ids and the masks born with them, plus the processor's tensors of the row's media.

    `media` maps a model argument (`pixel_values`, `image_grid_thw` ...) to a tensor whose rows (dim 0) concatenate
    over samples. `token_types` is transformers' `mm_token_type_ids` (0 text, 1 image, 2 video, 3 audio).

    Example: ids [5, 7, 9, 2], roles [1, 1, 2, 2], sampled [0, 0, 1, 1] is a two-token prompt with a one-token
    answer and its end-of-turn token.
    """

    sample_id: str
    ids: torch.Tensor  # int64 [T]
    roles: torch.Tensor  # int8 [T], ROLE_CODES
    sampled: torch.Tensor  # bool [T]; True where the policy writes (assistant text and its end of turn)
    token_types: torch.Tensor  # int64 [T]
    media: Mapping[str, torch.Tensor] = field(default_factory=dict)
    segments: torch.Tensor | None = (
        None  # int64 [T]; 0 a shared beginning, 1, 2 ... what goes on from it side by side; None: one run
    )

    def __len__(self) -> int:
        return int(self.ids.numel())


@dataclass(frozen=True)
class Trajectory:
    """One completion of one prompt, with what every reward said about it.

    `accuracy` is the verifier's verdict (0..1); `rewards` holds every shaping term by name; `None` is
    "does not apply", never 0.

    Example: `Trajectory(ids=torch.tensor([8, 2]), sampled=torch.tensor([True, True]), text="2", finish="stop",
    accuracy=1.0, rewards={"exact": 1.0, "format": 0.0}, reward=1.0)`.
    """

    ids: torch.Tensor  # int64 [C], the end-of-turn token included when it was written
    sampled: torch.Tensor  # bool [C]; False where text was injected
    text: str  # decoded without the end-of-turn token
    finish: FinishReason
    logprobs: torch.Tensor | None = None  # float32 [C], of the sampling policy (after ban and temperature)
    accuracy: float | None = None
    rewards: Mapping[str, float | None] = field(default_factory=dict)
    reward: float | None = None  # weighted sum of `rewards`; None when every term is None

    def __len__(self) -> int:
        return int(self.ids.numel())


@dataclass(frozen=True)
class Group:
    """G trajectories of one prompt. Accuracy is exposed apart from the shaped reward.

    Example: a group with accuracies (1, 0, None) has `accuracy == 0.5`.
    """

    sample: Sample
    prompt: Rendered
    trajectories: tuple[Trajectory, ...]

    @property
    def accuracy(self) -> float | None:
        """Mean accuracy over the trajectories that could be verified; None when none could."""
        known = [t.accuracy for t in self.trajectories if t.accuracy is not None]
        return sum(known) / len(known) if known else None


@dataclass(frozen=True)
class TrainingSample:
    """One row as the step sees it: ids and per-token streams; no field says which algorithm made them.

    The step adds, over tokens t with `aggregation[t] > 0`,
    `aggregation[t] * (w[t] * policy_term(ratio[t], rl[t]) + kl[t] * k3[t] + ce[t] * nll[t])`, with w the method's
    token weights (1 without any), and divides the global sum by the global sum of `count`. Streams are aligned with
    `ids`: entry t speaks of predicting `ids[t]`.

    Example (SFT, ids [5, 7, 9, 2], answer [9, 2]): ce = aggregation = [0, 0, 1, 1], rl = kl = 0, count = 2.
    """

    rendered: Rendered
    aggregation: torch.Tensor  # float32 [T], 0 where nothing is learned
    count: float  # this row's share of the global denominator
    ce: torch.Tensor  # float32 [T]
    rl: torch.Tensor  # float32 [T]; advantage x prompt weight (token weights multiply it in the step)
    kl: torch.Tensor  # float32 [T]; beta
    old_logprobs: torch.Tensor | None = None  # float32 [T]; None: ratio 1 with gradient (on-policy)
    ref_logprobs: torch.Tensor | None = None  # float32 [T]; needed where kl > 0
    group: int = -1  # rows of one group share it; -1: no group
    # float32 [T]; what another engine sampled with; None: the trainer's own model did
    sampling_logprobs: torch.Tensor | None = None
    beside: bool = False  # another rank learns it: here its group's token weights are compared with it

    def __len__(self) -> int:
        return len(self.rendered)


@dataclass(frozen=True)
class MicroBatch:
    """Rows padded on the right to one length, with their media concatenated in row order.

    Example: two rows of 4 and 6 tokens give ids [2, 6], attention_mask [[1,1,1,1,0,0],[1,1,1,1,1,1]].
    """

    ids: torch.Tensor  # int64 [B, L]
    attention_mask: torch.Tensor  # int64 [B, L]
    token_types: torch.Tensor  # int64 [B, L]
    media: Mapping[str, torch.Tensor]
    aggregation: torch.Tensor  # float32 [B, L]
    ce: torch.Tensor  # float32 [B, L]
    rl: torch.Tensor  # float32 [B, L]
    kl: torch.Tensor  # float32 [B, L]
    old_logprobs: torch.Tensor | None  # float32 [B, L]
    ref_logprobs: torch.Tensor | None  # float32 [B, L]
    groups: torch.Tensor  # int64 [B]
    count: float
    segments: torch.Tensor | None = (
        None  # int64 [B, L] as in Rendered, -1 where padded; None: every row is one run
    )
    sampling_logprobs: torch.Tensor | None = None  # float32 [B, L]
    beside: torch.Tensor | None = None  # bool [B]; None: every row is learned here
