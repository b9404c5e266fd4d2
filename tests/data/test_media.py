"""Media: confined to the root, bounded before decoding, upright and RGB; broken files are named."""

from __future__ import annotations

import struct
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmreason.data.media import MediaError, MediaLimits, check, decode, read_bytes
from mmreason.types import MediumRef

LIMITS = MediaLimits(max_image_pixels=100 * 100)
SEEN = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [9, 9, 9]]], dtype=np.uint8)


def png(image: Image.Image, **options: object) -> bytes:
    out = BytesIO()
    image.save(out, "PNG", **options)
    return out.getvalue()


def inline(content: bytes) -> MediumRef:
    return MediumRef("image", "", content=content)


def pixels(content: bytes) -> np.ndarray:
    decoded = decode(inline(content), LIMITS)
    assert decoded.image is not None and decoded.image.mode == "RGB"
    return np.asarray(decoded.image)


def header_only_png(width: int, height: int) -> bytes:
    """A file of some sixty bytes whose header claims a huge picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


def test_a_file_an_archive_member_and_bytes_give_the_same_picture(tmp_path: Path) -> None:
    content = png(Image.fromarray(SEEN))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("in/a.png", content)
    refs = [MediumRef("image", p, root=str(tmp_path)) for p in ("sub/a.png", "b.zip#in/a.png")]
    refs += [MediumRef("image", str(tmp_path / "sub" / "a.png"), root=str(tmp_path)), inline(content)]
    for ref in refs:
        assert np.array_equal(np.asarray(decode(ref, LIMITS).image), SEEN)
        check(ref, LIMITS)
    assert [decode(ref, LIMITS).name for ref in refs[:2]] == ["sub/a.png", "b.zip#in/a.png"]


def test_a_changed_archive_is_read_anew(tmp_path: Path) -> None:
    for colour, extra in (("red", 0), ("blue", 1)):
        with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
            archive.writestr("a.png", png(Image.new("RGB", (4, 4), colour)))
            for i in range(extra):
                archive.writestr(f"{i}.txt", b"x")
        image = decode(MediumRef("image", "b.zip#a.png", root=str(tmp_path)), LIMITS).image
        assert image is not None and image.getpixel((0, 0)) == (
            (255, 0, 0) if colour == "red" else (0, 0, 255)
        )


@pytest.mark.parametrize(
    "path",
    [
        "../out.png",
        "sub/../../out.png",
        "link.png",
        "linked/out.png",
        "{outside}/out.png",
        "../b.zip#out.png",
    ],
)
def test_nothing_outside_the_root_is_read(tmp_path: Path, path: str) -> None:
    root, outside = tmp_path / "root", tmp_path
    (root / "sub").mkdir(parents=True)
    (outside / "out.png").write_bytes(png(Image.fromarray(SEEN)))
    with zipfile.ZipFile(outside / "b.zip", "w") as archive:
        archive.writestr("out.png", png(Image.fromarray(SEEN)))
    (root / "link.png").symlink_to(outside / "out.png")
    (root / "linked").symlink_to(outside)
    ref = MediumRef("image", path.format(outside=outside), root=str(root))
    with pytest.raises(MediaError, match="outside the data root"):
        decode(ref, LIMITS)
    decode(MediumRef("image", "out.png", root=str(outside)), LIMITS)  # the control: it is a good picture


def test_links_inside_the_root_and_a_linked_root_are_fine(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.png").write_bytes(png(Image.fromarray(SEEN)))
    (tmp_path / "real" / "b.png").symlink_to("a.png")
    (tmp_path / "root").symlink_to("real")
    assert decode(MediumRef("image", "b.png", root=str(tmp_path / "root")), LIMITS).image is not None


@pytest.mark.parametrize(
    "path",
    [
        "http://169.254.169.254/latest",
        "https://x.org/a.png",
        "file:///etc/passwd",
        "s3://b/a.png",
        "data:image/png;base64,AA",
    ],
)
def test_urls_are_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(MediaError, match="never fetched"):
        decode(MediumRef("image", path, root=str(tmp_path)), LIMITS)


@pytest.mark.parametrize(
    ("path", "message"), [("a.png", "no such file"), ("a\0.png", "no path"), (".", "no such file")]
)
def test_missing_files_are_named(tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        decode(MediumRef("image", path, root=str(tmp_path)), LIMITS)


def test_a_file_that_the_system_will_not_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(png(Image.fromarray(SEEN)))

    def refused(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(MediaError, match=r"a.png: the file cannot be read .*Permission denied"):
        decode(MediumRef("image", "a.png", root=str(tmp_path)), LIMITS)


def test_missing_members_and_torn_archives_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("a.png", png(Image.fromarray(SEEN)))
    with pytest.raises(MediaError, match=r"b.zip has no member 'c.png'"):
        decode(MediumRef("image", "b.zip#c.png", root=str(tmp_path)), LIMITS)
    (tmp_path / "torn.zip").write_bytes((tmp_path / "b.zip").read_bytes()[:60])
    with pytest.raises(MediaError, match=r"torn.zip#a.png: the archive cannot be read"):
        decode(MediumRef("image", "torn.zip#a.png", root=str(tmp_path)), LIMITS)


@pytest.mark.parametrize("size", [(9000, 9000), (12000, 12000), (60000, 60000), (101, 100)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_from_the_header(size: tuple[int, int]) -> None:
    content = header_only_png(*size)
    assert len(content) < 100
    for look in (decode, check):
        with pytest.raises(MediaError, match="allowed are 10000"):
            look(inline(content), LIMITS)


def test_pillows_own_bound_may_be_the_narrower_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    with pytest.raises(MediaError, match="Pillow"):
        decode(inline(png(Image.fromarray(SEEN))), LIMITS)


def test_large_files_are_refused_unread(tmp_path: Path) -> None:
    small = MediaLimits(max_file_bytes=1000)
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", b"\0" * 100_000)
    (tmp_path / "a.png").write_bytes(b"\0" * 100_000)
    for ref in (
        MediumRef("image", "a.png", root=str(tmp_path)),
        MediumRef("image", "b.zip#a.png", root=str(tmp_path)),
        inline(b"\0" * 100_000),
    ):
        with pytest.raises(MediaError, match="got 100000 bytes; allowed are 1000"):
            read_bytes(ref, small)


def test_half_a_picture_is_refused() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    whole = png(Image.fromarray(noise))
    assert pixels(whole).shape == (80, 80, 3)
    check(inline(whole[: len(whole) // 2]), LIMITS)  # its header is fine
    with pytest.raises(MediaError, match="inline bytes: the picture cannot be read"):
        decode(inline(whole[: len(whole) // 2]), LIMITS)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    with pytest.raises(MediaError):
        decode(inline(bytes(flipped)), LIMITS)


@pytest.mark.parametrize(
    "content", [b"", b"no picture", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_what_is_no_picture_is_refused(content: bytes) -> None:
    with pytest.raises(MediaError, match="cannot be read .*PNG"):
        decode(inline(content), LIMITS)


def test_exif_orientation_is_applied() -> None:
    out = BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to see it upright
    Image.new("RGB", (40, 20), "red").save(out, "JPEG", exif=exif)
    assert pixels(out.getvalue()).shape == (40, 20, 3)


def test_modes_become_rgb() -> None:
    see_through = np.dstack([SEEN, np.array([[255, 0], [255, 128]], dtype=np.uint8)])
    got = pixels(png(Image.fromarray(see_through, "RGBA")))
    assert got[0, 0].tolist() == [255, 0, 0] and got[0, 1].tolist() == [255, 255, 255]  # transparent is white
    assert got[1, 1].tolist() == [132, 132, 132]  # half of 9 over half of white
    palette = Image.fromarray(SEEN).quantize(4)
    assert np.abs(pixels(png(palette)).astype(int) - SEEN).max() <= 1
    clear = pixels(png(palette, transparency=palette.getpixel((0, 0))))
    assert clear[0, 0].tolist() == [255, 255, 255]
    grey16 = np.array([[0, 257 * 128, 65535]], dtype=np.uint16)
    assert pixels(png(Image.fromarray(grey16))).tolist() == [[[0] * 3, [128] * 3, [255] * 3]]
    assert pixels(png(Image.new("L", (1, 1), 77))).tolist() == [[[77] * 3]]
    assert pixels(png(Image.new("1", (1, 1), 1))).tolist() == [[[255] * 3]]
    assert pixels(png(Image.new("LA", (1, 1), (9, 0)))).tolist() == [[[255] * 3]]
    cmyk = BytesIO()
    Image.new("CMYK", (2, 2), (0, 0, 0, 0)).save(cmyk, "TIFF")
    assert pixels(cmyk.getvalue()).min() == 255


def test_values_of_unknown_range_are_refused() -> None:
    out = BytesIO()
    Image.fromarray(np.ones((2, 2), np.float32)).save(out, "TIFF")
    with pytest.raises(MediaError, match="no known range"):
        decode(inline(out.getvalue()), LIMITS)


def test_pixel_bounds_travel_with_the_picture() -> None:
    limits = MediaLimits(min_pixels=100, max_pixels=400)
    medium = decode(inline(png(Image.fromarray(SEEN))), limits)
    assert (medium.min_pixels, medium.max_pixels) == (100, 400)
