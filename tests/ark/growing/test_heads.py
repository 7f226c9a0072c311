"""Heads that a run adds, drops, renames or gives other classes: every weight as expected."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ark.growing import grow
from ark.growing.grow import Growth
from ark.growing.source import Source
from ark.network import Network
from ark.types import ConfigError, TaskSpec
from toys import HEADS, SIZE, make_batch

BACKBONE = {"name": "test_efficientnet", "image_size": SIZE}
OLD = ("heart", "lung", "rib", "clavicle")
LISTS = {
    "reordered": ("rib", "clavicle", "heart", "lung"),
    "subset": ("rib", "heart"),
    "superset": ("scapula", "heart", "lung", "spine", "rib", "clavicle"),
    "mixed": ("clavicle", "spine", "heart"),
}
every_list = pytest.mark.parametrize("new", LISTS.values(), ids=LISTS)


def spec(kind: str, classes: tuple[str, ...] = OLD, dataset: str = "toy", **args: Any) -> TaskSpec:
    head = {"class_path": HEADS[kind], "init_args": args}
    return TaskSpec(dataset, kind, kind, classes, head)  # type: ignore[arg-type]


def network(seed: int, *tasks: TaskSpec, projector: dict[str, Any] | None = None) -> Network:
    """Every tensor differs from one seed to another, also those that start as constants."""
    torch.manual_seed(seed)
    made = Network(BACKBONE, projector, tasks)
    for value in made.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + seed)
    return made


def grown(new: Network, old: Network, **names: str | None) -> tuple[Growth, dict[str, Tensor]]:
    """What it took, and its weights from before."""
    before = {name: value.clone() for name, value in new.state_dict().items()}
    state = {name: value.clone() for name, value in old.state_dict().items()}
    source = Source("there", "teacher", old.architecture, state)
    renamed = {key.replace("__", "/"): value for key, value in names.items()}
    return grow(new, source, renamed), before


def row(growth: Growth, part: str) -> Any:
    return next(row for row in growth.rows if row.part == part)


def check_rest(new: Network, old: Network, but: tuple[str, ...] = ()) -> None:
    """All tensors are the old ones', but for those below the given names."""
    theirs = old.state_dict()
    for name, value in new.state_dict().items():
        if not name.startswith(but):
            assert torch.equal(value, theirs[name]), name


def test_what_both_have_is_taken_whole() -> None:
    tasks = [spec("multilabel"), spec("segmentation"), spec("detection"), spec("values")]
    projector = {"width": 8, "hidden": True}
    old, new = (network(seed, *tasks, projector=projector) for seed in (1, 2))
    growth, _ = grown(new, old)
    check_rest(new, old)
    assert {row.state for row in growth.rows} == {"taken"}
    assert sum(row.taken for row in growth.rows) == len(new.state_dict())


def test_heads_are_added_dropped_and_renamed() -> None:
    old = network(1, spec("multilabel"), spec("values"), spec("segmentation"))
    new = network(2, spec("multilabel", dataset="other"), spec("values"), spec("multiclass"))
    growth, before = grown(new, old, other__multilabel="toy/multilabel")
    check_rest(new, old, but=("heads.other/multilabel", "heads.toy/multiclass"))
    for name, value in new.head("other/multilabel").state_dict().items():
        assert torch.equal(value, old.head("toy/multilabel").state_dict()[name])
    for name, value in new.head("toy/multiclass").state_dict().items():
        assert torch.equal(value, before[f"heads.toy/multiclass.{name}"])
    assert row(growth, "head other/multilabel").note == "was toy/multilabel"
    assert row(growth, "head toy/multiclass").state == "new"
    dropped = row(growth, "head toy/segmentation")
    assert (dropped.state, dropped.dropped) == ("dropped", 31)


def test_a_head_may_be_asked_to_be_new() -> None:
    old, mine = network(1, spec("multilabel")), network(2, spec("multilabel"))
    growth, before = grown(mine, old, toy__multilabel=None)
    check_rest(mine, old, but=("heads.",))
    assert [(r.part, r.state, r.note) for r in growth.rows[1:]] == [
        ("head toy/multilabel", "new", "as init_names says"),
        ("head toy/multilabel", "dropped", ""),
    ]
    for name, value in mine.head("toy/multilabel").state_dict().items():
        assert torch.equal(value, before[f"heads.toy/multilabel.{name}"])


def test_one_old_head_may_start_several() -> None:
    old = network(1, spec("multilabel"))
    new = network(2, spec("multilabel"), spec("multilabel", dataset="other"))
    grown(new, old, other__multilabel="toy/multilabel")
    first, second = (head.state_dict() for head in new.heads_by_key().values())
    assert all(torch.equal(second[name], value) for name, value in first.items())


