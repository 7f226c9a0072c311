"""`ark shards index` and `validate`: a line a fault, with shard, key, field and a fix."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from commands import ark

from ark.types import ConfigError
from datamodules.config import load_datasets, prepare, stored_annotations
from datamodules.imaging.images import encode_jpeg, encode_png
from datamodules.tars.index import INFO_FILE, ShardIndex
from datamodules.tars.indexing import index_shards
from datamodules.tars.shard_table import table_file

H, W = 32, 40
NOISE = np.random.default_rng(0).integers(0, 256, (H, W), np.uint8)
JPG, PNG = encode_jpeg(NOISE), encode_png(NOISE)
MASK = encode_png(np.eye(H, W, dtype=np.uint8))
SMALL = encode_png(np.eye(9, dtype=np.uint8))
ANNOTATIONS = {
    "view": {"kind": "multiclass", "classes": ["PA", "AP"], "field": "view"},
    "boxes": {"kind": "detection", "classes": ["nodule"], "field": "boxes"},
    "lung": {"kind": "segmentation", "classes": ["lung"], "member": "seg.png"},
    "heart": {"kind": "segmentation", "classes": ["heart"]},
}
KEYS = {"train-0.tar": ["a", "b", "c"], "val-0.tar": ["d", "e"]}


def record(key: str, **changes: Any) -> bytes:
    sound = {"view": "PA", "boxes": [{"class": "nodule", "bbox": [1, 2, 9, 8]}], "patient": key}
    return json.dumps(sound | {"annotations": {"heart": {"known": ["heart"]}}} | changes).encode()


class Tars:
    """Two sound tars that a test may break, and the YAML that says how to index them."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder, self.yaml = root, root / "x", root / "x.yaml"
        self.members: dict[str, dict[str, bytes | tarfile.TarInfo]] = {}
        for tar, keys in KEYS.items():
            self.members[tar] = {}
            for key in keys:
                sample = {"jpg": JPG, "json": record(key), "seg.png": MASK, "heart.heart.png": MASK}
                self.members[tar] |= {f"{key}.{ending}": data for ending, data in sample.items()}
        self.members["val-0.tar"] |= {"e.json": b"{}"}
        del self.members["val-0.tar"]["e.seg.png"], self.members["val-0.tar"]["e.heart.heart.png"]
        self.config(annotations=ANNOTATIONS)

    def config(self, **index: Any) -> None:
        dataset = {"name": "x", "shards": str(self.folder), "index": index}
        self.yaml.write_text(yaml.safe_dump(dataset, sort_keys=False))

    def write(self) -> None:
        self.folder.mkdir(exist_ok=True)
        for tar, members in self.members.items():
            with tarfile.open(self.folder / tar, "w") as archive:
                for name, data in members.items():
                    info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
                    content = b"" if isinstance(data, tarfile.TarInfo) else data
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))

    def index(self, *options: object) -> None:
        ark("shards", "index", self.yaml, "--workers", 0, *options)

    def validate(self, *options: object, place: object = None) -> None:
        ark("shards", "validate", place or self.folder, "--workers", 0, *options)

    def keys(self) -> set[str]:
        """Of all samples in the index."""
        splits = ShardIndex.load(self.folder).splits.values()
        tables = [self.folder / table_file(shard.file) for part in splits for shard in part.shards]
        return {key for table in tables for key in json.loads(table.read_text())["key"]}


@pytest.fixture
def tars(tmp_path: Path) -> Tars:
    return Tars(tmp_path)


# -- what may be wrong with tars: the break; shard, key, field and words of each line; lost keys -

T, V = "train-0.tar", "val-0.tar"


def put(name: str, data: bytes, tar: str = T) -> Callable[[Tars], None]:
    def edit(tars: Tars) -> None:
        tars.members[tar] = tars.members[tar] | {name: data}

    return edit


def boxes(*bbox: float) -> Callable[[Tars], None]:
    return put("b.json", record("b", boxes=[{"class": "nodule", "bbox": list(bbox)}]))


def twice_in_a_tar(tars: Tars) -> None:
    """a's members with b's between them."""
    members = tars.members[T]
    members["a.json"] = members.pop("a.json")


