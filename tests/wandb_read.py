"""Reads the file that an offline W&B run leaves: what a dashboard would show once it is synced."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

HEADER = struct.Struct("<4sHB")
MAGIC = (b":W&B", 0xBEE1)
BLOCK = 32 * 1024  # of LevelDB's log format: a piece of a record never crosses its border
PIECE = struct.Struct("<IHB")  # checksum, length, type
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[Record]:
    """Every protobuf record of a `run-ID.wandb`; raises ValueError where a byte is wrong."""
    content = path.read_bytes()
    if HEADER.unpack_from(content)[:2] != MAGIC:
        raise ValueError(f"{path} is no file of a W&B run")
    at, joined = HEADER.size, b""
    while at < len(content):
        if BLOCK - at % BLOCK < PIECE.size:
            at += BLOCK - at % BLOCK  # zeros fill a block whose rest is too small for a piece
            continue
        checksum, length, kind = PIECE.unpack_from(content, at)
        data = content[at + PIECE.size : at + PIECE.size + length]
        if len(data) < length or zlib.crc32(data, zlib.crc32(bytes([kind]))) != checksum:
            raise ValueError(f"{path}: damaged at byte {at}")
        joined = data if kind in (FULL, FIRST) else joined + data
        at += PIECE.size + length
        if kind in (FULL, LAST):
            yield Record.FromString(joined)


class Run:
    """What an offline folder says of its run."""

    def __init__(self, folder: Path) -> None:
        (path,) = folder.glob("run-*.wandb")
        self.folder, self.records = folder, list(records(path))
        (self.run,) = (r.run for r in self.records if r.WhichOneof("record_type") == "run")
        self.id, self.name, self.project = self.run.run_id, self.run.display_name, self.run.project
        self.exit_code = next(
            (r.exit.exit_code for r in self.records if r.WhichOneof("record_type") == "exit"), None
        )

    def of(self, kind: str) -> list[Any]:
        return [getattr(r, kind) for r in self.records if r.WhichOneof("record_type") == kind]

    @property
    def history(self) -> list[dict[str, Any]]:
        """A dictionary for each call of `log`."""
        return [
            {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in row.item}
            for row in self.of("history")
        ]

    @property
    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for update in [self.run.config, *self.of("config")]:
            for item in update.update:
                keys = [item.key] if item.key else list(item.nested_key)
                place = found
                for key in keys[:-1]:
                    place = place.setdefault(key, {})
                place[keys[-1]] = json.loads(item.value_json)
        return found

    @property
    def axes(self) -> dict[str, str]:
        """Metric, or pattern of metrics -> the metric that is its axis."""
        return {m.name or m.glob_name: m.step_metric for m in self.of("metric")}

    def series(self, name: str, axis: str) -> dict[int, Any]:
        """The values of metric `name` by its axis."""
        return {int(row[axis]): row[name] for row in self.history if name in row}

    def names(self) -> set[str]:
        return {name for row in self.history for name in row if not name.startswith("_")}


def offline_runs(folder: Path) -> list[Run]:
    """The runs under `folder`/wandb, in the order in which they began."""
    return [Run(path) for path in sorted(folder.glob("wandb/offline-run-*"))]
