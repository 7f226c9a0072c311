"""Source -> tar -> reader: nothing changes on the way, and whatever is damaged is named."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sources import ListSource

from ark.types import ConfigError
from datamodules.annotations import AnnotationSpec
from datamodules.imaging.images import encode_png
from datamodules.sources import FolderSource, SourceSample
from datamodules.tars.index import INFO_FILE, ShardIndex
from datamodules.tars.shards import Address, BadSample, ShardReader
from datamodules.tars.stored import mask_member
from datamodules.tars.validating import validate_index
from datamodules.tars.writing import write_shards

GRAY = encode_png(np.arange(30, dtype=np.uint8).reshape(5, 6))


def view_sample(key, patient=None, view="PA"):
    return SourceSample(key, GRAY, (5, 6), {"view": view}, patient=patient)


def view_source(*keys, **splits):
    specs = {"view": AnnotationSpec("multiclass", ("PA", "AP"))}
    return ListSource(specs, train=[view_sample(key) for key in keys], **splits)


def folder_of(index):
    return Path(index.storage.where)


@pytest.fixture
def index(folder, tmp_path):
    return write_shards(FolderSource(**folder.args), "tiny", tmp_path / "shards")


def addresses(index, split="train"):
    """Key -> address of every sample of a split."""
    reader = ShardReader(index)
    return {
        key: Address(split, shard, row)
        for shard in range(len(index.splits[split].shards))
        for row, key in enumerate(reader.shard(split, shard).table.keys)
    }


def carriers(index, annotation, split="train"):
    """Keys of the samples that carry an annotation."""
    reader = ShardReader(index)
    tables = [reader.shard(split, n).table for n in range(len(index.splits[split].shards))]
    return [table.keys[row] for table in tables for row in table.annotated[annotation]]


def test_index(index):
    assert index.num_samples("train") == 4
    assert index.annotations["organs"].classes == ("left lung", "heart")
    assert index.annotated("train", "findings").tolist() == [3]
    assert carriers(index, "findings") == ["a", "b", "d"]
    assert carriers(index, "organs") == ["a", "b"]
    counts = index.splits["train"].counts
    assert counts["findings"] == {
        "Effusion": {"known": 3, "present": 1},
        "Mass": {"known": 2, "present": 1},
    }
    assert counts["boxes"] == {"opacity": {"known": 3, "present": 2, "boxes": 2}}
    assert counts["heart_read"] == {"heart": {"known": 3, "present": 2}}


def test_reader_gives_what_the_files_hold(index, folder):
    reader, at = ShardReader(index), addresses(index)
    sample = reader.read(at["a"], "findings")
    gray = np.array(Image.open(folder.path("images/a.jpg")))
    np.testing.assert_array_equal(reader.decode(sample), gray[..., None])
    assert reader.decode(sample, min_side=20).shape[0] in range(20, len(gray) + 1)
    assert reader.read(at["a"], "boxes").size == gray.shape
    colour = np.array(Image.open(folder.path("images/b.jpg")))
    np.testing.assert_array_equal(reader.image(at["b"]), colour)
    np.testing.assert_array_equal(sample.annotation, np.float32([1, 0]))
    unknown = reader.read(at["b"], "findings").annotation
    np.testing.assert_array_equal(unknown, np.float32([0, np.nan]))
    assert reader.read(at["b"], "view").annotation == 1
    boxes, labels, _ = reader.read(at["a"], "boxes").annotation
    assert boxes.tolist() == [[2.5, 3, 12.5, 11]]
    assert (boxes.dtype, labels.dtype, labels.tolist()) == (np.float32, np.int64, [0])
    assert reader.read(at["b"], "boxes").annotation.boxes.shape == (0, 4)


def test_reader_gives_masks_and_what_is_known(index, folder):
    reader, at = ShardReader(index), addresses(index)
    masks, known, _ = reader.read(at["b"], "organs").annotation
    assert known.tolist() == [False, True]
    truth = cv2.imread(str(folder.path("masks/heart/b.png")), cv2.IMREAD_GRAYSCALE) // 255
    np.testing.assert_array_equal(masks, [np.zeros_like(truth), truth])
    masks, known, _ = reader.read(at["d"], "heart_read").annotation
    assert known.tolist() == [True]
    assert masks.shape == (1, 40, 48)
    assert not masks.any()


def test_an_annotation_that_a_sample_lacks_is_an_error(index):
    with pytest.raises(BadSample, match=r"train-000000\.tar: sample .c_1.: no annotation .view."):
        ShardReader(index).read(addresses(index)["c_1"], "view")


def test_reader_pickles_and_takes_no_open_file_along(index):
    reader, at = ShardReader(index), Address("val", 0, 0)
    before = reader.read(at, "organs")
    assert len(pickle.dumps(reader)) < 10_000
    twin = pickle.loads(pickle.dumps(reader))
    after = twin.read(at, "organs")
    assert (after.data, after.key) == (before.data, before.key)
    np.testing.assert_array_equal(after.annotation.masks, before.annotation.masks)


def test_webdataset_reads_the_tars(index, folder):
    pattern = str(folder_of(index) / "train-000000.tar")
    samples = {s["__key__"]: s for s in webdataset.WebDataset(pattern, shardshuffle=False)}
    assert set(samples) == {"a", "b", "c_1", "d"}
    assert samples["a"]["jpg"] == folder.path("images/a.jpg").read_bytes()
    assert samples["d"]["png"] == folder.path("images/d.png").read_bytes()
    heart = folder.path("masks/heart/a.png").read_bytes()
    assert samples["a"][mask_member("organs", "heart")] == heart
    record = json.loads(samples["b"]["json"])
    assert record["annotations"] == {
        "findings": {"Effusion": 0},
        "view": "AP Supine",
        "boxes": [],
        "organs": {"known": ["heart"]},
        "heart_read": {"known": ["heart"]},
        "lesion": {"known": ["lesion"]},
    }
    assert (record["height"], record["width"], record["patient"]) == (40, 48, "p1")


def test_same_input_same_bytes(folder, tmp_path):
    contents = []
    for name in ("one", "two"):
        write_shards(FolderSource(**folder.args), "tiny", tmp_path / name)
        contents.append({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()})
    assert contents[0] == contents[1]


@settings(max_examples=20, deadline=None)
@given(
    values=st.lists(
        st.fixed_dictionaries({}, optional={"a": st.integers(0, 1), "ä.b/c": st.integers(0, 1)}),
        min_size=1,
        max_size=9,
    ),
    shard_bytes=st.integers(1, 400),
)
def test_round_trip_over_any_number_of_tars(tmp_path_factory, values, shard_bytes):
    spec = AnnotationSpec("multilabel", ("a", "ä.b/c"))
    values = [*values, {"a": 1}]
    samples = [
        SourceSample(f"k{n}", GRAY, (5, 6), {"l": value} if value else {})
        for n, value in enumerate(values)
    ]
    folder = tmp_path_factory.mktemp("shards") / "x"
    source = ListSource({"l": spec}, train=samples)
    index = write_shards(source, "x", folder, max_shard_bytes=shard_bytes)
    assert validate_index(index).faults == []
    assert index.num_samples("train") == len(values)
    assert carriers(index, "l") == [f"k{n}" for n, v in enumerate(values) if v]
    reader, at = ShardReader(index), addresses(index)
    for key in carriers(index, "l"):
        sample = reader.read(at[key], "l")
        value = values[int(key[1:])]
        expected = np.float32([value.get(name, np.nan) for name in spec.classes])
        np.testing.assert_array_equal(sample.annotation, expected)
        assert sample.key == key


def test_class_names_of_masks_may_hold_any_character(tmp_path):
    mask = encode_png(np.eye(5, 6) > 0)
    spec = AnnotationSpec("segmentation", ("a/b.c d", "é"))
    sample = SourceSample("k", GRAY, (5, 6), {"m": {"known": ["é"]}}, {"m": {"é": mask}})
    index = write_shards(ListSource({"m": spec}, train=[sample]), "x", tmp_path / "x")
    masks, known, _ = ShardReader(index).read(Address("train", 0, 0), "m").annotation
    assert known.tolist() == [False, True]
    assert masks[1].sum() == 5


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (view_source("a", "a"), "two samples have the key 'a'"),
        (view_source("a", val=[view_sample("a")]), "'a' .in train and in val"),
        (view_source("a.b"), "'a.b': expected letters"),
        (view_source("a", val=[]), "split 'val' is empty"),
        (view_source("a", val=[view_sample("b", view="LL")]), "'LL' is not one of"),
        (
            ListSource(
                {"view": AnnotationSpec("multiclass", ("PA",))},
                train=[view_sample("a", "p")],
                val=[view_sample("b", "p")],
            ),
            "patient 'p' is in train and in val",
        ),
        (
            ListSource({"x": AnnotationSpec("multiclass", ("PA",))}, train=[view_sample("a")]),
            "carries the undeclared 'view'",
        ),
        (
            ListSource(
                {"x": AnnotationSpec("multiclass", ("PA",))},
                train=[SourceSample("a", GRAY, (5, 6), {})],
            ),
            "no sample of any split shows a class of annotation 'x'",
        ),
    ],
)
def test_a_bad_source_is_refused_and_leaves_nothing(tmp_path, source, words):
    with pytest.raises(ConfigError, match=words):
        write_shards(source, "x", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_overwriting_must_be_asked_for_and_never_takes_other_files(tmp_path):
    write_shards(view_source("a"), "x", tmp_path / "x")
    with pytest.raises(ConfigError, match="add `--overwrite true`"):
        write_shards(view_source("b"), "x", tmp_path / "x")
    index = write_shards(view_source("b"), "x", tmp_path / "x", overwrite=True)
    assert list(addresses(index)) == ["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    (tmp_path / "x" / INFO_FILE).unlink()
    with pytest.raises(ConfigError, match="no shards and would be lost"):
        write_shards(view_source("b"), "x", tmp_path / "x", overwrite=True)


def test_a_failed_overwrite_keeps_the_old_shards(tmp_path):
    write_shards(view_source("a"), "x", tmp_path / "x")
    with pytest.raises(ConfigError):
        write_shards(view_source("b", "b"), "x", tmp_path / "x", overwrite=True)
    assert list(addresses(ShardIndex.load(tmp_path / "x"))) == ["a"]


def test_loading_names_what_is_wrong(index):
    with pytest.raises(ConfigError, match=r"no shards in '/no/where'.*ark shards write CONFIG"):
        ShardIndex.load("/no/where")
    with pytest.raises(ConfigError, match=r"no annotation 'x'; it has \['findings'"):
        index.annotated("train", "x")
    with pytest.raises(ConfigError, match="no split 'dev'"):
        index.num_samples("dev")
    path = folder_of(index) / INFO_FILE
    path.write_text(path.read_text().replace('"format":2', '"format":9', 1))
    with pytest.raises(ConfigError, match="format is 9, expected 2"):
        ShardIndex.load(folder_of(index))


def test_damaged_tars_are_noticed(index):
    tar, at = folder_of(index) / "val-000000.tar", Address("val", 0, 0)
    data = bytearray(tar.read_bytes())
    offset = ShardReader(index).shard("val", 0).table.members["image"][0, 0]
    data[offset + 30] ^= 1
    tar.write_bytes(data)
    with pytest.raises(BadSample, match=r"val-000000\.tar: sample 'e', member 'image'.*damaged"):
        ShardReader(index).read(at, "organs")
    faults = validate_index(ShardIndex.load(folder_of(index))).faults
    assert [fault.shard for fault in faults] == ["val-000000.tar"] * len(faults)
    assert "sha256" in faults[-1].problem or "sha256" in faults[0].problem
    tar.write_bytes(data[:1000])
    with pytest.raises(ConfigError, match=r"val-000000\.tar: 1000 bytes, expected"):
        ShardIndex.load(folder_of(index)).check_files()
    tar.unlink()
    with pytest.raises(ConfigError, match=r"val-000000\.tar: no such file"):
        ShardIndex.load(folder_of(index)).check_files()
