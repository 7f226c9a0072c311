"""FolderSource: what each annotation means, and what it says about broken input."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pydicom.data import get_testdata_file

from ark.types import ConfigError
from datamodules.imaging.images import encode_png
from datamodules.imaging.masks import decode_mask
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
        ({"window": "lung"}, ["source: window is 'lung'", "percentile"]),
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
        ("organs", {"coco": "boxes_{split}.json"}, ["['masks', 'coco']", "exactly one"]),
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
        ("a.jpg,p1,train,1,1", "a.jpg,p1,train,1,-2", ["'Effusion' of a.jpg is '-2'", "1, 0, -1"]),
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
        ({"bbox": None}, ["annotation 10", "four numbers"]),
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
    ("content", "words"),
    [
        ([1], ["no 'images'"]),
        ({"images": [], "annotations": []}, ["no 'categories'"]),
        ({"images": 5, "annotations": [], "categories": []}, ["images", "a list of"]),
        ({"images": {}, "annotations": [], "categories": []}, ["images", "a list of"]),
        ({"images": [{"id": 1}], "annotations": [], "categories": []}, ["images", "'file_name'"]),
        ({"images": [], "annotations": [{"id": 1}], "categories": []}, ["annotations", "image_id"]),
    ],
)
def test_jsons_that_are_no_coco(folder, content, words):
    folder.write_coco("train", content)
    refuses(folder, "boxes_train.json", *words)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.full((20, 24), 255, np.uint8), ["24x20", "48x40"]),
        (np.arange(40 * 48).reshape(40, 48).astype(np.uint8), ["256 gray values", "0 for outside"]),
        (np.full((40, 48, 3), 255, np.uint8), ["8-bit RGB PNG", "expected 8-bit gray"]),
    ],
)
def test_wrong_mask(folder, mask, words):
    cv2.imwrite(str(folder.path("masks/heart/a.png")), mask)
    refuses(folder, "masks/heart/a.png", *words)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"GIF89a", ["neither JPEG", "DICOM"]), (b"\xff\xd8\xff broken", ["cannot be decoded"])],
)
def test_wrong_image(folder, content, words):
    folder.path("images/a.jpg").write_bytes(content)
    refuses(folder, "images/a.jpg", *words)


def test_truncated_image(folder):
    path = folder.path("images/a.jpg")
    path.write_bytes(path.read_bytes()[:-200])
    refuses(folder, "images/a.jpg", "cannot be decoded")


@pytest.mark.parametrize("ending", [".png", ".tiff", ".webp", ".dcm"])
def test_images_of_every_format(folder, ending):
    pixels = np.random.default_rng(0).integers(0, 60000, (40, 48), np.uint16)
    if ending == ".dcm":
        data = Path(get_testdata_file("MR_small.dcm", download=False)).read_bytes()
    else:
        deep = pixels if ending != ".webp" else (pixels >> 8).astype(np.uint8)
        data = cv2.imencode(ending, deep)[1].tobytes()
    folder.path("images/c.1.jpg").write_bytes(data)  # the name's ending does not count
    sample = read_all(folder)["c_1"]
    assert sample.image == data
    assert sample.size == ((64, 64) if ending == ".dcm" else (40, 48))


def test_the_window_must_fit_every_image(folder):
    values = np.random.default_rng(0).random((40, 48)).astype(np.float32)
    folder.path("images/c.1.jpg").write_bytes(cv2.imencode(".tif", values)[1].tobytes())
    folder.args["window"] = [0, 1]
    assert read_all(folder)["c_1"].size == (40, 48)
    folder.args["window"] = "full"
    refuses(folder, "images/c.1.jpg", "window is 'full'")


LABELS = np.zeros((40, 48), np.uint8)
LABELS[2:9, 3:30], LABELS[20:30, 10:20] = 1, 2


def label_map(folder, **options):
    """Makes `organs` a label map of LABELS for image a and an empty one for e."""
    folder.path("labels").mkdir(exist_ok=True)
    folder.path("labels/e.png").write_bytes(encode_png(np.zeros_like(LABELS)))
    folder.path("labels/a.png").write_bytes(encode_png(LABELS))
    entry = {"kind": "segmentation", "classes": ["left lung", "heart"]}
    folder.args["annotations"]["organs"] = entry | {"label_map": "labels/{stem}.png"} | options


def masks_in(sample, annotation="organs"):
    return {c: decode_mask(png, c) for c, png in sample.masks.get(annotation, {}).items()}


def test_a_label_map_becomes_a_mask_a_class(folder):
    label_map(folder)
    samples = read_all(folder)
    known = {"known": ["left lung", "heart"]}
    assert samples["a"].annotations["organs"] == samples["e"].annotations["organs"] == known
    masks = masks_in(samples["a"])
    np.testing.assert_array_equal(masks["left lung"], LABELS == 1)
    np.testing.assert_array_equal(masks["heart"], LABELS == 2)
    assert not masks_in(samples["e"])
    assert "organs" not in samples["b"].annotations


def test_label_maps_have_the_values_of_the_yaml(folder):
    label_map(folder, values={"heart": 1, "left lung": 300}, ignore=[2])
    np.testing.assert_array_equal(masks_in(read_all(folder)["a"])["heart"], LABELS == 1)
    palette = Image.fromarray(LABELS, "P")
    palette.putpalette([9, 9, 9] * 256)
    palette.save(folder.path("labels/a.png"))
    np.testing.assert_array_equal(masks_in(read_all(folder)["a"])["heart"], LABELS == 1)
    deep = np.where(LABELS == 2, 300, LABELS.astype(np.uint16))
    cv2.imwrite(str(folder.path("labels/a.png")), deep)
    np.testing.assert_array_equal(masks_in(read_all(folder)["a"])["left lung"], LABELS == 2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"values": {"heart": 1, "left lung": 3}}, ["labels/a.png", "the value 2", "`ignore`"]),
        ({"values": {"heart": 1}}, ["values is {'heart': 1}", "'left lung'"]),
        ({"values": {"heart": 1, "left lung": 1}}, ["of its own"]),
        ({"values": {"heart": 0, "left lung": 1}}, ["1 to 65535"]),
        ({"values": [1, 2]}, ["values is [1, 2]"]),
        ({"ignore": 255}, ["ignore is 255"]),
        ({"ignore": [2]}, ["2 is both in `values` and in `ignore`"]),
        ({"label_map": "labels/{class}.png"}, ["'labels/{class}.png'", "{stem}"]),
        ({"masks": "masks/{class}/{stem}.png"}, ["['masks', 'label_map']", "exactly one"]),
        ({"where": {"column": "read", "equals": 1}}, ["labels/b.png", "no such label map"]),
    ],
)
def test_wrong_label_maps(folder, options, words):
    label_map(folder, **options)
    refuses(folder, *words)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((20, 24), np.uint8), ["24x20", "48x40"]),
        (np.zeros((40, 48, 3), np.uint8), ["RGB PNG"]),
    ],
)
def test_wrong_label_map_files(folder, image, words):
    label_map(folder)
    cv2.imwrite(str(folder.path("labels/a.png")), image)
    refuses(folder, "labels/a.png", *words)


def coco_masks(folder, *segmentations, **change):
    """Makes `organs` a COCO json whose train split lists a and b; a has the segmentations."""
    for split in ("train", "val", "test"):
        content = folder.coco(split)
        content["categories"] = [{"id": 1, "name": "heart"}, {"id": 5, "name": "left lung"}]
        content["annotations"] = []
        if split == "train":
            content["annotations"] = [
                {"id": 70 + n, "image_id": 0, "category_id": 5, "segmentation": s} | change
                for n, s in enumerate(segmentations)
            ]
        folder.path(f"organs_{split}.json").write_text(json.dumps(content))
    folder.args["annotations"]["organs"] = {
        "kind": "segmentation",
        "coco": "organs_{split}.json",
        "classes": ["left lung", "heart"],
    }


def test_coco_regions_are_united_by_class(folder):
    rle = coco_mask.encode(np.asfortranarray((LABELS == 1).astype(np.uint8)))
    rle["counts"] = rle["counts"].decode()
    coco_masks(folder, rle, [[10, 20, 20, 20, 20, 30, 10, 30]])
    samples = read_all(folder)
    known = {"known": ["left lung", "heart"]}
    assert samples["a"].annotations["organs"] == samples["b"].annotations["organs"] == known
    masks = masks_in(samples["a"])
    assert list(masks) == ["left lung"]
    np.testing.assert_array_equal(masks["left lung"], LABELS > 0)
    assert not masks_in(samples["b"])
    assert "organs" not in samples["c_1"].annotations


@pytest.mark.parametrize(
    ("region", "change", "words"),
    [
        (None, {}, ["the polygons are None"]),
        ([[1, 1, 5, 5]], {}, ["3 or more points"]),
        ([[1, 1, 90, 5, 3, 3]], {}, ["leaves its image of 48x40"]),
        ({"size": [48, 40], "counts": [48 * 40]}, {}, ["[48, 40]", "[40, 48] (H, W)"]),
        ({"size": [40, 48], "counts": [7]}, {}, ["do not add up to its 1920 pixels"]),
        ([[1, 1, 9, 5, 3, 3]], {"category_id": 99}, ["category_id 99"]),
    ],
)
def test_wrong_coco_regions(folder, region, change, words):
    coco_masks(folder, region, **change)
    refuses(folder, "organs_train.json: annotation 70 of a.jpg", *words)
