"""Convert an image file, or an image in memory, to a uint8 tensor of a given shape (C, H, W)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from gan_dist.data.budget import Budget
from gan_dist.files import NotRegular, open_regular

# The accepted formats. Pillow recognises a format by the file's content, not by its name. Formats such as EPS, which
# Pillow reads by starting another program, are not in the list.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP")
# Larger images are not decoded: a small malicious file can claim a huge size and fill the memory. This is the limit
# above which Pillow warns of such a "decompression bomb".
MAX_PIXELS = 89_478_485
MAX_BYTES = 2**29  # larger files are not read; this is enough for MAX_PIXELS with three channels of 16 bits
# What all threads of a process hold at the same time: bytes of files, and estimated bytes of decoded images.
FILES, DECODED = Budget(2**30), Budget(2**31)
# Estimated bytes for each pixel: as decoded, converted, and turned. Some decoders hold further copies.
PIXEL_BYTES, PIXEL_BYTES_OF = 12, {"AVIF": 20, "JPEG2000": 20, "WEBP": 20}
# Pillow refuses images with long texts, although nobody asks for the texts. This limit is for all texts of an image.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**24

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # number of channels -> Pillow's mode
_ROWS = 2**20  # number of pixels that are converted at once where the conversion needs further copies
_TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
          5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
          8: Image.Transpose.ROTATE_90}  # fmt: skip
_ORIENTATION, _BITS_PER_SAMPLE, _PHOTOMETRIC = 0x0112, 258, 262  # tags of EXIF and TIFF


class BrokenImage(Exception):
    """The file can't be read as an image. The message says which file it is, and why."""


class Picture(NamedTuple):
    """An image file as read.

    Attributes:
        pixels: uint8 (C, H, W).
        several: the file holds further pictures, for example an animation or pages. Only the first is read.
        deep: the file has 16 bits per sample.
        dark: no sample is larger than 1/8 of the range.
    """

    pixels: Tensor
    several: bool
    deep: bool
    dark: bool


