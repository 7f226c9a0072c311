"""The tasks of the papers' heads, named as in configs/datasets (a test compares), so that a run
with the papers' recipes finds them by name. Classes and their order: specs ark.md, foundation_x.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ark.errors import ConfigError
from ark.types import TaskSpec

CHEXPERT = (
    "No Finding, Enlarged Cardiomediastinum, Cardiomegaly, Lung Opacity, Lung Lesion, Edema, "
    "Consolidation, Pneumonia, Atelectasis, Pneumothorax, Pleural Effusion, Pleural Other, "
    "Fracture, Support Devices"
)
NIH = (
    "Atelectasis, Cardiomegaly, Effusion, Infiltration, Mass, Nodule, Pneumonia, Pneumothorax, "
    "Consolidation, Edema, Emphysema, Fibrosis, Pleural_Thickening, Hernia"
)
CHESTX_DET = (
    "Atelectasis, Calcification, Cardiomegaly, Consolidation, Diffuse Nodule, Effusion, Emphysema, "
    "Fibrosis, Fracture, Mass, Nodule, Pleural Thickening, Pneumothorax"
)
_CLASSES = {
    "mimic_cxr/findings": CHEXPERT,
    "chexpert/findings": CHEXPERT,
    "nih14_full/findings": NIH,
    "rsna_pneumonia/diagnosis": "Normal, No Lung Opacity / Not Normal, Lung Opacity",
    "vindr_cxr/findings": "PE, Lung tumor, Pneumonia, Tuberculosis, Other diseases, No finding",
    "shenzhen/tuberculosis": "Tuberculosis",
    "tbx11k/tuberculosis": "Tuberculosis",
    "node21/nodule": "Nodule",
    "candid_ptx/pneumothorax": "Pneumothorax",
    "chestx_det/findings": CHESTX_DET,
    "siim_acr/pneumothorax": "Pneumothorax",
    "tbx11k/boxes": "Tuberculosis",
    "node21/boxes": "Nodule",
    "candid_ptx/boxes": "Pneumothorax",
    "rsna_pneumonia/boxes": "Lung Opacity",
    "chestx_det/boxes": CHESTX_DET,
    "siim_acr/boxes": "Pneumothorax",
}
CLASSES = {key: tuple(names.split(", ")) for key, names in _CLASSES.items()}
MULTICLASS = ("rsna_pneumonia/diagnosis",)
# of the competition, over which the papers' AUROC goes; as in the dataset's YAML
SCORED = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")

# omni_heads.0..5 (spec ark.md, Checkpoints to read)
ARK = (
    "mimic_cxr/findings",
    "chexpert/findings",
    "nih14_full/findings",
    "rsna_pneumonia/diagnosis",
    "vindr_cxr/findings",
    "shenzhen/tuberculosis",
)
# classification_heads.0..10 (spec foundation_x.md, Reading its checkpoints)
FOUNDATION = (
    "tbx11k/tuberculosis",
    "node21/nodule",
    "candid_ptx/pneumothorax",
    "rsna_pneumonia/diagnosis",
    "chestx_det/findings",
    "siim_acr/pneumothorax",
    "chexpert/findings",
    "nih14_full/findings",
    "vindr_cxr/findings",
    "shenzhen/tuberculosis",
    "mimic_cxr/findings",
)
# the first six of them have boxes; segmentation_heads.{2,4,5} keep the datasets' numbers, and so,
# it is taken, do the detectors
FOUNDATION_BOXES = tuple(f"{key.partition('/')[0]}/boxes" for key in FOUNDATION[:6])


def classification(
    key: str, classes: Mapping[str, Sequence[str]] | None = None, bce: bool = False
) -> TaskSpec:
    """
    Args:
        key: dataset/task.
        classes: of tasks that are not the papers', or in place of theirs.
        bce: multiclass heads were trained with binary cross-entropy (MICCAI Ark-6).

    Raises:
        ConfigError: the classes of `key` are not known.
    """
    kind: Any = "multiclass" if key in MULTICLASS else "multilabel"
    args: dict[str, Any] = {"loss": "bce"} if bce and kind == "multiclass" else {}
    head = {"class_path": "heads.classification.ClassificationHead", "init_args": args}
    names = _names(key, classes)
    scored = SCORED if key in ("mimic_cxr/findings", "chexpert/findings") else ()
    scored = scored if set(scored) <= set(names) else ()
    return TaskSpec(*_split(key), kind, names, head, scored=scored)


def detection(
    key: str, init_args: dict[str, Any], classes: Mapping[str, Sequence[str]] | None = None
) -> TaskSpec:
    """A task of boxes whose DetectionHead has these init_args."""
    head = {"class_path": "heads.detection.DetectionHead", "init_args": init_args}
    return TaskSpec(*_split(key), "detection", _names(key, classes), head)


def _names(key: str, classes: Mapping[str, Sequence[str]] | None) -> tuple[str, ...]:
    names = tuple((classes or {}).get(key, CLASSES.get(key, ())))
    if not names:
        raise ConfigError(
            f"heads: the classes of {key!r} are not known; known are {list(CLASSES)}. Name them: "
            f"--classes='{{{key}: [first, second]}}'"
        )
    return names


def _split(key: str) -> tuple[str, str]:
    dataset, _, task = key.partition("/")
    return dataset, task
