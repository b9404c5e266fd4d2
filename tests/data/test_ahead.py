"""Media decoded in worker processes: the same to the bit, files that end their reader by name, no process left over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from mmreason.data.media import MediaError, MediaLimits, ahead, decode
from mmreason.data.media.ahead import Decoders
from mmreason.types import DecodedMedium, MediumRef
from tests.data.clips import mp4, tone, wav

LIMITS = MediaLimits(max_pixels=4096)
KILLER, SLEEPER = "killer.png", "sleeper.png"


def _reader(name: str, befalls: str) -> str:
    """The code of a reader to which something befalls at a file of this name; it writes down what it tried."""
    return f"""
import os, pickle, signal, sys, time; sys.path[:] = pickle.load(sys.stdin.buffer)
from mmreason.data.media import worker
sound = worker.decode
def faulty(ref, limits):
    with open(os.path.join(ref.root, "tried.txt"), "a") as file:
        file.write(ref.path + chr(10))
    return {befalls} if ref.path == "{name}" else sound(ref, limits)
worker.decode = faulty
worker.serve()
"""


BRITTLE = _reader(KILLER, "os.kill(os.getpid(), signal.SIGSEGV)")  # as a codec's fault would
SLEEPY = _reader(SLEEPER, "time.sleep(600)")  # as a decoder that hangs would


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(6):
        Image.new("RGB", (20 + i, 30), (40 * i, 9, 9)).save(tmp_path / f"{i}.png")
    Image.new("RGB", (8, 8)).save(tmp_path / KILLER)
    (tmp_path / "film.mp4").write_bytes(mp4(sound=tone()))
    (tmp_path / "wave.wav").write_bytes(wav(tone(2.0, 44_100), 44_100))
    (tmp_path / "torn.png").write_bytes((tmp_path / "0.png").read_bytes()[:60])
    return tmp_path


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    """Two processes for several tests, each of which begins anew with `ahead`."""
    made = Decoders(2, LIMITS)
    yield made
    made.close()


def ref(folder: Path, name: str, kind: Any = "image") -> MediumRef:
    return MediumRef(kind, name, root=str(folder))


def same(one: DecodedMedium, other: DecodedMedium) -> bool:
    if (one.image is None) != (other.image is None):
        return False
    if one.image is not None and other.image is not None and one.image.tobytes() != other.image.tobytes():
        return False
    arrays = ("frames", "timestamps", "frame_indices", "waveform")
    plain = ("kind", "name", "video_fps", "total_frames", "sampling_rate", "min_pixels", "max_pixels")
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        if getattr(one, name) is not None
        else getattr(other, name) is None
        for name in arrays
    ) and all(getattr(one, name) == getattr(other, name) for name in plain)


def test_the_same_media_to_the_bit(folder: Path, decoders: Decoders) -> None:
    refs = [ref(folder, f"{i}.png") for i in range(6)]
    refs += [
        ref(folder, "film.mp4", "video"),
        ref(folder, "film.mp4", "audio"),
        ref(folder, "wave.wav", "audio"),
    ]
    refs.append(MediumRef("image", "", content=(folder / "0.png").read_bytes()))
    decoders.ahead(refs)
    for wanted in [*refs[3:], *refs[:3], refs[0]]:  # in another order, one twice
        assert same(decoders.decode(wanted), decode(wanted, LIMITS))


def test_what_cannot_be_read_says_the_same(folder: Path, decoders: Decoders) -> None:
    for name in ("torn.png", "absent.png", "../out.png"):
        with pytest.raises(MediaError) as here:
            decode(ref(folder, name), LIMITS)
        with pytest.raises(MediaError) as there:
            decoders.decode(ref(folder, name))
        assert str(here.value) == str(there.value)


def test_media_are_decoded_before_they_are_asked_for(folder: Path, decoders: Decoders) -> None:
    refs = [ref(folder, f"{i}.png") for i in range(4)]
    decoders.ahead(refs)
    futures = list(decoders._begun.values())
    assert len(futures) == 4
    for future in futures:
        future.result(60)
    for wanted in refs:  # the files are gone by now
        (folder / wanted.path).unlink()
    assert decoders.decode(refs[0]).image is not None
    decoders.ahead(refs[3:])  # another order: what was begun and is in it is kept, the rest let go
    assert decoders.decode(refs[3]).image is not None
    with pytest.raises(MediaError, match="no such file"):
        decoders.decode(refs[1])


def test_room_is_bounded_by_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "_by_any", lambda idle, ref: decode(ref, LIMITS))
    decoders = Decoders(2, LIMITS)
    refs = [ref(folder, f"{i}.png") for i in range(6)]
    monkeypatch.setattr(ahead, "AHEAD_BYTES", 3 * 25 * 30 * 5)
    decoders.ahead(refs)
    assert len(decoders._begun) == 4  # twice as many as workers, while no size is known
    decoders.decode(ref(folder, "5.png"))  # 25 x 30 x 3 bytes: room for five
    assert len(decoders._begun) == 5 and len(decoders._wanted) == 1
    decoders.decode(ref(folder, "0.png"))
    assert [r.path for r in decoders._begun] == [f"{i}.png" for i in range(1, 6)]


def test_a_file_that_ends_its_reader_is_named_and_the_others_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "BOOT", BRITTLE)
    decoders = Decoders(1, LIMITS)
    decoders.ahead([ref(folder, name) for name in ("0.png", KILLER, "1.png")])
    assert decoders.decode(ref(folder, "0.png")).image is not None
    for _ in range(2):
        with pytest.raises(MediaError, match=r"killer.png: the process that decoded it ended \(SIGSEGV\)"):
            decoders.decode(ref(folder, KILLER))
    assert decoders.decode(ref(folder, "1.png")).image is not None
    decoders.close()
    assert (folder / "tried.txt").read_text().split() == ["0.png", KILLER, KILLER, "1.png"]


def test_a_reader_that_hangs_is_killed_and_replaced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "BOOT", SLEEPY)
    (folder / "0.png").rename(folder / SLEEPER)
    decoders = Decoders(1, replace(LIMITS, max_decode_seconds=0.5))
    decoders.ahead([ref(folder, name) for name in ("1.png", SLEEPER, "2.png")])
    assert decoders.decode(ref(folder, "1.png")).image is not None
    (worker,) = decoders._workers
    assert worker._process is not None
    first = worker._process
    for _ in range(2):
        with pytest.raises(MediaError, match=r"sleeper.png: not decoded after 0.5 s \(max_decode_seconds\)"):
            decoders.decode(ref(folder, SLEEPER))
    assert first.returncode == -signal.SIGKILL and not psutil.pid_exists(first.pid)
    assert same(decoders.decode(ref(folder, "2.png")), decode(ref(folder, "2.png"), LIMITS))
    assert worker._process is not None and worker._process.pid != first.pid
    decoders.close()
    assert (folder / "tried.txt").read_text().split() == ["1.png", SLEEPER, "2.png"]


def test_a_worker_that_is_killed_from_outside_costs_no_file(folder: Path, decoders: Decoders) -> None:
    decoders.decode(ref(folder, "0.png"))
    for worker in decoders._workers:
        if worker._process is not None:
            worker._process.kill()
            worker._process.wait()
    assert same(decoders.decode(ref(folder, "1.png")), decode(ref(folder, "1.png"), LIMITS))


def test_a_worker_that_cannot_begin_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "BOOT", "raise SystemExit(3)")
    with pytest.raises(RuntimeError, match=r"before it began \(status 3\).*dataloader_num_workers: 0"):
        Decoders(1, LIMITS).decode(ref(folder, "0.png"))


RUN = """
import os, signal, sys, time
from mmreason.data.media import MediaLimits
from mmreason.data.media.ahead import Decoders
from mmreason.types import MediumRef

