"""Half a file of a container that tells no length: named where its own structure tells, taken as shorter where not."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from mmreason.data.media import MediaError, MediaLimits, check, decode
from mmreason.data.media.container import _hole
from mmreason.data.media.ends import TS_SIZE, cut_off
from mmreason.types import MediumRef
from tests.data.clips import encoded, mp4, tone

NOISE = np.random.default_rng(0).normal(0, 0.2, 64_000).clip(-1, 1).astype(np.float32)
FILMS = {
    "ts": mp4(sound=NOISE, suffix="mpegts"),
    "m2ts": mp4(sound=NOISE, suffix="mpegts", mpegts_m2ts_mode="1"),
    "fragments": mp4(sound=NOISE, movflags="frag_keyframe+empty_moov"),
}
SOUNDS = {
    "opus": encoded(NOISE, "ogg", "libopus"),
    "ogg flac": encoded(NOISE, "ogg", "flac"),
    "ts": encoded(NOISE, "mpegts", "aac"),
}


def read(kind: str, content: bytes) -> None:
    for look in (check, decode):
        look(MediumRef(kind, "half", content=content), MediaLimits())  # type: ignore[arg-type]


def refused(kind: str, content: bytes, why: str) -> None:
    for look in (check, decode):
        with pytest.raises(MediaError, match=f"half: the {kind} is torn: {why}.*; get the whole file"):
            look(MediumRef(kind, "half", content=content), MediaLimits())  # type: ignore[arg-type]


def pages(ogg: bytes) -> list[int]:
    """Where the pages of an Ogg file begin; of noise none looks like one."""
    return [at for at in range(len(ogg)) if ogg.startswith(b"OggS", at)]


@pytest.mark.parametrize("share", [0.3, 0.52, 0.97])
@pytest.mark.parametrize(
    ("kind", "name", "why"),
    [
        ("video", "ts", "its last packet has"),
        ("video", "m2ts", "its last packet has"),
        ("video", "fragments", "its box mdat lacks"),
        ("audio", "ts", "its last packet has"),
        ("audio", "opus", "its last page is cut"),
        ("audio", "ogg flac", "its last page is cut"),
    ],
)
def test_a_file_cut_anywhere_is_torn(kind: str, name: str, why: str, share: float) -> None:
    whole = (FILMS if kind == "video" else SOUNDS)[name]
    read(kind, whole)
    refused(kind, whole[: int(share * len(whole))], why)


@pytest.mark.parametrize("name", ["opus", "ogg flac"])
def test_an_ogg_cut_between_pages_or_without_one_of_them_is_torn(name: str) -> None:
    whole = SOUNDS[name]
    starts = pages(whole)
    assert len(starts) > 5
    for at in starts[3:]:
        refused("audio", whole[:at], "its last page has no end mark")
    for at, after in pairwise(starts[3:]):
        refused(
            "audio", whole[:at] + whole[after:], r"its page \d+ follows page \d+; those between are missing"
        )
    read("audio", whole + whole)  # one behind the other is allowed: numbers begin anew


def test_a_transport_stream_cut_between_packets_is_torn_where_a_piece_of_sound_is_open() -> None:
    whole = SOUNDS["ts"]
    for n in range(200, len(whole) // TS_SIZE):
        why = cut_off(whole[: n * TS_SIZE], "mpegts")
        goes_on = not whole[n * TS_SIZE + 1] & 0x40  # the next packet begins no piece
        assert bool(why) == goes_on  # between two pieces nobody can know
        assert why is None or why.startswith("the last piece of its stream 256 lacks ")


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_a_transport_stream_with_a_hole_is_torn(kind: str) -> None:
    whole = (FILMS if kind == "video" else SOUNDS)["ts"]
    starts = [at for at in range(0, len(whole), TS_SIZE) if whole[at + 1] & 0x40]  # where pieces begin
    first, last = starts[len(starts) * 2 // 5], starts[len(starts) * 7 // 10]
    refused(kind, whole[:first] + whole[last:], "(it holds nothing from|its header promises)")


def test_a_hole_is_longer_than_the_standard_and_the_film_allow() -> None:
    assert _hole([0.0, 0.5, 1.0, 1.8, 2.3]) is None  # 0.8 s: less than three steps
    assert _hole([0.0, 0.1, 0.2, 0.85, 0.95]) is None  # 0.65 s: allowed
    assert _hole([0.0, 0.1, 0.2, 1.0, 1.1]) == (0.2, 1.0)
    assert _hole([0.0]) is None


def test_bytes_that_are_none_of_a_film_do_not_count() -> None:
    """What stands behind a whole file, as tags and padding do, is passed over."""
    film = mp4(sound=tone())
    read("video", film + b"\0" * 50)
    read("video", film + (500).to_bytes(4, "big") + b"free" + b"\0" * 40)
    read("audio", SOUNDS["opus"] + b"TAG" + b"\0" * 125)
