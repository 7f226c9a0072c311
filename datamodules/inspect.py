"""What a dataset's shards hold, as a table and as a picture: the first look at any new dataset."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ark.drawing import draw_boxes, draw_masks, show_image
from ark.types import ConfigError
from datamodules.annotations import AnnotationSpec, Boxes, Masks
from datamodules.tars.index import ShardIndex
from datamodules.tars.shards import Address, ShardReader

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 4  # pictures in a row
_INCHES = 2.6  # of a picture's side
_TITLE = 44  # characters that fit over a picture


def describe(index: ShardIndex) -> str:
    """Splits, annotations and class counts as text, one line each.

    A class reads `present / known`: samples that show it, of those where somebody looked; in
    detection the number of boxes follows.
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
    return f"{label:<34}" + "".join(f"{cell!s:>20}" for cell in cells)


def _count(count: dict[str, int]) -> str:
    boxes = f", {count['boxes']} boxes" if "boxes" in count else ""
    return f"{count['present']} / {count['known']}{boxes}"


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
            draw_masks(axes, shown.masks, spec.classes)
        titles.append(f"{annotation}: {_caption(spec, value)}")
    text = "\n".join(textwrap.shorten(title, _TITLE, placeholder=" ...") for title in titles)
    axes.set_title(text, fontsize=6, loc="left")


def _caption(spec: AnnotationSpec, value: Any) -> str:
    """The annotation in words, as far as the picture does not show it."""
    if spec.kind == "multilabel":
        unknown = [f"{name}?" for name in spec.classes if name not in value]
        return ", ".join([name for name, label in value.items() if label] + unknown) or "none"
    if spec.kind == "multiclass":
        return str(value)
    if spec.kind == "detection":
        return f"{len(value)} boxes"
    unknown = [f"{name}?" for name in spec.classes if name not in value["known"]]
    return ", ".join(unknown) or "all classes known"
