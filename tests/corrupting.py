"""Seeded damage to a folder of shards: what disks, networks and strangers do to them."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Members = list[tuple[tarfile.TarInfo, bytes]]


class Payload:
    """Unpickling it would create the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def damage(folder: Path, seed: int, trap: Path) -> str:
    """Damages one file of `folder`; returns what was done, for messages.

    Args:
        trap: appears where hostile content was executed.
    """
    draw = random.Random(seed)
    kind = list(KINDS)[seed % len(KINDS)]
    tars, tables = sorted(folder.glob("*.tar")), sorted(folder.glob("*.index.json"))
    if kind.startswith("bytes"):
        path = draw.choice([*tars, *tars, *tables, folder / "_info.json"])
        data = bytearray(path.read_bytes())
        path.write_bytes(bytes(KINDS[kind](data, draw)))
    elif kind.startswith("json"):
        path = draw.choice([draw.choice(tables), folder / "_info.json"])
        path.write_text(KINDS[kind](json.loads(path.read_text()), draw, trap))
    else:
        path = draw.choice(tars)
        write_tar(path, KINDS[kind](read_tar(path), draw, trap))
    return f"{kind} in {path.name}"


def read_tar(path: Path) -> Members:
    with tarfile.open(path) as archive:
        return [(info, archive.extractfile(info).read()) for info in archive]


def write_tar(path: Path, members: Members) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for info, content in members:
            info.size = len(content) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(content) if info.isreg() else None)


# -- bytes of any file -----------------------------------------------------------------------


def flip(data: bytearray, draw: random.Random) -> bytearray:
    for _ in range(draw.randint(1, 20)):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return data


def cut(data: bytearray, draw: random.Random) -> bytearray:
    return data[: draw.randrange(len(data))]


