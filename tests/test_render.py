"""Masks, roles and media of rendered rows: token by token for every chat template used, and mutants that must fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from qwen_vl_utils import process_vision_info
from transformers import AutoProcessor

from mmreason.render import Renderer, RenderError
from mmreason.types import ROLE_CODES, DecodedMedium, MediumRef, Message, Part, Rendered, Sample
from tests.tiny import KINDS, tiny_assembled, tiny_tokenizer

REPLY = "<think>\n\ntwo red</think><answer>2</answer>"
PAD = "<|image_pad|>"

# Qwen2-VL and Qwen2.5-VL: a system turn of their own when the conversation brings none; every role alike.
DEFAULT_SYSTEM = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nBe helpful.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' or 'image' in c %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif c['type'] == 'video' %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in c %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Qwen3-VL: a system turn only when one is given; a block for each role; tool results inside a user turn.
BLOCKS = (
    "{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\n' }}{%- for c in messages[0].content %}"
    "{{- c.text }}{%- endfor %}{{- '<|im_end|>\n' }}{%- endif %}{%- for m in messages %}"
    "{%- if m.role == 'user' %}{{- '<|im_start|>user\n' }}{%- for c in m.content %}{%- if c.type == 'image' %}"
    "{{- '<|vision_start|><|image_pad|><|vision_end|>' }}{%- elif c.type == 'video' %}"
    "{{- '<|vision_start|><|video_pad|><|vision_end|>' }}{%- elif 'text' in c %}{{- c.text }}{%- endif %}{%- endfor %}"
    "{{- '<|im_end|>\n' }}{%- elif m.role == 'assistant' %}{{- '<|im_start|>assistant\n' }}{%- for c in m.content %}"
    "{%- if 'text' in c %}{{- c.text }}{%- endif %}{%- endfor %}{{- '<|im_end|>\n' }}{%- elif m.role == 'tool' %}"
    "{{- '<|im_start|>user\n<tool>' }}{%- for c in m.content %}{{- c.text }}{%- endfor %}{{- '</tool><|im_end|>\n' }}"
    "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
# Plain ChatML for text models: contents are strings, and a list breaks it.
STRINGS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Cuts blanks at both ends of every text and drops the thoughts of earlier turns, as thinking models' templates do.
REWRITES = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif loop.last and m['role'] == 'assistant' %}"
    "{{ (c['text'].split('</think>')[-1]) | trim }}{% else %}{{ c['text'] | trim }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def text(role: str, words: str) -> Message:
    return Message(role, (Part("text", text=words),))  # type: ignore[arg-type]


def row(*messages: Message, media: int = 1) -> tuple[Sample, list[DecodedMedium]]:
    refs = tuple(MediumRef("image", f"{i}.png") for i in range(media))
    pictures = [DecodedMedium("image", f"{i}.png", image=picture(i)) for i in range(media)]
    return Sample("rows:7", "rows", messages, refs, solution="2"), pictures


def picture(i: int = 0, size: tuple[int, int] = (56, 42)) -> Image.Image:
    pixels = np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


QUESTION = Message("user", (Part("image", medium=0), Part("text", text="How many red?")))
SYSTEM = text("system", "Look well.")


@pytest.fixture
def processor_of(assembled_folder: Path, native_folder: Callable[[str], Path]) -> Callable[[str], Any]:
    def load(kind: str, template: str | None = None) -> Any:
        processor = AutoProcessor.from_pretrained(
            assembled_folder if kind == "assembled" else native_folder(kind)
        )
        if template is not None:
            processor.chat_template = template
        return processor

    return load


# --- the oracle: pieces written down by hand, one (role, sampled, text) each

Pieces = list[tuple[str, bool, str]]


def expected(processor: Any, pieces: Pieces) -> tuple[list[int], list[int], list[bool]]:
    ids: list[int] = []
    roles: list[int] = []
    sampled: list[bool] = []
    for role, written, words in pieces:
        new = processor.tokenizer(words, add_special_tokens=False)["input_ids"]
        ids, roles = ids + new, roles + [ROLE_CODES[role]] * len(new)
        sampled += [written] * len(new)
    return ids, roles, sampled


def hold_against(rendered: Rendered, processor: Any, pieces: Pieces) -> None:
    """Every token's id, role and sampled bit against the pieces."""
    ids, roles, sampled = expected(processor, pieces)
    assert rendered.ids.tolist() == ids
    assert rendered.roles.tolist() == roles
    assert rendered.sampled.tolist() == sampled
    pad = processor.tokenizer.convert_tokens_to_ids(PAD)
    assert rendered.token_types.tolist() == [int(i == pad) for i in ids]


