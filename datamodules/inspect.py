"""What a dataset's shards hold, as a table and as a picture: the first look at any new dataset."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ark.drawing import colour, draw_boxes, draw_masks, show_image
from ark.types import ConfigError
from datamodules.annotations import UNCERTAIN, AnnotationSpec, Boxes, Masks, listed_boxes
from datamodules.tars.index import ShardIndex
from datamodules.tars.shards import Address, ShardReader

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 4  # pictures in a row
_INCHES = 2.6  # of a picture's side
_TITLE = 44  # characters that fit over a picture


def describe(index: ShardIndex) -> str:
    """Splits, annotations and class counts as text, one line each.

    A class reads `present / known`: samples that show it, of those where somebody looked; then the
    number of boxes, or of those known samples whose label is uncertain.
    """
    title = f"{index.name}  ({index.storage.where}); class rows read present / known"
    return "\n".join([title, "", *_split_lines(index), *_annotated(index)])


def picture(index: ShardIndex, path: str | Path, split: str = "train", count: int = 12) -> Path:
    """Draws `count` samples, evenly spread over `split`, with all their annotations, to a PNG.

    Raises:
        ConfigError: no such split, or a count below 1.
    """
    from matplotlib.figure import Figure

    if count < 1:
        raise ConfigError(f"picture: count is {count}; expected at least 1")
    total = index.num_samples(split)
    numbers = np.unique(np.linspace(0, total - 1, min(count, total)).astype(int))
    ends = np.cumsum([shard.samples for shard in index.split(split).shards])
    rows = -(-len(numbers) // _COLUMNS)
    figure = Figure(figsize=(_COLUMNS * _INCHES, rows * (_INCHES + 0.3)), layout="constrained")
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    reader = ShardReader(index)
    for place in axes:
        place.set_axis_off()
    for place, number in zip(axes, numbers, strict=False):
        shard = int(np.searchsorted(ends, number, side="right"))
        row = int(number - (ends[shard] - index.split(split).shards[shard].samples))
        _draw(place, reader, Address(split, shard, row))
    figure.savefig(path, dpi=130)
    return Path(path)


def _split_lines(index: ShardIndex) -> Iterator[str]:
    yield f"{'split':<10}{'samples':>9}{'tars':>6}{'MB':>9}"
    for name, split in index.splits.items():
        megabytes = sum(shard.bytes for shard in split.shards) / 1e6
        yield f"{name:<10}{split.num_samples:>9}{len(split.shards):>6}{megabytes:>9.1f}"


def _annotated(index: ShardIndex) -> Iterator[str]:
    for annotation, spec in index.annotations.items():
        carry = [int(split.annotated[annotation].sum()) for split in index.splits.values()]
        lack = [
            split.num_samples - n for split, n in zip(index.splits.values(), carry, strict=True)
        ]
        yield ""
        yield _row(f"{annotation} ({spec.kind})", index.splits)
        yield _row("  samples that carry it", carry)
        yield _row("  samples without it", lack)
        for name in spec.classes:
            counts = [split.counts[annotation][name] for split in index.splits.values()]
            yield _row(f"  {name}", [_count(count) for count in counts])


def _row(label: str, cells: Any) -> str:
    return f"{label:<34}" + "".join(f"{cell!s:>26}" for cell in cells)


def _count(count: dict[str, int]) -> str:
    more = [f", {count[what]} {what}" for what in ("boxes", "uncertain") if what in count]
    return f"{count['present']} / {count['known']}{''.join(more)}"


def _draw(axes: Axes, reader: ShardReader, at: Address) -> None:
    sample = reader.open(at)
    titles = [sample.key]
    show_image(axes, reader.image(at))
    for annotation, stored in reader.index.stored.items():
        value = stored.value(sample.member, sample.where)
        if value is None:
            continue
        spec = stored.spec
        shown = reader.read(at, annotation).annotation
        if isinstance(shown, Boxes):
            draw_boxes(axes, shown.boxes, shown.labels, spec.classes)
        elif isinstance(shown, Masks):
            raters = np.ones(len(shown.masks)) if shown.raters is None else shown.raters
            draw_masks(axes, shown.masks / raters[:, None, None], spec.classes)
        elif spec.kind == "points":
            assert isinstance(shown, np.ndarray)
            _draw_points(axes, shown, spec)
        titles.append(f"{annotation}: {_caption(spec, value)}")
    text = "\n".join(textwrap.shorten(title, _TITLE, placeholder=" ...") for title in titles)
    axes.set_title(text, fontsize=6, loc="left")


def _draw_points(axes: Axes, points: np.ndarray, spec: AnnotationSpec) -> None:
    for k, (x, y) in enumerate(points):
        if not np.isnan(x):  # imshow puts the middle of the first pixel at (0, 0)
            axes.plot(x - 0.5, y - 0.5, "+", color=colour(k), markersize=6)
            axes.annotate(spec.classes[k], (x - 0.5, y - 0.5), color=colour(k), fontsize=5)


def _caption(spec: AnnotationSpec, value: Any) -> str:
    """The annotation in words, as far as the picture does not show it."""
    if spec.kind == "multilabel":
        uncertain = [f"{name} uncertain" for name, label in value.items() if label == UNCERTAIN]
        present = [name for name, label in value.items() if label == 1]
        return ", ".join([*present, *uncertain, *_unknown(spec, value)]) or "none"
    if spec.kind in ("multiclass", "ordinal"):
        return str(value)
    if spec.kind == "values":
        numbers = [f"{name} {number:.4g}" for name, number in value.items()]
        return ", ".join([*numbers, *_unknown(spec, value)])
    if spec.kind == "points":
        return ", ".join(_unknown(spec, value)) or "all points known"
    if spec.kind == "detection":
        unknown = _unknown(spec, value["known"]) if isinstance(value, dict) else []
        return ", ".join([f"{len(listed_boxes(value))} boxes", *unknown])
    raters = [f"{name} by {n}" for name, n in value.get("raters", {}).items() if n > 1]
    return ", ".join([*raters, *_unknown(spec, value["known"])]) or "all classes known"


def _unknown(spec: AnnotationSpec, known: Any) -> list[str]:
    return [f"{name}?" for name in spec.classes if name not in known]
