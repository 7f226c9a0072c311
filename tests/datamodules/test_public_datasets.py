"""Each public dataset, from tiny files in its release's own format through its YAML."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import public_formats
import pytest
from public_formats import CHEXPERT, PTX_AREAS, block

from ark.types import ConfigError
from datamodules.config import DatasetConfig, build_source, load_datasets, task_specs
from datamodules.imaging.images import decode_image
from datamodules.imaging.masks import decode_mask
from datamodules.sources import SourceSample
from datamodules.sources.drawn_splits import drawn
from datamodules.sources.release import ReleaseSource
from datamodules.tars.writing import write_shards
from datamodules.uncertain import Uncertain

DATASETS = Path(__file__).resolve().parents[2] / "configs" / "datasets"
PUBLIC = {  # name -> the variable that says where it is
    "chexpert": "CHEXPERT",
    "mimic_cxr": "MIMIC_CXR",
    "nih14_full": "NIH14",
    "vindr_cxr": "VINDR_CXR",
    "rsna_pneumonia": "RSNA_PNEUMONIA",
    "shenzhen": "SHENZHEN",
    "tbx11k": "TBX11K",
    "node21": "NODE21",
    "candid_ptx": "CANDID_PTX",
    "chestx_det": "CHESTX_DET",
    "siim_acr": "SIIM_ACR",
}


@dataclass
class Release:
    dataset: DatasetConfig
    source: ReleaseSource
    root: Path

    def again(self) -> Release:
        """After a change of the files or of the source's arguments."""
        source = ReleaseSource(**self.dataset.source["init_args"])
        return Release(self.dataset, source, self.root)

    def samples(self) -> dict[str, SourceSample]:
        return {s.key: s for split in self.source.splits() for s in self.source.samples(split)}

    def keys(self, split: str) -> set[str]:
        return {sample.key for sample in self.source.samples(split)}


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def read(name: str) -> Release:
        root = tmp_path / name
        if not root.exists():
            root.mkdir()
            getattr(public_formats, name)(root)
        monkeypatch.setenv(PUBLIC[name], str(root))
        (dataset,) = load_datasets(str(DATASETS / f"{name}.yaml"))
        return Release(dataset, build_source(dataset), root)  # type: ignore[arg-type]

    return read


BOXES = [[2, 3, 10, 8], [20, 3, 5, 6]]


def boxes_of(name: str, boxes: list[list[float]] = BOXES) -> list[dict[str, Any]]:
    return [{"class": name, "bbox": box} for box in boxes]


# -- what holds for all ------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLIC)
def test_three_splits_that_share_no_sample_and_no_patient(release, name: str) -> None:
    one = release(name)
    assert list(one.source.splits()) == ["train", "val", "test"]
    samples = {split: list(one.source.samples(split)) for split in one.source.splits()}
    for of in (lambda s: s.key, lambda s: s.patient):
        found = [{of(s) for s in some} - {None} for some in samples.values()]
        assert sum(map(len, found)) == len(set.union(*found))
    assert {split: len(some) for split, some in samples.items()} == one.source.splits()
    assert release(name).source.split_of == one.source.split_of  # drawn from the seed


@pytest.mark.parametrize("name", PUBLIC)
def test_every_task_is_an_annotation_with_a_head_of_its_kind(release, name: str) -> None:
    one = release(name)
    specs = one.source.annotations()
    assert [task.name for task in one.dataset.tasks] == list(specs)
    for task in one.dataset.tasks:
        kind = specs[task.name].kind
        kind = "classification" if kind in ("multilabel", "multiclass") else kind
        assert task.head["class_path"].startswith(f"heads.{kind}.")


@pytest.mark.parametrize("name", ["chestx_det", "node21"])
def test_shards_of_a_release(release, name: str, tmp_path: Path) -> None:
    one = release(name)
    index = write_shards(one.source, name, tmp_path / "shards", progress=False)
    assert {s: split.num_samples for s, split in index.splits.items()} == one.source.splits()
    assert [spec.name for spec in task_specs(one.dataset, index)] == list(one.source.annotations())


