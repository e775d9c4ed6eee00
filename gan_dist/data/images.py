"""Convert an image file, or an image in memory, to a uint8 tensor of a given shape (C, H, W)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

# The accepted formats. Pillow recognises a format by the file's content, not by its name. Formats such as EPS, which
# Pillow reads by starting another program, are not in the list.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP")
# Larger images are not decoded: a small malicious file can claim a huge size and fill the memory. This is the limit
# above which Pillow warns of such a "decompression bomb".
MAX_PIXELS = 89_478_485
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # number of channels -> Pillow's mode


class BrokenImage(Exception):
    """The file can't be read as an image. The message says which file it is, and why."""


def read_image(path: Path, image_shape: tuple[int, int, int]) -> Tensor:
    """Decode an image file of any size and mode, in one of FORMATS, to uint8 (C, H, W).

    The image is turned as its EXIF orientation says. 16-bit values are scaled to 8 bits. A transparent image is put on
    a white background, unless C is 4. The largest centred part with the aspect ratio of (H, W) is then resized to
    (H, W).

    Args:
        path: the file.
        image_shape: (C, H, W), with C = 1 (grayscale), 3 (RGB) or 4 (RGBA).

    Raises:
        BrokenImage: the file is not an image, is damaged or incomplete, or has more than MAX_PIXELS pixels.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise BrokenImage(f"{path}: {width}x{height} pixels are more than {MAX_PIXELS:,}")
            return to_tensor(image, image_shape)
    except BrokenImage:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, ValueError and others
        raise BrokenImage(f"{path}: not a readable image ({type(error).__name__}: {error})") from error


def to_tensor(image: Image.Image, image_shape: tuple[int, int, int]) -> Tensor:
    """Convert an image in memory to uint8 (C, H, W), as `read_image` does with a file."""
    channels, height, width = image_shape
    image = _convert(ImageOps.exif_transpose(image), _MODES[channels])
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    array = np.array(image)  # a copy: Pillow's own memory is read-only
    return torch.from_numpy(array).reshape(height, width, channels).permute(2, 0, 1).contiguous()


def _convert(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image to Pillow's mode `mode`, with 8 bits per channel, on a white background if it is transparent."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_eight_bits(image)
    if mode == "RGBA" or not image.has_transparency_data:
        return image.convert(mode)
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert(mode)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale a grayscale image of 16-bit integers, or of floats in [0, 1], to 8 bits.

    Pillow's own conversion would set all values above 255 to 255.
    """
    samples = np.asarray(image, dtype=np.float64)
    scale = 255.0 if image.mode == "F" else 255.0 / 65535.0
    return Image.fromarray(np.clip(np.rint(samples * scale), 0, 255).astype(np.uint8))
