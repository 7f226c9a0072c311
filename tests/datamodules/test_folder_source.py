"""FolderSource: what each annotation means, and what it says about broken input."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from ark.types import ConfigError
from datamodules.sources import FolderSource


def read_all(folder):
    source = FolderSource(**folder.args)
    return {s.key: s for split in source.splits() for s in source.samples(split)}


def refuses(folder, *words):
    with pytest.raises(ConfigError) as caught:
        read_all(folder)
    for word in words:
        assert word in str(caught.value), f"{word!r} not in: {caught.value}"


def test_annotations_and_splits_are_known_without_reading_an_image(folder):
    for image in folder.path("images").iterdir():
        image.unlink()
    source = FolderSource(**folder.args)
    assert source.splits() == {"train": 4, "val": 1, "test": 1}
    specs = {name: (spec.kind, spec.classes) for name, spec in source.annotations().items()}
    assert specs["findings"] == ("multilabel", ("Effusion", "Mass"))
    assert specs["view"] == ("multiclass", ("PA", "AP Supine"))


def test_blank_labels_are_unknown_and_a_blank_row_is_unannotated(folder):
    samples = read_all(folder)
    assert samples["a"].annotations["findings"] == {"Effusion": 1, "Mass": 0}
    assert samples["b"].annotations["findings"] == {"Effusion": 0}
    assert samples["d"].annotations["findings"] == {"Effusion": 0, "Mass": 1}
    assert not {"findings", "view"} & set(samples["c_1"].annotations)


def test_listed_without_boxes_is_negative_and_unlisted_is_unannotated(folder):
    samples = read_all(folder)
    assert samples["a"].annotations["boxes"] == [{"class": "opacity", "bbox": [2.5, 3, 10, 8]}]
    assert samples["b"].annotations["boxes"] == []
    assert "boxes" not in samples["c_1"].annotations


def test_a_missing_mask_is_unknown_but_empty_where_the_image_was_read(folder):
    samples = read_all(folder)
    assert samples["a"].annotations["organs"] == {"known": ["left lung", "heart"]}
    assert samples["b"].annotations["organs"] == {"known": ["heart"]}
    assert "organs" not in samples["d"].annotations
    assert samples["d"].annotations["heart_read"] == {"known": ["heart"]}
    assert "heart_read" not in samples["d"].masks
    assert "heart_read" not in samples["c_1"].annotations


def test_bytes_patients_and_dotted_names(folder):
    samples = read_all(folder)
    assert samples["a"].image == folder.path("images/a.jpg").read_bytes()
    assert samples["c_1"].patient == "007"
    assert samples["a"].masks["organs"]["heart"] == folder.path("masks/heart/a.png").read_bytes()


def test_splits_from_a_column_give_the_same_samples(folder):
    by_files = read_all(folder)
    folder.args["splits"] = {"column": "split"}
    assert read_all(folder) == by_files


def test_what_is_left_out_is_reported(folder):
    coco = folder.coco("val")
    coco["images"].append({"id": 77, "file_name": "elsewhere.jpg"})
    folder.write_coco("val", coco)
    notes = "\n".join(FolderSource(**folder.args).notes())
    assert "1 rows are in no split, as g.jpg" in notes
    assert "boxes_val.json: 1 of its images are not used, as elsewhere.jpg" in notes


def test_a_box_may_overshoot_by_a_pixel_of_rounding(folder):
    coco = folder.coco("train")
    coco["annotations"][0]["bbox"] = [-0.5, 0, 48.9, 41]
    folder.write_coco("train", coco)
    assert read_all(folder)["a"].annotations["boxes"][0]["bbox"] == [0, 0, 48, 40]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"root": "/no/where"}, ["/no/where", "ARK_DATA"]),
        ({"table": "other.csv"}, ["other.csv", "no such table"]),
        ({"key": "file"}, ["'file'", "named by key", "'image'"]),
        ({"patient": "who"}, ["'who'", "patient"]),
        ({"table": None, "patient": None}, ["findings", "`table`"]),
        ({"splits": {"file": "x"}}, ["splits has ['file']", "files:"]),
        ({"splits": {"files": "s/{split}.txt"}}, ["s/train.txt", "no such split"]),
        ({"splits": {"files": "splits/{which}.txt"}}, ["{split}", "which"]),
        ({"splits": {"column": "view"}}, ["view of a.jpg is 'PA'", "train"]),
        ({"annotations": {}}, ["`annotations` is empty"]),
        ({"annotations": {"a.b": {"kind": "multiclass"}}}, ["'a.b'", "letters"]),
        ({"annotations": {"x": {"kind": "boxes"}}}, ["'boxes'", "detection"]),
    ],
)
def test_wrong_arguments(folder, change, words):
    folder.args.update(change)
    refuses(folder, *words)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("findings", {"classes": ["Effusion", "Hernia"]}, ["labels.csv", "'Hernia'", "classes"]),
        ("findings", {"classes": []}, ["classes is empty"]),
        ("findings", {"classes": ["Mass", "mass"]}, ["'Mass' more than once"]),
        ("findings", {"classes": ["Mass", 1]}, ["class 1 is not a name"]),
        ("findings", {"colour": 1}, ["unknown 'colour'"]),
        ("view", {"column": "angle"}, ["'angle'"]),
        ("view", {"classes": ["PA"]}, ["'view' of b.jpg", "'AP Supine'", "['PA']"]),
        ("boxes", {"classes": ["opacity", "nodule"]}, ["'nodule'", "['opacity']"]),
        ("boxes", {"classes": ["nodule"]}, ["category 'opacity'", "['nodule']"]),
        ("boxes", {"coco": "none.json"}, ["none.json", "no such COCO"]),
        ("organs", {"masks": "masks/heart/{stem}.png"}, ["2 classes", "{class}"]),
        ("organs", {"masks": "masks/{klass}/{stem}.png"}, ["{class}"]),
        ("heart_read", {"where": {"column": "read"}}, ["where has ['column']"]),
        ("heart_read", {"where": {"column": "seen", "equals": 1}}, ["'seen'"]),
    ],
)
def test_wrong_annotation(folder, name, change, words):
    folder.annotation(name).update(change)
    refuses(folder, *words)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("a.jpg,p1,train,1,1", "a.jpg,p1,train,1,-1", ["'Effusion' of a.jpg is '-1'", "1, 0"]),
        ("e.jpg,p4", "e.jpg,p1", ["patient 'p1' is in train and in val (e.jpg)"]),
        ("f.jpg,", "a.jpg,", ["'a.jpg' has two rows"]),
        ("f.jpg,", "h.jpg,", ["test.txt", "f.jpg has no row"]),
    ],
)
def test_wrong_table(folder, old, new, words):
    folder.table(old, new)
    refuses(folder, "labels.csv", *words)


@pytest.mark.parametrize(
    ("split", "text", "words"),
    [
        ("val", "", ["val.txt", "empty"]),
        ("val", "a.jpg", ["val.txt", "a.jpg is already in train"]),
        ("val", "g.jpg", ["images/g.jpg", "No such file", "val split"]),
    ],
)
def test_wrong_split(folder, split, text, words):
    folder.path(f"splits/{split}.txt").write_text(text)
    refuses(folder, *words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bbox": [30, 3, 30, 8]}, ["annotation 10 of a.jpg", "[30, 3, 30, 8]", "48x40"]),
        ({"bbox": [3, 3, 0, 8]}, ["annotation 10", "no area"]),
        ({"bbox": [3, 3, 8]}, ["annotation 10", "four numbers"]),
        ({"bbox": [3, 3, float("nan"), 8]}, ["annotation 10", "four numbers"]),
        ({"image_id": 99}, ["annotation 10", "image_id 99"]),
        ({"category_id": 99}, ["annotation 10", "category_id 99"]),
        ({"iscrowd": 1}, ["annotation 10", "iscrowd"]),
    ],
)
def test_wrong_box(folder, change, words):
    coco = folder.coco("train")
    coco["annotations"][0].update(change)
    folder.write_coco("train", coco)
    refuses(folder, "boxes_train.json", *words)


def test_boxes_drawn_on_another_size(folder):
    coco = folder.coco("train")
    coco["images"][0].update(width=1024, height=1024)
    folder.write_coco("train", coco)
    refuses(folder, "a.jpg is stated as 1024x1024", "48x40", "scale the boxes")


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.full((20, 24), 255, np.uint8), ["24x20", "48x40"]),
        (np.arange(40 * 48).reshape(40, 48).astype(np.uint8), ["256 gray values", "0 for outside"]),
        (np.full((40, 48, 3), 255, np.uint8), ["'RGB'", "8-bit gray"]),
    ],
)
def test_wrong_mask(folder, mask, words):
    cv2.imwrite(str(folder.path("masks/heart/a.png")), mask)
    refuses(folder, "masks/heart/a.png", *words)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"GIF89a", ["neither JPEG nor PNG"]), (b"\xff\xd8\xff broken", ["cannot be decoded"])],
)
def test_wrong_image(folder, content, words):
    folder.path("images/a.jpg").write_bytes(content)
    refuses(folder, "images/a.jpg", *words)


def test_truncated_image(folder):
    path = folder.path("images/a.jpg")
    path.write_bytes(path.read_bytes()[:-200])
    refuses(folder, "images/a.jpg", "cannot be decoded")