def a_link(tars: Tars) -> None:
    link = tarfile.TarInfo("b.seg.png")
    link.type, link.linkname = tarfile.SYMTYPE, "a.seg.png"
    tars.members[T]["b.seg.png"] = link


def bytes_of(change: Callable[[bytes, int], bytes]) -> Callable[[Tars], None]:
    """Changes the written train-0.tar, given the offset of the header of b.json."""

    def edit(tars: Tars) -> None:
        tars.write()
        path = tars.folder / T
        with tarfile.open(path) as archive:
            offset = archive.getmember("b.json").offset
        path.write_bytes(change(path.read_bytes(), offset))
        del tars.members[T]  # it is there

    return edit


NO_END = "a damaged header, or cut short; write or copy it again"
FAULTS: dict[str, tuple[Callable[[Tars], Any], list[tuple[str, str, str, str]], str]] = {
    "truncated": (
        bytes_of(lambda data, at: data[: at + 600]),
        [(T, "b", "", "the tar ends in the middle of b.json; copy it again")],
        "bc",
    ),
    "cut between two members": (bytes_of(lambda d, at: d[:at]), [(T, "b", "", NO_END)], "bc"),
    "damaged header": (
        bytes_of(lambda data, at: data[:at] + b"#" + data[at + 1 :]),
        [(T, "b", "", NO_END)],
        "bc",
    ),
    "no byte": (
        bytes_of(lambda data, at: b""),
        [(T, "", "", "not a plain tar, or damaged (empty file); write or copy it again")],
        "abc",
    ),
    "compressed": (
        bytes_of(lambda data, at: gzip.compress(data)),
        [(T, "", "", "compressed with gzip, so that no sample can be read alone; unpack it")],
        "abc",
    ),
    "no image": (
        lambda tars: tars.members[T].pop("b.jpg"),
        [(T, "b", "image", "no image; add a member that ends in one of jpg, jpeg, png")],
        "b",
    ),
    "two images": (
        put("c.png", PNG),
        [(T, "c", "image", "two images, .jpg and .png; keep one")],
        "c",
    ),
    "two members of a name": (
        put("c.JSON", b"{}"),
        [(T, "c", "json", "the sample has two members .json; keep one")],
        "c",
    ),
    "no picture": (
        put("b.jpg", b"GIF89a"),
        [(T, "b", "image", ".jpg: begins with b'GIF89a'; neither JPEG")],
        "b",
    ),
    "no json": (
        put("b.json", b"{'view': 'PA'}"),
        [(T, "b", "json", "cannot be read (Expecting property name")],
        "b",
    ),
    "a list": (
        put("b.json", b"[]"),
        [(T, "b", "json", "the json is a list; expected an object")],
        "b",
    ),
    "unknown class": (
        put("b.json", record("b", view="LL")),
        [(T, "b", "view", "json field 'view': class 'LL' is not one of the classes ['PA', 'AP']")],
        "b",
    ),
    "several": (
        put("b.json", record("b", view=7, boxes={}, annotations={"heart": ["x"]})),
        [
            (T, "b", "view", "class 7 is not one of the classes"),
            (T, "b", "boxes", "{}; expected a list of"),
            (T, "b", "heart", "json field 'annotations.heart': ['x']; expected"),
        ],
        "b",
    ),
    "box outside": (
        boxes(1, 2, 90, 8),
        [(T, "b", "boxes", "bbox [1, 2, 90, 8] [x, y, w, h] leaves its image of 40x32 pixels")],
        "b",
    ),
    "flat box": (boxes(1, 2, 0, 8), [(T, "b", "boxes", "no area; expected [x, y, w, h]")], "b"),
    "label map of another size": (
        put("b.seg.png", SMALL),
        [(T, "b", "lung", "the mask of 'lung' is 9x9, its image 40x32 (width x height)")],
        "b",
    ),
    "mask of another size": (
        put("b.heart.heart.png", SMALL),
        [(T, "b", "heart", "the mask of 'heart' is 9x9, its image 40x32 (width x height)")],
        "b",
    ),
    "strange value": (
        put("b.seg.png", encode_png(np.full((H, W), 3, np.uint8))),
        [(T, "b", "lung", "member 'seg.png': the label map holds 3; expected 0 or [1]")],
        "b",
    ),
    "key twice in a tar": (
        twice_in_a_tar,
        [
            (T, "a", "", "the tar has this key before; rename the sample, or keep its members"),
            (T, "a", "image", "no image"),
        ],
        "a",
    ),
    "key in two tars and splits": (
        put("c.jpg", JPG, V),
        [(V, "c", "", "its key is in train-0.tar too; rename or remove one of the two")],
        "",
    ),
    "patient in two splits": (
        put("d.json", record("d", patient="a"), V),
        [(V, "d", "patient", "patient 'a' is in train and in val; keep them in one")],
        "d",
    ),
    "link": (a_link, [(T, "b", "seg.png", "a link or special file; store plain files only")], "b"),
    "no key": (
        put(".hidden", b""),
        [(T, "", ".hidden", "its name is not of the form [folder/]key.ending; rename")],
        "",
    ),
    "name that no terminal shows": (
        put("\x1b[31mé\udce9.jpg", b""),
        [(T, "", r"\x1b[31m\xe9\udce9.jpg", "its name is not of the form")],
        "",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_a_tar(name: str, tars: Tars, capsys) -> None:
    edit, expected, lost = FAULTS[name]
    edit(tars)
    tars.write()
    report = tars.root / "faults.csv"
    assert_refused(partial(tars.index, "--report", report))
    said = capsys.readouterr()
    assert said.out == ""
    files = len({shard for shard, *_ in expected})
    counts = f"{len(expected)} faults? in {files} files?"
    first, *lines = said.err.splitlines()
    assert re.match(f"ark: error: dataset 'x': {counts}, so nothing was indexed; mend", first)
    assert_told(lines, expected)
    with report.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(r["dataset"], r["shard"], r["key"], r["field"]) for r in rows] == [
        ("x", *place) for *place, _ in expected
    ]
    assert {path.name for path in tars.folder.iterdir()} == set(KEYS), "something was written"

    tars.index("--skip_bad", "true")
    first, *lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(f"left out of the index, for {counts}:", first)
    assert_told(lines[: lines.index("")], expected)
    assert tars.keys() == set("abcde") - set(lost)

    assert_refused(tars.validate)
    said = capsys.readouterr()
    lines = said.out.splitlines()
    start = next(n for n, line in enumerate(lines) if re.fullmatch(f"{counts}:", line))
    assert_told(lines[start + 1 : -1], expected)
    assert said.err == f"ark: error: faults in {tars.folder}; see above\n"


def assert_refused(command: Callable[[], None]) -> None:
    with pytest.raises(SystemExit) as error:
        command()
    assert error.value.code == 2


def assert_told(lines: list[str], expected: list[tuple[str, str, str, str]]) -> None:
    """Exactly these faults, one a line."""
    assert len(lines) == len(expected), lines
    for line, (shard, key, field, words) in zip(lines, expected, strict=True):
        place = [shard, f"sample {key!r}" if key else "", field]
        assert line.startswith("  " + ", ".join(filter(None, place)) + ": ")
        assert words in line


def test_a_tar_that_cannot_be_opened_is_left_out(tars: Tars) -> None:
    tars.write()
    stored = stored_annotations(load_datasets(str(tars.yaml))[0])
    found = index_shards(tars.folder, "x", stored, {"train": ["gone.tar", T]}, keep_going=True)
    assert [(fault.shard, fault.problem[:14]) for fault in found.faults] == [
        ("gone.tar", "cannot be read")
    ]
    assert tars.keys() == set("abc")


# -- what only decoding tells, and an index that is not the tars' ----------------------------------


def spoil(data: bytes) -> bytes:
    """Damage to the pixels that the header does not show."""
    return data[: len(data) // 2]


def corrupt_image(tars: Tars) -> None:
    tars.members[T]["b.jpg"] = spoil(JPG)


def corrupt_mask(tars: Tars) -> None:
    tars.members[T]["b.heart.heart.png"] = spoil(MASK)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (corrupt_image, (T, "b", "image", "replace")),
        (corrupt_mask, (T, "b", "heart", "member 'heart.heart.png'")),
    ],
)
def test_validate_decodes_all_pixels(edit, expected, tars: Tars, capsys) -> None:
    edit(tars)
    tars.write()
    tars.index()
    capsys.readouterr()
    assert_refused(tars.validate)
    lines = capsys.readouterr().out.splitlines()
    assert_told(lines[lines.index("1 fault in 1 file:") + 1 : -1], [expected])