def read_image(path: Path, image_shape: tuple[int, int, int]) -> Picture:
    """Decode an image file of any size and mode, in one of FORMATS, to uint8 (C, H, W).

    The image is turned as its EXIF orientation says. 16-bit values, and floats in [0, 1], are scaled to 8 bits. A
    transparent image is put on a white background, unless C is 4. The largest centred part with the aspect ratio of
    (H, W) is then resized to (H, W).

    Args:
        path: the file, or a link to it.
        image_shape: (C, H, W), with C = 1 (grayscale), 3 (RGB) or 4 (RGBA).

    Raises:
        BrokenImage: the file is not a regular file or not an image, is damaged or incomplete, has more than MAX_BYTES
            bytes or MAX_PIXELS pixels, or its samples have no defined range, as integers of 32 bits.
    """
    try:
        with _opened(path) as file, Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise BrokenImage(f"{width}x{height} pixels are more than {MAX_PIXELS:,}")
            with DECODED.of(width * height * PIXEL_BYTES_OF.get(image.format or "", PIXEL_BYTES)):
                deep = image.mode.startswith("I") or ";16" in str(image.tile)
                pixels = to_tensor(image, image_shape)
                return Picture(pixels, _holds_several(image), deep, int(pixels.max()) < 32)
    except BrokenImage as error:
        raise BrokenImage(f"{path}: {error}") from None
    except UnidentifiedImageError:  # its message names the open file, not the path
        raise BrokenImage(f"{path}: cannot identify image file") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, ValueError and others
        raise BrokenImage(f"{path}: not a readable image ({type(error).__name__}: {error})") from error


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a regular file, with its bytes in the budget FILES."""
    try:
        opened = open_regular(path, links=True)
    except NotRegular:
        raise BrokenImage("not a regular file") from None
    with opened as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise BrokenImage(f"{size:,} bytes are more than {MAX_BYTES:,}")
        with FILES.of(size):
            yield file


def _holds_several(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # what follows the first picture may be damaged, and is not needed
        return False


def to_tensor(image: Image.Image, image_shape: tuple[int, int, int]) -> Tensor:
    """Convert an image in memory to uint8 (C, H, W), as `read_image` does with a file.

    Raises:
        BrokenImage: its samples have no defined range.
    """
    channels, height, width = image_shape
    image.load()
    turn = _TURNS.get(_orientation(image))
    image = _convert(image, _MODES[channels])
    if turn is not None:
        image = image.transpose(turn)
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    array = np.array(image)  # a copy: Pillow's own memory is read-only
    return torch.from_numpy(array).reshape(height, width, channels).permute(2, 0, 1).contiguous()


def fit(image: Image.Image | Tensor, image_shape: tuple[int, int, int]) -> Tensor:
    """Convert an image of Pillow, or a tensor uint8 (C, H, W), to uint8 of the shape `image_shape`; see `to_tensor`.

    A tensor that has this shape already is returned unchanged.

    Raises:
        BrokenImage: see `to_tensor`.
    """
    if isinstance(image, Image.Image):
        return to_tensor(image, image_shape)
    if tuple(image.shape) == image_shape:
        return image
    pixels = image.permute(1, 2, 0).numpy()
    return to_tensor(Image.fromarray(pixels[:, :, 0] if len(image) == 1 else pixels), image_shape)


def shape_of(image: Image.Image | Tensor) -> tuple[int, int, int]:
    """Return the shape (C, H, W) that an image of Pillow, or a tensor (C, H, W), has by itself.

    A palette counts as colours, and an image of Pillow is turned as its EXIF orientation says.
    """
    if isinstance(image, Tensor):
        channels, height, width = image.shape
        return channels, height, width
    width, height = image.size if _orientation(image) < 5 else image.size[::-1]
    gray = image.mode[0] in "1LIF" and image.mode != "LAB"
    return 1 if gray else 4 if image.mode in ("RGBA", "RGBa") else 3, height, width


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if it cannot be read, because the pixels are good without it."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data cause errors of many types
        return 1
    return value if isinstance(value, int) else 1


def _convert(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image to Pillow's mode `mode`, with 8 bits per channel, on a white background if it is transparent."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_eight_bits(image)
    if mode == "RGBA" or not image.has_transparency_data:
        return image if image.mode == mode else image.convert(mode)
    whole = Image.new(mode, image.size)
    rows = max(1, _ROWS // image.width)
    for top in range(0, image.height, rows):
        part = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        whole.paste(Image.alpha_composite(Image.new("RGBA", part.size, "white"), part).convert(mode), (0, top))
    return whole


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale a grayscale image of 16-bit integers, or of floats in [0, 1], to 8 bits.

    Pillow's own conversion would set all values above 255 to 255.

    Raises:
        BrokenImage: the samples have no defined range, so nobody knows which value is white.
    """
    samples = np.asarray(image)
    if image.mode == "F":
        if not (samples.min() >= 0 and samples.max() <= 1):  # also if there are NaNs
            raise BrokenImage("floats outside [0, 1] have no defined range; scale them to [0, 1]")
        return _by_rows(samples, lambda part: np.rint(part.astype(np.float64) * 255.0))
    if image.mode == "I" and image.format != "PPM":  # Pillow scales integers of PPM files to 16 bits
        raise BrokenImage("integers of 32 bits, or with a sign, have no defined range; store 8 or 16 bits")
    tags = getattr(image, "tag_v2", {})
    white = 4095 if tags.get(_BITS_PER_SAMPLE) == (12,) else 65535
    table = np.rint(np.arange(65536) * (255 / white)).clip(0, 255).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:  # 0 is white
        table = 255 - table
    return _by_rows(samples, lambda part: table[part])


def _by_rows(samples: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> Image.Image:
    """Apply a function to an image (H, W), some rows at a time, because it needs copies of 8 bytes for each pixel."""
    changed = np.empty(samples.shape, np.uint8)
    rows = max(1, _ROWS // samples.shape[1])
    for top in range(0, len(samples), rows):
        changed[top : top + rows] = change(samples[top : top + rows])
    return Image.fromarray(changed)
