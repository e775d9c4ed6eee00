"""One item of a data set that was given from Python: an image, or (image, label), in any of the usual forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MISSING = -1  # the label of an item that has none
CHANNELS = (1, 3, 4)
SLACK = 1e-3  # floats may be outside [0, 1] by so much, because resizing rounds; they are clamped


class NotAnItem(Exception):
    """The item cannot be used. The message says what is wrong with it, and what to return instead."""


def read_item(item: Any) -> tuple[Image.Image | Tensor, int | None]:
    """Return the image and the label of an item.

    Args:
        item: an image, or a pair (image, label). The image is a PIL image of any mode and size, or a tensor or NumPy
            array (C, H, W), (H, W, C) or (H, W), where C is 1, 3 or 4. If both the first and the last dimension could
            be C, then the first one is C in a tensor, and the last one in an array, as in torchvision. Numbers are
            uint8 from 0 to 255, or floats from 0 to 1. A label is a whole number from 0 on; -1 or None says that there
            is none.

    Returns:
        The image, as a PIL image or a tensor uint8 (C, H, W); and the label, which is MISSING if it is -1 or None, and
        None if there is an image alone.

    Raises:
        NotAnItem: the item is something else.
    """
    if not isinstance(item, tuple | list):
        return _read_image(item), None
    if not 1 <= len(item) <= 2:
        raise NotAnItem(f"it has {len(item)} parts; return an image, or (image, label)")
    return _read_image(item[0]), _read_label(item[1]) if len(item) == 2 else None


def _read_image(image: Any) -> Image.Image | Tensor:
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, Tensor):
        return _to_uint8(_channels_first(image.detach().cpu().as_subclass(Tensor), first=True))
    if isinstance(image, np.ndarray):
        # The copy is in the order of its dimensions, and writable; torch takes no other arrays.
        return _to_uint8(_channels_first(torch.from_numpy(np.array(image, order="C")), first=False))
    raise NotAnItem(f"its image is of type {type(image).__name__}; return a torch tensor, a NumPy array or a PIL image")


def _channels_first(image: Tensor, first: bool) -> Tensor:
    """Return an image (C, H, W), (H, W, C) or (H, W) as (C, H, W); `first` decides if both C would be possible."""
    if image.ndim == 2 and image.numel():
        return image[None]
    if image.ndim == 3 and image.numel():
        may_be_first, may_be_last = (image.shape[i] in CHANNELS for i in (0, 2))
        if may_be_first and (first or not may_be_last):
            return image
        if may_be_last:
            return image.permute(2, 0, 1)
    raise NotAnItem(
        f"its image has the shape {tuple(image.shape)}; return (C, H, W), (H, W, C) or (H, W), where C is 1, 3 or 4"
    )


def _to_uint8(image: Tensor) -> Tensor:
    if image.dtype == torch.uint8:
        return image
    if not image.is_floating_point():
        raise NotAnItem(f"its image has numbers of type {str(image.dtype).removeprefix('torch.')}; return uint8 from 0 "
                        "to 255, or floats from 0 to 1")  # fmt: skip
    low, high = image.min().item(), image.max().item()
    if not (low >= -SLACK and high <= 1 + SLACK):  # also if there are NaNs
        raise NotAnItem(
            f"its image has floats from {low:.4g} to {high:.4g}; return floats from 0 to 1, as torchvision's ToTensor "
            "does and without Normalize, or uint8"
        )
    return image.float().clamp(0, 1).mul(255).round().byte()


def _read_label(label: Any) -> int:
    """Return a label as a Python number; MISSING for None.

    Raises:
        NotAnItem: it is not a whole number, or below -1.
    """
    if label is None:
        return MISSING
    value = np.asarray(label.detach().cpu() if isinstance(label, Tensor) else label)
    if value.size != 1 or value.dtype.kind not in "biu":
        what = repr(label)[:50] if value.size == 1 else f"{type(label).__name__} of the shape {tuple(value.shape)}"
        raise NotAnItem(f"its label is {what}; return (image, label) with a whole number as label, or the image alone")
    if (number := int(value.item())) < MISSING:
        raise NotAnItem(f"its label is {number}; return a whole number from 0 on, or the image alone")
    return number