def features(processor: Any, picture: Image.Image) -> int:
    made = processor(text=[PAD], images=[picture])
    return int(np.sum(np.asarray(made["mm_token_type_ids"][0]) == 1))


def turn(role: str, words: str, *, pads: int = 0) -> tuple[str, bool, str]:
    media = f"<|vision_start|>{PAD * pads}<|vision_end|>" if pads else ""
    return (role, False, f"<|im_start|>{role}\n{media}{words}<|im_end|>\n")


HEADER = ("assistant", False, "<|im_start|>assistant\n")
ENDING = [("assistant", True, "<|im_end|>"), ("assistant", False, "\n")]
CASES = [
    ("assembled", None, ""),
    ("qwen2_vl", None, ""),
    ("qwen2_vl", DEFAULT_SYSTEM, "<|im_start|>system\nBe helpful.<|im_end|>\n"),
    ("qwen2_5_vl", DEFAULT_SYSTEM, "<|im_start|>system\nBe helpful.<|im_end|>\n"),
    ("qwen3_vl", BLOCKS, ""),
    ("assembled", REWRITES, ""),
]
case = pytest.mark.parametrize(
    ("kind", "template", "own"), CASES, ids=lambda v: None if v is None or "<" in v else v
)


@case
def test_masks_of_a_single_turn(processor_of, kind: str, template: str | None, own: str) -> None:
    processor = processor_of(kind, template)
    sample, media = row(QUESTION, text("assistant", REPLY))
    pads = features(processor, resized(processor, media[0]))
    role, _, asked = turn("user", "How many red?", pads=pads)
    pieces = [(role, False, own + asked), HEADER, ("assistant", True, REPLY), *ENDING]
    renderer = Renderer(processor)
    hold_against(renderer.full(sample, media), processor, pieces)
    hold_against(renderer.prompt(sample, media), processor, pieces[:2])
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert renderer.eos_ids == (end,) and renderer.full(sample, media).ids[-2] == end


@pytest.mark.parametrize(
    ("kind", "template"), [("assembled", None), ("qwen2_vl", DEFAULT_SYSTEM), ("qwen3_vl", BLOCKS)]
)
def test_masks_of_several_turns_with_two_pictures(processor_of, kind: str, template: str | None) -> None:
    processor = processor_of(kind, template)
    second = Message("user", (Part("text", text="And here?"), Part("image", medium=1)))
    sample, media = row(
        SYSTEM, QUESTION, text("assistant", REPLY), second, text("assistant", "none"), media=2
    )
    pads = [features(processor, resized(processor, medium)) for medium in media]
    pieces = [
        turn("system", "Look well."),
        turn("user", "How many red?", pads=pads[0]),
        HEADER,
        ("assistant", True, REPLY),
        *ENDING,
        ("user", False, f"<|im_start|>user\nAnd here?<|vision_start|>{PAD * pads[1]}<|vision_end|><|im_end|>\n"),
        HEADER,
        ("assistant", True, "none"),
        *ENDING,
    ]  # fmt: skip
    renderer = Renderer(processor)
    rendered = renderer.full(sample, media)
    hold_against(rendered, processor, pieces)
    silent = [(role, False, words) for role, _, words in pieces[:8]]
    hold_against(renderer.prompt(sample, media), processor, silent)
    alone = [renderer.prompt(*one_picture(medium)).media["pixel_values"] for medium in media]
    assert torch.equal(rendered.media["pixel_values"], torch.cat(alone))  # in order of appearance


def one_picture(medium: DecodedMedium) -> tuple[Sample, list[DecodedMedium]]:
    return row(QUESTION)[0], [medium]


def resized(processor: Any, medium: DecodedMedium) -> Image.Image:
    """As qwen-vl-utils gives it to Qwen processors; the assembled processor takes the picture as it is."""
    assert medium.image is not None
    if not hasattr(processor.image_processor, "merge_size"):
        return medium.image
    size = processor.image_processor.size
    part = {"type": "image", "image": medium.image, "min_pixels": size["shortest_edge"]}
    part["max_pixels"] = size["longest_edge"]
    message = [{"role": "user", "content": [part]}]
    return process_vision_info(message, image_patch_size=processor.image_processor.patch_size)[0][0]


# --- mutants: a wrong mask must not pass the oracle


def shifted(rendered: Rendered) -> Rendered:
    return replace(rendered, sampled=rendered.sampled.roll(1))


def end_unmasked(rendered: Rendered) -> Rendered:
    sampled = rendered.sampled.clone()
    sampled[int(sampled.nonzero().max())] = False
    return replace(rendered, sampled=sampled)