# The spec's table of tasks (foundation_x.md, "The cycle"): kinds and numbers of classes, in order.
TASKS = {
    "chexpert": [("multilabel", 14)],
    "nih14_full": [("multilabel", 14)],
    "vindr_cxr": [("multilabel", 6)],
    "shenzhen": [("multilabel", 1)],
    "mimic_cxr": [("multilabel", 14)],
    "tbx11k": [("multilabel", 1), ("detection", 1)],
    "node21": [("multilabel", 1), ("detection", 1)],
    "candid_ptx": [("multilabel", 1), ("detection", 1), ("segmentation", 1)],
    "rsna_pneumonia": [("multiclass", 3), ("detection", 1)],
    "chestx_det": [("multilabel", 13), ("detection", 13), ("segmentation", 13)],
    "siim_acr": [("multilabel", 1), ("detection", 1), ("segmentation", 1)],
}


@pytest.mark.parametrize("name", PUBLIC)
def test_the_tasks_are_the_papers(release, name: str) -> None:
    specs = release(name).source.annotations().values()
    assert [(spec.kind, len(spec.classes)) for spec in specs] == TASKS[name]


# -- each on its own ---------------------------------------------------------------------------


def test_chexpert(release) -> None:
    one = release("chexpert")
    assert one.source.splits() == {"train": 46, "val": 2, "test": 6}
    sample = one.samples()["train_patient00003_study1_view2_lateral"]
    expected = dict.fromkeys(CHEXPERT, 0) | {"Edema": 1, "Pneumonia": -1}
    assert sample.annotations["findings"] == expected
    assert sample.patient == "patient00003"
    tested = one.samples()["valid_patient00101_study1_view1_frontal"]
    assert tested.annotations["findings"] == expected | {"Pneumonia": 1}
    assert list(one.source.annotations()["findings"].classes) == CHEXPERT


@pytest.mark.parametrize(("name", "low", "high"), [("chexpert", 0.55, 0.85), ("mimic_cxr", 1, 1)])
def test_the_papers_policy_for_uncertain_labels(release, name, low, high, tmp_path) -> None:
    one = release(name)
    index = write_shards(one.source, name, tmp_path / "shards", progress=False)
    (spec,) = task_specs(one.dataset, index)
    policy = Uncertain.checked(one.dataset.tasks[0].uncertain, spec)
    drawn_labels = np.array([policy(np.full(14, -1, np.float32), seed) for seed in range(20)])
    assert low <= drawn_labels.min() <= drawn_labels.max() <= high
    assert (np.ptp(drawn_labels) > 0.2) == (low != high)


def test_mimic_cxr(release) -> None:
    one = release("mimic_cxr")
    keys = {split: one.keys(split) for split in ("train", "val", "test")}
    ids = [f"02aa804e-bde0afdd-{number}" for number in range(5)]
    assert keys == {"train": set(ids[:3]), "val": {ids[3]}, "test": {ids[4]}}
    sample = one.samples()[ids[1]]
    expected = dict.fromkeys(CHEXPERT, 0) | {"Edema": 1, "Atelectasis": -1}
    assert sample.annotations["findings"] == expected
    assert sample.patient == "10000001"
    notes = "\n".join(one.source.notes())
    assert "1 rows of other tables have no partner" in notes
    assert "'50000099'" in notes
    assert "'50000098'" in notes


def test_nih14_full(release) -> None:
    one = release("nih14_full")
    samples = one.samples()
    assert one.keys("test") == {f"{patient:08d}_000" for patient in range(16, 20)}
    assert one.source.splits()["val"] in (2, 3)
    shown = {
        key: [n for n, v in s.annotations["findings"].items() if v] for key, s in samples.items()
    }
    assert shown["00000000_000"] == []
    assert shown["00000001_001"] == ["Effusion", "Mass"]
    assert shown["00000002_000"] == ["Hernia"]
    assert all(len(s.annotations["findings"]) == 14 for s in samples.values())
    assert samples["00000001_001"].patient == "1"


def test_nih14_full_of_a_later_revision(release) -> None:
    one = release("nih14_full")
    (one.root / "Data_Entry_2017.csv").rename(one.root / "Data_Entry_2017_v2020.csv")
    assert len(release("nih14_full").samples()) == 21
    (one.root / "Data_Entry_2017.csv").write_text("")
    with pytest.raises(ConfigError, match="2 files fit"):
        release("nih14_full")


def test_vindr_cxr(release) -> None:
    one = release("vindr_cxr")
    samples = one.samples()
    assert one.keys("test") == {"test_b0", "test_b1"}
    expected = dict.fromkeys(one.source.annotations()["findings"].classes, 0)
    assert samples["train_a3"].annotations["findings"] == expected | {"PE": 1, "Lung tumor": 1}
    assert samples["test_b1"].annotations["findings"] == expected | {"Other diseases": 1}