def cut_at_block(data: bytearray, draw: random.Random) -> bytearray:
    return data[: draw.randrange(max(1, len(data) // 512)) * 512]


def empty(data: bytearray, draw: random.Random) -> bytearray:
    return bytearray()


def overwrite(data: bytearray, draw: random.Random) -> bytearray:
    start = draw.randrange(len(data))
    stop = min(len(data), start + draw.choice([1, 16, 512, 4096]))
    data[start:stop] = draw.choice([b"\0", b"\xff"]) * (stop - start)
    return data


def shift(data: bytearray, draw: random.Random) -> bytearray:
    at = draw.randrange(len(data))
    return data[:at] + draw.randbytes(draw.choice([1, 7, 512])) + data[at:]


# -- members of a tar ------------------------------------------------------------------------


def swap(members: Members, draw: random.Random, trap: Path) -> Members:
    a, b = draw.sample(range(len(members)), 2)
    (one, first), (two, second) = members[a], members[b]
    members[a], members[b] = (one, second), (two, first)
    return members


def rename(members: Members, draw: random.Random, trap: Path) -> Members:
    info, _ = members[draw.randrange(len(members))]
    info.name = draw.choice(
        [
            "../../escape.jpg",
            str(trap) + ".jpg",
            "no_ending",
            ".hidden",
            "a/../../b.json",
            "new\nline.png",
            "x" * 300 + ".jpg",
            "é" * 90 + ".JPG",
            "pipe:touch x.jpg",
        ]
    )
    return members


def hostile(members: Members, draw: random.Random, trap: Path) -> Members:
    """Members that naive readers unpickle or execute."""
    key = members[0][0].name.partition(".")[0]
    ending = draw.choice(["pyd", "pickle", "pkl", "pth", "npy", "ten", "cls", "py"])
    place = draw.randrange(len(members))
    return [
        *members[:place],
        (tarfile.TarInfo(f"{key}.{ending}"), pickle.dumps(Payload(trap))),
        *members[place:],
    ]


def link(members: Members, draw: random.Random, trap: Path) -> Members:
    info = tarfile.TarInfo("link.jpg")
    info.type = draw.choice([tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
    info.linkname = draw.choice(["/etc/passwd", members[0][0].name, "../x"])
    return [*members, (info, b"")]


def double(members: Members, draw: random.Random, trap: Path) -> Members:
    return [*members, members[draw.randrange(len(members))]]


def lose(members: Members, draw: random.Random, trap: Path) -> Members:
    members.pop(draw.randrange(len(members)))
    return members


def bomb(members: Members, draw: random.Random, trap: Path) -> Members:
    """A PNG of a few bytes that says it is 10 gigapixels, in place of any picture."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    png += chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    places = [n for n, (info, _) in enumerate(members) if not info.name.endswith("json")]
    place = draw.choice(places)
    members[place] = (members[place][0], png)
    return members


def chunk(name: bytes, content: bytes) -> bytes:
    body = name + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def nonsense(members: Members, draw: random.Random, trap: Path) -> Members:
    places = [n for n, (info, _) in enumerate(members) if info.name.endswith("json")]
    place = draw.choice(places)
    info, content = members[place]
    record = json.loads(content)
    annotations = record["annotations"]
    boxes = (
        ("opacity", [1, 1, 10**9, 5]),
        ("opacity", [5, 5, 0, 0]),
        ("opacity", [float("nan")] * 4),
        ("opacity", ["1", 2, 3, 4]),
        ("opacity", [1, 2, 3]),
        ("opacity", [10**400, 1, 1, 1]),
        (["opacity"], [1, 1, 5, 5]),
        (10**30, [1, 1, 5, 5]),
    )
    values = [
        7,
        dict.fromkeys(annotations, 9),
        {**annotations, "findings": {"Martian": 1}},
        {**annotations, "findings": {"Mass": 1e400}},
        {**annotations, "view": {"a": []}},
        *({**annotations, "boxes": [{"class": c, "bbox": box}]} for c, box in boxes),
        *({**annotations, name: value} for name, value in strange_numbers()),
    ]
    texts = [b"", b"null", b"[1, 2]", b"{", b'{"a": ' * 5000, b"\xff\xfe\0", b"[" * 100_000]
    texts += [json.dumps({**record, "annotations": value}).encode() for value in values]
    members[place] = (info, draw.choice(texts))
    return members


def strange_numbers() -> Iterator[tuple[str, Any]]:
    """Values, points, known classes and raters that cannot be."""
    box = {"class": "opacity", "bbox": [1, 1, 5, 5]}
    yield from (("boxes", {"boxes": [box], "known": known}) for known in ([], None, [[1]], 3))
    lesion = {"known": ["lesion"], "raters": {"lesion": 2}}
    yield from (("lesion", lesion | {"raters": r}) for r in ({"lesion": 0}, {"x": 2}, [2], 7))
    yield from (
        ("ratio", value) for value in ({"ctr": float("nan")}, {"ctr": 10**400}, "x", {"y": 1})
    )
    yield from (("marks", {"apex": p}) for p in ([1e9, 3], [1], {"x": 1}, [None, 2], float("inf")))


# -- values of the index ---------------------------------------------------------------------


def strange_value(content: dict, draw: random.Random, trap: Path) -> str:
    """One value somewhere becomes another one."""
    holder, key = content, draw.choice(list(content))
    while isinstance(holder[key], dict | list) and holder[key] and draw.random() < 0.9:
        holder = holder[key]
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        key = draw.choice(list(keys))
    values = [None, -1, 2**70, 1.5, "", "pipe:touch x", "../../x.tar", "/etc/passwd", [], {}, [[]]]
    holder[key] = draw.choice([*values, True, "s3://a/b.tar", 0, 1, "NaN", float("inf")])
    return json.dumps(content)


def lost_value(content: dict, draw: random.Random, trap: Path) -> str:
    holder, key = content, draw.choice(list(content))
    while isinstance(holder[key], dict | list) and holder[key] and draw.random() < 0.7:
        holder = holder[key]
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        key = draw.choice(list(keys))
    del holder[key]
    return json.dumps(content)


KINDS: dict[str, Callable] = {
    "bytes flipped": flip,
    "bytes cut": cut,
    "bytes cut at a block": cut_at_block,
    "bytes gone": empty,
    "bytes overwritten": overwrite,
    "bytes inserted": shift,
    "members swapped": swap,
    "member renamed": rename,
    "hostile member": hostile,
    "link": link,
    "member twice": double,
    "member lost": lose,
    "bomb": bomb,
    "nonsense json": nonsense,
    "json value strange": strange_value,
    "json value lost": lost_value,
}
