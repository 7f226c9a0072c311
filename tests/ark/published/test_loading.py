"""A published model comes back as it was, and nothing of it runs that should not."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from published_models import KINDS, change, make_network, pictures, publish

import ark
from ark.network import Network
from ark.published.config import CARD, CONFIG, WEIGHTS, sha256
from ark.types import ConfigError
from toys import SIZE

ROOT = Path(__file__).resolve().parents[3]


def test_it_comes_back_bit_for_bit(tmp_path: Path) -> None:
    network = make_network()
    model = ark.load(publish(tmp_path, network))
    assert list(model.tasks) == list(network.tasks)
    expected, found = network.state_dict(), model.network.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    one, other = network(pictures()), model.predict(pictures())
    for key, prediction in one.items():
        assert str(prediction) == str(other[key])
    again = ark.load(model.save_pretrained(tmp_path / "again"))
    assert again.facts == model.facts
    assert sha256(tmp_path / WEIGHTS) == sha256(tmp_path / "again" / WEIGHTS)


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_vit", "test_convnext"])
def test_a_backbone_alone_is_timms_too(tmp_path: Path, backbone: str) -> None:
    network = make_network("multilabel", backbone=backbone)
    folder = publish(tmp_path, network, parts="backbone")
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(theirs)
    assert tuple(config["input_size"]) == (3, SIZE, SIZE)
    assert torch.equal(torch.tensor(config["mean"]), network.backbone.mean.flatten())
    images = (pictures() / 255 - network.backbone.mean) / network.backbone.std
    model = ark.load(folder)
    expected = network.backbone(pictures())[1]
    assert torch.equal(model.features(pictures()).pooled, expected)
    torch.testing.assert_close(
        theirs.forward_head(theirs.forward_features(images), pre_logits=True), expected
    )
    assert model(pictures()) == {}


def test_mean_and_deviation_are_the_files_not_this_timms(tmp_path: Path) -> None:
    folder = publish(tmp_path)
    change(folder, "mean", [0.1, 0.2, 0.3])
    assert ark.load(folder).network.backbone.mean.flatten().tolist() == pytest.approx(
        [0.1, 0.2, 0.3]
    )


def test_a_run_that_was_normalised_otherwise_comes_back(tmp_path: Path) -> None:
    """As `--init_from` asks for where its source was (RAD-DINO's grays)."""
    means = {"mean": [0.5307] * 3, "std": [0.2583] * 3}
    args = {"pretrained_cfg_overlay": means}
    network = Network({"name": "test_vit", "image_size": SIZE, "args": args}, None, [])
    folder = publish(tmp_path, network.eval(), parts="backbone")
    model = ark.load(folder)
    assert model.network.backbone.mean.flatten().tolist() == pytest.approx(means["mean"])
    assert torch.equal(model.features(pictures()).pooled, network.backbone(pictures())[1])
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert list(theirs.pretrained_cfg["std"]) == pytest.approx(means["std"])


@pytest.mark.parametrize(("precision", "bound"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_half_precision_halves_the_file(tmp_path: Path, precision: str, bound: float) -> None:
    network = make_network("multilabel", "segmentation")
    whole = publish(tmp_path / "whole", network)
    half = publish(tmp_path / "half", network, precision=precision)
    assert (half / WEIGHTS).stat().st_size < 0.6 * (whole / WEIGHTS).stat().st_size
    one, other = (ark.load(folder).predict(pictures()) for folder in (whole, half))
    for key, prediction in one.items():
        difference = (prediction.probabilities - other[key].probabilities).abs().max()
        assert 0 < difference < bound
    in_memory = ark.load(half, dtype=torch.bfloat16)
    assert in_memory.features(pictures()).pooled.dtype == torch.bfloat16
    rough = in_memory.predict(pictures())["toy/multilabel"].probabilities
    assert (rough - one["toy/multilabel"].probabilities).abs().max() < 0.05


# -- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("architecture.tasks.0.head.class_path", "os.system", r"class_path 'os.system'.*allow="),
        ("architecture.tasks.0.head.class_path", "evil.Head", "not of Ark's own heads"),
        ("architecture.tasks.0.head.init_args", {"detector": {"type": "os.system"}}, "import path"),
        (
            "architecture.tasks.0.head.init_args",
            {"detector": [{"neck": {"type": "mmdet.apis.x"}}]},
            "import path",
        ),
        ("architecture.tasks.0.head.init_args", {"detector": "evil.py"}, "is a file"),
        (
            "architecture.tasks.0.head.init_args",
            {"detector": {"init_cfg": {"type": "Pretrained", "checkpoint": "evil"}}},
            "would load other weights",
        ),
        ("architecture.backbone.args", {"checkpoint_path": "evil"}, "would read other files"),
        (
            "architecture.backbone.args",
            {"pretrained_cfg_overlay": {"mean": [0, 0, 0], "file": "evil"}},
            "would read other files",
        ),
        ("architecture.backbone.name", "nonesuch", "timm has no model 'nonesuch'"),
        ("architecture.backbone.name", "test_convnext", "do not fit the architecture"),
        ("architecture.tasks", None, "ark.architecture.tasks is missing"),
        ("format", 99, "install a newer one"),
        ("format", "x", "no configuration"),
        ("parts", "all", "'heads' or 'backbone'"),
        ("sha256", "0" * 64, "cut off or changed"),
    ],
)
def test_a_foreign_configuration_is_refused(
    tmp_path: Path, path: str, value: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("evil.py", "evil"):
        (tmp_path / name).write_text("open('executed', 'w')")
    folder = publish(tmp_path / "model")
    change(folder, path, value)
    with pytest.raises(ConfigError, match=said):
        ark.load(folder)
    assert not (tmp_path / "executed").exists()


def test_a_foreign_runs_checkpoint_is_looked_at_too(tmp_path: Path) -> None:
    network = make_network("multilabel")
    architecture = copy.deepcopy(network.architecture)
    architecture["tasks"][0]["head"]["class_path"] = "elsewhere.Head"
    state = {f"teacher.network.{k}": v for k, v in network.state_dict().items()}
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": state, "ark": {"architecture": architecture}}, path)
    with pytest.raises(ConfigError, match=r"allow=\['elsewhere.Head'\]"):
        ark.load(path)


def test_allowed_by_name_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "elsewhere.py").write_text("from heads.classification import ClassificationHead")
    folder = publish(tmp_path / "model", make_network("multilabel"))
    path = "elsewhere.ClassificationHead"
    change(folder, "architecture.tasks.0.head.class_path", path)
    with pytest.raises(ConfigError, match=r"allow=\['elsewhere"):
        ark.load(folder)
    assert "toy/multilabel" in ark.load(folder, allow=[path]).tasks


@pytest.mark.parametrize("what", ["cut", "changed", "missing", "pickle"])
def test_damaged_weights_are_refused(tmp_path: Path, what: str) -> None:
    folder = publish(tmp_path)
    file = folder / WEIGHTS
    data = bytearray(file.read_bytes())
    if what == "missing":
        file.unlink()
    elif what == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif what == "changed":
        data[-1] ^= 1
        file.write_bytes(data)
    else:
        file.write_bytes(pickle.dumps(Evil()))
        change(folder, "sha256", sha256(file))
    with pytest.raises(ConfigError, match=r"cut off or changed|no model.safetensors|is damaged"):
        ark.load(folder)
    assert not Path("executed").exists()


class Evil:
    def __reduce__(self) -> Any:
        return exec, ("open('executed', 'w')",)


@pytest.mark.parametrize("name", ["nowhere", "./no/where", "/no/where", "~/x/y"])
def test_what_is_nowhere_says_so(name: str) -> None:
    with pytest.raises(ConfigError, match=r"no such folder, no name of `ark models`"):
        ark.load(name)


def test_a_file_is_told_from_a_folder(tmp_path: Path) -> None:
    torch.save({"teacher": {"x": torch.zeros(1)}}, tmp_path / "ark6.pth.tar")
    with pytest.raises(ConfigError, match=r"is a file; ark\.load reads folders\. `ark import KIND"):
        ark.load(tmp_path / "ark6.pth.tar")


def test_a_folder_of_something_else_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a folder that `ark export` wrote"):
        ark.load(tmp_path)
    (tmp_path / CONFIG).write_text("{}")
    with pytest.raises(ConfigError, match="no configuration of a published Ark model"):
        ark.load(tmp_path)
    assert not (tmp_path / CARD).exists()


# -- alone ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ours_first", [False, True])
def test_it_loads_beside_another_package_heads(tmp_path: Path, ours_first: bool) -> None:
    """In a process of its own, from another folder, without the training stack."""
    folder = publish(tmp_path / "model")
    (tmp_path / "heads").mkdir()
    (tmp_path / "heads" / "__init__.py").write_text("MINE = True")
    program = f"""
import sys
for name in ("pytorch_lightning", "lightning", "webdataset", "albumentations", "wandb"):
    sys.modules[name] = None  # importing it now fails
sys.path[:0] = {[str(ROOT), str(tmp_path)] if ours_first else [str(tmp_path)]!r}
sys.path.append({str(ROOT)!r})
import ark, torch
import heads
found = ark.load({str(folder)!r})(torch.rand(1, 3, {SIZE}, {SIZE}))
assert len(found) == {len(KINDS)}, found
assert hasattr(heads, "MINE") != {ours_first}
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


def test_torch_hub_loads_from_a_checkout(tmp_path: Path) -> None:
    folder = publish(tmp_path, make_network("multilabel"))
    model = torch.hub.load(str(ROOT), "load", str(folder), source="local")
    expected = ark.load(folder)(pictures())["toy/multilabel"]["heart"]
    assert torch.equal(model(pictures())["toy/multilabel"]["heart"], expected)
    backbone = torch.hub.load(str(ROOT), "backbone", str(folder), source="local")
    assert type(backbone).__name__ == "EfficientNet"


def test_torch_hub_says_when_another_ark_came_first(tmp_path: Path) -> None:
    (tmp_path / "ark").mkdir()
    (tmp_path / "ark" / "__init__.py").touch()
    program = f"""
import ark, torch
torch.hub.load({str(ROOT)!r}, "load", "x", source="local")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert "was imported before" in done.stderr
