"""Decoded media and what processors made of them are kept within bounds of bytes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmreason.data.media import MediaLimits, patience
from mmreason.render import recent
from mmreason.render.recent import RecentMedia
from mmreason.train import feed as feeds
from mmreason.train.feed import Feed
from mmreason.types import DecodedMedium, MediumRef


def medium(name: str) -> DecodedMedium:
    return DecodedMedium("image", name, image=Image.new("RGB", (10, 10)))


def test_bytes_of_a_medium() -> None:
    assert medium("a").bytes == 300
    film = DecodedMedium(
        "video", "v", frames=np.zeros((2, 4, 5, 3), np.uint8), waveform=np.zeros(7, np.float32)
    )
    assert film.bytes == 120 + 28


def test_the_feed_keeps_the_latest_media(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []

    def decode(ref: MediumRef, limits: Any) -> DecodedMedium:
        decoded.append(ref.path)
        return medium(ref.path)

    monkeypatch.setattr(patience, "decode", decode)
    monkeypatch.setattr(feeds, "MEDIA_BYTES", 700)
    feed = Feed(SimpleNamespace(), MediaLimits(), SimpleNamespace(), stop=True)  # type: ignore[arg-type]
    for path in "abacab":
        feed._decoded(MediumRef("image", path))
    assert "".join(decoded) == "abcb"  # a was asked for again each time before it was the oldest
    assert feed._media_bytes == 600


def test_what_processors_made_is_kept_within_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "KEPT_BYTES", 1500)
    made = RecentMedia()
    pictures = [medium(name) for name in "abc"]
    for picture in (*pictures, pictures[-1]):  # 300 bytes of pixels and 400 of tensors each
        made.put("<m>x", (picture,), ["<m>"], [1, 2], {"p": torch.zeros(100)}, lambda text: [2])
    known = [made.get("<m>y", (picture,), ["<m>"]) is not None for picture in pictures]
    assert known == [False, True, True]