decoders = Decoders(1, MediaLimits())
refs = [MediumRef("image", f"{i}.png", root=sys.argv[1]) for i in range(6)]
decoders.ahead(refs)
decoders.decode(refs[5])
print("ready", flush=True)
if sys.argv[2] == "hangs":
    time.sleep(600)
assert sys.argv[2] != "raises", "a run that fails"
"""


@pytest.mark.parametrize("end", ["raises", "hangs"])
def test_workers_end_with_the_run(end: str, folder: Path) -> None:
    """Also where it is killed: the script has no main guard, and its workers see their input end."""
    script = folder / "run.py"
    script.write_text(RUN)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    run = subprocess.Popen(
        [sys.executable, str(script), str(folder), end],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    assert run.stdout is not None and run.stdout.readline() == b"ready\n"
    workers = psutil.Process(run.pid).children(recursive=True) if end == "hangs" else []
    if end == "hangs":
        assert len(workers) == 1
        os.kill(run.pid, signal.SIGKILL)
    assert run.wait(60) == {"raises": 1, "hangs": -signal.SIGKILL}[end]
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive


def test_closing_ends_the_processes_at_once(folder: Path) -> None:
    decoders = Decoders(1, LIMITS)
    decoders.decode(ref(folder, "0.png"))
    (worker,) = decoders._workers
    assert worker._process is not None and worker._process.poll() is None
    decoders.ahead([ref(folder, f"{i}.png") for i in range(6)])
    decoders.close()
    assert worker._process is not None and worker._process.poll() == -signal.SIGKILL
