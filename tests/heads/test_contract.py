"""What `ark.head.Head` promises, checked on every head in the `heads` package.

A new head is found by itself. A new kind of task adds its examples to `truth`, `nothing` and
`perfect`.
"""

import copy
import dataclasses
import importlib.util
import inspect
import pickle
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

import heads
from ark.head import Head
from ark.types import (
    KINDS,
    BoxPrediction,
    ClassPrediction,
    ConfigError,
    DetectionTarget,
    FeatureInfo,
    Features,
    MaskPrediction,
    MulticlassTarget,
    MultilabelTarget,
    SegmentationTarget,
    TaskSpec,
    ValuesPrediction,
    ValuesTarget,
)

matplotlib.use("Agg")
CLASSES = ("Nodule", "Effusion", "Mass")
SIDE = 64
BATCH = 3
# Other modules are a head's helpers and may need its libraries prepared before they are imported.
IMPORTS_A_HEAD = re.compile(r"^from (ark\.head|heads\.[\w.]+) import .*Head\b", re.MULTILINE)
LAYOUTS = {
    "efficientnet": FeatureInfo((16, 24, 40, 112, 320), (2, 4, 8, 16, 32), 1280, 64, SIDE),
    "swin": FeatureInfo((96, 192, 384, 768), (4, 8, 16, 32), 768, 768, SIDE),
}


def find_heads():
    """Every concrete subclass of Head that a module of the package defines."""
    for module in pkgutil.walk_packages(heads.__path__, "heads."):
        path = importlib.util.find_spec(module.name).origin
        if not IMPORTS_A_HEAD.search(Path(path).read_text()):
            continue
        for cls in vars(importlib.import_module(module.name)).values():
            own = inspect.isclass(cls) and cls.__module__ == module.name
            if own and issubclass(cls, Head) and not inspect.isabstract(cls):
                yield cls


HEADS = list(find_heads())
CASES = [
    pytest.param(cls, kind, info, id=f"{cls.__name__}-{kind}-{layout}")
    for cls in HEADS
    for kind in sorted(cls.kinds)
    for layout, info in LAYOUTS.items()
]
every_head = pytest.mark.parametrize(("cls", "kind", "info"), CASES)


def make_head(cls, kind, info, seed=0):
    torch.manual_seed(seed)
    return cls(TaskSpec("toy", "labels", kind, CLASSES), info)


