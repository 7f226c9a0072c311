"""How training views vary: the configuration; `datamodules.transforms` carries it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypedDict

from ark.types import ConfigError, TaskSpec
from datamodules.recipe_heads import check_names

TeacherView = Literal["geometry", "whole", "same"]
_MAPPED = ("detection", "segmentation", "points")  # the teacher is compared place by place


@dataclass(frozen=True)
class Augment:
    """How strongly the training views vary. Zero switches a part off.

    The parts act in the order crop; rotate, shift and scale; flip; brightness and gamma. C is the
    side of the view in pixels (`data.image_size`), R that of the image before the crop.

    Args:
        rotate: degrees, drawn from [-rotate, rotate].
        shift: share of the side, drawn from [-shift, shift] for each axis.
        scale: zoom, drawn from [1 - scale, 1 + scale].
        brightness: student's view only: brightness and contrast, drawn from [-b, b].
        gamma: student's view only: percent around 100.
        flip: share of images mirrored left to right; 0 by default because left and right lung
            are classes. Classes, boxes, masks and points keep their names: mirrored, the mask or
            point of a right lung lies where a left lung would.
        affine_p: share of images that are rotated, shifted and scaled.
        one_of: share of images of which either brightness and contrast or gamma changes, as likely
            the one as the other; 0: both change, in half of the images.
        crop: the view is a random part of the image: its share of the image's area, drawn from
            [low, high], with sides of 3:4 to 4:3 pixels (RandomResizedCrop); [1, 1] is no crop.
        resize: R / C: the image is resized to R x R without regard to its aspect ratio, then
            cropped, as in Ark's 256/224 and 896/768 (spec ark.md, R/C); 0: what is cropped is
            the image as it was decoded, of its own aspect ratio.
        teacher_view: "geometry": the student's without the change of brightness and gamma (Ark,
            MICCAI 2023); "whole": the whole image, resized to C x C (Ark+); not for tasks of
            which maps are compared; "same": the student's own.

    Raises:
        ConfigError: a number out of its range, or one that has nothing to act on.
    """

    rotate: float = 10.0
    shift: float = 0.05
    scale: float = 0.1
    brightness: float = 0.2
    gamma: float = 20.0
    flip: float = 0.0
    affine_p: float = 1.0
    one_of: float = 0.0
    crop: tuple[float, float] = (1.0, 1.0)
    resize: float = 0.0
    teacher_view: TeacherView = "geometry"

    def __post_init__(self) -> None:
        self._check_ranges()
        low, high = self.crop
        if not 0 < low <= high <= 1:
            raise ConfigError(
                f"augment.crop: [{low}, {high}]; expected shares of the area, 0 < low <= high <= 1"
            )
        for name, acts, on in (
            ("affine_p", self.affine_p == 1 or self.affine, "rotate, shift and scale are 0"),
            ("one_of", not self.one_of or self.photometric, "brightness and gamma are 0"),
            ("resize", not self.resize or self.cropped, "crop is [1, 1]"),
        ):
            if not acts:
                default = getattr(Augment, name)
                raise ConfigError(
                    f"augment.{name}: {getattr(self, name)} changes nothing where {on}; leave it "
                    f"at {default}, or switch those on"
                )

    def _check_ranges(self) -> None:
        ranges = {
            **dict.fromkeys(("flip", "affine_p", "one_of", "shift", "brightness"), (0, 1)),
            **{"rotate": (0, 180), "scale": (0, 0.99), "gamma": (0, 99)},
        }
        for name, (low, high) in ranges.items():
            if not low <= (value := getattr(self, name)) <= high:
                raise ConfigError(f"augment.{name}: {value}; expected a number in [{low}, {high}]")
        if self.resize and not 1 <= self.resize <= 8:
            raise ConfigError(
                f"augment.resize: {self.resize}; expected R / C in [1, 8], such as 1.143 for "
                "256/224, or 0"
            )

    @property
    def cropped(self) -> bool:
        return tuple(self.crop) != (1, 1)

    @property
    def affine(self) -> bool:
        """Whether anything is rotated, shifted or scaled."""
        return bool(self.rotate or self.shift or self.scale)

    @property
    def photometric(self) -> bool:
        return bool(self.brightness or self.gamma)


class AugmentChange(TypedDict, total=False):
    """Some of the fields of `Augment`."""

    rotate: float
    shift: float
    scale: float
    brightness: float
    gamma: float
    flip: float
    affine_p: float
    one_of: float
    crop: tuple[float, float]
    resize: float
    teacher_view: TeacherView


def choose_augments(
    specs: Mapping[str, TaskSpec], augment: Augment, changes: Mapping[str, AugmentChange]
) -> dict[str, Augment]:
    """Of every task: the default, changed for its kind and then for itself.

    Args:
        specs: by task key.
        augment: the default.
        changes: task kind or task key -> the fields that differ.

    Raises:
        ConfigError: names a key that is neither, or the change that asks for what cannot be.
    """
    check_names("data.augments", changes, specs)
    return {key: _changed(spec, augment, changes) for key, spec in specs.items()}


def _changed(spec: TaskSpec, augment: Augment, changes: Mapping[str, AugmentChange]) -> Augment:
    fields: AugmentChange = {**changes.get(spec.kind, {}), **changes.get(spec.key, {})}
    try:
        return replace(augment, **fields)
    except ConfigError as error:
        raise ConfigError(f"data.augments: task {spec.key}: {error}") from error


def check_teacher_view(spec: TaskSpec, augment: Augment) -> None:
    """Where maps, boxes or points are compared, both must see the image in the same place.

    Raises:
        ConfigError: the teacher would see the whole image of a task of such a kind.
    """
    if augment.teacher_view == "whole" and spec.kind in _MAPPED:
        raise ConfigError(
            f"task {spec.key}: teacher_view is 'whole', but of {spec.kind} student and teacher are "
            "compared place by place and must see the same part of the image; add "
            f"--data.augments.{spec.kind}='{{teacher_view: geometry}}'"
        )