@pytest.mark.parametrize(("vote", "tumor", "pneumonia"), [("any", 1, 1), ("all", 0, 0)])
def test_votes(release, vote: str, tumor: int, pneumonia: int) -> None:
    one = release("vindr_cxr")
    one.dataset.source["init_args"]["annotations"]["findings"]["vote"] = vote
    found = one.again().samples()["train_a3"].annotations["findings"]
    assert (found["PE"], found["Lung tumor"], found["Pneumonia"]) == (1, tumor, pneumonia)


def test_rsna_pneumonia(release) -> None:
    samples = release("rsna_pneumonia").samples()
    assert samples["p0"].annotations == {
        "diagnosis": "Lung Opacity",
        "boxes": boxes_of("Lung Opacity"),
    }
    normal = {"diagnosis": "No Lung Opacity / Not Normal", "boxes": []}
    assert samples["p1"].annotations == normal
    assert samples["p2"].annotations == {"diagnosis": "Normal", "boxes": []}
    assert len(samples) == 10


def test_shenzhen(release) -> None:
    one = release("shenzhen")
    assert one.source.splits() == {"train": 14, "val": 2, "test": 4}
    labels = {k: s.annotations["tuberculosis"] for k, s in one.samples().items()}
    assert labels["CXR_png_CHNCXR_0001_1"] == {"Tuberculosis": 1}
    assert labels["CXR_png_CHNCXR_0002_0"] == {"Tuberculosis": 0}


def test_tbx11k(release) -> None:
    one = release("tbx11k")
    samples = one.samples()
    assert one.keys("test") == {f"imgs_{g}_{g[0]}0010" for g in ("health", "sick", "tb")}
    assert samples["imgs_tb_t0004"].annotations == {
        "tuberculosis": {"Tuberculosis": 1},
        "boxes": boxes_of("Tuberculosis"),
    }
    healthy = {"tuberculosis": {"Tuberculosis": 0}, "boxes": []}
    assert samples["imgs_sick_s0004"].annotations == healthy
    assert "11 regions without an area" in "\n".join(one.source.notes())


def test_node21(release) -> None:
    one = release("node21")
    samples = one.samples()
    assert samples["n0000"].annotations == {"nodule": {"Nodule": 1}, "boxes": boxes_of("Nodule")}
    assert samples["c0005"].annotations == {"nodule": {"Nodule": 0}, "boxes": []}
    truth = public_formats.pixels(one.root / "images/n0000.mha").astype(np.float64)
    window = (truth - truth.min()) / (truth.max() - truth.min()) * 255
    stored = decode_image(samples["n0000"].image, "n0000")[..., 0]
    np.testing.assert_allclose(stored, window, atol=1)


def test_candid_ptx(release) -> None:
    one = release("candid_ptx")
    samples = one.samples()
    first = samples["1_2_840_0"]
    assert first.annotations == {
        "pneumothorax": {"Pneumothorax": 1},
        "boxes": boxes_of("Pneumothorax"),
        "masks": {"known": ["Pneumothorax"]},
    }
    mask = decode_mask(first.masks["masks"]["Pneumothorax"], "first")
    np.testing.assert_array_equal(mask, PTX_AREAS[0] | PTX_AREAS[1])
    none = samples["1_2_840_1"]
    assert none.annotations == {
        "pneumothorax": {"Pneumothorax": 0},
        "boxes": [],
        "masks": {"known": ["Pneumothorax"]},
    }
    assert not none.masks
    assert samples["1_2_840_2"].annotations == {}  # a blank RLE says nothing
    assert samples["1_2_840_3"].patient == none.patient == "P0001"
    assert "1_2_840_19" not in samples
    assert "1 images belong to several patients" in "\n".join(one.source.notes())


def test_chestx_det(release) -> None:
    one = release("chestx_det")
    samples = one.samples()
    assert one.keys("test") == {"test_data_36209", "test_data_36210"}
    for key in ("train_data_36199", "test_data_36209"):
        found = samples[key]
        shown = {name: v for name, v in found.annotations["findings"].items() if v}
        assert shown == {"Effusion": 1, "Diffuse Nodule": 1}
        assert (
            found.annotations["boxes"] == boxes_of("Effusion")[:1] + boxes_of("Diffuse Nodule")[1:]
        )
        masks = {c: decode_mask(png, c) for c, png in found.masks["masks"].items()}
        assert sorted(masks) == ["Diffuse Nodule", "Effusion"]
        np.testing.assert_array_equal(masks["Effusion"], block(3, 2, 11, 12))
    empty = samples["train_data_36200"]
    assert not any(empty.annotations["findings"].values())
    assert len(empty.annotations["masks"]["known"]) == 13
    assert empty.annotations["boxes"] == []
    assert not empty.masks
    notes = "\n".join(one.source.notes())
    assert "'boxes': 2 regions without an area" in notes
    assert "'masks': 2 regions without an area" in notes