def make_features(cls, info, batch=BATCH):
    """Only what the head says it reads; the rest is absent, as the backbone leaves it."""
    torch.manual_seed(7)
    if cls.reads == "embedding":
        embedding = torch.randn(batch, info.embedding, requires_grad=True)
        return Features([], None, embedding, (SIDE, SIDE))
    maps = [
        torch.randn(batch, c, SIDE // s, SIDE // s, requires_grad=True)
        for c, s in zip(info.channels, info.strides, strict=True)
    ]
    return Features(maps, None, None, (SIDE, SIDE))


def inputs(features):
    return [features.embedding] if features.embedding is not None else features.maps


def truth(kind, batch=BATCH):
    """Item n shows class n; where the kind allows it, one label of the batch is unknown."""
    known = torch.ones(batch, len(CLASSES), dtype=torch.bool)
    known[0, 1] = False
    present = torch.eye(batch, len(CLASSES))
    if kind == "multilabel":
        return MultilabelTarget(present, known)
    if kind in ("multiclass", "ordinal"):
        return MulticlassTarget(torch.arange(batch))
    if kind == "values":
        return ValuesTarget(present, known)
    if kind == "detection":
        boxes = [torch.tensor([[4.0 + 8 * n, 8, 36 + 8 * n, 44]]) for n in range(batch)]
        return DetectionTarget(boxes, [torch.tensor([n]) for n in range(batch)])
    square = torch.zeros(SIDE, SIDE)
    square[8:44, 12:40] = 1
    masks = (present[..., None, None] * square).to(torch.uint8)
    return SegmentationTarget(masks, known)


def nothing(kind):
    """A batch without a single label or box; a multiclass image always has its class."""
    target = truth(kind)
    if kind == "detection":
        boxes = [torch.zeros(0, 4) for _ in range(BATCH)]
        return DetectionTarget(boxes, [torch.zeros(0, dtype=torch.int64) for _ in range(BATCH)])
    if kind in ("multiclass", "ordinal"):
        return target
    return dataclasses.replace(target, known=torch.zeros_like(target.known))


def perfect(kind, target):
    """The prediction that says exactly what the target says."""
    if kind == "multilabel":
        return ClassPrediction(target.labels)
    if kind in ("multiclass", "ordinal"):
        return ClassPrediction(torch.eye(len(CLASSES))[target.labels])
    if kind == "values":
        return ValuesPrediction(target.values)
    if kind == "detection":
        certain = [torch.ones(len(boxes)) for boxes in target.boxes]
        return BoxPrediction(target.boxes, certain, target.labels)
    return MaskPrediction(target.masks.float())


def tensors(prediction):
    values = [getattr(prediction, f.name) for f in dataclasses.fields(prediction)]
    return [t for value in values for t in (value if isinstance(value, list) else [value])]


def assert_same(first, second):
    for a, b in zip(tensors(first), tensors(second), strict=True):
        torch.testing.assert_close(a, b)


def test_every_kind_has_a_head():
    # points: tests/test_new_kind.py writes their head in one file
    assert set().union(*(cls.kinds for cls in HEADS)) == set(KINDS) - {"points"}


@pytest.mark.parametrize("cls", HEADS)
def test_class_attributes_are_meaningful(cls):
    assert cls.kinds <= set(KINDS)
    assert cls.reads in ("embedding", "maps")
    assert inspect.getdoc(cls) != inspect.getdoc(Head), "a head documents itself"


@pytest.mark.parametrize("cls", HEADS)
def test_a_task_of_another_kind_is_refused_by_name(cls):
    for kind in set(KINDS) - cls.kinds:
        with pytest.raises(ConfigError, match=f"toy/labels.*{kind}.*{cls.__name__}"):
            make_head(cls, kind, LAYOUTS["swin"])


@every_head
@pytest.mark.parametrize("batch", [1, BATCH])
def test_predictions_are_in_shape_and_range(cls, kind, info, batch):
    head = make_head(cls, kind, info).eval()
    prediction = head.predict_features(make_features(cls, info, batch))
    if kind == "detection":
        assert len(prediction.boxes) == batch
        for boxes, scores, labels in zip(
            prediction.boxes, prediction.scores, prediction.labels, strict=True
        ):
            assert boxes.shape == (len(scores), 4)
            assert scores.shape == labels.shape
            assert ((boxes >= 0) & (boxes <= SIDE)).all()
            assert ((labels >= 0) & (labels < len(CLASSES))).all()
            assert torch.equal(scores, scores.sort(descending=True).values)
        values = torch.cat(prediction.scores)
    elif kind == "values":
        assert prediction.values.shape == (batch, len(CLASSES))
        assert prediction.values.isfinite().all()
        return
    else:
        values = prediction.probabilities
        place = (SIDE, SIDE) if kind == "segmentation" else ()
        assert values.shape == (batch, len(CLASSES), *place)
    assert ((values >= 0) & (values <= 1)).all()


@every_head
@pytest.mark.parametrize("batch", [1, BATCH])
def test_loss_is_finite_and_its_gradient_reaches_features_and_every_weight(cls, kind, info, batch):
    head, features = make_head(cls, kind, info).train(), make_features(cls, info, batch)
    target = truth(kind, batch)
    terms = head.loss(head(features, target), target)
    assert terms
    assert all(term.ndim == 0 and term.isfinite() for term in terms.values())
    sum(terms.values()).backward()
    gradients = [x.grad for x in inputs(features) if x.grad is not None]
    assert any(gradient.any() for gradient in gradients), "no gradient reaches the backbone"
    assert all(gradient.isfinite().all() for gradient in gradients)
    # DDP waits for ever for a parameter that takes no part.
    idle = [name for name, p in head.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle


@every_head
def test_a_batch_without_labels_gives_a_finite_loss_and_gradient(cls, kind, info):
    head, features = make_head(cls, kind, info).train(), make_features(cls, info)
    target = nothing(kind)
    loss = sum(head.loss(head(features, target), target).values())
    assert loss.isfinite()
    loss.backward()
    gradients = [x.grad for x in [*inputs(features), *head.parameters()] if x.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
    # an image without boxes does teach: all of it is background
    if getattr(target, "known", None) is not None:
        assert loss == 0
        assert not any(gradient.any() for gradient in gradients)


@every_head
def test_consistency_compares_equal_shapes_and_teaches_the_student(cls, kind, info):
    head, features, target = make_head(cls, kind, info), make_features(cls, info), truth(kind)
    if cls.reads == "embedding":
        features.pooled = features.embedding.sin()  # so that both have one source
    names = list(head.comparable())
    assert set(head.compared) <= set(names)
    student = head.train().consistency(features, output := head(features, target), names)
    assert list(head.consistency(features, output)) == list(head.compared)
    twin = copy.deepcopy(head).eval()
    with torch.no_grad():
        teacher = twin.consistency(features, twin(features), names)
    assert {k: v.shape for k, v in student.items()} == {k: v.shape for k, v in teacher.items()}
    assert {name.split("/")[0] for name in student} == set(names)
    for name, tensor in student.items():
        assert len(tensor) == BATCH, name
        assert tensor.isfinite().all(), name
        gradients = torch.autograd.grad(
            tensor.square().mul(torch.rand_like(tensor)).sum(),
            inputs(features),
            retain_graph=True,
            allow_unused=True,
        )
        assert any(g is not None and g.any() for g in gradients), name


@every_head
def test_state_pickle_and_copy_predict_alike(cls, kind, info):
    head, other = (make_head(cls, kind, info, seed).eval() for seed in (0, 1))
    features = make_features(cls, info)
    expected = head.predict_features(features)
    other.load_state_dict(head.state_dict())
    for twin in (other, copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert_same(twin.predict_features(features), expected)


@every_head
def test_metrics_call_a_perfect_prediction_perfect_and_start_afresh(cls, kind, info):
    head, target = make_head(cls, kind, info), truth(kind)
    metric = head.metrics()
    metric.update(perfect(kind, target), target)
    found = metric.compute()
    assert float(found[head.main_metric]) == pytest.approx(1, abs=1e-4)
    assert set().union(*(key.split("/")[1:] for key in found)) <= set(CLASSES)
    assert metric.higher_is_better is not False
    assert head.metrics() is not metric
    metric.reset()
    metric.update(head.predict_features(make_features(cls, info)), target)
    assert float(metric.compute()[head.main_metric]) < 1
    assert set(metric.compute()) == set(found)


@every_head
@pytest.mark.parametrize("is_truth", [True, False])
def test_pictures_name_the_class_that_is_present(cls, kind, info, is_truth, tmp_path):
    head, target = make_head(cls, kind, info), truth(kind)
    shown = target if is_truth else perfect(kind, target)
    figure = Figure()
    image = torch.randint(0, 256, (3, SIDE, SIDE), dtype=torch.uint8)
    head.draw(figure.subplots(), image, shown, index=2, truth=is_truth)
    figure.savefig(tmp_path / "picture.png")
    words = " ".join(text.get_text() for text in figure.findobj(Text))
    assert CLASSES[2] in words


@every_head
def test_pictures_of_nothing_are_drawn(cls, kind, info, tmp_path):
    figure = Figure()
    image = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)
    make_head(cls, kind, info).draw(figure.subplots(), image, nothing(kind), index=0, truth=True)
    figure.savefig(tmp_path / "picture.png")


def test_importing_a_head_needs_no_training_stack():
    modules = sorted({cls.__module__ for cls in HEADS})
    program = f"""
import importlib, sys
for name in ("pytorch_lightning", "lightning", "webdataset", "albumentations", "wandb"):
    sys.modules[name] = None  # importing it now fails
for name in {modules!r}:
    importlib.import_module(name)
assert not {{"matplotlib", "torchmetrics"}} & set(sys.modules), sorted(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@every_head
def test_class_rows_name_every_tensor_that_grows_with_the_classes(cls, kind, info):
    more = (*CLASSES, "Hernia")
    small, large = (cls(TaskSpec("toy", "labels", kind, names), info) for names in (CLASSES, more))
    rows = small.class_rows()
    here, there = small.state_dict(), large.state_dict()
    grow = {name for name in here if here[name].shape != there[name].shape}
    if rows is None:
        assert kind == "ordinal"
        return
    assert grow == set(rows) == set(large.class_rows())
    for name, layout in rows.items():
        assert len(here[name]) == layout.count(len(CLASSES))
        assert len(there[name]) == layout.count(len(more))
