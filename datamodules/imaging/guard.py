"""What every decoder shares: one bound on the pixels of a file, and one way to refuse it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import cv2.utils.logging as cv2_log

from ark.types import ConfigError

MAX_PIXELS = 2**27  # 11585 x 11585; no radiograph is larger, and 16-bit RGB of it is 0.8 GB

# what they complain about there is raised as well, or is of no consequence for the pixels
for _name in ("PIL", "pydicom"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


def check_pixels(height: int, width: int, where: str, frames: int = 1) -> tuple[int, int]:
    """(height, width), once the header's numbers have been found sane; no pixel is decoded before.

    Raises:
        ConfigError: a side below 1, or more than `MAX_PIXELS` pixels.
    """
    if min(height, width, frames) < 1:
        raise ConfigError(f"{where}: the header states {width}x{height} pixels; replace the file")
    if height * width * frames > MAX_PIXELS:
        stated = f"{width}x{height}" + (f"x{frames} frames" if frames > 1 else "")
        raise ConfigError(
            f"{where}: the header states {stated} = {height * width * frames} pixels; at most "
            f"{MAX_PIXELS} are decoded, more may be a decompression bomb. Scale the image down"
        )
    return height, width


@contextmanager
def refusing(where: str, what: str = "the image") -> Iterator[None]:
    """Turns whatever a decoder raises on bytes from a stranger into a ConfigError, and is quiet.

    The libraries raise nearly every built-in error on broken data, MemoryError and RecursionError
    included, hence the broad `except`.
    """
    level = cv2_log.getLogLevel()
    cv2_log.setLogLevel(cv2_log.LOG_LEVEL_SILENT)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        raise refused(error, where, what) from error
    finally:
        cv2_log.setLogLevel(level)


def refused(error: Exception, where: str, what: str = "the image") -> ConfigError:
    """What a decoder raised, as a message for the user; a ConfigError stays as it is."""
    if isinstance(error, ConfigError):
        return error
    said = " ".join(str(error).split())[:240] or type(error).__name__
    return ConfigError(f"{where}: {what} cannot be decoded ({said}); replace it")
