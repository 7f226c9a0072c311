"""The tables of a public release, whatever their format, as rows of text.

format     files                               a row
csv        CSV, also .gz                       a line
lines      .txt                                a line, in the column `line`
json       a list of objects                   an object; `explode: [a, b]` makes a row of each
                                               element of the lists a and b, which go together
coco       a COCO json                         an annotation: file_name, category, bbox,
                                               segmentation, iscrowd; an image without one is a row
find       files of a folder, by a pattern     a file, in the column `path`

Values are text and blank is "", as in `datamodules.sources.table`, but lists stay lists. The column
`file` says which of the files a row comes from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ark.types import ConfigError

_KEYS = {"files", "find", "format", "explode", "rename", "match", "by"}
_FORMATS = {".csv": "csv", ".txt": "lines", ".json": "json"}
_COCO = {
    "images": {"id", "file_name"},
    "annotations": {"id", "image_id", "category_id"},
    "categories": {"id", "name"},
}


def read_table(root: Path, config: Mapping[str, Any], place: str) -> pd.DataFrame:
    """The rows of one table.

    Args:
        root: the dataset's folder.
        config: `files`, one or several, of which the columns count that all have; or `find`, a
            pattern such as "images*/**/*.png"; `format`, where the name does not tell it;
            `explode`; `rename: {old: new}`, where a file has the old one; `match: {column: regular
            expression}`, whose named groups become columns.
        place: names the table in errors.

    Raises:
        ConfigError: no such file or column, another format, or a text that `match` does not fit.
    """
    _check_keys(config, place)
    if "find" in config:
        frames = [_found(root, config["find"], place)]
    else:
        files = [config["files"]] if isinstance(config["files"], str) else list(config["files"])
        frames = [_read(root, file, config, place) for file in files]
    frames = _renamed(frames, config.get("rename") or {}, place)
    frame = pd.concat(frames, join="inner", ignore_index=True)
    for column, pattern in (config.get("match") or {}).items():
        frame = _matched(frame, column, pattern, place)
    return frame


def _check_keys(config: Mapping[str, Any], place: str) -> None:
    if unknown := sorted(set(config) - _KEYS):
        raise ConfigError(f"{place}: unknown {unknown[0]!r}; expected some of {sorted(_KEYS)}")
    if ("files" in config) == ("find" in config):
        raise ConfigError(f"{place}: has {sorted(config)}; expected exactly one of files and find")
    if "find" in config and (idle := sorted({"format", "explode"} & set(config))):
        raise ConfigError(f"{place}: {idle[0]} says how to read `files`, and there is only `find`")


def _renamed(
    frames: list[pd.DataFrame], rename: Mapping[str, str], place: str
) -> list[pd.DataFrame]:
    if unknown := [name for name in rename if not any(name in frame for frame in frames)]:
        raise ConfigError(f"{place}: rename: no file has a column {unknown[0]!r}")
    frames = [frame.rename(columns=dict(rename)) for frame in frames]
    for frame in frames:
        if len(twice := frame.columns[frame.columns.duplicated()]):
            raise ConfigError(f"{place}: two columns are named {twice[0]!r}; correct `rename`")
    return frames


def _found(root: Path, pattern: str, place: str) -> pd.DataFrame:
    paths = sorted(p.relative_to(root).as_posix() for p in root.glob(pattern) if p.is_file())
    if not paths:
        raise ConfigError(
            f"{place}: no file fits {str(root / pattern)!r}; correct `find` or `root`"
        )
    return pd.DataFrame({"path": paths, "file": pattern}, dtype=object)


def _read(root: Path, file: str, config: Mapping[str, Any], place: str) -> pd.DataFrame:
    path = _existing(root / file, place)
    ending = Path(path.name.removesuffix(".gz")).suffix.lower()
    kind = config.get("format") or _FORMATS.get(ending)
    readers = {"csv": _csv, "lines": _lines, "json": _json, "coco": _coco}
    if kind not in readers:
        raise ConfigError(f"{path}: format is {kind!r}; expected `format`, one of {list(readers)}")
    frame = readers[kind](path)
    if lists := list(config.get("explode") or []):
        frame = _exploded(frame, lists, path)
    if "file" in frame:
        raise ConfigError(f"{path}: a column is named 'file', which is kept for the file's name")
    return frame.assign(file=file)


def _existing(path: Path, place: str) -> Path:
    """`path`, or the same file packed or unpacked by gzip, or the one file that fits its "*"."""
    if "*" in path.name:
        fitting = sorted(path.parent.glob(path.name))
        if len(fitting) == 1:
            return fitting[0]
        raise ConfigError(f"{path}: {len(fitting)} files fit; keep one, or correct {place}")
    other = path.with_suffix("") if path.suffix == ".gz" else path.with_name(f"{path.name}.gz")
    for candidate in (path, other):
        if candidate.is_file():
            return candidate
    raise ConfigError(f"{path}: no such file; correct `files` of {place}, or `root`")


def _csv(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not a CSV with a header ({error})") from error


def _lines(path: Path) -> pd.DataFrame:
    lines = [line.strip() for line in path.read_text().splitlines()]
    return pd.DataFrame({"line": [line for line in lines if line]}, dtype=object)


def _json(path: Path) -> pd.DataFrame:
    content = _loaded(path)
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise ConfigError(f"{path}: expected a list of objects; name the `format`, if it is COCO")
    return _texts(pd.DataFrame(content, dtype=object))


def _coco(path: Path) -> pd.DataFrame:
    content = _loaded(path)
    for part, keys in _COCO.items():
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(
            isinstance(entry, dict) and keys <= set(entry) for entry in entries
        ):
            raise ConfigError(f"{path}: {part!r} is no list of objects with {sorted(keys)}")
    names = {category["id"]: category["name"] for category in content["categories"]}
    images = {image["id"]: image["file_name"] for image in content["images"]}
    rows = []
    for one in content["annotations"]:
        if one["image_id"] not in images or one["category_id"] not in names:
            raise ConfigError(
                f"{path}: annotation {one['id']} is of image_id {one['image_id']} and category_id "
                f"{one['category_id']}; expected ones that `images` and `categories` list"
            )
        row = {"file_name": images[one["image_id"]], "category": names[one["category_id"]]}
        rows.append(row | {key: one.get(key) for key in ("bbox", "segmentation", "iscrowd")})
    shown = {row["file_name"] for row in rows}
    rows += [{"file_name": name} for name in images.values() if name not in shown]
    columns = ["file_name", "category", "bbox", "segmentation", "iscrowd"]
    return _texts(pd.DataFrame(rows, columns=columns, dtype=object))


def _loaded(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a json file ({error})") from error


def _texts(frame: pd.DataFrame) -> pd.DataFrame:
    """Lists stay; nothing is "", and all else becomes text."""
    return frame.map(lambda v: v if isinstance(v, list | dict) else "" if pd.isna(v) else str(v))


def _exploded(frame: pd.DataFrame, lists: list[str], path: Path) -> pd.DataFrame:
    for column in lists:
        if column not in frame:
            raise ConfigError(f"{path}: no {column!r} to explode; it has {list(frame.columns)}")
    try:
        frame = frame.explode(lists, ignore_index=True)
    except ValueError as error:
        raise ConfigError(f"{path}: explode {lists}: {error}; they must go together") from error
    return _texts(frame.astype(object))


def _matched(frame: pd.DataFrame, column: str, pattern: str, place: str) -> pd.DataFrame:
    if column not in frame:
        raise ConfigError(f"{place}: match: no column {column!r}; it has {list(frame.columns)}")
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{place}: match of {column!r} is {pattern!r}: {error}") from error
    if both := sorted(set(compiled.groupindex) & set(frame.columns)):
        raise ConfigError(f"{place}: match names a group {both[0]!r}, which is a column already")
    if not compiled.groupindex:
        raise ConfigError(f"{place}: match of {column!r} is {pattern!r}; expected (?P<name>...)")
    found = {text: compiled.search(text) for text in dict.fromkeys(frame[column])}
    if wrong := [text for text, match in found.items() if match is None]:
        raise ConfigError(
            f"{place}: {column} {wrong[0]!r} does not fit `match` {pattern!r}; correct one of them"
        )
    groups = {
        name: [(match[name] or "") if (match := found[text]) else "" for text in frame[column]]
        for name in compiled.groupindex
    }
    return frame.assign(**groups)
