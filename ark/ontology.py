"""An ontology: which classes of different datasets mean the same, and which imply which.

    # configs/ontologies/chest_xray.yaml
    Pleural Effusion: {synonyms: [Effusion, vindr/findings=PE]}
    Lung Opacity: {}
    Pneumonia: {parents: [Lung Opacity]}

A key is a concept. Its `synonyms` are class names that mean it, in any dataset, or, written
`dataset/task=class`, in one task only. Who shows a concept shows its `parents` too. Names are
compared without regard to case, blanks, '_' and '-'.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ark.types import ConfigError, TaskSpec


@dataclass(frozen=True)
class Ontology:
    """Concepts and what they imply.

    Args:
        names: folded class name -> concept.
        local: (task key, folded class name) -> concept; goes before `names`.
        ancestors: concept -> everything that it implies, itself included.
    """

    names: dict[str, str]
    local: dict[tuple[str, str], str]
    ancestors: dict[str, frozenset[str]]

    @classmethod
    def load(cls, path: str | Path) -> Ontology:
        """Reads a YAML file.

        Raises:
            ConfigError: it cannot be read, an unknown key or parent, a name of two concepts, or
                parents in a circle. Names the file and the concept.
        """
        try:
            content = OmegaConf.to_container(OmegaConf.load(path))
        except FileNotFoundError:
            raise ConfigError(f"ontology {path}: no such file") from None
        except (OmegaConfBaseException, YAMLError, OSError) as error:
            raise ConfigError(f"ontology {path}: {error}") from error
        if not isinstance(content, dict):
            raise ConfigError(f"ontology {path}: expected concepts, each with synonyms or parents")
        return cls.checked({str(k): v or {} for k, v in content.items()}, f"ontology {path}")

    @classmethod
    def checked(cls, concepts: Mapping[str, Any], where: str = "ontology") -> Ontology:
        """From {concept: {"synonyms": [...], "parents": [...]}}; raises as `load` does."""
        names: dict[str, str] = {}
        local: dict[tuple[str, str], str] = {}
        for concept, entry in concepts.items():
            if not isinstance(entry, Mapping) or set(entry) - {"synonyms", "parents"}:
                raise ConfigError(
                    f"{where}: concept {concept!r} is {entry!r}; expected the keys synonyms and "
                    "parents, each a list of names"
                )
            for name in (concept, *_listed(entry, "synonyms", concept, where)):
                task, equals, plain = name.rpartition("=")
                table: dict[Any, str] = local if equals else names
                key = (task, fold(plain)) if equals else fold(plain)
                if table.setdefault(key, concept) != concept:
                    raise ConfigError(
                        f"{where}: {name!r} names both {table[key]!r} and {concept!r}; write "
                        "dataset/task=class where one name has two meanings"
                    )
        parents = {c: _listed(entry, "parents", c, where) for c, entry in concepts.items()}
        return cls(names, local, {c: _closure(c, parents, where) for c in concepts})

    def concept(self, task: str, name: str) -> str:
        """What class `name` of `task` means; a name that the ontology lacks means itself."""
        folded = fold(name)
        return self.local.get((task, folded)) or self.names.get(folded) or folded

    def implies(self, concept: str, other: str) -> bool:
        """Whether who shows `concept` shows `other`."""
        return other in self.ancestors.get(concept, {concept})

    def sources(self, target: TaskSpec, source: TaskSpec) -> dict[str, list[str]]:
        """Class of `target` -> classes of `source` that show it: equal to it, or implying it.

        Where an equal one exists it alone is taken. Classes without any are left out.
        """
        found: dict[str, list[str]] = {}
        for name in target.classes:
            wanted = self.concept(target.key, name)
            mine = {c: self.concept(source.key, c) for c in source.classes}
            equal = [c for c, concept in mine.items() if concept == wanted]
            narrower = [c for c, concept in mine.items() if self.implies(concept, wanted)]
            if equal or narrower:
                found[name] = equal or narrower
        return found

    def implications(self, task: TaskSpec) -> list[tuple[int, int]]:
        """(child, parent) positions among the classes of one task."""
        concepts = [self.concept(task.key, name) for name in task.classes]
        return [
            (i, j)
            for i, child in enumerate(concepts)
            for j, parent in enumerate(concepts)
            if child != parent and self.implies(child, parent)
        ]


def fold(name: str) -> str:
    """A name without what only its spelling decides: "Pleural_Effusion" is "pleural effusion"."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _listed(entry: Mapping[str, Any], key: str, concept: str, where: str) -> list[str]:
    names = entry.get(key) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f"{where}: concept {concept!r}: {key} is {names!r}; expected a list of names"
        )
    return names


def _closure(concept: str, parents: Mapping[str, list[str]], where: str) -> frozenset[str]:
    """`concept` and everything above it."""
    seen, waiting = {concept}, list(parents[concept])
    while waiting:
        above = waiting.pop()
        if above == concept:
            raise ConfigError(f"{where}: concept {concept!r} is its own ancestor; break the circle")
        if above not in parents:
            raise ConfigError(
                f"{where}: concept {concept!r}: parent {above!r} is no concept; add it as a key"
            )
        if above not in seen:
            seen.add(above)
            waiting += parents[above]
    return frozenset(seen)
