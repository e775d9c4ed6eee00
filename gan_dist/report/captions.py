"""Write the names of the classes above a picture whose columns show one class each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

HEIGHT = 14  # of a line of text, in pixels


def with_captions(picture: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Return a picture with a line of text above it.

    Args:
        picture: uint8 (height, width, C) with columns of the same width.
        names: what to write above each column; a name that is too long for its column is cut.

    Returns:
        The picture, uint8 (height + HEIGHT, width, C).
    """
    _, width, channels = picture.shape
    strip, font = Image.new("L", (width, HEIGHT)), ImageFont.load_default(10)
    column = width / len(names)
    for i, name in enumerate(names):
        text = name
        while text and font.getlength(text) > column:
            text = text[:-1]
        cell = Image.new("L", (max(1, int(column)), HEIGHT))  # in its own image, so that it can't reach the next column
        ImageDraw.Draw(cell).text((1, 0), text, fill=255, font=font)
        strip.paste(cell, (round(i * column), 0))
    line = np.repeat(np.asarray(strip)[:, :, None], channels, axis=2)
    if channels == 4:
        line[:, :, 3] = 255
    return np.concatenate([line, picture])
