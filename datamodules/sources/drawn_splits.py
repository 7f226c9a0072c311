"""Splits of a release: its own where it has them, and drawn by patient where it has not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from ark.seeds import seed_of
from ark.types import ConfigError
from datamodules.sources.base import SPLITS
from datamodules.sources.records import Records

_KEYS = {"column", "values", "draw", "seed"}


def split_images(
    records: Records, config: Mapping[str, Any], patient_of: Mapping[str, str]
) -> dict[str, str]:
    """Image -> split, in the order of the records; images of no split are left out.

    Args:
        config: `column` and `values: {its text: split}`, the release's own splits; a text that
            stands for null is left out. `draw: {val: 0.1, test: 0.2}`, shares of the training
            images to take away, whole patients at a time, by `seed` (0). Without `column` every
            image is a training image at first.
        patient_of: image -> patient, or whatever must stay together; others are left out.

    Raises:
        ConfigError: an unknown key, split or text; a patient in two splits; or no training image.
    """
    if unknown := sorted(set(config) - _KEYS):
        raise ConfigError(f"source splits: unknown {unknown[0]!r}; expected {sorted(_KEYS)}")
    if not {"column", "draw"} & set(config):
        raise ConfigError("source splits is empty; name the `column` that says it, or `draw` them")
    if "column" in config:
        split_of = _official(records, config, patient_of)
    else:
        split_of = dict.fromkeys(patient_of, "train")
    pool = {image: patient_of[image] for image, split in split_of.items() if split == "train"}
    split_of |= drawn(pool, _checked_shares(config.get("draw") or {}), int(config.get("seed", 0)))
    if "train" not in split_of.values():
        raise ConfigError(f"source splits {dict(config)}: the train split is empty")
    _check_patients(records, split_of, patient_of)
    return split_of


def drawn(pool: Mapping[str, str], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """Image -> split of the drawn images, the others not named.

    Patients come in an order that depends on the seed and their own name alone; each split takes
    the next of them until it has its share of the images.

    Args:
        pool: image -> patient.
        shares: split -> share of the images, above 0.
    """
    images: dict[str, list[str]] = defaultdict(list)
    for image, patient in pool.items():
        images[patient].append(image)
    order = iter(sorted(images, key=lambda patient: (seed_of("split", seed, patient), patient)))
    split_of: dict[str, str] = {}
    for split, share in shares.items():
        wanted, taken = max(round(share * len(pool)), 1), 0
        while taken < wanted and (chosen := next(order, None)) is not None:
            split_of |= dict.fromkeys(images[chosen], split)
            taken += len(images[chosen])
    return split_of


def _official(records: Records, config: Mapping[str, Any], images: Iterable[str]) -> dict[str, str]:
    column = config["column"]
    values: Mapping[str, str | None] = config.get("values") or {split: split for split in SPLITS}
    records.require(column, "splits.column")
    if wrong := [split for split in values.values() if split not in (*SPLITS, None)]:
        raise ConfigError(f"source splits.values: {wrong[0]!r}; expected one of {list(SPLITS)}")
    split_of: dict[str, str] = {}
    for image in images:
        text = records.value(image, column)
        if text not in values:
            raise ConfigError(
                f"{records.path}: {column} of {image} is {text!r}; expected one of {list(values)}, "
                "or name it in splits.values"
            )
        if (split := values[text]) is not None:
            split_of[image] = split
    return split_of


def _checked_shares(shares: Mapping[str, Any]) -> dict[str, float]:
    numbers = all(isinstance(share, float) and share > 0 for share in shares.values())
    if not set(shares) <= {"val", "test"} or not numbers or sum(shares.values()) >= 1:
        raise ConfigError(
            f"source splits.draw is {dict(shares)}; expected shares for val and test, above 0 and "
            "together below 1"
        )
    return dict(shares)


def _check_patients(
    records: Records, split_of: Mapping[str, str], patient_of: Mapping[str, str]
) -> None:
    seen: dict[str, str] = {}
    for image, split in split_of.items():
        patient = patient_of[image]
        if seen.setdefault(patient, split) != split:
            raise ConfigError(
                f"{records.path}: patient {patient!r} is in {seen[patient]} and in {split} "
                f"({image}); keep a patient's images in one split"
            )