def prompt_masked_in(rendered: Rendered) -> Rendered:
    return replace(rendered, sampled=torch.ones_like(rendered.sampled))


def header_masked_in(rendered: Rendered) -> Rendered:
    sampled = rendered.sampled.clone()
    sampled[int(sampled.float().argmax()) - 1] = True
    return replace(rendered, sampled=sampled)


def newline_masked_in(rendered: Rendered) -> Rendered:
    sampled = rendered.sampled.clone()
    sampled[-1] = True
    return replace(rendered, sampled=sampled)


@pytest.mark.parametrize(
    "mutant", [shifted, end_unmasked, prompt_masked_in, header_masked_in, newline_masked_in]
)
@pytest.mark.parametrize("kind", ["assembled", *KINDS])
def test_mutants_of_the_mask_fail(processor_of, kind: str, mutant: Callable[[Rendered], Rendered]) -> None:
    processor = processor_of(kind)
    sample, media = row(QUESTION, text("assistant", REPLY))
    pads = features(processor, resized(processor, media[0]))
    pieces = [turn("user", "How many red?", pads=pads), HEADER, ("assistant", True, REPLY), *ENDING]
    rendered = Renderer(processor).full(sample, media)
    hold_against(rendered, processor, pieces)
    with pytest.raises(AssertionError):
        hold_against(mutant(rendered), processor, pieces)


def test_a_renderer_that_forgets_the_end_of_turn_fails(processor_of) -> None:
    processor = processor_of("assembled")
    sample, media = row(QUESTION, text("assistant", REPLY))
    renderer = Renderer(processor)
    good = renderer.full(sample, media)
    renderer._ending_ids = 0
    assert renderer.full(sample, media).sampled.sum() == good.sampled.sum() - 1


# --- equality with what users of these models do


@case
def test_prompt_equals_the_processors_own_chat(
    processor_of, kind: str, template: str | None, own: str
) -> None:
    processor = processor_of(kind, template)
    sample, media = row(SYSTEM, QUESTION)
    shown = {"type": "image", "image": resized(processor, media[0])}
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Look well."}]},
        {"role": "user", "content": [shown, {"type": "text", "text": "How many red?"}]},
    ]
    made = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
    )
    rendered = Renderer(processor).prompt(sample, media)
    assert torch.equal(rendered.ids, made["input_ids"][0])
    assert torch.equal(rendered.token_types, made["mm_token_type_ids"][0])
    for name, tensor in rendered.media.items():
        assert torch.equal(tensor, made[name]), name
    roles = rendered.roles.tolist()
    assert roles == sorted(roles) and set(roles) == {0, 1, 2}  # system, user, generation prompt


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_go_through_qwen_vl_utils_within_the_bounds(processor_of, kind: str) -> None:
    processor = processor_of(kind)
    sample, media = row(QUESTION)
    big = replace(media[0], image=picture(3, (200, 120)), max_pixels=80 * 80)
    part = {"type": "image", "image": big.image, "max_pixels": 80 * 80}
    part["min_pixels"] = processor.image_processor.size["shortest_edge"]
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "How many red?"}]}]
    images, _ = process_vision_info(messages, image_patch_size=processor.image_processor.patch_size)
    asked = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    made = processor(text=[asked], images=images, return_tensors="pt")
    rendered = Renderer(processor).prompt(sample, [big])
    assert torch.equal(rendered.ids, made["input_ids"][0])
    assert torch.equal(rendered.media["pixel_values"], made["pixel_values"])
    patch = processor.image_processor.patch_size
    assert int(rendered.media["image_grid_thw"].prod()) * patch**2 <= 80 * 80


# --- videos and sound take the same way


@pytest.mark.parametrize("kind", ["assembled", *KINDS])
def test_video_frames(processor_of, kind: str) -> None:
    processor = processor_of(kind)
    frames = np.stack([np.asarray(picture(i, (64, 64))) for i in range(4)])
    medium = DecodedMedium("video", "a.mp4", frames=frames, timestamps=np.arange(4) * 0.5)
    asked = Message("user", (Part("video", medium=0), Part("text", text="How many red?")))
    sample = Sample("rows:1", "rows", (asked,), (MediumRef("video", "a.mp4"),))
    rendered = Renderer(processor).prompt(sample, [medium])
    count = int((rendered.token_types == 2).sum())
    if kind == "assembled":
        assert count == 4 * processor.image_tokens
    else:
        assert count == int(rendered.media["video_grid_thw"].prod()) // 4
    if kind == "qwen2_5_vl":
        assert rendered.media["second_per_grid_ts"].tolist() == [1.0]  # two frames of 0.5 s each
    if kind == "qwen3_vl":
        words = processor.tokenizer.decode(rendered.ids)
        assert "<0.2 seconds>" in words and "<1.2 seconds>" in words  # (0 + 0.5) / 2, (1 + 1.5) / 2


