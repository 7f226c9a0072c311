"""What a published model takes as images, as the bytes that its network sees."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ark.errors import ConfigError
from ark.resizing import resize

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 200_000_000  # of a picture; more is a decompression bomb
_OVERSHOOT = 0.1  # a bicubic filter leaves 0..1 by a little


@dataclass
class Input:
    """Images as the network sees them, and how large they were.

    Args:
        pixels: (B, 1 or 3, S, S) uint8, or float in 0..1.
        sizes: B times (H, W), in pixels of the caller's images.
        alike: whether these came as one tensor, so that outputs can be one.
    """

    pixels: Tensor
    sizes: list[tuple[int, int]]
    alike: bool


def as_input(images: Any, size: int) -> Input:
    """
    Args:
        images: (B, 1 or 3, H, W) or (1 or 3, H, W) uint8 in 0..255 or float in 0..1; or one
            picture or a list of them: paths, bytes of files, PIL images, (H, W[, 1 or 3]) uint8.
        size: S, of the network's square input. Pictures are resized as in training and
            `ark predict`; tensors on their device, by an antialiased bilinear filter, which
            differs from that in rounding.

    Raises:
        ConfigError: none of these, or a file that cannot be read.
    """
    if isinstance(images, Tensor):
        return _of_tensor(images, size)
    pictures = (
        images if isinstance(images, Sequence) and not isinstance(images, str | bytes) else [images]
    )
    if not pictures:
        raise ConfigError("images: an empty list; expected at least one")
    arrays = [_array(picture) for picture in pictures]
    views = [
        torch.from_numpy(np.ascontiguousarray(resize(a, size).transpose(2, 0, 1))) for a in arrays
    ]
    if len({view.shape[0] for view in views}) > 1:  # gray among colour
        views = [view.expand(3, -1, -1) for view in views]
    return Input(torch.stack(views), [a.shape[:2] for a in arrays], alike=False)


def _of_tensor(images: Tensor, size: int) -> Input:
    batch = images[None] if images.ndim == 3 else images
    kind = batch.dtype == torch.uint8 or batch.is_floating_point()
    if batch.ndim != 4 or batch.shape[1] not in (1, 3) or 0 in batch.shape or not kind:
        raise ConfigError(
            f"images: a tensor of shape {tuple(images.shape)} and {images.dtype}; expected "
            "(B, 3, H, W) or (B, 1, H, W), uint8 in 0..255 or float in 0..1"
        )
    if batch.is_floating_point() and batch.device.type == "cpu":  # elsewhere it would wait
        _check_range(batch)
    height, width = batch.shape[-2:]
    if (height, width) != (size, size):
        whole = batch.dtype == torch.uint8
        batch = F.interpolate(
            batch.float() if whole else batch, (size, size), mode="bilinear", antialias=True
        )
        batch = batch.round().clamp(0, 255).to(torch.uint8) if whole else batch
    return Input(batch, [(height, width)] * len(batch), alike=True)


def _check_range(batch: Tensor) -> None:
    """Pixels of 0..255 as floats, or normalised ones, would give wrong answers without a word."""
    low, high = (value.item() for value in batch.aminmax())
    if not (low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT):  # NaN too
        raise ConfigError(
            f"images: a tensor of {batch.dtype} from {low:.4g} to {high:.4g}; expected 0..1, not "
            "normalised: divide pixels by 255, or give them as uint8"
        )


def _array(picture: Any) -> np.ndarray:
    """(H, W, 1 or 3) uint8."""
    if isinstance(picture, np.ndarray):
        array = picture[..., None] if picture.ndim == 2 else picture
        if (
            array.dtype != np.uint8
            or array.ndim != 3
            or array.shape[2] not in (1, 3)
            or not array.size
        ):
            raise ConfigError(
                f"images: an array of shape {picture.shape} and {picture.dtype}; expected (H, W), "
                "(H, W, 1) or (H, W, 3) of uint8"
            )
        return array
    from PIL.Image import Image

    if isinstance(picture, Image):
        return _of_pil(picture, "images: a PIL image")
    return _read(picture)


def _read(picture: Any) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    if not isinstance(picture, str | Path | bytes):
        raise ConfigError(
            f"images: {type(picture).__name__}; expected a tensor, paths, PIL images or arrays"
        )
    where = "images: bytes" if isinstance(picture, bytes) else f"images: {picture}"
    try:
        with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as opened:
            return _of_pil(opened, where)
    except Image.DecompressionBombError as error:  # Pillow's own limit, a little below ours
        raise ConfigError(f"{where}: too many pixels; at most {MAX_PIXELS:,}") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise ConfigError(f"{where} cannot be read as an image: {error}") from error


def _of_pil(image: Image, where: str) -> np.ndarray:
    if image.width * image.height > MAX_PIXELS:
        raise ConfigError(f"{where}: {image.width} x {image.height} pixels; at most {MAX_PIXELS:,}")
    if image.mode.startswith(("I", "F")):
        raise ConfigError(
            f"{where}: pixels of more than 8 bits (mode {image.mode}); `ark predict --window` "
            "reads them, or bring them to 0..255 first"
        )
    gray = image.mode in ("1", "L", "LA", "La")
    array = np.asarray(image.convert("L" if gray else "RGB"))
    return array[..., None] if gray else array