def check_rows(new: Network, old: Network, key: str, before: dict[str, Tensor], lead: int) -> None:
    """Of a head whose class tensors have `lead` rows before one row a class."""
    head, source = new.head(key), old.head(key).state_dict()
    classes = head.task.classes
    for name, value in head.state_dict().items():
        if name not in (head.class_rows() or {}):
            assert torch.equal(value, source[name])
            continue
        assert torch.equal(value[:lead], source[name][:lead])
        for k, cls in enumerate(classes):
            expected = before[f"heads.{key}.{name}"][lead + k]
            if cls in OLD:
                expected = source[name][lead + OLD.index(cls)]
            assert torch.equal(value[lead + k], expected), (name, cls)


@every_list
@pytest.mark.parametrize(
    ("kind", "args", "lead"),
    [
        ("multilabel", {}, 0),
        ("multilabel", {"classifier": "mlp", "hidden": 8}, 0),
        ("multilabel", {"classifier": "cosine"}, 0),
        ("multiclass", {}, 0),
        ("multiclass", {"classifier": "cosine"}, 0),
        ("values", {}, 0),
        ("segmentation", {}, 0),
        ("segmentation", {"mode": "multiclass"}, 1),
        ("segmentation", {"shared": "masks"}, 0),
        ("detection", {"detector": "atss"}, 0),
        ("detection", {"detector": "fcos"}, 0),
    ],
)
def test_classes_are_taken_by_name(kind: str, args: dict[str, Any], lead: int, new: Any) -> None:
    old, mine = network(1, spec(kind, **args)), network(2, spec(kind, new, **args))
    growth, before = grown(mine, old)
    check_rows(mine, old, f"toy/{kind}", before, lead)
    check_rest(mine, old, but=("heads.",))
    found = row(growth, f"head toy/{kind}")
    assert found.state == ("taken" if set(new) <= set(OLD) else "partly taken")
    assert found.by_class == len(mine.head(f"toy/{kind}").class_rows() or {})
    for name in {*OLD} - {*new}:
        assert name in found.note.rpartition("dropped: ")[2]


@every_list
def test_anchors_repeat_the_classes(new: tuple[str, ...]) -> None:
    args = {"detector": "retinanet"}
    old, mine = network(1, spec("detection", **args)), network(2, spec("detection", new, **args))
    _, before = grown(mine, old)
    for name in ("weight", "bias"):
        path = f"heads.toy/detection.detector.bbox_head.retina_cls.{name}"
        value, theirs = mine.state_dict()[path], old.state_dict()[path]
        anchors = len(theirs) // len(OLD)
        value, kept = (t.unflatten(0, (anchors, len(new))) for t in (value, before[path]))
        theirs = theirs.unflatten(0, (anchors, len(OLD)))
        for k, cls in enumerate(new):
            expected = theirs[:, OLD.index(cls)] if cls in OLD else kept[:, k]
            assert torch.equal(value[:, k], expected)


@every_list
def test_a_second_stage_has_a_background_last_and_four_numbers_a_class(new: Any) -> None:
    args = {"detector": "faster_rcnn"}
    old, mine = network(1, spec("detection", **args)), network(2, spec("detection", new, **args))
    _, before = grown(mine, old)
    path = "heads.toy/detection.detector.roi_head.bbox_head."
    for name in ("weight", "bias"):
        value, theirs, kept = (
            s[f"{path}fc_cls.{name}"] for s in (mine.state_dict(), old.state_dict(), before)
        )
        assert torch.equal(value[-1], theirs[-1])
        boxes, their_boxes, kept_boxes = (
            s[f"{path}fc_reg.{name}"].unflatten(0, (-1, 4))
            for s in (mine.state_dict(), old.state_dict(), before)
        )
        for k, cls in enumerate(new):
            there = OLD.index(cls) if cls in OLD else None
            assert torch.equal(value[k], kept[k] if there is None else theirs[there])
            assert torch.equal(boxes[k], kept_boxes[k] if there is None else their_boxes[there])


SMALL_DETR = {"width": 32, "heads": 2, "encoder_layers": 1, "decoder_layers": 2, "ffn": 32}


@pytest.mark.parametrize("detector", ["dino", "deformable_detr"])
def test_every_layer_of_a_transformer_and_its_noise_go_by_class(detector: str) -> None:
    args = {"detector": detector, "detector_args": {**SMALL_DETR, "queries": 20}}
    new = LISTS["mixed"]
    old, mine = network(1, spec("detection", **args)), network(2, spec("detection", new, **args))
    growth, before = grown(mine, old)
    check_rows(mine, old, "toy/detection", before, 0)
    # layer by layer, the proposals' too; DINO's noise has a row a class
    assert row(growth, "head toy/detection").by_class == 6 + (detector == "dino")


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (spec("ordinal"), spec("ordinal", OLD[:3]), "not defined for this head"),
        (spec("multilabel"), spec("multilabel", classifier="cosine"), "has no linear.scale there"),
        (spec("multilabel"), spec("multilabel", ("spine",)), "no class in common"),
        (spec("segmentation"), spec("segmentation", decoder="Unet"), "has no decoder."),
        (spec("segmentation"), spec("segmentation", OLD[1:], mode="multiclass"), "not laid out"),
        (spec("detection"), spec("detection", detector="fcos"), "has no detector."),
    ],
)
def test_a_head_that_does_not_fit_is_new_and_says_why(
    old: TaskSpec, new: TaskSpec, why: str
) -> None:
    mine = network(2, new)
    growth, before = grown(mine, network(1, old))
    found = row(growth, f"head {new.key}")
    assert found.state == "new"
    assert why in found.note
    assert found.dropped
    for name, value in mine.head(new.key).state_dict().items():
        assert torch.equal(value, before[f"heads.{new.key}.{name}"])