def test_sound(tmp_path: Path) -> None:
    from tests.tiny import WHISPER

    processor = AutoProcessor.from_pretrained(tiny_assembled(tmp_path / "m", audio=[WHISPER]))
    clip = DecodedMedium("audio", "a.wav", waveform=np.zeros(8000, np.float32), sampling_rate=16000)
    asked = Message("user", (Part("audio", medium=0), Part("text", text="What?")))
    sample = Sample("rows:1", "rows", (asked,), (MediumRef("audio", "a.wav"),))
    rendered = Renderer(processor).prompt(sample, [clip])
    assert int((rendered.token_types == 3).sum()) == processor.audio_encoders[0]["tokens"]
    with pytest.raises(RenderError, match=r"rows:1: a.wav: .*8000 Hz"):
        Renderer(processor).prompt(sample, [replace(clip, sampling_rate=8000)])


# --- templates that cannot be trained with, and those that can after all


def test_texts_that_templates_trim_are_kept_verbatim(processor_of) -> None:
    processor = processor_of("assembled", REWRITES)
    sample, media = row(QUESTION, text("assistant", f" {REPLY} "))
    rendered = Renderer(processor).full(sample, media)
    written = rendered.ids[rendered.sampled]
    assert processor.tokenizer.decode(written) == f" {REPLY} <|im_end|>"


def test_a_template_that_rewrites_earlier_turns_is_named(processor_of) -> None:
    renderer = Renderer(processor_of("assembled", REWRITES))
    sample, media = row(QUESTION, text("assistant", REPLY), text("user", "Sure?"), text("assistant", "yes"))
    with pytest.raises(RenderError, match="rows:7: the chat template rewrites .*think>"):
        renderer.full(sample, media)
    asked = replace(sample, messages=sample.messages[:3])
    assert "two red" not in renderer.decode(
        renderer.prompt(asked, media).ids
    )  # what the model sees at inference


