"""Network: backbone, projector and heads by name. Plain torch: what is published and loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from ark.backbone import Backbone
from ark.build import build
from ark.head import Head
from ark.seeds import seed_of
from ark.types import (
    BoxPrediction,
    ConfigError,
    Features,
    Prediction,
    Target,
    TaskSpec,
)


class Network(nn.Module):
    """One backbone with a head for each task.

    Built from plain data, so that a checkpoint can carry its own architecture:

    Args:
        backbone: {"name": timm model, "image_size": pixels, "args": {...}}.
        projector: {"width": int, "hidden": bool} or None. Ark+ uses one Linear, the MICCAI
            Ark-6 Linear-ReLU-Linear (`hidden`), both 1376 wide (spec ark.md).
        tasks: what to build heads for; each is found by `TaskSpec.key`.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        projector: Mapping[str, Any] | None,
        tasks: Sequence[TaskSpec],
    ) -> None:
        super().__init__()
        self.tasks = {task.key: task for task in tasks}
        self.backbone = Backbone(**backbone)
        width = self.backbone.pooled_width
        self.projector = _projector(width, **projector) if projector else nn.Identity()
        info = self.backbone.info(projector["width"] if projector else None)
        self.shared = info.shared  # what several heads use
        self.heads = nn.ModuleDict()
        for task in tasks:
            if task.key in self.heads:
                raise ConfigError(f"task {task.key!r} is listed twice; give each task its own name")
            where = f"head of task {task.key}"
            # A head's start does not depend on which other heads there are.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed_of(torch.initial_seed(), task.key))
                self.heads[task.key] = build(task.head, Head, where, task, info)  # type: ignore[type-abstract]
        for key, head in self.heads_by_key().items():
            self._check_guide(key, head)
            head.main_metric = self.tasks[key].metric or head.main_metric
        self.architecture: dict[str, Any] = {
            "backbone": dict(backbone),
            "projector": dict(projector) if projector else None,
            "tasks": [_portable(task, self.head(task.key)) for task in tasks],
        }

    @classmethod
    def from_architecture(cls, architecture: Mapping[str, Any]) -> Network:
        """The inverse of `self.architecture`; weights are random until they are loaded."""
        tasks = [
            TaskSpec(**{**t, **{k: tuple(t.get(k, ())) for k in ("classes", "scored")}})
            for t in architecture["tasks"]
        ]
        return cls(architecture["backbone"], architecture["projector"], tasks)

    def head(self, key: str) -> Head:
        return self.heads[key]  # type: ignore[return-value]

    def heads_by_key(self) -> dict[str, Head]:
        """Every task's head, in the order of the datasets."""
        return {key: self.head(key) for key in self.tasks}

    def features(self, images: Tensor, reads: str) -> Features:
        """(B, 3, H, W) uint8 or 0..1 float -> Features with only the parts that are read.

        Args:
            reads: "maps", "embedding" or "all".
        """
        maps, pooled = self.backbone(
            images, maps=reads in ("maps", "all"), pooled=reads in ("embedding", "all")
        )
        embedding = None if pooled is None else self.projector(pooled)
        return Features(maps, pooled, embedding, (images.shape[-2], images.shape[-1]))

    def run(
        self,
        task: str,
        images: Tensor,
        target: Target | None = None,
        like: Any | None = None,
    ) -> tuple[Features, Any]:
        """What the head of `task` reads of the images, and its output; see `Head.forward`."""
        features = self._guided(task, self.features(images, self._reads(task)))
        return features, self.head(task)(features, target, like)

    @torch.no_grad()
    def predict(self, task: str, images: Tensor) -> Prediction:
        """The prediction of one head."""
        return self.head(task).predict(self.run(task, images)[1])

    @torch.no_grad()
    def forward(self, images: Tensor) -> dict[str, Prediction]:
        """(B, 3, H, W) uint8 or 0..1 float -> the prediction of every head, by task key."""
        features = self.features(images, "all")
        return {
            key: head.predict_features(self._guided(key, features))
            for key, head in self.heads_by_key().items()
        }

    def _guided(self, task: str, features: Features) -> Features:
        """Adds the boxes that the head's guide predicts, where it has one."""
        key = self._guide(task)
        if key is None:
            return features
        guide = self.head(key)
        with torch.no_grad(), _evaluating(guide, *guide.shared_parts()):
            boxes = guide.predict_features(features)
        assert isinstance(boxes, BoxPrediction)
        return replace(features, regions=boxes)

    def _reads(self, task: str) -> str:
        """What the head of `task` and its guide read."""
        mine, guide = self.head(task).reads, self._guide(task)
        return mine if guide is None or self.head(guide).reads == mine else "all"

    def _guide(self, task: str) -> str | None:
        name = self.head(task).guide
        return None if name is None else f"{self.tasks[task].dataset}/{name}"

    def _check_guide(self, key: str, head: Head) -> None:
        guide = self._guide(key)
        if guide is not None and (guide not in self.tasks or self.tasks[guide].kind != "detection"):
            found = [t.key for t in self.tasks.values() if t.kind == "detection"]
            raise ConfigError(
                f"head of task {key}: guide is {head.guide!r}; expected a detection task of "
                f"the same dataset that this run trains too; the run has {found}"
            )

    def used_by(self, task: str) -> list[nn.Module]:
        """The modules that a training step of `task` runs."""
        head = self.head(task)
        projector = [self.projector] if head.reads == "embedding" else []
        return [self.backbone, *projector, *head.shared_parts(), head]

    def part(self, name: str, task: str) -> nn.Module:
        """The module that a lock names: a path in this network, or `head[.path]` of `task`.

        Raises:
            ConfigError: there is no such module; lists those at that level.
        """
        root: nn.Module = self
        path = name
        if not name:
            raise ConfigError("lock '' is empty; name a module, such as backbone or head")
        if name == "head" or name.startswith("head."):
            root, path = self.heads[task], name.removeprefix("head").removeprefix(".")
        try:
            return root.get_submodule(path) if path else root
        except AttributeError as error:
            children = [n for n, _ in root.named_children() if n != "heads"]
            raise ConfigError(
                f"lock {name!r} names no module of the network; parts here: {children}"
                + ("" if root is not self else " and head")
            ) from error


@contextmanager
def _evaluating(*modules: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards each module has the mode that it had."""
    modes = [(m, m.training) for module in modules for m in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _portable(task: TaskSpec, head: Head) -> dict[str, Any]:
    """The task as plain data that needs no file of this machine."""
    config = dict(task.head)
    if head.resolved_args:
        config["init_args"] = {**(config.get("init_args") or {}), **head.resolved_args}
    lists = {"classes": list(task.classes), "scored": list(task.scored)}
    return {**asdict(task), **lists, "head": config}


def _projector(inputs: int, width: int, hidden: bool = False) -> nn.Module:
    if not hidden:
        return nn.Linear(inputs, width)
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(inplace=True), nn.Linear(width, width))