def test_siim_acr(release) -> None:
    one = release("siim_acr")
    samples = one.samples()
    assert one.keys("test") == {"1_2_276_test_0", "1_2_276_test_1"}
    assert sum(one.source.splits().values()) == 13  # train1 has no row
    assert "'1.2.276.train.1'" in "\n".join(one.source.notes())
    for key in ("1_2_276_train_0", "1_2_276_test_0"):
        assert samples[key].annotations["boxes"] == boxes_of("Pneumothorax")
        mask = decode_mask(samples[key].masks["masks"]["Pneumothorax"], key)
        np.testing.assert_array_equal(mask, PTX_AREAS[0] | PTX_AREAS[1])
    empty = samples["1_2_276_train_5"]
    assert empty.annotations["pneumothorax"] == {"Pneumothorax": 0}
    assert empty.annotations["boxes"] == []
    assert not empty.masks


# -- drawn splits ------------------------------------------------------------------------------


def test_drawn_shares_are_of_images_and_whole_patients() -> None:
    pool = {f"i{n}": f"p{n // 2}" for n in range(1000)}
    split_of = drawn(pool, {"val": 0.1, "test": 0.2}, seed=0)
    found = list(split_of.values())
    assert (found.count("val"), found.count("test")) == (100, 200)
    for image, split in split_of.items():
        assert all(split_of.get(i) == split for i, p in pool.items() if p == pool[image])
    assert split_of != drawn(pool, {"val": 0.1, "test": 0.2}, seed=1)
    backwards = dict(reversed(pool.items()))
    assert drawn(backwards, {"val": 0.1, "test": 0.2}, seed=0) == split_of


# -- what is wrong with a release --------------------------------------------------------------


