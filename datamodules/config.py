"""A dataset as its YAML states it, and from there to an index that is ready to be read."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ark.build import build, resolve
from ark.types import ConfigError, TaskSpec
from datamodules.imaging.images import check_window
from datamodules.sources.base import Source
from datamodules.tars.index import INFO_FILE, ShardIndex
from datamodules.tars.storage import CacheConfig, LocalFolder, open_storage
from datamodules.tars.stored import Stored
from datamodules.tars.writing import write_shards


@dataclass
class TaskConfig:
    """One task of a dataset.

    Args:
        name: the annotation of the dataset that the task learns.
        head: `{class_path: ..., init_args: ...}` of the head; a recipe's `data.heads` may name it
            instead, and goes before this one.
        uncertain: what a multilabel task's uncertain labels become in training: ignore, zeros,
            ones, smoothed_zeros, smoothed_ones, or {class: one of these, default: ...}.
        metric: the main one of tables, best checkpoints and comparisons in place of the head's.
        scored: the classes over which the means of a classification's metrics go; all if empty.
    """

    name: str
    head: dict[str, Any] = field(default_factory=dict)
    uncertain: str | dict[str, str] = "ignore"
    metric: str | None = None
    scored: list[str] = field(default_factory=list)


@dataclass
class DatasetConfig:
    """One dataset: a YAML of its own, listed under `datasets` in a recipe or on the command line.

    Args:
        name: the dataset's name in logs, plans and files.
        shards: folder or URL (http, https, s3) of its tars and their index.
        tasks: what is learnt from it.
        source: `{class_path: ..., init_args: ...}` of what `ark shards write` reads; not needed
            where the shards exist.
        index: `{splits: {train: "train-*.tar", ...}, annotations: {...}}` of what
            `ark shards index` finds in tars that another tool wrote.
        window: how pixels of more than 8 bits become 8; see `datamodules.imaging.images`.
        license: of the data, for the card of a model that was trained on it.
        attribution: whom to cite or name, for the same.
    """

    name: str
    shards: str
    tasks: list[TaskConfig] = field(default_factory=list)
    source: dict[str, Any] | None = None
    index: dict[str, Any] | None = None
    window: Any = "auto"
    license: str = ""
    attribution: str = ""


def load_datasets(paths: list[str] | str) -> list[DatasetConfig]:
    """The datasets that YAML files describe, one a file.

    Raises:
        ConfigError: no such file, an unknown or missing key, or a name given twice.
    """
    datasets = [_load(path) for path in ([paths] if isinstance(paths, str) else paths)]
    names = [dataset.name for dataset in datasets]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"{paths}: two datasets are named {twice[0]!r}; rename one")
    return datasets


def prepare(dataset: DatasetConfig, cache: CacheConfig = CacheConfig()) -> ShardIndex:  # noqa: B008 - frozen
    """The dataset's index; generated datasets are written first where they are missing.

    Safe to call from several processes at once.

    Raises:
        ConfigError: no shards and a source that must be read by hand, or shards that were written
            from another source than the YAML now states. The message holds the command to run.
    """
    storage = open_storage(dataset.shards, cache)
    if isinstance(storage, LocalFolder):
        _write_where_missing(dataset, storage.folder)
    index = ShardIndex.load(dataset.shards, cache)
    if index.name != dataset.name:
        raise ConfigError(
            f"dataset {dataset.name!r}: {dataset.shards!r} holds the shards of {index.name!r}; "
            "correct `shards` or `name`"
        )
    _check_source(dataset, index)
    _check_stored(dataset, index)
    return index


def _write_where_missing(dataset: DatasetConfig, folder: Path) -> None:
    if (folder / INFO_FILE).is_file():
        return
    if dataset.index is not None:
        raise ConfigError(
            f"dataset {dataset.name!r}: {dataset.shards!r} has no {INFO_FILE}; index its tars with "
            f"`ark shards index {_yaml(dataset)}`"
        )
    if not _source_class(dataset).automatic:
        raise ConfigError(
            f"dataset {dataset.name!r}: no shards in {dataset.shards!r}; write them with "
            f"`ark shards write {_yaml(dataset)}`"
        )
    with lock(folder):
        if not (folder / INFO_FILE).is_file():
            source, config = build_source(dataset), recorded(dataset)
            write_shards(source, dataset.name, folder, config=config)


def build_source(dataset: DatasetConfig) -> Source:
    """The dataset's source, ready to be read; ConfigError where it has none or it is wrong."""
    _source_class(dataset)
    return build(dataset.source or {}, Source, _source_place(dataset))  # type: ignore[type-abstract]