def edit_info(change: Callable[[dict[str, Any]], None]) -> Callable[[Tars], None]:
    def edit(tars: Tars) -> None:
        content = json.loads((tars.folder / INFO_FILE).read_text())
        change(content["splits"])
        (tars.folder / INFO_FILE).write_text(json.dumps(content))

    return edit


def lose(file: str) -> Callable[[Tars], None]:
    return lambda tars: (tars.folder / file).unlink()


def another_tar(tars: Tars) -> None:
    tars.members[T]["b.json"] = record("b", view="AP")
    tars.write()


def a_longer_tar(tars: Tars) -> None:
    tars.members[T] |= {"z.jpg": JPG * 40, "z.txt": b""}
    tars.write()


def another_table(tars: Tars) -> None:
    path = tars.folder / "train-0.index.json"
    path.write_text(path.read_text().replace('"a"', '"q"', 1))


def wrong_table(tars: Tars) -> None:
    """One that is as the index states, but not of this tar."""
    path = tars.folder / TABLE
    text = path.read_text().replace('"a"', '"q"', 1)
    path.write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    edit_info(lambda splits: splits["train"].update(table_sha256=[digest]))(tars)


TABLE = "train-0.index.json"
MISMATCHES = {
    "lost tar": (lose(T), [(T, "", "", "train-0.tar: no such file; copy the folder again, whole")]),
    "lost table": (
        lose(TABLE),
        [(T, "", TABLE, "no such file; copy the folder again, whole; or index the")],
    ),
    "another tar": (
        another_tar,
        [(T, "", "", "sha256 is not the one that the index states; copy it again, or index")],
    ),
    "a longer tar": (
        a_longer_tar,
        [(T, "", "", "bytes, the index states 20480; copy it again, or index the tars anew")],
    ),
    "another table": (another_table, [(T, "", TABLE, "sha256 is not the one that the index")]),
    "wrong table": (
        wrong_table,
        [(T, "", TABLE, "it does not say what the tar holds; index the tar anew")],
    ),
    "counts": (
        edit_info(lambda s: s["train"]["counts"]["view"]["PA"].update(present=9)),
        [(INFO_FILE, "", "view", "'present': 9}, the tars hold {'known': 3, 'present': 3}; index")],
    ),
    "carriers": (
        edit_info(lambda s: s["val"]["annotated"].update(boxes=[2])),
        [(INFO_FILE, "", "boxes", "split val: misstates how many samples of each tar carry it")],
    ),
    "samples": (
        edit_info(lambda s: s["val"].update(num_samples=7, shard_lengths=[7])),
        [(V, "", "", "2 samples, the index states 7; index the tars anew")],
    ),
    "a tar twice": (
        edit_info(lambda s: s.update(test={**s["val"], "name": "test"})),
        [
            (V, "d", "patient", "patient 'd' is in val and in test"),
            (V, "", "", "the index names it 2 times; index the tars anew"),
        ],
    ),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_an_index_that_is_not_the_tars(name: str, tars: Tars, capsys) -> None:
    edit, expected = MISMATCHES[name]
    tars.write()
    tars.index()
    edit(tars)
    capsys.readouterr()
    assert_refused(tars.validate)
    lines = capsys.readouterr().out.splitlines()
    start = next(n for n, line in enumerate(lines) if re.fullmatch(r"\d+ faults? in .*:", line))
    assert_told(lines[start + 1 : -1], expected)


# -- what a sound dataset is told, and where it may be --------------------------------------------


@pytest.fixture
def url(tars: Tars) -> Iterator[str]:
    handler = partial(QuietHandler, directory=tars.root)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/x"
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


def test_a_sound_dataset(tars: Tars, capsys) -> None:
    tars.members[T] |= {"f.jpg": encode_jpeg(NOISE[:9]), "f.txt": b""}
    tars.write()
    tars.index()
    indexed = capsys.readouterr().out
    tars.validate()
    assert capsys.readouterr().out.rstrip().splitlines() == [
        *indexed.rstrip().splitlines(),
        "",
        "no fault: tars, tables, index, images and annotations agree",
    ]
    for line in (
        rf"x  \({tars.folder}\); class rows read present / known",
        r"train +4 +1 +0\.0",
        r"boxes \(detection\) +train +val",
        r"  samples that carry it +3 +1",
        r"  samples without it +1 +1",
        r"  nodule +3 / 3, 3 boxes +1 / 1, 1 boxes",
        r"  lung +3 / 3 +1 / 1",
        r"  AP +0 / 3 +0 / 1",
        r"image sizes: 2 sizes, 40x9 to 40x32; most often 40x32 pixels .*: 5 of 6 images",
        r"members that no annotation names, never opened: 1 \.txt",
    ):
        assert re.search(f"^{line}$", indexed, re.M), line


def test_validate_takes_a_yaml_a_folder_and_a_url(tars: Tars, url: str, capsys) -> None:
    tars.write()
    tars.index()
    cache = ["--cache.folder", tars.root / "cache"]
    # room for one tar of 20 KB and some tables at a time
    for place, options in {
        tars.yaml: ["--workers", 2],
        url: [*cache, "--cache.gigabytes=3e-5"],
    }.items():
        tars.validate(*options, place=place)
        assert "no fault: " in capsys.readouterr().out
    (tars.folder / T).write_bytes(b"-" * 20480)
    assert_refused(partial(tars.validate, "--cache.folder", tars.root / "other", place=url))
    said = capsys.readouterr().out
    assert f"{T}: {url}/{T}: sha256 is " in said


def test_several_datasets_share_a_report(tars: Tars, capsys) -> None:
    report, places = tars.root / "all.csv", []
    for name in ("one", "two"):
        (tars.root / name).mkdir()
        one = Tars(tars.root / name)
        one.write()
        one.index()
        (one.folder / V).unlink()
        places.append(str(one.folder))
    assert_refused(partial(ark, "shards", "validate", *places, "--report", report))
    assert f"faults in {places[0]}, {places[1]}; see above" in capsys.readouterr().err
    with report.open() as file:
        assert [(row["dataset"], row["shard"]) for row in csv.DictReader(file)] == [
            (place, V) for place in places
        ]


def test_many_faults_are_cut_short_but_not_in_the_report(tars: Tars, capsys) -> None:
    tars.members[T] = {f"k{n}.json": b"{}" for n in range(30)}
    tars.write()
    assert_refused(tars.index)
    lines = capsys.readouterr().err.splitlines()
    assert "30 faults in 1 file" in lines[0]
    assert len(lines) == 22
    assert lines[-1] == "  ... and 10 more; `--report FILE.csv` writes all"
    assert_refused(partial(tars.index, "--report", tars.root / "r.csv"))
    assert len((tars.root / "r.csv").read_text().splitlines()) == 31


# -- what is wrong with what the user asks for ---------------------------------------------------


SEEN = "x' has 2 tars, as ['train-0.tar', 'val-0.tar']"


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (
            {"splits": {"train": "a-*.tar"}},
            ["splits: train is 'a-*.tar', which matches no tar; patterns know *, ? and", SEEN],
        ),
        (
            {"splits": {"train": "train-{0..1}.tar"}},
            ["'train-{0..1}.tar', which matches no tar; patterns know *, ? and [abc];"],
        ),
        (
            {"splits": {"training": "*"}},
            ["unknown split 'training'; expected some of ['train', 'val', 'test']"],
        ),
        (
            {"splits": {"train": "*.tar", "val": "val*"}},
            ["splits: 'val-0.tar' is of train and of val; narrow the patterns"],
        ),
        ({"splits": {"train": ["a.tar"]}}, ["expected one pattern a split, as {train: "]),
        ({"splits": "*.tar"}, ["splits is '*.tar'; expected one pattern a split"]),
        ({"split": {"train": "*"}}, ["unknown key 'split'; expected `splits` and `annotations`"]),
        ({"annotations": {}}, ["no `annotations`; name at least one"]),
        ({"annotations": {"a": {"kind": "boxes"}}}, ["'a': kind is 'boxes'; expected one of"]),
        (
            {"annotations": {"a": {"kind": "detection", "classes": ["x"], "member": "cls"}}},
            ["member is 'cls'; detection is read from a json"],
        ),
        (
            {"annotations": {"a": {"kind": "multiclass", "classes": ["x"], "members": "cls"}}},
            ["'members' is not expected; expected ['classes', 'field', 'kind', 'member', 'val"],
        ),
        (
            {
                "annotations": {
                    "a": {"kind": "multiclass", "classes": ["x"], "member": "cls", "field": "y"}
                }
            },
            ["field is 'y', but member 'cls' has no fields; drop one"],
        ),
        (
            {"annotations": {"a": {**ANNOTATIONS["lung"], "values": [1, 2]}}},
            ["values is [1, 2]; expected a whole number above 0 for each of the 1 classes"],
        ),
    ],
)
def test_a_wrong_index_in_the_yaml(index: dict[str, Any], words: list[str], tars, capsys) -> None:
    tars.write()
    tars.config(**({"annotations": ANNOTATIONS} | index))
    assert_refused(tars.index)
    said = capsys.readouterr().err
    assert said.startswith("ark: error: dataset 'x': index")
    assert said.count("\n") == 1
    assert all(word in said for word in words), said


