"""Tars that other tools wrote: indexed by the command, read as they are, and as webdataset does."""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
import yaml
from commands import ark
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from timm.data.readers.reader_wds import ReaderWds, _load_info, _parse_split_info

from datamodules.annotations import Boxes, Masks
from datamodules.tars.archive import read_archive
from datamodules.tars.index import ShardIndex
from datamodules.tars.shards import Address, ShardReader
from datamodules.tars.stored import IMAGE_ENDINGS

H, W = 24, 30
CLASSES = ["mass", "nodule", "scar"]
rng = np.random.default_rng(0)


def picture(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (H, W, 3), np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def index_tars(folder: Path, annotation: dict[str, Any]) -> ShardIndex:
    """`ark shards index` and `validate` on all tars of a folder, as split train."""
    stored = {"x": {"classes": CLASSES, **annotation}}
    index = {"splits": {"train": "*.tar"}, "annotations": stored}
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump({"name": "x", "shards": str(folder), "index": index}))
    ark("shards", "index", path, "--workers", 0)
    ark("shards", "validate", path, "--workers", 0)
    return ShardIndex.load(folder)


def tables(index: ShardIndex) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every tar with its table, as they lie in the folder."""
    for shard in index.splits["train"].shards:
        path = Path(index.storage.where) / shard.file
        yield path, json.loads(path.with_suffix(".index.json").read_text())


def read_all(index: ShardIndex) -> dict[str, tuple[np.ndarray, Any]]:
    """Key -> image and annotation of every sample; None where it is not annotated."""
    reader, found = ShardReader(index), {}
    for number, (_, table) in enumerate(tables(index)):
        for row, key in enumerate(table["key"]):
            at, carries = Address("train", number, row), row in table["annotated"]["x"]
            annotation = reader.read(at, "x").annotation if carries else None
            found[key] = (reader.image(at), annotation)
    return found


def assert_webdataset_agrees(index: ShardIndex) -> None:
    """The same keys in the same order, and the same bytes at the index's offsets."""
    info = json.loads((Path(index.storage.where) / "_info.json").read_text())["splits"]["train"]
    for number, (path, table) in enumerate(tables(index)):
        data, columns = path.read_bytes(), table["members"]
        assert info["shard_bytes"][number] == len(data)
        assert info["shard_sha256"][number] == hashlib.sha256(data).hexdigest()
        theirs = list(webdataset.WebDataset(str(path), shardshuffle=False))
        assert table["key"] == [sample["__key__"] for sample in theirs]
        for row, sample in enumerate(theirs):
            (image,) = (e for e in IMAGE_ENDINGS if e in sample and e not in columns)
            for column, rows in columns.items():
                offset, size = rows["offset"][row], rows["size"][row]
                member = sample.get(image if column == "image" else column)
                assert member == (None if size < 0 else data[offset : offset + size])


# -- each way of storing: the members, how the YAML names it, and what the reader must give --------

BOXES = [[{"class": 2, "bbox": [1, 2, 10, 5.5]}, {"class": "mass", "bbox": [0, 0, 30, 24]}], []]
XYXY = [[[1, 2, 11, 7.5], [0, 0, 30, 24]], np.zeros((0, 4))]
MAPS = [rng.choice(np.uint8([0, 3, 7, 200]), (H, W)) for _ in range(2)]
PLANES = (rng.random((2, 3, H, W)) > 0.6).astype(np.uint8)


def rles(planes: np.ndarray) -> list[dict[str, Any]]:
    """The first class in two pieces, the last not at all."""
    top = np.zeros_like(planes[0])
    top[:9] = planes[0, :9]
    pieces = [("mass", top), ("mass", planes[0] - top), (1, planes[1])]
    found = []
    for name, mask in pieces:
        rle = coco_mask.encode(np.asfortranarray(mask))
        found.append({"class": name, "rle": {**rle, "counts": rle["counts"].decode()}})
    return found


def masks(planes: Any, known: tuple[bool, ...] = (True,) * 3) -> Masks:
    return Masks(np.uint8(planes), np.array(known))


