"""The tokenizer that is trained in-process."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from mmreason.model.tokenizer import SPECIAL_TOKENS, TAG_TOKENS, add_media_tokens, train_tokenizer
from tests.tiny import TEXTS, tiny_tokenizer


def test_round_trip_digits_and_tags(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "<think>\n\n</think><answer>1234 écu, red</answer>"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == text  # tags are ordinary text
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert tokens[0] == "<think>" and tokens[-1] == "</answer>"
    assert [t for t in tokens if t.isdigit()] == ["1", "2", "3", "4"]


def test_a_whole_word_is_one_token_wherever_it_stands(tmp_path: Path) -> None:
    texts = ["a3 yellow star, b2 yellow star", "what is at a3?", "yellow star", "1.5 yellow star, a3"] * 9
    train_tokenizer(texts, 400, whole_words=True).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "<|im_start|>yellow star is at a3<|im_end|>\n<think>1.5 a3</think><answer>a3, yellow star, 12</answer>"
    ids = tokenizer(text)["input_ids"]
    pieces = [tokenizer.decode([i]) for i in ids]
    assert [p for p in pieces if "yellow" in p or "a3" in p] == [" yellow", " a3", " a3", " a3", " yellow"]
    assert pieces[-3:] == ["1", "2", "</answer>"]  # 12 is no word of the texts: its digits stand alone
    spaced = "<|im_start|> yellow star is at a3<|im_end|>\n<think> 1.5 a3</think><answer> a3, yellow star, 12</answer>"
    assert tokenizer.decode(ids) == spaced and tokenizer(spaced)["input_ids"] == ids


def test_vocabulary_holds_specials_bytes_and_tags_once() -> None:
    tokenizer = tiny_tokenizer(384)
    vocabulary = tokenizer.get_vocab()
    assert len(tokenizer) <= 384 and sorted(vocabulary.values()) == list(range(len(tokenizer)))
    assert [vocabulary[t] for t in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))
    assert set(TAG_TOKENS) <= set(vocabulary) and not set(TAG_TOKENS) & set(tokenizer.all_special_tokens)
    assert not [t for t in vocabulary if "think" in t and t not in TAG_TOKENS]  # tags in texts are not merged
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|pad|>")


def test_training_is_deterministic() -> None:
    assert tiny_tokenizer().get_vocab() == tiny_tokenizer().get_vocab()
    assert (
        tiny_tokenizer().get_vocab()
        != train_tokenizer(["quite other words, quite other words"], 384).get_vocab()
    )


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="tokenizer.vocab_size is 200; .* alone take 278"):
        train_tokenizer(TEXTS, 200)


def test_a_foreign_tokenizer_gets_what_it_lacks_and_keeps_its_template() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages }}"
    before = len(tokenizer)
    add_media_tokens(tokenizer)
    assert len(tokenizer) == before and tokenizer.chat_template == "{{ messages }}"
