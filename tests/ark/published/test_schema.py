"""Whatever stands in somebody's config.json, one line names the field that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from published_models import change, make_network, publish

import ark
from ark.published.config import CONFIG
from ark.types import ConfigError

BACKBONE, TASK = "architecture.backbone", "architecture.tasks.0"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("published"), make_network("multilabel"))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("format", 0, "ark.format is 0; expected 1 to 1"),
        ("architecture", [], "ark.architecture is []; expected a mapping"),
        (BACKBONE, None, "backbone is missing; expected a mapping"),
        (f"{BACKBONE}.name", 7, "backbone.name is 7; expected a text"),
        (f"{BACKBONE}.args", [1], r"backbone.args is [1]; expected a mapping"),
        (f"{BACKBONE}.args", {"in_chans": 10**12}, "architecture cannot be built: RuntimeError"),
        (f"{BACKBONE}.image_size", "160", "image_size is '160'; expected an integer"),
        (f"{BACKBONE}.image_size", True, "image_size is True; expected an integer"),
        (f"{BACKBONE}.image_size", 10**9, "image_size is 1000000000; expected 1 to 8192 pixels"),
        (f"{BACKBONE}.image_size", -1, "image_size is -1; expected 1 to 8192 pixels"),
        ("architecture.projector", "x", "projector is 'x'; expected a mapping"),
        ("architecture.tasks", {}, "tasks is {}; expected a list"),
        ("architecture.tasks", [None], "tasks[0] is missing; expected a mapping"),
        (f"{TASK}.kind", None, "tasks[0].kind is missing; expected a text"),
        (f"{TASK}.classes", "abc", "tasks[0].classes is 'abc'; expected a list"),
        (f"{TASK}.classes", ["a", 2], "tasks[0].classes[1] is 2; expected a text"),
        (f"{TASK}.head", None, "tasks[0].head is missing; expected a mapping"),
        (f"{TASK}.head.class_path", 3, "head.class_path is 3; expected a text"),
        (f"{TASK}.head.init_args", [1], "head.init_args is [1]; expected a mapping"),
        ("mean", [0.5], "ark.mean is [0.5]; expected three numbers, or []"),
        ("mean", "x", "ark.mean is 'x'; expected three numbers"),
        ("std", [0, 0, 0], "ark.std is [0, 0, 0]; expected three numbers above 0"),
        ("precision", "evil", "ark.precision is 'evil'; expected 'float32' or 'float16' or"),
        ("parts", "legs", "ark.parts is 'legs'; expected 'heads' or 'backbone'"),
        ("sha256", None, "ark.sha256 is missing; expected a text"),
        ("start", "x", "ark.start is 'x'; expected a mapping"),
        ("data", {"x": 1}, "ark.data.x is 1; expected a mapping"),
        ("recipe", ["x" * 200], "...; expected a mapping"),
    ],
)
def test_a_wrong_field_is_named(published: Path, field: str, value: Any, said: str) -> None:
    before = (published / CONFIG).read_text()
    try:
        change(published, field, value)
        with pytest.raises(ConfigError) as refused:
            ark.load(published)
    finally:
        (published / CONFIG).write_text(before)
    assert said in str(refused.value)
    assert str(published / CONFIG) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_depth_is_no_way_to_end_the_process(published: Path) -> None:
    before = (published / CONFIG).read_text()
    depth = 100_000
    try:
        (published / CONFIG).write_text('{"ark":' + "[" * depth + "]" * depth + "}")
        with pytest.raises(ConfigError, match="is no configuration of a published Ark model"):
            ark.load(published)
    finally:
        (published / CONFIG).write_text(before)


def test_what_does_not_matter_may_be_missing(published: Path) -> None:
    content = json.loads((published / CONFIG).read_text())
    before = json.dumps(content)
    for name in ("recipe", "data", "metrics", "code", "start", "license", "name", "mean", "std"):
        del content["ark"][name]
    try:
        (published / CONFIG).write_text(json.dumps(content))
        assert ark.load(published).facts.start is None
    finally:
        (published / CONFIG).write_text(before)
