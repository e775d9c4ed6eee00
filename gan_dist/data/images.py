"""One image file, or an image in memory, to uint8 (C, H, W) of the wanted shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

# Pillow looks at the content, whatever the name says: nothing that another program would be started for, as for EPS.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP")
MAX_PIXELS = 89_478_485  # Pillow's own limit for what may be a bomb: a file that claims more is not decoded
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class BrokenImage(Exception):
    """The file can't be read as an image; the text says which file and why."""


def read_image(path: Path, image_shape: tuple[int, int, int]) -> Tensor:
    """Decode a file of any size and mode, in one of FORMATS: uint8 (C, H, W).

    The picture is turned as its EXIF orientation says, transparency is laid on white unless four channels are asked
    for, 16-bit samples are scaled to 8, and the largest centred part of the wanted aspect ratio is resized to (H, W).

    Raises:
        BrokenImage: not an image, a damaged or truncated one, or one of more than MAX_PIXELS pixels.
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
    """Turn, convert, crop and resize a picture: uint8 (C, H, W)."""
    channels, height, width = image_shape
    image = _convert(ImageOps.exif_transpose(image), _MODES[channels])
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    array = np.array(image)  # a copy: Pillow's own memory is read-only
    return torch.from_numpy(array).reshape(height, width, channels).permute(2, 0, 1).contiguous()


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_eight_bits(image)
    if mode == "RGBA" or not image.has_transparency_data:
        return image.convert(mode)
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert(mode)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Grayscale of 16-bit integers, or of floats in [0, 1], which Pillow's own conversion would clip."""
    samples = np.asarray(image, dtype=np.float64)
    scale = 255.0 if image.mode == "F" else 255.0 / 65535.0
    return Image.fromarray(np.clip(np.rint(samples * scale), 0, 255).astype(np.uint8))