def task_specs(dataset: DatasetConfig, index: ShardIndex, split: str = "train") -> list[TaskSpec]:
    """One spec a task, with kind and classes from the index.

    Args:
        split: the one that is needed.

    Raises:
        ConfigError: a task that is no annotation of the index, or has no sample in `split`.
    """
    names = [task.name for task in dataset.tasks]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"dataset {dataset.name!r}: task {twice[0]!r} is listed more than once")
    return [_task_spec(dataset, task, index, split) for task in dataset.tasks]


def lock(folder: Path) -> FileLock:
    """Held while `folder` is written: several ranks may find it missing at once."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(folder.with_name(f".{folder.name}.lock"))


def recorded(dataset: DatasetConfig) -> dict[str, Any]:
    """The source's config as the index keeps it: plain JSON, without where the files lie."""
    location = _source_class(dataset).location
    source = dataset.source or {}
    init_args = {k: v for k, v in (source.get("init_args") or {}).items() if k not in location}
    return json.loads(json.dumps({"class_path": source["class_path"], "init_args": init_args}))


def _task_spec(dataset: DatasetConfig, task: TaskConfig, index: ShardIndex, split: str) -> TaskSpec:
    place = f"dataset {dataset.name!r}: task {task.name!r}"
    if task.name not in index.annotations:
        raise ConfigError(
            f"{place} is no annotation of {dataset.shards!r}; it has {list(index.annotations)}"
        )
    if split not in index.splits or not index.annotated(split, task.name).sum():
        which = "training sample" if split == "train" else f"sample of split {split!r}"
        raise ConfigError(f"{place}: no {which} carries it; remove the task or annotate some")
    spec = index.annotations[task.name]
    return TaskSpec(
        dataset.name,
        task.name,
        spec.kind,
        spec.classes,
        dict(task.head),
        task.metric,
        tuple(task.scored),
    )


def _check_source(dataset: DatasetConfig, index: ShardIndex) -> None:
    if dataset.source is None or index.source is None:
        return
    now, then = recorded(dataset), index.source
    if now == then:
        return
    new, old = now["init_args"], then["init_args"]
    changed = sorted(key for key in {*new, *old} if new.get(key) != old.get(key)) or ["class_path"]
    raise ConfigError(
        f"dataset {dataset.name!r}: source {changed[0]!r} changed since {dataset.shards!r} was "
        f"written; run `ark shards write --overwrite true {_yaml(dataset)}`, or undo the change"
    )


def stored_annotations(dataset: DatasetConfig) -> dict[str, Stored]:
    """What the YAML says that the samples are annotated with, and where.

    Raises:
        ConfigError: neither `index` nor `source` says it.
    """
    if dataset.index is None:
        specs = build_source(dataset).annotations()
        return {name: Stored.ours(name, spec) for name, spec in specs.items()}
    place = f"dataset {dataset.name!r}: index"
    annotations = dataset.index.get("annotations")
    if not isinstance(annotations, dict) or not annotations:
        raise ConfigError(f"{place}: no `annotations`; name at least one")
    return {name: Stored.checked(name, config, place) for name, config in annotations.items()}


def _check_stored(dataset: DatasetConfig, index: ShardIndex) -> None:
    if dataset.index is not None and stored_annotations(dataset) != index.stored:
        raise ConfigError(
            f"dataset {dataset.name!r}: `index.annotations` changed since {dataset.shards!r} was "
            f"indexed; run `ark shards index {_yaml(dataset)}`, or undo the change"
        )


def _source_class(dataset: DatasetConfig) -> type[Source]:
    if dataset.source is None:
        raise ConfigError(
            f"dataset {dataset.name!r}: no shards in {dataset.shards!r} and no `source` to write "
            "them from; correct `shards`, or add a `source`"
        )
    return resolve(dataset.source, Source, _source_place(dataset))  # type: ignore[type-abstract]


def _source_place(dataset: DatasetConfig) -> str:
    return f"source of dataset {dataset.name!r}"


def _yaml(dataset: DatasetConfig) -> str:
    return f"configs/datasets/{dataset.name}.yaml"


def _load(path: str) -> DatasetConfig:
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; expected a dataset's YAML") from None
    except (OmegaConfBaseException, YAMLError, OSError) as error:
        raise ConfigError(f"{path}: {error}") from error
    known, needed = set(DatasetConfig.__annotations__), ("name", "shards")
    if not isinstance(content, dict) or any(key not in content for key in needed):
        raise ConfigError(f"{path}: expected a dataset, with at least `name` and `shards`")
    if unknown := sorted(set(map(str, content)) - known):
        raise ConfigError(f"{path}: unknown key {unknown[0]!r}; expected {sorted(known)}")
    try:
        tasks = [TaskConfig(**task) for task in content.get("tasks") or []]
    except TypeError as error:
        raise ConfigError(f"{path}: a task of {content['name']!r}: {error}") from error
    check_window(content.get("window", "auto"), f"{path}: window")
    return DatasetConfig(**{**content, "tasks": tasks})
