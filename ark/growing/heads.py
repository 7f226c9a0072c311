"""Which weights of a head fit: all, those of the classes that both have, or none."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ark.class_rows import ClassRows
from ark.growing.parts import Match, Taken, Tensors, all_new, by_class, misfit
from ark.growing.table import Row
from ark.head import Head


def match_head(
    head: Head, mine: Tensors, config: Mapping[str, Any], task: Mapping[str, Any], theirs: Tensors
) -> Match:
    """
    Args:
        mine: the head's tensors.
        config: {"class_path", "init_args"} of the head here.
        task: the task there, as plain data.
        theirs: the tensors of its head.
    """
    part = f"head {head.task.key}"
    old = f"{task['dataset']}/{task['name']}"
    renamed = "" if old == head.task.key else f"was {old}"
    if why := _other_kind(head, config, task):
        return all_new(part, mine, theirs, _joined(renamed, why))
    notes = [renamed, _changed(config, task["head"])]
    if tuple(task["classes"]) == head.task.classes:
        if why := misfit(mine, theirs):
            return all_new(part, mine, theirs, _joined(renamed, why))
        whole = {name: Taken(theirs[name]) for name in mine}
        return Row(part, "taken", len(mine), note=_joined(*notes)), whole
    return _match_classes(part, head, mine, list(task["classes"]), theirs, notes)


def _match_classes(
    part: str, head: Head, mine: Tensors, old: list[str], theirs: Tensors, notes: list[str]
) -> Match:
    rows, new = head.class_rows(), head.task.classes
    if rows is None:
        why = "its classes differ, and which weights are whose is not defined for this head"
        return all_new(part, mine, theirs, _joined(notes[0], why))
    if why := misfit(mine, theirs, but=list(rows)):
        return all_new(part, mine, theirs, _joined(notes[0], why))
    if not set(new) & set(old) and not _others(head, rows):
        why = _joined(notes[0], "no class in common", _misspelled(new, old))
        return all_new(part, mine, theirs, why)
    taken = {name: Taken(theirs[name]) for name in mine if name not in rows}
    for name, layout in rows.items():
        found = by_class(mine[name], theirs[name], layout, new, old)
        if found is None:
            why = f"{name} is not laid out by class there"
            return all_new(part, mine, theirs, _joined(notes[0], why))
        taken[name] = found
    complete = set(new) <= set(old)  # then nothing here has a start of its own
    note = _joined(*notes, *_classes(new, old), _misspelled(new, old))
    state = "taken" if complete else "partly taken"
    return Row(part, state, len(mine) - len(rows), by_class=len(rows), note=note), taken  # type: ignore[arg-type]


def _others(head: Head, rows: Mapping[str, ClassRows]) -> bool:
    """Whether there are parameters beside those of the classes."""
    return any(name not in rows for name, _ in head.named_parameters())


def _other_kind(head: Head, config: Mapping[str, Any], task: Mapping[str, Any]) -> str:
    if task["kind"] != head.task.kind:
        return f"is of kind {task['kind']} there, {head.task.kind} here"
    here, there = config["class_path"], task["head"]["class_path"]
    return "" if here == there else f"is a {there} there, a {here} here"


def _changed(here: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    """Arguments of the heads that differ though their weights fit."""
    mine, theirs = (dict(config.get("init_args") or {}) for config in (here, there))
    names = sorted(n for n in mine.keys() | theirs.keys() if mine.get(n) != theirs.get(n))
    return f"other {', '.join(names)} than there" if names else ""


def _classes(new: Iterable[str], old: Iterable[str]) -> list[str]:
    groups = {
        "classes taken": [name for name in new if name in old],
        "new": [name for name in new if name not in old],
        "dropped": [name for name in old if name not in new],
    }
    return [f"{what}: {', '.join(names)}" for what, names in groups.items() if names]


def _misspelled(new: Iterable[str], old: Sequence[str]) -> str:
    """New classes that differ from old ones in case and punctuation alone: likely the same."""
    bare = {_bare(name): name for name in old}
    close = [(name, bare.get(_bare(name))) for name in new if name not in old]
    pairs = [f"{mine!r} ({theirs!r} there)" for mine, theirs in close if theirs]
    return f"only spelled otherwise, so new: {', '.join(pairs)}" if pairs else ""


def _bare(name: str) -> str:
    return re.sub(r"\W|_", "", name).casefold()


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def head_tensors(head: Head) -> dict[str, Tensor]:
    """The head's own tensors by name; they are its memory, not copies."""
    return dict(head.state_dict())