WAYS: dict[str, tuple[dict[str, Any], str, list[dict[str, Any]], list[Any]]] = {
    "jpg + cls": (
        {"kind": "multiclass", "member": "cls"},
        "jpg",
        [{"cls": 2}, {"cls": 0}, {"cls": "nodule"}, {}],
        [2, 0, 1, None],
    ),
    "png + json tags": (
        {"kind": "multilabel", "field": "meta.tags"},
        "png",
        [
            {"json": {"meta": {"tags": ["scar", "mass"]}}},
            {"json": {"meta": {"tags": []}}},
            {"json": {"meta": {}}},
            {},
        ],
        [np.float32([1, 0, 1]), np.zeros(3, np.float32), None, None],
    ),
    "png + json labels": (
        {"kind": "multilabel", "field": "y"},
        "png",
        [{"json": {"y": [1, 0, None]}}, {"json": {"y": {"scar": 1, "mass": None}}}],
        [np.float32([1, 0, np.nan]), np.float32([np.nan, np.nan, 1])],
    ),
    "jpg + json boxes": (
        {"kind": "detection", "field": "boxes"},
        "jpg",
        [*({"json": {"boxes": boxes}} for boxes in BOXES), {"json": {}}],
        [
            *(Boxes(np.float32(xyxy), np.int64([2, 0][: len(xyxy)])) for xyxy in XYXY),
            None,
        ],
    ),
    "jpg + json boxes of some classes": (
        {"kind": "detection", "field": "boxes"},
        "jpg",
        [
            {"json": {"boxes": {"boxes": BOXES[0], "known": ["mass", 2]}}},
            {"json": {"boxes": {"boxes": [], "known": []}}},
            {"json": {"boxes": BOXES[0]}},
        ],
        [
            Boxes(np.float32(XYXY[0]), np.int64([2, 0]), np.array([True, False, True])),
            Boxes(np.float32(XYXY[1]), np.int64([]), np.array([False] * 3)),
            Boxes(np.float32(XYXY[0]), np.int64([2, 0])),
        ],
    ),
    "jpg + cls of ordinal classes": (
        {"kind": "ordinal", "member": "cls"},
        "jpg",
        [{"cls": 2}, {"cls": "mass"}],
        [2, 0],
    ),
    "jpg + json uncertain labels": (
        {"kind": "multilabel", "field": "y"},
        "jpg",
        [{"json": {"y": [-1, 0, None]}}, {"json": {"y": {"scar": -1, "mass": 1}}}],
        [np.float32([-1, 0, np.nan]), np.float32([1, np.nan, -1])],
    ),
    "jpg + json values": (
        {"kind": "values", "field": "sizes"},
        "jpg",
        [
            {"json": {"sizes": {"scar": 3.5, "mass": -1}}},
            {"json": {"sizes": [None, 2, 1e-3]}},
            {"json": {"sizes": {}}},
            {"json": {}},
        ],
        [
            np.float32([-1, np.nan, 3.5]),
            np.float32([np.nan, 2, 1e-3]),
            np.full(3, np.nan, np.float32),
            None,
        ],
    ),
    "jpg + json value": (
        {"kind": "values", "classes": ["age"], "field": "about.age"},
        "jpg",
        [{"json": {"about": {"age": 61}}}, {"json": {"about": {"age": None}}}],
        [np.float32([61]), None],
    ),
    "jpg + json points": (
        {"kind": "points", "field": "marks"},
        "jpg",
        [
            {"json": {"marks": {"nodule": [29.5, 0], "scar": [-0.5, 24.25]}}},
            {"json": {"marks": [None, [1, 2], None]}},
        ],
        [
            np.float32([[np.nan] * 2, [29.5, 0], [0, 24]]),
            np.float32([[np.nan] * 2, [1, 2], [np.nan] * 2]),
        ],
    ),
    "jpg + seg.png": (
        {"kind": "segmentation", "member": "seg.png", "values": [3, 7, 200]},
        "jpg",
        [{"seg.png": MAPS[0]}, {}, {"seg.png": MAPS[1]}],
        [
            masks([m == v for v in (3, 7, 200)]) if m is not None else None
            for m in (MAPS[0], None, MAPS[1])
        ],
    ),
    "jpg + json RLE": (
        {"kind": "segmentation", "field": "a.segs"},
        "jpg",
        [{"json": {"a": {"segs": rles(p)}}} for p in PLANES],
        [masks([p[0], p[1], np.zeros((H, W))]) for p in PLANES],
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_shard_writer(way: str, tmp_path: Path) -> None:
    annotation, ending, members, expected = WAYS[way]
    folder = tmp_path / "tars"
    folder.mkdir()
    images = [picture("JPEG" if ending == "jpg" else "PNG") for _ in members]
    with webdataset.ShardWriter(f"{folder}/part-%04d.tar", maxcount=2, verbose=0) as writer:
        for n, (image, mine) in enumerate(zip(images, members, strict=True)):
            writer.write({"__key__": f"dir/s{n}", ending: image, **mine})
    index = index_tars(folder, annotation)
    assert len(index.splits["train"].shards) == -(-len(members) // 2)
    found = read_all(index)
    assert list(found) == [f"dir/s{n}" for n in range(len(members))]
    for (image, value), data, wanted in zip(found.values(), images, expected, strict=True):
        np.testing.assert_array_equal(image, np.array(Image.open(io.BytesIO(data))))
        assert_same(value, wanted)
    assert_webdataset_agrees(index)


def assert_same(found: Any, wanted: Any) -> None:
    if isinstance(wanted, tuple):
        for one, other in zip(found, wanted, strict=True):
            assert (one is None) == (other is None)
            np.testing.assert_array_equal(one, other)
    else:
        np.testing.assert_array_equal(found, wanted)
    assert type(found) is type(wanted)


# -- GNU tar and Python's tarfile ------------------------------------------------------------------

LONG_FOLDER = "f" * 70 + "/" + "g" * 70
KEYS = ["train/n01/a", "train/n01/a-1", "train/n01/a_b", "train/n02/é c", f"{LONG_FOLDER}/d"]
LONG_NAME = "n" * 200


@pytest.mark.parametrize("how", ["gnu", "ustar", "pax", "gnu ."])
def test_gnu_tar(how: str, tmp_path: Path) -> None:
    """Of a folder of files, with its subfolders as members."""
    source, folder, dot = tmp_path / "source", tmp_path / "tars", how.endswith(".")
    keys = [*KEYS, f"train/{LONG_NAME}"] if how != "ustar" else KEYS
    files = {}
    for n, key in enumerate(keys):
        files[key] = (picture("JPEG"), str(n % 3).encode())
        for ending, data in zip(("jpg", "cls"), files[key], strict=True):
            path = source / f"{key}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    folder.mkdir()
    tops = ["."] if dot else sorted(path.name for path in source.iterdir())
    options = ["--sort=name", f"--format={how.split()[0]}", "-C", str(source)]
    subprocess.run(["tar", *options, "-cf", str(folder / "x.tar"), *tops], check=True)
    index = index_tars(folder, {"kind": "multiclass", "member": "cls"})
    found = {key.removeprefix("./"): value for key, value in read_all(index).items()}
    assert sorted(found) == sorted(keys)
    for key, (image, label) in found.items():
        np.testing.assert_array_equal(image, np.array(Image.open(io.BytesIO(files[key][0]))))
        assert label == int(files[key][1])
    assert_webdataset_agrees(index)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_tarfile_with_folders_and_upper_case(form: int, tmp_path: Path) -> None:
    """Members of webdataset's own, under __names__, are passed over by both."""
    folder, image = tmp_path / "tars", picture("JPEG")
    folder.mkdir()
    with tarfile.open(folder / "X.tar", "w", format=form) as tar:
        top = tarfile.TarInfo("n01")
        top.type = tarfile.DIRTYPE
        tar.addfile(top)
        for name, data in {
            "__meta__/about.json": b"{}",
            "n01/A.JPG": image,
            "n01/A.Cls": b"1\n",
            "n01/A.Notes.TXT": b"-",
        }.items():
            add(tar, name, data)
    index = index_tars(folder, {"kind": "multiclass", "member": "cls"})
    ((key, (pixels, label)),) = read_all(index).items()
    assert (key, label) == ("n01/A", 1)
    np.testing.assert_array_equal(pixels, np.array(Image.open(io.BytesIO(image))))
    assert_webdataset_agrees(index)


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


# -- any tar: webdataset's grouping is ours --------------------------------------------------------

PARTS = st.text("ab1_-. éA", min_size=1, max_size=6)
NAMES = st.lists(PARTS, min_size=1, max_size=3).map("/".join) | st.sampled_from(
    ["a.jpg", "a.JSON", "b/a.jpg", "__x__", "__x__/a.jpg", "__a.jpg", ".hid", "a.b.c", "no", "d/.e"]
)


@settings(max_examples=40, deadline=None)
@given(
    files=st.lists(st.tuples(NAMES, st.binary(max_size=1200)), max_size=12),
    form=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
@example(files=[("a.jpg", b"1"), ("x", b"2"), ("a.txt", b"3"), ("b.c", b""), ("a.d", b"5")], form=2)
def test_grouping_is_webdatasets(tmp_path_factory, files, form: int) -> None:
    path = tmp_path_factory.mktemp("any") / "x.tar"
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in [*files, ("end.jpg", b"-")]:
            add(tar, name, data)
    data, faults = path.read_bytes(), []
    ours = list(read_archive(io.BytesIO(data), len(data), lambda *fault: faults.append(fault)))
    refused = {name for _, name, _ in faults}
    assert not [name for name in refused if re.fullmatch(r"(\w+/)*\w+(\.\w+)+", name)]
    theirs = webdataset.DataPipeline(
        webdataset.SimpleShardList([str(path)]),
        webdataset.tarfile_to_samples(select_files=lambda name: name not in refused),
    )
    twice = [len({m.ending for m in members}) < len(members) for _, members in ours]
    if any(twice):
        with pytest.raises(ValueError, match="duplicate file name"):
            list(theirs)
        return
    content = [
        (key, {m.ending: data[m.offset : m.offset + m.size] for m in members})
        for key, members in ours
    ]
    assert content == [
        (s["__key__"], {e: d for e, d in s.items() if isinstance(d, bytes)}) for s in theirs
    ]


# -- timm ------------------------------------------------------------------------------------------


def test_timm_reads_what_we_write(tmp_path: Path) -> None:
    folder = tmp_path / "organs"
    source = {
        "class_path": "datamodules.phantoms.PhantomSource",
        "init_args": {"preset": "organs", "train": 5, "val": 2, "test": 0, "size": 96},
    }
    path = tmp_path / "organs.yaml"
    path.write_text(yaml.safe_dump({"name": "organs", "shards": str(folder), "source": source}))
    ark("shards", "write", path, "--max_shard_bytes", 20_000)
    info, index = _load_info(str(folder)), ShardIndex.load(folder)
    for split, number in {"train": 5, "val": 2}.items():
        found = _parse_split_info(split, info)
        tars = sorted(p.name for p in folder.glob(f"{split}-*.tar"))
        assert (found.name, found.num_samples, list(found.filenames)) == (split, number, tars)
        assert list(found.shard_lengths) == [len(keys_of(folder / tar)) for tar in tars]
    assert len(info["splits"]["train"]["filenames"]) > 1
    reader = ReaderWds(str(folder), input_key="jpg;png", target_key="height")
    read = list(reader)
    assert (len(reader), len(read)) == (5, 5)
    addresses = [
        Address("train", n, row)
        for n, shard in enumerate(index.splits["train"].shards)
        for row in range(shard.samples)
    ]
    for (image, height), at in zip(read, addresses, strict=True):
        gray = ShardReader(index).image(at)
        np.testing.assert_array_equal(np.array(image), np.repeat(gray, 3, axis=2))
        assert height == 96


def keys_of(tar: Path) -> set[str]:
    with tarfile.open(tar) as archive:
        return {name.partition(".")[0] for name in archive.getnames()}


def test_timm_trains_on_tars_that_we_indexed(tmp_path: Path) -> None:
    folder = tmp_path / "tars"
    folder.mkdir()
    with webdataset.ShardWriter(f"{folder}/part-%04d.tar", maxcount=3, verbose=0) as writer:
        for n in range(5):
            writer.write({"__key__": f"s{n}", "png": picture("PNG"), "cls": n % 3})
    index_tars(folder, {"kind": "multiclass", "member": "cls"})
    read = list(ReaderWds(str(folder), input_key="jpg;png"))
    assert [label for _, label in read] == [0, 1, 2, 0, 1]
    assert json.loads((folder / "_info.json").read_text())["splits"]["train"]["num_samples"] == 5
    training = ReaderWds(str(folder), input_key="jpg;png", is_training=True, batch_size=2)
    assert len(list(training)) == 6  # 5 samples, made whole batches