def test_a_class_that_is_only_spelled_otherwise_is_new_and_said() -> None:
    old = network(1, spec("multilabel", ("Pleural_Thickening", "Mass", "mass")))
    mine = network(2, spec("multilabel", ("pleural thickening", "Mass", "Edema")))
    note = row(grown(mine, old)[0], "head toy/multilabel").note
    hint = "only spelled otherwise, so new: 'pleural thickening' ('Pleural_Thickening' there)"
    assert note.endswith(hint)
    mine = network(2, spec("multilabel", ("MASS",)))
    note = row(grown(mine, old)[0], "head toy/multilabel").note
    assert note == "no class in common; only spelled otherwise, so new: 'MASS' ('mass' there)"


def test_a_head_of_another_kind_is_new() -> None:
    old = network(1, spec("multilabel"))
    mine = network(2, spec("multiclass"))
    growth, _ = grown(mine, old, toy__multiclass="toy/multilabel")
    assert row(growth, "head toy/multiclass").note == (
        "was toy/multilabel; is of kind multilabel there, multiclass here"
    )


def test_other_arguments_of_a_head_that_fits_are_said() -> None:
    old, mine = network(1, spec("multilabel")), network(2, spec("multilabel", dropout=0.5))
    growth, _ = grown(mine, old)
    assert row(growth, "head toy/multilabel").note == "other dropout than there"


@pytest.mark.parametrize(
    ("here", "there", "state"),
    [
        ({"width": 8}, {"width": 8}, "taken"),
        ({"width": 8}, {"width": 9}, "new"),
        ({"width": 8}, None, "new"),
        (None, {"width": 8}, "dropped"),
    ],
)
def test_a_projector_is_taken_whole_or_not(here: Any, there: Any, state: str) -> None:
    old = network(1, spec("multilabel"), projector=there)
    mine = network(2, spec("multilabel"), projector=here)
    growth, _ = grown(mine, old)
    assert row(growth, "projector").state == state


def test_shared_decoders_go_by_their_name() -> None:
    old = network(1, spec("segmentation", shared="masks"))
    same = network(2, spec("segmentation", shared="masks", dataset="other"))
    assert row(grown(same, old)[0], "shared masks").state == "taken"
    check_rest(same, old, but=("heads.",))
    other = network(2, spec("segmentation", shared="organs"))
    growth, _ = grown(other, old)
    assert row(growth, "shared organs").state == "new"
    assert row(growth, "shared masks").state == "dropped"


def test_nothing_is_lost_unsaid() -> None:
    """Every tensor of either network is counted once."""
    old = network(1, spec("multilabel"), spec("segmentation", shared="masks"), spec("values"))
    mine = network(2, spec("multilabel", OLD[:2]), spec("values", ("age",)), projector={"width": 8})
    growth, _ = grown(mine, old)
    here = sum(r.taken + r.resized + r.by_class + r.new for r in growth.rows)
    there = sum(r.taken + r.resized + r.by_class + r.dropped for r in growth.rows)
    assert (here, there) == (len(mine.state_dict()), len(old.state_dict()))
    sums = growth.table().splitlines()[-1].split("|")[3:8]
    assert [int(n.strip() or 0) for n in sums] == [
        sum(getattr(r, n) for r in growth.rows)
        for n in ("taken", "resized", "by_class", "new", "dropped")
    ]


def test_the_outputs_of_what_was_kept_are_those_of_the_source() -> None:
    old = network(1, spec("multilabel"))
    mine = network(2, spec("multilabel", LISTS["superset"]), spec("segmentation"))
    grown(mine, old)
    images = make_batch("multilabel").images
    mine.eval(), old.eval()
    found = mine.predict("toy/multilabel", images).probabilities  # type: ignore[union-attr]
    expected = old.predict("toy/multilabel", images).probabilities  # type: ignore[union-attr]
    for k, cls in enumerate(OLD):
        assert torch.equal(found[:, LISTS["superset"].index(cls)], expected[:, k])


def test_an_unknown_old_name_is_refused_and_nothing_changes() -> None:
    old, mine = network(1, spec("multilabel")), network(2, spec("multilabel"))
    before = {name: value.clone() for name, value in mine.state_dict().items()}
    with pytest.raises(ConfigError, match=r"'toy/typo' is no task of there; it has \['toy/mult"):
        grown(mine, old, toy__multilabel="toy/typo")
    assert all(torch.equal(value, before[name]) for name, value in mine.state_dict().items())