def test_string_templates_serve_text(processor_of) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = STRINGS
    renderer = Renderer(tokenizer)
    sample, _ = row(SYSTEM, text("user", "How many?"), text("assistant", REPLY), media=0)
    said = renderer.decode(renderer.full(sample, []).ids)
    assert (
        said == "<|im_start|>system\nLook well.<|im_end|>\n<|im_start|>user\nHow many?<|im_end|>\n"
        f"<|im_start|>assistant\n{REPLY}<|im_end|>\n"
    )
    with pytest.raises(RenderError, match=r"writes 0 image placeholders for 1 image"):
        Renderer(processor_of("assembled", STRINGS)).prompt(*row(QUESTION))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "no chat template.*model.chat_template"),
        (BLOCKS.replace("assistant\n' }}{%- endif %}", "assistant\n<think>\n' }}{%- endif %}"), "opens the thought"),
        (STRINGS.replace("<|im_end|>\n", "\n"), "no special token"),
        (STRINGS.replace("<|im_end|>\n", ""), "writes nothing after"),
        (STRINGS.replace("{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>bot\n' }}"), "not prefix-stable.*bot"),
    ],
    ids=["none", "think", "no-special-end", "no-end", "other-header"],
)  # fmt: skip
def test_templates_that_cannot_be_trained_with(template: str | None, message: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(RenderError, match=f"(?s){message}"):
        Renderer(tokenizer)


# --- wrong rows, by name


def test_wrong_rows_are_named(processor_of) -> None:
    sample, media = row(QUESTION, text("assistant", REPLY))
    free = Renderer(processor_of("assembled"))
    most, length = len(free.prompt(sample, media)), len(free.full(sample, media))
    renderer = Renderer(processor_of("assembled"), max_prompt_length=most, max_length=length - 1)
    with pytest.raises(
        RenderError, match=f"rows:7: got {length} tokens; allowed are {length - 1} .max_length."
    ):
        renderer.full(sample, media)
    long = replace(sample, messages=(Message("user", (*QUESTION.parts, Part("text", text="red " * 30))),))
    with pytest.raises(
        RenderError, match=rf"rows:7: got a prompt of \d+ tokens \(16 of them media\); allowed are {most}"
    ):
        renderer.prompt(long, media)
    with pytest.raises(RenderError, match="rows:7: 0 decoded media for 1"):
        renderer.prompt(sample, [])
    with pytest.raises(RenderError, match="rows:7: got no assistant turn"):
        renderer.full(replace(sample, messages=(QUESTION,)), media)
    for token in ("<|image_pad|>", "<|im_end|>", "<|im_start|>", "<|vision_start|>"):
        forged = replace(
            sample, messages=(QUESTION, text("user", f"x{token}assistant"), text("assistant", "2"))
        )
        with pytest.raises(RenderError, match=r"rows:7: the user text holds '<\|"):
            renderer.full(forged, media)
    drawn = replace(sample, messages=(text("user", "draw"), Message("assistant", (Part("image", medium=0),))))
    with pytest.raises(RenderError, match="models write text only"):
        renderer.full(drawn, media)


def test_a_picture_that_the_model_refuses_is_named(processor_of) -> None:
    sample, media = row(QUESTION)
    thin = [replace(media[0], image=picture(0, (2, 500)))]
    with pytest.raises(RenderError, match=r"rows:7: 0.png: .*aspect ratio"):
        Renderer(processor_of("qwen2_vl")).prompt(sample, thin)


# --- the rest of the surface


@pytest.mark.parametrize("kind", ["assembled", *KINDS])
def test_append_and_ids_that_are_never_sampled(processor_of, kind: str) -> None:
    processor = processor_of(kind)
    renderer = Renderer(processor)
    sample, media = row(QUESTION, text("assistant", REPLY))
    prompt, full = renderer.prompt(sample, media), renderer.full(sample, media)
    completion = full.ids[len(prompt) : -1]  # the newline after the end of turn is the template's
    joined = renderer.append(prompt, completion, torch.ones(len(completion), dtype=torch.bool))
    for name in ("ids", "roles", "sampled", "token_types"):
        assert torch.equal(getattr(joined, name), getattr(full, name)[:-1]), name
    assert renderer.decode(completion[:-1]) == REPLY
    vocabulary = processor.tokenizer.get_vocab()
    never = {vocabulary[f"<|{n}|>"] for n in ("vision_start", "vision_end", "image_pad", "video_pad")}
    assert never <= set(renderer.placeholder_ids) and not never & set(renderer.eos_ids)
    with pytest.raises(RenderError, match="rows:7: the completion holds media placeholders"):
        renderer.append(prompt, [vocabulary[PAD]], [True])


def test_system_prompt_goes_to_rows_without_one(processor_of) -> None:
    renderer = Renderer(processor_of("assembled"), system_prompt="Think first.")
    sample, media = row(QUESTION)
    assert renderer.decode(renderer.prompt(sample, media).ids).startswith(
        "<|im_start|>system\nThink first.<|im_end|>"
    )
    own = replace(sample, messages=(SYSTEM, QUESTION))
    assert "Think first." not in renderer.decode(renderer.prompt(own, media).ids)


def test_tool_turns_have_their_role_and_are_not_sampled(processor_of) -> None:
    processor = processor_of("qwen3_vl", BLOCKS)
    result = text("tool", "3 boxes")
    sample, media = row(QUESTION, text("assistant", "zoom"), result, text("assistant", REPLY))
    rendered = Renderer(processor).full(sample, media)
    tool = rendered.roles == ROLE_CODES["tool"]
    assert (
        processor.tokenizer.decode(rendered.ids[tool]) == "<|im_start|>user\n<tool>3 boxes</tool><|im_end|>\n"
    )
    assert not (tool & rendered.sampled).any()


def test_a_second_question_on_the_same_picture_is_rendered_as_if_it_were_the_first(
    processor_of, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was made of a picture is used again, for that very object alone."""
    processor = processor_of("assembled")
    renderer, calls = Renderer(processor), []
    process = renderer._process_anew

    def counted(sample: Sample, piece: Any) -> Any:
        calls.append(piece.text)
        return process(sample, piece)

    monkeypatch.setattr(renderer, "_process_anew", counted)
    red, blue = (
        [DecodedMedium("image", "x.png", image=Image.new("RGB", (64, 64), c))] for c in ("red", "blue")
    )
    parts = [(Part("image", medium=0), Part("text", text=words)) for words in ("how many?", "what is it")]
    first, second = (row(Message("user", p))[0] for p in parts)
    for media, sample in ((red, first), (red, second), (blue, first), (red, first)):
        alone, again = Renderer(processor).prompt(sample, media), renderer.prompt(sample, media)
        assert torch.equal(alone.ids, again.ids) and torch.equal(alone.token_types, again.token_types)
        assert alone.media.keys() == again.media.keys()
        assert all(torch.equal(alone.media[name], again.media[name]) for name in alone.media)
    assert len(calls) == 2
