"""Readers of uncertain labels, values, points, several raters and partly annotated COCO jsons."""

from __future__ import annotations

import json
from typing import Any

import cv2
import numpy as np
import pytest

from ark.types import ConfigError
from datamodules.imaging.masks import decode_counts, decode_mask
from datamodules.sources import FolderSource


def read_all(folder) -> dict[str, Any]:
    source = FolderSource(**folder.args)
    return {s.key: s for split in source.splits() for s in source.samples(split)}


def refuses(folder, *words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_all(folder)
    for word in words:
        assert word in str(caught.value), caught.value


# -- labels ------------------------------------------------------------------------------------


def test_minus_one_is_uncertain_and_blank_what_the_yaml_says(folder) -> None:
    folder.table("a.jpg,p1,train,1,1,0", "a.jpg,p1,train,1,-1,-1.0")
    found = {key: s.annotations.get("findings") for key, s in read_all(folder).items()}
    assert found["a"] == {"Effusion": -1, "Mass": -1}
    assert found["b"] == {"Effusion": 0}
    assert found["c_1"] is None
    folder.annotation("findings")["blank"] = "absent"
    found = {key: s.annotations.get("findings") for key, s in read_all(folder).items()}
    assert found["a"] == {"Effusion": -1, "Mass": -1}
    assert found["b"] == found["c_1"] == {"Effusion": 0, "Mass": 0}
    folder.annotation("findings")["where"] = {"column": "read", "equals": 1}
    assert "findings" not in read_all(folder)["c_1"].annotations


def test_an_unknown_blank(folder) -> None:
    folder.annotation("findings")["blank"] = "zero"
    refuses(folder, "blank is 'zero'", "['unknown', 'absent']")


# -- values and points -------------------------------------------------------------------------


def test_values_and_points_of_the_table(folder) -> None:
    found = {key: s.annotations for key, s in read_all(folder).items()}
    assert {k: a["ratio"] for k, a in found.items() if "ratio" in a} == {
        "a": {"ctr": 0.51},
        "d": {"ctr": 0.4},
        "e": {"ctr": 0.001},
        "f": {"ctr": -2},
    }
    assert {k: a["marks"] for k, a in found.items() if "marks" in a} == {
        "a": {"apex": [10.5, 3], "tip": [47, 40]},
        "d": {"tip": [0, 7.25]},
        "e": {"apex": [20, 20]},
        "f": {"apex": [1, 2], "tip": [3, 4]},
    }
    assert [a.get("grade") for a in found.values()][:4] == ["severe", None, None, "mild"]


def test_columns_may_be_named_otherwise(folder) -> None:
    folder.annotation("ratio").update(classes=["ratio", "tip_y"], columns={"ratio": "ctr"})
    folder.annotation("marks").update(classes=["Apex"], columns={"Apex": ["tip_y", "tip_x"]})
    folder.table("47,40", "37,39")
    sample = read_all(folder)["a"]
    assert sample.annotations["ratio"] == {"ratio": 0.51, "tip_y": 39}
    assert sample.annotations["marks"] == {"Apex": [39, 37]}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("PA,0.51,", "PA,half,", ["column 'ctr' of a.jpg is 'half'", "a number, or blank"]),
        ("PA,0.51,", "PA,nan,", ["column 'ctr' of a.jpg: value is nan", "finite"]),
        ("PA,0.51,", "PA,1e99,", ["value is 1e+99"]),
        ("10.5,3,", "10.5,,", ["column 'apex_y' of a.jpg is ''", "its other column has one"]),
        ("10.5,3,", "50,3,", ["a.jpg, 'apex': point [50.0, 3.0]", "48x40"]),
        ("10.5,3,", "10.5,-2,", ["leaves its image"]),
        ("47,40,severe", "47,40,bad", ["column 'grade' of a.jpg", "['mild', 'severe']"]),
    ],
)
def test_wrong_numbers(folder, old: str, new: str, words: list[str]) -> None:
    folder.table(old, new)
    refuses(folder, "labels.csv", *words)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("ratio", {"classes": ["age"]}, ["no column 'age'", "columns of source annotation"]),
        ("ratio", {"columns": {"age": "ctr"}}, ["columns is {'age': 'ctr'}", "{name: column}"]),
        ("ratio", {"columns": ["ctr"]}, ["columns is ['ctr']"]),
        ("ratio", {"column": "ctr"}, ["unknown 'column'", "'columns'"]),
        ("marks", {"classes": ["knee"]}, ["no column 'knee_x'"]),
        ("marks", {"columns": {"apex": "ctr"}}, ["columns of 'apex' is 'ctr'", "[x, y]"]),
        ("marks", {"columns": {"knee": ["a", "b"]}}, ["column of x, column of y"]),
    ],
)
def test_wrong_columns(folder, name: str, change: dict[str, Any], words: list[str]) -> None:
    folder.annotation(name).update(change)
    refuses(folder, *words)


