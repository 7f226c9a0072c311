"""The table of one shard: where in the tar each member of each sample begins.

It stands beside its tar, `train-000000.tar` and `train-000000.index.json`, and is read when the
shard is: a run that reads a few of 100,000 shards holds the tables of those few.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from ark.types import ConfigError

_ROWS = ("offset", "size", "xxh3")  # of a member's array
ABSENT = -1  # size of a member that a sample lacks


def table_file(tar: str) -> str:
    return f"{tar.removesuffix('.tar')}.index.json"


def member_hash(data: bytes) -> int:
    """The low 32 bits of xxh3-64: tells damage at a twentieth of crc32's cost; not for security."""
    return xxhash.xxh3_64_intdigest(data) & 0xFFFFFFFF


@dataclass(frozen=True)
class ShardTable:
    """The n samples of one tar, in the order in which it holds them."""

    keys: list[str]
    members: dict[
        str, np.ndarray
    ]  # column -> (3, n) int64: offset, size, member_hash of the content
    annotated: dict[str, np.ndarray]  # annotation -> (m,) int64: rows that carry it, rising

    @classmethod
    def parse(cls, text: str | bytes, tar_bytes: int, where: str) -> ShardTable:
        """
        Args:
            tar_bytes: size of the tar; no member may reach beyond it.

        Raises:
            ConfigError: not a table, or one that cannot be of this tar.
        """
        try:
            content = json.loads(text)
            keys = [str(key) for key in content["key"]]
            members = {
                name: np.array([rows[row] for row in _ROWS], np.int64).reshape(3, len(keys))
                for name, rows in content["members"].items()
            }
            annotated = {a: np.array(rows, np.int64) for a, rows in content["annotated"].items()}
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            OverflowError,
            RecursionError,
        ) as e:
            raise ConfigError(
                f"{where}: no table of a shard ({type(e).__name__}: {e}); {HOW}"
            ) from e
        table = cls(keys, members, annotated)
        table._check(tar_bytes, where)
        return table

    def as_json(self) -> str:
        content: dict[str, Any] = {
            "key": self.keys,
            "members": {
                name: dict(zip(_ROWS, rows.tolist(), strict=True))
                for name, rows in self.members.items()
            },
            "annotated": {name: rows.tolist() for name, rows in self.annotated.items()},
        }
        return json.dumps(content, separators=(",", ":"), ensure_ascii=False)

    def _check(self, tar_bytes: int, where: str) -> None:
        for name, (offset, size, _) in self.members.items():
            present = size != ABSENT
            if np.any(present & ((offset < 0) | (size < 0) | (offset > tar_bytes - size))):
                raise ConfigError(
                    f"{where}: member {name!r} leaves the tar of {tar_bytes} bytes; {HOW}"
                )
        for name, rows in self.annotated.items():
            if rows.ndim != 1 or np.any((rows < 0) | (rows >= len(self.keys))):
                raise ConfigError(
                    f"{where}: annotation {name!r} names rows that do not exist; {HOW}"
                )


HOW = "make the index again with `ark shards index CONFIG`, CONFIG being the dataset's YAML"
