"""Files that are cut off or have holes, in containers whose header tells no length: what their own structure says.

Known: Ogg, whose pages are numbered and whose last one carries a mark; MPEG-TS, where packets have one size and sound
tells the length of its pieces; fragmented MP4, whose boxes tell theirs. Not known: an MPEG-TS or a fragmented MP4 that
ends exactly between two pieces, and MP3 without Xing's header, live FLV and live Matroska: they are taken for shorter
files. (`container.survey` holds every other container against the length in its header, and MPEG-TS against its clock.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

OGG_HEADER = 27
OGG_BEGINS, OGG_ENDS = 2, 4  # bits of a page's flags
TS_SYNC, TS_SIZE = 0x47, 188
TS_FRAMINGS = ((188, 0), (192, 4), (204, 0))  # bytes from packet to packet, bytes before each (M2TS: a time)
PES_HEADER = 6  # bytes that a piece's own length leaves out
MP4_BOXES = (b"moov", b"moof", b"mdat")  # without which something is not seen or heard


def cut_off(data: bytes, form: str) -> str | None:
    """How it is known that a file is not whole; None where nothing says so.

    Args:
        form: FFmpeg's name of the container.

    Example: `cut_off(half_an_ogg, "ogg")` is "its last page has no end mark".
    """
    for name, look in _FORMS.items():
        if name in form.split(","):
            return look(data)
    return None


# --- Ogg (RFC 3533)


def _ogg(data: bytes) -> str | None:
    """Every stream ends with a marked page, and no page is left out before it."""
    last: dict[int, tuple[int, int]] = {}  # stream -> flags and number of its latest page
    for serial, flags, number, whole in _pages(data):
        if not whole:
            return "its last page is cut"
        if serial in last and not flags & OGG_BEGINS and number != (last[serial][1] + 1) % 2**32:
            return f"its page {number} follows page {last[serial][1]}; those between are missing"
        last[serial] = flags, number
    if any(not flags & OGG_ENDS for flags, _ in last.values()):
        return "its last page has no end mark"
    return None


def _pages(data: bytes) -> Iterator[tuple[int, int, int, bool]]:
    """(stream, flags, number, whether all of it is there) of each page."""
    at = data.find(b"OggS")
    while at >= 0:
        head = data[at : at + OGG_HEADER]
        sizes = data[at + OGG_HEADER : at + OGG_HEADER + head[-1]] if len(head) == OGG_HEADER else b""
        end = at + OGG_HEADER + len(sizes) + sum(sizes)
        whole = len(head) == OGG_HEADER and len(sizes) == head[-1] and end <= len(data)
        serial, flags, number = (int.from_bytes(head[a:b], "little") for a, b in ((14, 18), (5, 6), (18, 22)))
        yield serial, flags, number, whole
        at = data.find(b"OggS", end)


# --- MPEG-TS (ISO/IEC 13818-1)


def _transport(data: bytes) -> str | None:
    """Whole packets to the end, and every piece (PES) that tells its length has all its bytes."""
    framed = next((f for f in TS_FRAMINGS if _in_step(data, *f)), None)
    if framed is None:
        return None  # FFmpeg found it behind other bytes
    size, before = framed
    left = len(data) % size
    if left > before and data[len(data) - left + before] == TS_SYNC:
        return f"its last packet has {left} bytes of {size}"
    packets = np.frombuffer(data, np.uint8, len(data) // size * size).reshape(-1, size)
    packets = packets[:, before : before + TS_SIZE]
    streams = (packets[:, 1] & 0x1F).astype(int) << 8 | packets[:, 2]
    for stream in np.unique(streams):
        lack = _lacking(packets[streams == stream])
        if lack:
            return f"the last piece of its stream {stream} lacks {lack} bytes"
    return None


def _in_step(data: bytes, size: int, before: int) -> bool:
    """Whether packets of this size begin at the file's first byte."""
    return len(data) > 2 * size and all(data[i * size + before] == TS_SYNC for i in range(3))


def _lacking(packets: np.ndarray) -> int:
    """Bytes missing from the last piece of a stream, uint8 [packets, 188]; 0 where its length is open (most video)."""
    begins = np.flatnonzero(packets[:, 1] & 0x40)
    if not len(begins):
        return 0
    piece = b"".join(_payload(packet) for packet in packets[begins[-1] :])
    told = int.from_bytes(piece[4:6], "big")
    if piece[:3] != b"\0\0\1" or not told:
        return 0  # a table, or no length
    return max(0, told + PES_HEADER - len(piece))


def _payload(packet: np.ndarray) -> bytes:
    """What a packet carries, without its header and adaptation field."""
    control = packet[3] >> 4 & 3
    start = 4 if control == 1 else 5 + int(packet[4])
    return packet[start:].tobytes() if control & 1 else b""


# --- MP4, fragmented or not (ISO/IEC 14496-12)


def _boxes(data: bytes) -> str | None:
    """Boxes follow each other, and the last one ends with the file."""
    at = 0
    while at + 8 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if size == 1:  # the length stands behind, in 64 bits
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8:
            return None  # 0: to the end of the file; anything else is no box but bytes that players pass over
        if at + size > len(data):
            lack = at + size - len(data)
            return f"its box {kind.decode()} lacks {lack} bytes" if kind in MP4_BOXES else None
        at += size
    return None


_FORMS: dict[str, Callable[[bytes], str | None]] = {"ogg": _ogg, "mpegts": _transport, "mp4": _boxes}
