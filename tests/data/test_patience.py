"""Media decoded in the run's own process: the same, in time, and a decoder that hangs is left behind by name."""

from __future__ import annotations

import gc
import threading
import time
from dataclasses import replace

import pytest

from mmreason.data.media import MediaError, MediaLimits, decode, patience
from mmreason.data.media.patience import Here
from mmreason.types import DecodedMedium, MediumRef, Sample
from mmreason.validate.report import Report
from mmreason.validate.rows import check_media
from tests.data.clips import tone, wav

LIMITS = MediaLimits(max_decode_seconds=0.3)
WAVE = MediumRef("audio", "", content=wav(tone(0.5, 44_100), 44_100))


def running() -> int:
    """Threads that decode here."""
    gc.collect()
    return sum(thread.name == patience.THREAD for thread in threading.enumerate())


def settled(threads: int) -> bool:
    """Whether no more than so many are left soon: one that is not wanted any more ends by itself."""
    ends = time.monotonic() + 10
    while running() > threads and time.monotonic() < ends:
        time.sleep(0.01)
    return running() == threads


def test_what_is_decoded_and_what_is_wrong_are_the_same() -> None:
    here, wanted = Here(MediaLimits()), decode(WAVE, MediaLimits())
    for _ in range(2):
        got = here.decode(WAVE)
        assert got.waveform is not None and wanted.waveform is not None
        assert got.waveform.tobytes() == wanted.waveform.tobytes()
    with pytest.raises(MediaError, match="inline bytes: the sound cannot be read"):
        here.decode(MediumRef("audio", "", content=b"no sound"))
    assert here.decode(WAVE).waveform is not None


def test_an_error_of_our_own_is_raised_where_it_was_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "decode", lambda ref, limits: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Here(LIMITS).decode(WAVE)


def test_a_decoder_that_hangs_is_left_and_what_it_says_later_is_not_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released = threading.Event()

    def slow(ref: MediumRef, limits: MediaLimits) -> DecodedMedium:
        if ref.path == "slow":
            released.wait(60)
        return DecodedMedium(ref.kind, ref.path)

    monkeypatch.setattr(patience, "decode", slow)
    assert settled(0)  # those of other tests
    here, began = Here(LIMITS), time.monotonic()
    with pytest.raises(MediaError, match=r"slow: not decoded after 0.3 s \(max_decode_seconds\): make it"):
        here.decode(MediumRef("audio", "slow"))
    assert 0.3 <= time.monotonic() - began < 10
    assert here.decode(MediumRef("audio", "a")).name == "a"
    assert running() == 2
    released.set()
    assert here.decode(MediumRef("audio", "b")).name == "b"
    with pytest.raises(MediaError, match="not decoded after"):
        here.decode(MediumRef("audio", "slow"))  # is not tried again
    del here
    assert settled(0)


def test_a_picture_in_time_is_no_hang() -> None:
    assert Here(replace(LIMITS, max_decode_seconds=86_400)).decode(WAVE).waveform is not None


def test_validate_names_a_medium_on_which_its_decoder_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(ref: MediumRef, limits: MediaLimits) -> DecodedMedium:
        return decode(ref, limits) if ref.path != "hangs.wav" else threading.Event().wait(60)  # type: ignore[return-value]

    monkeypatch.setattr(patience, "decode", hangs)
    hung = replace(WAVE, path="hangs.wav")
    rows = [Sample(f"mine:{i}", "mine", (), (ref,)) for i, ref in enumerate((WAVE, hung, WAVE, hung))]
    report = Report("recipe")
    looked = check_media("mine", rows, LIMITS, report)
    assert looked.unusable == {"mine:1", "mine:3"} and len(report.problems) == 2
    assert report.problems[0].startswith("data.mine, row mine:1: hangs.wav: not decoded after 0.3 s")
