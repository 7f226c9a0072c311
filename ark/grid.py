"""What `ark ablate` compares: a grid's YAML, and the options of `ark fit` that it stands for."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ark.types import ConfigError

_TAKEN = ("config", "ckpt_path", "seed_everything", "run.name", "run.root", "run.overwrite")
Options = dict[str, Any]  # key -> value, as `ark fit --key=value` takes them


@dataclass(frozen=True)
class Grid:
    """What a grid's YAML says.

    Args:
        name: of the folder below `root`.
        recipe: the recipe that all variants share, relative to the grid's file.
        fixed: options of all variants.
        variants: options by the name of the variant; the first is what the others are compared to.
        axes: axis -> level -> options: a variant for each combination, named `AXIS-LEVEL` and
            joined by `_`, behind `variants`, whose names they must not have. What several axes
            set is the last one's.
        seeds: each variant runs once with each.
        root: folder of all runs.
    """

    name: str
    recipe: str
    fixed: Options = field(default_factory=dict)
    variants: dict[str, Options] = field(default_factory=dict)
    axes: dict[str, dict[str, Options]] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    root: str = "runs"

    @classmethod
    def load(cls, path: Path) -> Grid:
        """Raises:
        ConfigError: no such file, an unknown or missing key, or a value of another form.
        """
        if not path.is_file():
            raise ConfigError(f"ablate: no file {path}")
        try:
            content = yaml.safe_load(path.read_bytes())
        except yaml.YAMLError as error:
            raise ConfigError(f"ablate: {path} is no YAML: {error}") from error
        # values go to `ark fit` as they are: a typed parser would make a bool of "off"
        if (
            not isinstance(content, dict)
            or set(content) - set(_FORMS)
            or {"name", "recipe"} - set(content)
        ):
            raise ConfigError(
                f"{path}: {content!r:.300}; expected a mapping with name, recipe and some of "
                f"{list(_FORMS)[2:]}"
            )
        for key, value in content.items():
            if not _FORMS[key][0](value):
                raise ConfigError(f"{path}: {key}: {value!r}; expected {_FORMS[key][1]}")
        grid = cls(**content)
        grid.check(path)
        return grid

    def check(self, path: Path) -> None:
        levels = itertools.chain.from_iterable(self.axes.values())
        for name in (self.name, *self.variants, *self.axes, *levels):
            if not re.fullmatch(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]*", name):
                raise ConfigError(
                    f"{path}: name {name!r}; use letters, digits and '_.+-', and no '.' at the "
                    "beginning: it names a folder"
                )
        names = [*self.variants, *(name for name, _ in self._combinations())]
        if twice := [name for name, times in Counter(names).items() if times > 1]:
            raise ConfigError(
                f"{path}: two variants are named {twice[0]!r}; rename one of `variants`, or a "
                "level of `axes`"
            )
        for options in (self.fixed, *self.combined().values()):
            if taken := sorted(set(_keys(options)) & set(_TAKEN)):
                raise ConfigError(f"{path}: option {taken[0]!r} is set by `ark ablate` itself")
        if not self.combined() or not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(
                f"{path}: {len(self.combined())} variants, seeds {self.seeds}; expected at least "
                "one variant and one seed, each seed once"
            )

    def combined(self) -> dict[str, Options]:
        """The options of every variant, without `fixed`."""
        return {**self.variants, **dict(self._combinations())}

    def _combinations(self) -> Iterator[tuple[str, Options]]:
        """Name and options of one level of every axis, for all choices."""
        for levels in itertools.product(*self.axes.values()) if self.axes else ():
            chosen = dict(zip(self.axes, levels, strict=True))
            name = "_".join(f"{axis}-{level}" for axis, level in chosen.items())
            yield (
                name,
                {k: v for a, level in chosen.items() for k, v in self.axes[a][level].items()},
            )


def _keys(options: Options, path: str = "") -> Iterator[str]:
    """{a.b: 1, c: {d: 2}} -> a.b, c, c.d"""
    for key, value in options.items():
        yield f"{path}{key}"
        if isinstance(value, dict):
            yield from _keys(value, f"{path}{key}.")


def _options(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _named(value: Any, inner: Callable[[Any], bool]) -> bool:
    return _options(value) and all(map(inner, value.values()))


_FORMS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (lambda v: isinstance(v, str), "a text"),
    "recipe": (lambda v: isinstance(v, str), "a path"),
    "root": (lambda v: isinstance(v, str), "a path"),
    "fixed": (_options, "a mapping KEY: VALUE of options"),
    "variants": (lambda v: _named(v, _options), "a mapping NAME: {KEY: VALUE}; {} for no option"),
    "axes": (
        lambda v: _named(v, lambda levels: _named(levels, _options)),
        "a mapping AXIS: {LEVEL: {KEY: VALUE}} with texts for names ('on' and 'off' in quotes)",
    ),
    "seeds": (
        lambda v: isinstance(v, list) and all(type(n) is int for n in v),
        "a list of numbers",
    ),
}


def arguments(options: Options) -> list[str]:
    """`--key=value`, each value as JSON. A list replaces the recipe's, whose items it would
    otherwise be merged into."""
    found = []
    for key, value in options.items():
        found += [f"--{key}=[]"] if isinstance(value, list) else []
        found.append(f"--{key}={value if isinstance(value, str) else json.dumps(value)}")
    return found