def refused(release: Release, *words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        release.again().samples()
    for word in words:
        assert word in str(caught.value), f"{word!r} not in: {caught.value}"


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "words"),
    [
        (
            "chexpert",
            "train.csv",
            ",-1.0,",
            ",2.0,",
            ["'Pneumonia' of train/", "'2.0'", "1, 0, -1"],
        ),
        ("chexpert", "valid.csv", "/valid/pat", "/other/pat", ["Path", "does not fit `match`"]),
        ("chexpert", "valid.csv", "patient00101", "patient00003", ["'patient00003' is in", "test"]),
        ("chexpert", "valid.csv", "Edema", "Oedema", ["no column 'Edema'"]),
        (
            "nih14_full",
            "Data_Entry_2017.csv",
            "00000001_001.png,Effusion|Mass",
            "00000001_000.png,Hernia",
            ["the rows of images_001/images/00000001_000.png differ in 'Finding Labels'"],
        ),
        (
            "rsna_pneumonia",
            "stage_2_detailed_class_info.csv",
            "p0,Lung",
            "p0,lung",
            ["share their"],
        ),
        ("nih14_full", "Data_Entry_2017.csv", "Hernia", "Hernie", ["'Hernie'", "'Hernia'"]),
        (
            "vindr_cxr",
            "annotations/image_labels_train.csv",
            "a0,R8,0,1",
            "a0,R8,0,2",
            ["'PE' of train/a0", "0 or 1 of each"],
        ),
        ("vindr_cxr", "annotations/image_labels_train.csv", "Pneumonia", "Pneum", ["'Pneumonia'"]),
        ("rsna_pneumonia", "stage_2_train_labels.csv", "p0,2.0", "p0,x", ["p0.dcm", "4 numbers"]),
        ("rsna_pneumonia", "stage_2_train_labels.csv", "p0,2.0", "p0,30", ["leaves its image"]),
        ("rsna_pneumonia", "stage_2_detailed_class_info.csv", "p2,Normal", "p2,Fine", ["'Fine'"]),
        ("chestx_det", "ChestX_Det_train.json", '"syms": ["Effusion", ', '"syms": [', ["explode"]),
        ("chestx_det", "ChestX_Det_train.json", "Diffuse", "diffuse", ["'diffuse Nodule'", "syms"]),
        ("chestx_det", "ChestX_Det_train.json", "[{", "{", ["not a json"]),
        (
            "tbx11k",
            "annotations/json/TBX11K_train.json",
            '"category_id": 1',
            '"category_id": 9',
            ["9"],
        ),
        ("siim_acr", "train-rle.csv", "train.0, ", "train.0, 5 ", ["pairs of whole numbers"]),
        (
            "siim_acr",
            "train-rle.csv",
            "train.0, ",
            "train.0, 700 90 ",
            ["of 32x24", "another size"],
        ),
        ("siim_acr", "train-rle.csv", "ImageId", "Image", ["by names 'ImageId'"]),
        ("node21", "metadata.csv", "img_name", "name", ["no column 'img_name'", "image"]),
        ("node21", "metadata.csv", "c0005.mha", "c5.mha", ["c5.mha: the image cannot be read"]),
    ],
)
def test_wrong_releases(release, name, file, old, new, words) -> None:
    one = release(name)
    path = one.root / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    refused(one, *words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"root": "/no/where"}, ["/no/where", "no folder"]),
        ({"tables": []}, ["tables is empty"]),
        ({"tables": [{"files": "x.csv"}]}, ["x.csv", "no such file"]),
        ({"tables": [{"find": "*.gif"}]}, ["*.gif", "no file fits"]),
        ({"tables": [{"find": "*", "files": "x.csv"}]}, ["exactly one of files and find"]),
        ({"tables": [{"find": "CXR_png/*", "join": 1}]}, ["unknown 'join'"]),
        ({"tables": [{"find": "CXR_png/*", "match": {"name": "x"}}]}, ["no column 'name'"]),
        ({"tables": [{"find": "CXR_png/*", "match": {"path": "x"}}]}, ["expected (?P<name>...)"]),
        ({"tables": [{"find": "CXR_png/*", "match": {"path": "("}}]}, ["path", "'('"]),
        ({"image": "{file_name}"}, ["no column 'file_name'", "image"]),
        ({"tables": [{"find": "*", "explode": ["a"]}]}, ["explode", "only `find`"]),
        ({"tables": [{"find": "CXR_png/*", "by": ["path"]}]}, ["none before to join to"]),
        ({"tables": [{"find": "CXR_png/*", "rename": {"x": "y"}}]}, ["no file has a column 'x'"]),
        (
            {"tables": [{"find": "CXR_png/*", "rename": {"path": "file"}}]},
            ["two columns", "'file'"],
        ),
        ({"image": "{number:d}"}, ["source image is '{number:d}'", "text"]),
        ({"image": "{path"}, ["source image is '{path'"]),
        ({"patient": "person"}, ["no column 'person'", "patient"]),
        ({"splits": {}}, ["splits is empty"]),
        ({"splits": {"files": "x"}}, ["unknown 'files'"]),
        ({"splits": {"column": "number"}}, ["'0001'", "splits.values"]),
        ({"splits": {"draw": {"val": 1.5}}}, ["{'val': 1.5}"]),
        ({"splits": {"draw": {"train": 0.5}}}, ["val and test"]),
        ({"annotations": {}}, ["`annotations` is empty"]),
    ],
)
def test_wrong_arguments(release, change: dict[str, Any], words: list[str]) -> None:
    one = release("shenzhen")
    one.dataset.source["init_args"] |= change
    refused(one, *words)


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        ({"kind": "multilabel", "column": "syms", "vote": "any"}, ["['column', 'vote']"]),
        ({"kind": "multilabel", "vote": "most"}, ["vote is 'most'", "majority"]),
        ({"kind": "multilabel", "column": "syms", "values": {"x": ["Cold"]}}, ["values", "'Cold'"]),
        ({"kind": "detection", "region": {"boxes": "boxes"}}, ["region is", "'corners'"]),
        ({"kind": "detection", "region": {"box": ["a", "b"]}}, ["region is"]),
        ({"kind": "detection", "region": {"box": "bbox"}, "class": "syms"}, ["no column 'bbox'"]),
        ({"kind": "detection", "region": {"box": "boxes"}}, ["2 classes", "`class`"]),
        ({"kind": "masks", "region": {"box": "boxes"}}, ["kind is 'masks'"]),
    ],
)
def test_wrong_annotations(release, annotation: dict[str, Any], words: list[str]) -> None:
    one = release("chestx_det")
    annotation = {"classes": ["Effusion", "Mass"]} | annotation
    one.dataset.source["init_args"]["annotations"] = {"x": annotation}
    refused(one, "'x'", *words)