# -- several raters ----------------------------------------------------------------------------


def mask_of(folder, rater: str, stem: str) -> np.ndarray:
    return cv2.imread(str(folder.path(f"masks/{rater}/{stem}.png")), cv2.IMREAD_GRAYSCALE) > 0


def test_raters_are_counted_by_pixel(folder) -> None:
    """left lung has files of a, e, f; heart of a, b, e, f."""
    samples = read_all(folder)
    assert samples["a"].annotations["lesion"] == {"known": ["lesion"], "raters": {"lesion": 2}}
    one, other = (mask_of(folder, rater, "a") for rater in ("left lung", "heart"))
    counts = decode_counts(samples["a"].masks["lesion"]["lesion"], 2, "a")
    np.testing.assert_array_equal(counts, one.astype(int) + other)
    assert counts.max() == 2
    alone = samples["b"]
    assert alone.annotations["lesion"] == {"known": ["lesion"]}
    assert alone.masks["lesion"]["lesion"] == folder.path("masks/heart/b.png").read_bytes()
    assert "lesion" not in samples["d"].annotations


def test_raters_of_an_image_that_was_read_by_all(folder) -> None:
    folder.annotation("lesion")["where"] = {"column": "read", "equals": 1}
    samples = read_all(folder)
    two = {"known": ["lesion"], "raters": {"lesion": 2}}
    assert [samples[key].annotations.get("lesion") for key in ("a", "b", "d", "c_1")] == [
        two,
        two,
        two,
        None,
    ]
    counts = decode_counts(samples["b"].masks["lesion"]["lesion"], 2, "b")
    np.testing.assert_array_equal(counts, mask_of(folder, "heart", "b"))
    assert "lesion" not in samples["d"].masks


def test_raters_of_each_class_are_counted_apart(folder) -> None:
    for rater, organ, stem in (("r1", "heart", "a"), ("r2", "heart", "a"), ("r2", "rib", "a")):
        path = folder.path(f"by/{rater}/{organ}/{stem}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(folder.path("masks/heart/a.png").read_bytes())
    folder.args["annotations"] = {
        "organs": {
            "kind": "segmentation",
            "masks": "by/{rater}/{class}/{stem}.png",
            "raters": ["r1", "r2"],
            "classes": ["heart", "lung", "rib"],
        }
    }
    sample = read_all(folder)["a"]
    raters = {"heart": 2, "rib": 1}
    assert sample.annotations["organs"] == {"known": ["heart", "rib"], "raters": raters}
    truth = mask_of(folder, "heart", "a")
    heart = decode_counts(sample.masks["organs"]["heart"], 2, "heart")
    np.testing.assert_array_equal(heart, truth * 2)
    np.testing.assert_array_equal(decode_mask(sample.masks["organs"]["rib"], "rib"), truth)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"raters": 2}, ["raters is 2", "names, each once"]),
        ({"raters": []}, ["raters is []"]),
        ({"raters": ["a", "a"]}, ["raters is ['a', 'a']"]),
        ({"raters": [1, 2]}, ["raters is [1, 2]"]),
        ({"masks": "masks/heart/{stem}.png"}, ["for 2 raters", "put {rater} into the path"]),
        ({"raters": None}, ["{class}, {stem}, {split}", "found 'rater'"]),
    ],
)
def test_wrong_raters(folder, change: dict[str, Any], words: list[str]) -> None:
    folder.annotation("lesion").update(change)
    refuses(folder, "source annotation 'lesion'", *words)


