"""Readers of public datasets' own formats, one short file each."""

from datamodules.sources.base import SPLITS, Source, SourceSample
from datamodules.sources.folder import FolderSource
from datamodules.sources.release import ReleaseSource

__all__ = ["SPLITS", "FolderSource", "ReleaseSource", "Source", "SourceSample"]
