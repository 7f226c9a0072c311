"""A network takes what it can of another one's weights, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ark.growing.backbone import match_backbone
from ark.growing.heads import head_tensors, match_head
from ark.growing.options import flow
from ark.growing.parts import Match, Taken, all_new, take_or_leave
from ark.growing.source import Source
from ark.growing.table import Row, table
from ark.head import Head
from ark.network import Network
from ark.published.lineage import Lineage


@dataclass
class Growth:
    """What a network took.

    Args:
        rows: a row a part.
        heads: by task key, what the heads took that start from data (see `restore`).
        lineage: of the source.
    """

    where: str = ""
    which: str = ""
    rows: list[Row] = field(default_factory=list)
    heads: dict[str, dict[str, Taken]] = field(default_factory=dict)
    lineage: Lineage = field(default_factory=dict)

    @property
    def start(self) -> str:
        """One line."""
        taken = sum(row.taken + row.resized for row in self.rows)
        some, new = (sum(getattr(r, what) for r in self.rows) for what in ("by_class", "new"))
        rows = f", of {some} more the rows of some classes" if some else ""
        return f"{taken} tensors of {self.where} ({self.which}){rows}; {new} new"

    def table(self) -> str:
        return table(self.rows)

    def whole(self, key: str) -> bool:
        """Whether nothing of this head has a start of its own."""
        return any(r.part == f"head {key}" and r.state == "taken" for r in self.rows)

    def restore(self, key: str, head: Head) -> None:
        """Puts back what the head took, after it started anew from data."""
        tensors = head_tensors(head)
        for name, taken in self.heads.get(key, {}).items():
            taken.put(tensors[name])


def grow(network: Network, source: Source, names: Mapping[str, str | None]) -> Growth:
    """Puts into `network`, in place, what fits of the source.

    Args:
        names: task key here -> task key there, where they differ; None: a new head. A key that
            the network has not is passed over: `data.only` left its task out.

    Raises:
        ConfigError: an unknown old name, another backbone, or an image size that timm cannot
            resize it to. Nothing was changed.
    """
    source.check_names(names)
    growth = Growth(source.where, source.which, lineage=source.lineage)
    found: dict[str, Match] = {"backbone": match_backbone(network, source)}
    if projector := _match_projector(network, source):
        found["projector"] = projector
    found |= {f"shared.{name}": _match_shared(network, source, name) for name in network.shared}
    old_keys = {key: names.get(key, key) for key in network.tasks}
    found |= {f"heads.{key}": _match(network, source, key, old) for key, old in old_keys.items()}
    for prefix, (_, taken) in found.items():
        tensors = network.get_submodule(prefix).state_dict()
        for name, value in taken.items():
            value.put(tensors[name])
    growth.rows = [row for row, _ in found.values()] + _dropped(network, source, old_keys)
    growth.heads = {
        key: found[f"heads.{key}"][1]
        for key, head in network.heads_by_key().items()
        if head.start_samples
    }
    return growth


def _match_projector(network: Network, source: Source) -> Match | None:
    """None where neither has one."""
    mine, theirs = network.projector.state_dict(), source.part("projector")
    here, there = network.architecture["projector"], source.architecture.get("projector")
    if not here and not there:
        return None
    if not there:
        return all_new("projector", mine, theirs, "there is none there")
    theirs_is = f"model.projector is {flow({k: v for k, v in there.items() if v})} there"
    if not here:
        note = f"this run has none; {theirs_is}"
        return Row("projector", "dropped", dropped=len(theirs), note=note), {}
    row, taken = take_or_leave("projector", mine, theirs)
    return (replace(row, note=f"{row.note}; {theirs_is}") if row.note else row), taken


def _match_shared(network: Network, source: Source, name: str) -> Match:
    mine, theirs = network.shared[name].state_dict(), source.part(f"shared.{name}")
    if name not in source.shared:
        return all_new(f"shared {name}", mine, theirs, "")
    return take_or_leave(f"shared {name}", mine, theirs)


def _match(network: Network, source: Source, key: str, old: str | None) -> Match:
    head = network.head(key)
    mine = head_tensors(head)
    if old is None or old not in source.tasks:
        return all_new(f"head {key}", mine, {}, "" if old else "as init_names says")
    config = next(t for t in network.architecture["tasks"] if f"{t['dataset']}/{t['name']}" == key)[
        "head"
    ]
    return match_head(head, mine, config, source.tasks[old], source.part(f"heads.{old}"))


def _dropped(network: Network, source: Source, old_keys: Mapping[str, str | None]) -> list[Row]:
    """Parts there that nothing here asked for."""
    parts = {f"shared {n}": f"shared.{n}" for n in source.shared if n not in network.shared}
    parts |= {f"head {k}": f"heads.{k}" for k in source.tasks if k not in old_keys.values()}
    return [
        Row(part, "dropped", dropped=len(source.part(prefix))) for part, prefix in parts.items()
    ]
