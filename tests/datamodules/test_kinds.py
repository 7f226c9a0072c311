"""Every kind of annotation, from its source through tars to a batch; counted, and shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sources import ListSource

from ark.cycle import Cycle, Phase
from ark.types import Batch, ConfigError, TaskSpec
from datamodules.annotations import AnnotationSpec
from datamodules.imaging.images import encode_png
from datamodules.inspect import describe, picture
from datamodules.sources import SourceSample
from datamodules.stream import EvalBatches, Share, TaskData, TrainBatches
from datamodules.tars.index import ShardIndex
from datamodules.tars.shards import BadSample, ShardReader
from datamodules.tars.validating import summary, validate_index
from datamodules.tars.writing import write_shards
from datamodules.transforms import Augment

SIZE = (20, 40)  # (H, W); the views are 40 x 40
GRAY = encode_png(np.arange(800, dtype=np.uint8).reshape(SIZE))
ONE, MANY = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
ONE[4:8, 10:20] = 1
MANY[10:16, 4:14], MANY[10:12, 4:14] = 3, 1
SPECS = {
    "grade": AnnotationSpec("ordinal", ("mild", "severe")),
    "boxes": AnnotationSpec("detection", ("mass", "scar")),
    "organs": AnnotationSpec("segmentation", ("heart", "lung")),
    "sizes": AnnotationSpec("values", ("ctr", "age")),
    "marks": AnnotationSpec("points", ("apex", "tip")),
    "findings": AnnotationSpec("multilabel", ("Edema", "Mass")),
}
BOX = {"class": "mass", "bbox": [10, 4, 10, 4]}
SAMPLES = {
    "a": {
        "grade": "severe",
        "boxes": [BOX],
        "organs": {"known": ["heart"]},
        "sizes": {"ctr": 0.5, "age": 61},
        "marks": {"apex": [10, 5], "tip": [40, 20]},
        "findings": {"Edema": -1, "Mass": 1},
    },
    "b": {
        "grade": "mild",
        "boxes": {"boxes": [BOX], "known": ["mass"]},
        "organs": {"known": ["heart", "lung"], "raters": {"lung": 3}},
        "sizes": {"ctr": 0.25},
        "marks": {"tip": [1, 2]},
        "findings": {"Edema": 0},
    },
}
MASKS = {
    "a": {"heart": encode_png(ONE.astype(bool))},
    "b": {"heart": encode_png(ONE.astype(bool)), "lung": encode_png(MANY)},
}


def source(patients: dict[str, Any]) -> ListSource:
    """Two samples a split; the patient of each by key."""
    splits = {}
    for split in ("train", "val"):
        splits[split] = [
            SourceSample(
                f"{split}_{key}",
                GRAY,
                SIZE,
                annotations,
                {"organs": MASKS[key]},
                patients.get(f"{split}_{key}"),
            )
            for key, annotations in SAMPLES.items()
        ]
    return ListSource(SPECS, **splits)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    folder = tmp_path_factory.mktemp("kinds") / "x"
    return write_shards(source({"val_a": "p7"}), "x", folder)


def task(index: ShardIndex, name: str, split: str) -> TaskData:
    spec = index.annotations[name]
    return TaskData(TaskSpec("x", name, spec.kind, spec.classes), ShardReader(index), split)


def evaluated(index: ShardIndex, name: str) -> Batch:
    return EvalBatches([task(index, name, "val")], 8, 40)[0]


def trained(index: ShardIndex, name: str, augment: Augment) -> list[Batch]:
    data = task(index, name, "train")
    cycle = Cycle([Phase(data.spec.key, steps=3)], [3], 1)
    batches = TrainBatches(cycle, {data.spec.key: data}, Share(4), 0, 40, augment)
    return [batches[step] for step in range(3)]


def test_the_tars_are_sound_and_counted(index: ShardIndex) -> None:
    found = validate_index(index)
    assert found.faults == []
    counts = index.splits["val"].counts
    assert counts["grade"]["mild"] == {"known": 2, "present": 1}
    assert counts["boxes"] == {
        "mass": {"known": 2, "present": 2, "boxes": 2},
        "scar": {"known": 1, "present": 0, "boxes": 0},
    }
    assert counts["organs"]["lung"] == {"known": 1, "present": 1}
    assert counts["sizes"] == {
        "ctr": {"known": 2, "present": 2},
        "age": {"known": 1, "present": 1},
    }
    assert counts["marks"]["apex"] == {"known": 1, "present": 1}
    assert counts["findings"]["Edema"] == {"known": 2, "present": 0, "uncertain": 1}
    lines = summary(found)
    assert "values of sizes, ctr: 0.25 to 0.5, mean 0.375, of 4 images" in lines
    assert "values of sizes, age: 61 to 61, mean 61, of 2 images" in lines


def test_several_tars_give_the_same_counts_and_ranges(index: ShardIndex, tmp_path: Path) -> None:
    many = write_shards(source({}), "x", tmp_path / "many", max_shard_bytes=1)
    assert len(many.splits["train"].shards) == 2
    assert many.splits["train"].counts == index.splits["train"].counts
    assert summary(validate_index(many)) == summary(validate_index(index))


def test_targets_of_evaluation(index: ShardIndex) -> None:
    grade = evaluated(index, "grade").target
    assert grade.labels.tolist() == [1, 0]

    boxes = evaluated(index, "boxes").target
    assert boxes.known.tolist() == [[True, True], [True, False]]
    assert [b.tolist() for b in boxes.boxes] == [[[10, 8, 20, 16]]] * 2

    sizes = evaluated(index, "sizes").target
    assert torch.equal(sizes.values, torch.tensor([[0.5, 61], [0.25, 0]]))
    assert sizes.known.tolist() == [[True, True], [True, False]]

    marks = evaluated(index, "marks").target
    assert torch.equal(marks.points, torch.tensor([[[10.0, 10], [40, 40]], [[0, 0], [1, 4]]]))
    assert marks.known.tolist() == [[True, True], [False, True]]
    for target, parts in ((sizes, ("values",)), (marks, ("points",))):
        assert all(getattr(target, part).dtype == torch.float32 for part in parts)
        assert target.known.dtype == torch.bool


def test_masks_of_one_and_of_several_raters_in_a_batch(index: ShardIndex) -> None:
    organs = evaluated(index, "organs").target
    assert organs.raters.tolist() == [[1, 1], [1, 3]]
    assert organs.raters.dtype == organs.masks.dtype == torch.uint8
    assert organs.known.tolist() == [[True, False], [True, True]]
    share = organs.share()
    expected = torch.from_numpy(np.repeat(MANY, 2, axis=0) / 3).float()
    assert torch.allclose(share[1, 1], expected)
    assert set(share[:, 0].unique().tolist()) == {0, 1}


def test_where_all_is_known_by_one_rater_nothing_is_said(index: ShardIndex, tmp_path: Path) -> None:
    plain = SourceSample(
        "k", GRAY, SIZE, {"boxes": [BOX], "organs": {"known": ["heart"]}}, {"organs": MASKS["a"]}
    )
    specs = {name: SPECS[name] for name in ("boxes", "organs")}
    index = write_shards(ListSource(specs, val=[plain]), "x", tmp_path / "x")
    assert evaluated(index, "boxes").target.known is None
    assert evaluated(index, "organs").target.raters is None


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("augment", [Augment(0, 0, 0, 0, 0), Augment(20, 0.1, 0.2, flip=0.5)])
def test_training_batches_of_every_kind(index: ShardIndex, name: str, augment: Augment) -> None:
    for batch, again in zip(
        trained(index, name, augment), trained(index, name, augment), strict=True
    ):
        assert len(batch.keys) == len(batch.images) == 4
        assert batch.patients == []
        moved = batch.to("cpu").target
        for field, value in vars(moved).items():
            same = getattr(again.target, field)
            if isinstance(value, list):
                assert all(map(torch.equal, value, same))
            elif value is not None:
                assert len(value) == 4
                assert torch.equal(value, same)


def test_patients_are_read_in_evaluation_only(index: ShardIndex) -> None:
    assert evaluated(index, "grade").patients == ["p7", "val_b"]
    assert evaluated(index, "marks").patients == ["p7", "val_b"]
    assert trained(index, "grade", Augment())[0].patients == []


def test_every_rank_names_its_own_samples_patients(tmp_path: Path) -> None:
    index = write_shards(source({"val_a": "12", "val_b": "12"}), "x", tmp_path / "x")
    ranks = [EvalBatches([task(index, "grade", "val")], 1, 8, rank, 2)[0] for rank in (0, 1)]
    assert [batch.patients for batch in ranks] == [["12"], ["12"]]
    assert [batch.keys for batch in ranks] == [["val_a"], ["val_b"]]


def test_a_damaged_json_is_a_bad_sample_of_its_patient(index: ShardIndex, tmp_path: Path) -> None:
    reader = ShardReader(index)
    sample = task(index, "grade", "val").read(0, 0)
    assert reader.patient(sample) == "p7"
    table = sample.origin.shard.table.members["json"]
    table[2] ^= 1  # the checksum
    try:
        with pytest.raises(BadSample, match="member 'json'"):
            reader.patient(sample)
    finally:
        table[2] ^= 1


@pytest.mark.parametrize(
    ("name", "value", "masks", "words"),
    [
        ("boxes", {"boxes": [BOX], "known": ["scar"]}, {}, "a box of 'mass'"),
        ("boxes", {"boxes": [BOX]}, {}, "known is None; expected a list of the classes"),
        ("boxes", {"known": ["mass"]}, {}, "expected a list of"),
        ("organs", {"known": ["heart"], "raters": 3}, {}, "raters is 3"),
        ("organs", {"known": ["heart"], "raters": {"heart": 0}}, {}, "raters of 'heart' is 0"),
        (
            "organs",
            {"known": ["lung"], "raters": {"lung": 2}},
            {"lung": encode_png(MANY)},
            "counts 3 raters, but `raters` says 2",
        ),
        ("organs", {"known": ["lung"]}, {"lung": encode_png(MANY)}, "3 gray values"),
        ("sizes", {"ctr": float("nan")}, {}, "value is nan"),
        ("sizes", [1, 2, 3], {}, "a list with a number or null for each of"),
        ("sizes", "0.5", {}, "expected {name: a number}"),
        ("marks", {"apex": [41.5, 3]}, {}, "leaves its image of 40x20"),
        ("marks", [10, 20, 30], {}, "expected {name: [x, y]}"),
        ("findings", {"Edema": 3}, {}, "label of 'Edema' is 3"),
    ],
)
def test_what_cannot_be_stored(tmp_path: Path, name: str, value: Any, masks, words: str) -> None:
    """Masks are decoded by `validate` and by their reader, the rest before anything is written."""
    good = SourceSample("good", GRAY, SIZE, SAMPLES["a"], {"organs": MASKS["a"]})
    bad = SourceSample("bad", GRAY, SIZE, {name: value}, {name: masks} if masks else {})
    wrong = ListSource(SPECS, train=[good, bad])
    if not masks:
        with pytest.raises(ConfigError, match="sample 'bad'") as caught:
            write_shards(wrong, "x", tmp_path / "x")
        assert words in str(caught.value)
        return
    index = write_shards(wrong, "x", tmp_path / "x")
    (fault,) = validate_index(index).faults
    assert (fault.key, fault.field) == ("bad", name)
    assert words in fault.problem
    with pytest.raises(BadSample) as refused:
        task(index, name, "train").read(0, 1)
    assert words in str(refused.value)


def test_what_is_shown(index: ShardIndex, tmp_path: Path, monkeypatch) -> None:
    text = describe(index)
    assert "0 / 2, 1 uncertain" in text
    assert "2 / 2, 2 boxes" in text
    titles: list[str] = []
    marks: list[tuple[float, float]] = []
    from matplotlib.axes import Axes

    plain, plot = Axes.set_title, Axes.plot
    monkeypatch.setattr(
        Axes, "set_title", lambda self, t, **k: (titles.append(t), plain(self, t, **k))[1]
    )
    monkeypatch.setattr(
        Axes,
        "plot",
        lambda self, x, y, *a, **k: (marks.append((x, y)), plot(self, x, y, *a, **k))[1],
    )
    path = picture(index, tmp_path / "x.png", "val")
    assert path.read_bytes().startswith(b"\x89PNG")
    one, other = [title for title in titles if title.startswith("val_")]
    for line in (
        "grade: severe",
        "boxes: 1 boxes",
        "organs: lung?",
        "sizes: ctr 0.5, age 61",
        "marks: all points known",
        "findings: Mass, Edema uncertain",
    ):
        assert line in one.splitlines()
    for line in (
        "boxes: 1 boxes, scar?",
        "organs: lung by 3",
        "sizes: ctr 0.25, age?",
        "marks: apex?",
        "findings: Mass?",
    ):
        assert line in other.splitlines()
    # imshow's first pixel has its middle at (0, 0)
    np.testing.assert_allclose(marks, [(9.5, 4.5), (39.5, 19.5), (0.5, 1.5)])
