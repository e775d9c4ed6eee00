"""Depths of samples, further pictures in a file, and what surrounds the pixels: EXIF and texts."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from program import Program, Result

FOLDER = ["data.name=folder", "data.root=images", "data.image_size=8", "data.channels=1"]
PREFETCH = ["prefetch", *FOLDER, "model.conditional=false", "metrics.every_kimg=0", "train.batch_size=1"]
RAMP = np.linspace(0, 255, 64).reshape(8, 8)


def said(result: Result) -> str:
    return result.stdout + result.stderr


@pytest.fixture
def images(program: Program) -> Path:
    folder = program.cwd / "images"
    folder.mkdir()
    return folder


@pytest.mark.clause("1.7", "32-bit integer and float TIFF turn black or white")
def test_samples_without_a_defined_range_are_refused(program: Program, images: Path) -> None:
    for name, samples in {
        "u8": RAMP.astype(np.uint8),
        "u16": (RAMP * 257).astype(np.uint16),
        "f32-0to1": (RAMP / 255).astype(np.float32),
        "i32-0to255": RAMP.astype(np.int32),
        "i32-0to65535": (RAMP * 257).astype(np.int32),
        "f32-0to255": RAMP.astype(np.float32),
        "f32-hounsfield": (RAMP * 10 - 1000).astype(np.float32),
        "f32-m1to1": (RAMP / 127.5 - 1).astype(np.float32),
        "f32-nan": np.where(RAMP > 200, np.nan, RAMP / 255).astype(np.float32),
    }.items():
        Image.fromarray(samples).save(images / f"{name}.tif")
    assert "3 of 9 images can be read" in program(*PREFETCH).stdout
    for path in images.glob("*8.tif"):
        path.unlink()
    for path in (*images.glob("u*.tif"), images / "f32-0to1.tif"):
        path.unlink()
    result = program(*PREFETCH)
    assert result.returncode == 1
    assert "f32-0to255.tif: floats outside [0, 1] have no defined range" in result.stderr


@pytest.mark.clause("1.7", "12 bits in 16 give almost black pictures")
def test_twelve_bits_in_sixteen_are_said(program: Program, images: Path) -> None:
    for i in range(3):
        Image.fromarray((RAMP * 16).astype(np.uint16)).save(images / f"{i}.png")
    assert "3 of the 3 images that were read have 16 bits, but no value is above 1/8" in said(program(*PREFETCH))
    Image.fromarray((RAMP * 257).astype(np.uint16)).save(images / "full.png")
    assert "16 bits" not in said(program(*PREFETCH))


@pytest.mark.clause("1.7", "multi-page TIFF and animations give their first picture unsaid")
def test_further_pictures_in_a_file_are_said(program: Program, images: Path) -> None:
    frames = [Image.new("L", (8, 8), gray) for gray in (10, 100, 200)]
    for name in ("animated.gif", "pages.tif", "animated.webp", "animated.png"):
        frames[0].save(images / name, save_all=True, append_images=frames[1:])
    frames[0].save(images / "single.gif")
    result = program(*PREFETCH)
    assert "4 of the 5 images that were read are in files with several pictures, for example" in said(result)


def _exif_blocks() -> dict[str, bytes]:
    def ifd(*entries: tuple[int, int, int, bytes]) -> bytes:
        content = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
        return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + content + b"\0\0\0\0"

    good = Image.Exif()
    good[0x0112] = 1
    whole, turned = good.tobytes(), (0x112, 3, 1, struct.pack("<HH", 6, 0))
    return {
        "blank": b"Exif\0\0", "doubled": b"Exif\0\0" + whole, "cut": whole[:15], "garbage": b"Exif\0\0this is no tiff",
        "no-header": b"garbage", "text": ifd((0x112, 2, 4, b"abc\0")), "two": ifd((0x112, 3, 2, b"\6\0\1\0")),
        "beyond": ifd(turned, (0x10F, 2, 400, struct.pack("<I", 60000))),
        "rational": ifd(turned, (282, 5, 1, struct.pack("<I", 60000))),
        "gps": ifd(turned, (0x8825, 4, 1, struct.pack("<I", 99999))),
    }  # fmt: skip


@pytest.mark.clause("1.7", "valid PNG and WebP with corrupt EXIF are lost")
def test_pixels_are_read_whatever_the_exif_block_holds(program: Program, images: Path) -> None:
    for name, block in _exif_blocks().items():
        for kind in ("jpg", "png", "webp"):
            Image.new("RGB", (16, 16), (255, 0, 0)).save(images / f"{name}.{kind}", exif=block)
    assert "30 of 30 images can be read" in program(*PREFETCH).stdout


@pytest.mark.clause("1.7", "PNG with long texts are lost")
def test_pixels_are_read_whatever_texts_there_are(program: Program, images: Path) -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("workflow", "x" * 3_000_000, zip=True)
    texts.add_itxt("prompt", "y" * 2_000_000, zip=True)
    Image.new("RGB", (8, 8)).save(images / "texts.png", pnginfo=texts)
    assert "1 of 1 images can be read" in program(*PREFETCH).stdout


def _twelve_bit_tiff(values: np.ndarray, white_is_zero: bool = False, bits: int = 12) -> bytes:
    """A gray TIFF of 8x8 pixels that stores 12 bits for each sample, or 16."""
    if bits == 12:
        flat = values.ravel()
        rows = b"".join(bytes((a >> 4, (a & 15) << 4 | b >> 8, b & 255)) for a, b in flat.reshape(-1, 2).tolist())
    else:
        rows = values.astype("<u2").tobytes()
    entries = [(256, 8), (257, 8), (258, bits), (259, 1), (262, int(not white_is_zero)), (273, 134), (277, 1),
               (278, 8), (279, len(rows)), (339, 1)]  # fmt: skip
    header = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
    header += b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in entries)
    return (header + bytes(4)).ljust(134, b"\0") + rows


def _deep_ppm(value: int) -> bytes:
    return b"P5 8 8 65535\n" + struct.pack(">H", value) * 64


MODES = ("1", "L", "P", "LA", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "F", "I;16", "RGB;16", "I;12", "inverted", "PPM")


def _with_gray_100(mode: str, folder: Path) -> None:
    """Write a picture of 8x8 pixels, all of the gray 100; of white for bilevel."""
    folder.mkdir()
    gray = Image.new("L", (8, 8), 100)
    if mode == "1":
        Image.new("1", (8, 8), 1).save(folder / "x.png")
    elif mode in ("LA", "RGBA"):
        gray.convert(mode).save(folder / "x.png")
    elif mode == "PA":
        palette = gray.convert("RGB").quantize(2)
        palette.save(folder / "x.png", transparency=bytes([255, 255]))
    elif mode == "CMYK":
        Image.new("CMYK", (8, 8), (155, 155, 155, 0)).save(folder / "x.tif")
    elif mode == "YCbCr":
        gray.convert("RGB").save(folder / "x.jpg", quality=100)
    elif mode == "I;16":
        Image.fromarray(np.full((8, 8), 25700, np.uint16)).save(folder / "x.png")
    elif mode == "F":
        Image.fromarray(np.full((8, 8), 100 / 255, np.float32)).save(folder / "x.tif")
    elif mode == "RGB;16":
        row = b"\0" + struct.pack(">H", 25700) * 24

        def chunk(kind: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
        content = header + chunk(b"IDAT", zlib.compress(row * 8)) + chunk(b"IEND", b"")
        (folder / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    elif mode == "I;12":
        (folder / "x.tif").write_bytes(_twelve_bit_tiff(np.full(64, 1606)))
    elif mode == "inverted":
        (folder / "x.tif").write_bytes(_twelve_bit_tiff(np.full(64, 65535 - 25700), white_is_zero=True, bits=16))
    elif mode == "PPM":
        (folder / "x.pgm").write_bytes(_deep_ppm(25700))
    else:
        gray.convert(mode).save(folder / "x.png")


@pytest.mark.clause("1.7", "12 bits of TIFF are almost black, and 16 bits with white as 0 are inverted")
def test_every_mode_shows_the_value_that_was_written(program: Program, images: Path) -> None:
    """Each mode is a class, so the picture of real images shows one in each column."""
    for number, mode in enumerate(MODES):
        _with_gray_100(mode, images / str(number))
    result = program.train(
        *(*FOLDER, "data.class_folders=true", "run.dir=run", "train.batch_size=1"),
        *("train.kimg=0.001", "sample.rows=1", "checkpoint.every_kimg=0"),
    )
    assert result.returncode == 0, result.stderr
    picture = np.asarray(Image.open(program.cwd / "run/samples/real-000000.000.png"))
    cell = (picture.shape[1] - 6) // len(MODES)
    shown = {mode: int(picture[-20, 10 + cell * i]) for i, mode in enumerate(MODES)}
    assert shown == {mode: 255 if mode == "1" else 100 for mode in MODES}
