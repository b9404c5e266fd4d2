"""One prompt as a chat request with its media inside, and the answer as trajectories, checked token by token."""

from __future__ import annotations

import base64
import io
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmreason.render import Renderer
from mmreason.render.media import media_arguments
from mmreason.rollout.generate import trajectory
from mmreason.rollout.sampling import SamplingParams
from mmreason.rollout.stopping import StopStrings
from mmreason.rollout.vllm_client import Refused, Unreachable
from mmreason.types import DecodedMedium, Rendered, Sample, Trajectory

BAN = -100.0  # logit bias of a token that must not be sampled: e^-100 of its chance is left
LOCAL = "use rollout.engine: local for such rows"
# Of Qwen2.5-VL it takes 2/24 s for each pair of frames at any rate; and the text behind a film goes on behind its last
# moment, where transformers 5.23 goes on behind its longer side. Ids are equal, log-probabilities 0.3 apart.
VIDEO = (
    "got a video, and vLLM 0.26 places its frames and the text behind them elsewhere than transformers does"
)


@dataclass(frozen=True)
class Prompt:
    """What a completion is asked for: a row, its decoded media, and how the trainer renders it.

    Example: `Prompt(sample, feed.media(sample), feed.prompt(sample))`.
    """

    sample: Sample
    media: Sequence[DecodedMedium]
    rendered: Rendered


def draw_seeds(count: int) -> list[int]:
    """One for each prompt, of torch's global generator; vLLM draws a prompt's completion i by the seed + i."""
    return torch.randint(0, 2**31 - 1, (count,)).tolist()


def request(
    prompt: Prompt, renderer: Renderer, count: int, params: SamplingParams, seed: int, model: str
) -> dict[str, Any]:
    """The body of /v1/chat/completions: media once, as data URIs, for `count` completions.

    Raises:
        Refused: a medium that vLLM would see in another way than the trainer does.
    """
    turns = renderer.conversation(prompt.sample, prompt.media)
    messages = [
        {"role": turn["role"], "content": [_part(part, prompt, renderer) for part in turn["content"]]}
        for turn in turns
    ]
    return {
        "model": model,
        "messages": messages,
        "n": count,
        "seed": seed,
        "max_tokens": params.max_new_tokens,
        "temperature": 0.0 if params.greedy else params.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logprobs": True,
        "top_logprobs": 0,
        "return_token_ids": True,
        "skip_special_tokens": False,
        "stop_token_ids": list(renderer.eos_ids),
        "logit_bias": {str(token): BAN for token in renderer.placeholder_ids},
        **({"stop": list(params.stop), "include_stop_str_in_output": True} if params.stop else {}),
    }


def _part(part: dict[str, Any], prompt: Prompt, renderer: Renderer) -> dict[str, Any]:
    """A typed part as OpenAI's API writes it."""
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    medium = prompt.media[part["medium"]]
    if part["type"] == "image":
        # as the processor gets it: of the size that it keeps, without loss
        picture = media_arguments(renderer.processor, [medium])["images"][0]
        return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_png(picture)}"}}
    if part["type"] == "audio":
        assert medium.waveform is not None and medium.sampling_rate is not None
        sound = base64.b64encode(wav(medium.waveform, medium.sampling_rate)).decode()
        return {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{sound}"}}
    raise Refused(f"row {prompt.sample.id}: {VIDEO}; allowed are text, pictures and sound; {LOCAL}")


def wav(waveform: np.ndarray, rate: int) -> bytes:
    """A WAV file of float32 samples, mono: what is read of it is what the trainer heard, to the bit.

    Example: 16,000 samples at 16 kHz make 64,044 bytes, the header 44 of them.
    """
    samples = np.ascontiguousarray(waveform, dtype="<f4").tobytes()
    width = 4
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, 1, rate, rate * width, width, 8 * width)  # 3: IEEE float
    inside = b"WAVE" + form + struct.pack("<4sI", b"data", len(samples)) + samples
    return struct.pack("<4sI", b"RIFF", len(inside)) + inside


def _png(picture: Image.Image) -> str:
    out = io.BytesIO()
    picture.save(out, format="PNG", compress_level=1)
    return base64.b64encode(out.getvalue()).decode()


def trajectories(
    prompt: Prompt, answer: Any, renderer: Renderer, count: int, params: SamplingParams
) -> list[Trajectory]:
    """The completions of one answer, cut as every engine here cuts them.

    Raises:
        Unreachable: the server gave up the request half-way.
        Refused: the answer is none, or was made from another prompt than the trainer's.
    """
    where = f"row {prompt.sample.id}"
    try:
        seen, choices = answer["prompt_token_ids"], answer["choices"]
        drawn = [_drawn(choice) for choice in choices]
    except (KeyError, TypeError, ValueError) as error:
        raise Refused(
            f"{where}: the server's answer lacks {error} of a vLLM server's: got {str(answer)[:200]!r}; start it with "
            "`mmreason serve MODEL`"
        ) from error
    if any(finish == "abort" for _, _, finish in drawn):
        raise Unreachable(f"{where}: the server aborted the request")
    _same_prompt(prompt, seen, renderer)
    if len(drawn) != count:
        raise Refused(f"{where}: the server gave {len(drawn)} completions; asked for were {count}")
    stop = StopStrings(params.stop, renderer.decode) if params.stop else None
    return [_trajectory(where, ids, logprobs, renderer, stop) for ids, logprobs, _ in drawn]


def _drawn(choice: Any) -> tuple[list[int], list[float], str]:
    """A choice's tokens, their log-probabilities, and why it ended."""
    ids = [int(token) for token in choice["token_ids"]]
    logprobs = [float(entry["logprob"]) for entry in choice["logprobs"]["content"]]
    if len(ids) != len(logprobs):
        raise ValueError(f"a log-probability for each of {len(ids)} tokens ({len(logprobs)} are there)")
    return ids, logprobs, str(choice["finish_reason"])


def _trajectory(
    where: str, ids: list[int], logprobs: list[float], renderer: Renderer, stop: StopStrings | None
) -> Trajectory:
    banned = sorted(set(ids) & set(renderer.placeholder_ids))
    if banned:
        raise Refused(
            f"{where}: the server sampled the media placeholders {banned} in spite of their ban; is it a vLLM server "
            "of version 0.26 without logits processors of its own?"
        )
    if not ids or not all(math.isfinite(value) for value in logprobs):
        raise Refused(
            f"{where}: the server's completion has no tokens, or log-probabilities that are no numbers"
        )
    return trajectory(torch.tensor(ids), renderer, stop, torch.tensor(logprobs, dtype=torch.float32))


def _same_prompt(prompt: Prompt, seen: Any, renderer: Renderer) -> None:
    """Raises Refused where the server's prompt is not the trainer's, token by token."""
    ours = prompt.rendered.ids.tolist()
    if seen == ours:
        return
    theirs = seen if isinstance(seen, list) else []
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
    at = min(len(ours), len(theirs)) if at is None else at
    raise Refused(
        f"row {prompt.sample.id}: the server's prompt has {len(theirs)} tokens and the trainer's {len(ours)}; from "
        f"token {at} on it is {_shown(theirs, at, renderer)} and should be {_shown(ours, at, renderer)}; serve the "
        "checkpoint that the run starts from (tokenizer, chat template and picture sizes must be the same; "
        "model.chat_template, min_pixels and max_pixels are given to `mmreason serve` too)"
    )


def _shown(ids: list[int], at: int, renderer: Renderer) -> str:
    some = ids[at : at + 6]
    return f"{some} {renderer.decode([token for token in some if token >= 0])!r}"