# -- COCO jsons of which images were searched for some classes only ------------------------------


def federated(folder, **keys: Any) -> None:
    """a has a nodule, an opacity and a scar (categories 5, 6, 7); `keys` are added to image a."""
    for split in ("train", "val", "test"):
        content = folder.coco(split)
        names = {5: "opacity", 6: "nodule", 7: "scar", 8: "tube"}
        content["categories"] = [{"id": i, "name": name} for i, name in names.items()]
        if split == "train":
            box = [[2, 2], [20, 2], [20, 20]]
            content["images"][0] |= keys
            content["annotations"] = [
                {
                    "id": i,
                    "image_id": 0,
                    "category_id": i,
                    "bbox": [1, 2, i, 4],
                    "segmentation": [[float(n) for p in box for n in p]],
                }
                for i in (5, 6, 7)
            ]
        folder.write_coco(split, content)
    classes = ["nodule", "opacity", "scar", "tube"]
    folder.annotation("boxes")["classes"] = classes
    folder.args["annotations"]["regions"] = {
        "kind": "segmentation",
        "coco": "boxes_{split}.json",
        "classes": classes,
    }
    for split in ("val", "test"):
        content = folder.coco(split)
        content["annotations"] = []
        folder.write_coco(split, content)


@pytest.mark.parametrize(
    ("keys", "known"),
    [
        ({"neg_category_ids": []}, "nodule opacity scar"),
        ({"neg_category_ids": [8]}, "nodule opacity scar tube"),
        ({"neg_category_ids": [8], "not_exhaustive_category_ids": [6]}, "opacity scar tube"),
        ({"not_exhaustive_category_ids": [6]}, "opacity scar tube"),
        ({"neg_category_ids": [], "not_exhaustive_category_ids": [5, 6, 7]}, ""),
        ({}, None),
    ],
)
def test_lvis_says_which_classes_an_image_was_searched_for(folder, keys, known) -> None:
    federated(folder, **keys)
    samples = read_all(folder)
    found, regions = (samples["a"].annotations.get(name) for name in ("boxes", "regions"))
    order = ["opacity", "nodule", "scar"]  # of the json
    if known is None:
        assert [box["class"] for box in found] == order
        assert regions == {"known": ["nodule", "opacity", "scar", "tube"]}
    elif not known:
        assert found is regions is None
    else:
        names = known.split()
        assert found["known"] == regions["known"] == names
        assert [box["class"] for box in found["boxes"]] == [n for n in order if n in names]
        assert sorted(samples["a"].masks["regions"]) == sorted(n for n in order if n in names)
    assert samples["b"].annotations["boxes"] == []
    notes = "\n".join(FolderSource(**folder.args).notes())
    left = len(keys.get("not_exhaustive_category_ids", []))
    assert (f"{left} annotations are left out" in notes) == bool(left)


@pytest.mark.parametrize("ids", [[9], 5, [[5]], ["5"]])
def test_wrong_category_ids(folder, ids: Any) -> None:
    federated(folder, neg_category_ids=ids)
    refuses(folder, "boxes_train.json: a.jpg: neg_category_ids is", "[5, 6, 7, 8]")


def test_a_json_can_be_read_back(folder) -> None:
    """What the reader makes is what a shard's json can hold."""
    federated(folder, neg_category_ids=[8])
    for sample in read_all(folder).values():
        assert json.loads(json.dumps(dict(sample.annotations))) == dict(sample.annotations)
