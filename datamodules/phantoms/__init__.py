"""The built-in generated datasets: no download, made in seconds, truth known to the pixel."""

from datamodules.phantoms.source import PhantomSource

__all__ = ["PhantomSource"]