def test_tars_of_no_split_are_told(tars: Tars, capsys) -> None:
    tars.write()
    (tars.folder / T).rename(tars.folder / "extra.tar")
    tars.index()
    assert "note: 1 tar of no split, not indexed: ['extra.tar']\n" in capsys.readouterr().out
    (tars.folder / V).rename(tars.folder / "b.tar")
    assert_refused(tars.index)
    assert "no tar is named train-*.tar, val-*.tar or test-*.tar; say" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["train-(1).tar", "train-1.tar"])
def test_tars_that_no_reader_would_open(name: str, tars: Tars, capsys) -> None:
    """A name with brackets; a link out of the folder."""
    tars.write()
    moved = (tars.folder / T).rename(tars.root / "moved.tar")
    (tars.folder / name).symlink_to(moved)
    assert_refused(tars.index)
    assert re.search("rename the file|copy the file into the folder", capsys.readouterr().err)


def test_places_that_are_none(tars: Tars, capsys) -> None:
    for command in (tars.index, tars.validate, partial(tars.validate, place=tars.yaml)):
        assert_refused(command)
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert str(tars.folder) in said
    assert not list(tars.root.glob(".*")), "a lock of a folder that does not exist"
    tars.write()
    for command in (tars.index, tars.validate):
        assert_refused(partial(command, "--report", tars.root / "no" / "r.csv"))
        assert "name a file in a folder that exists" in capsys.readouterr().err


def test_annotations_that_changed_since(tars: Tars, capsys) -> None:
    tars.write()
    tars.index()
    (dataset,) = load_datasets(str(tars.yaml))
    assert prepare(dataset).num_samples("train") == 3
    changed = {**ANNOTATIONS, "view": {**ANNOTATIONS["view"], "classes": ["AP", "PA"]}}
    tars.config(annotations=changed)
    (dataset,) = load_datasets(str(tars.yaml))
    with pytest.raises(ConfigError, match=r"`index.annotations` changed .* run `ark shards index"):
        prepare(dataset)
    capsys.readouterr()
    assert_refused(partial(tars.validate, place=tars.yaml))
    assert "`index.annotations` changed" in capsys.readouterr().err
    tars.index()
    assert prepare(dataset).annotations["view"].classes == ("AP", "PA")
