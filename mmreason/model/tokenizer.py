"""A byte-level BPE tokenizer trained in-process, and the ChatML template that goes with it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD, TURN_START, TURN_END = "<|pad|>", "<|im_start|>", "<|im_end|>"
MEDIA_TOKENS = {"image": "<|image_pad|>", "video": "<|video_pad|>", "audio": "<|audio_pad|>"}
BOUNDARY_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|audio_start|>", "<|audio_end|>")
SPECIAL_TOKENS = (PAD, TURN_START, TURN_END, *MEDIA_TOKENS.values(), *BOUNDARY_TOKENS)
ANSWER_TAGS = ("think", "answer", "planning", "caption", "reasoning", "summary")
# one token each, but ordinary text: they are sampled, decoded and learned like words
TAG_TOKENS = tuple(f"<{slash}{tag}>" for tag in ANSWER_TAGS for slash in ("", "/"))

# a sound directly behind a video is its own: the two share one run (a part {"type": "audio", "apart": true} does not)
CHATML = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'text' -%}
{{- part['text'] -}}
{%- elif part['type'] == 'image' -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part['type'] == 'video' -%}
{%- set sound = loop.nextitem is defined and loop.nextitem['type'] == 'audio' and not loop.nextitem['apart'] -%}
{{- '<|vision_start|><|video_pad|>' + ('<|audio_pad|>' if sound else '') + '<|vision_end|>' -}}
{%- elif part['type'] == 'audio' -%}
{%- if not (loop.previtem is defined and loop.previtem['type'] == 'video' and not part['apart']) -%}
{{- '<|audio_start|><|audio_pad|><|audio_end|>' -}}
{%- endif -%}
{%- else -%}
{{- raise_exception('unknown content part ' + part['type'] + '; allowed are text, image, video, audio') -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, *, whole_words: bool = False
) -> PreTrainedTokenizerFast:
    """Byte-level BPE over `texts` with every digit a token of its own, special tokens, tags and chat template.

    Args:
        texts: what the model will read and write; answer tags in it are not learned as text.
        vocab_size: size with special tokens and tags; smaller when the texts have too few pairs to merge.
        whole_words: a word is the same token where a text begins as inside it (a space is put before the beginning, and
            stays there when it is decoded), and a letter with its digit, "a3", is a word.

    Raises:
        ValueError: `vocab_size` has no room for the 256 bytes, the special tokens and the tags.
    """
    least = 256 + len(SPECIAL_TOKENS) + len(TAG_TOKENS)
    if vocab_size < least:
        raise ValueError(
            f"tokenizer.vocab_size is {vocab_size}; bytes, special tokens and tags alone take {least}"
        )
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(_whole_words() if whole_words else _parts())
    if whole_words:
        core.normalizer = normalizers.Sequence(
            [normalizers.Prepend(" "), normalizers.Replace(Regex(r"^ (?=\s)"), "")]
        )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(TAG_TOKENS),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    marks = re.compile("|".join(re.escape(token) for token in (*SPECIAL_TOKENS, *TAG_TOKENS)))
    turns = (
        f"user\n{marks.sub(chr(10), text)}\nassistant\n" for text in texts
    )  # the template's words count too
    core.train_from_iterator(turns, trainer)
    core.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAG_TOKENS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=TURN_END,
        extra_special_tokens=[t for t in SPECIAL_TOKENS if t not in (PAD, TURN_END)],
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def _parts() -> list[pre_tokenizers.PreTokenizer]:
    """A digit is a token of its own, with the space before it: " 2" is one step of the decoder, not two."""
    return [
        pre_tokenizers.Split(Regex(r" ?\d"), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]


def _whole_words() -> list[pre_tokenizers.PreTokenizer]:
    """Words with the space before them, names of places (a letter and a digit) among them; other digits alone."""
    pattern = r" ?\b[a-z]\d\b| ?\d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    return [
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


def add_media_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a pretrained tokenizer the placeholders, a pad token and a chat template, where it lacks them."""
    vocabulary = tokenizer.get_vocab()
    new = [t for t in (*MEDIA_TOKENS.values(), *BOUNDARY_TOKENS) if t not in vocabulary]
    if tokenizer.chat_template is None:
        tokenizer.chat_template = CHATML
        new += [t for t in (TURN_START, TURN_END) if t not in vocabulary]
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in new], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD})
