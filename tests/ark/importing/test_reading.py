from __future__ import annotations

import argparse
import collections
import os
import pickle
from pathlib import Path
from typing import Any

import foreign_checkpoints as foreign
import numpy as np
import pytest
import torch

from ark.importing.command import import_model
from ark.importing.reading import read, tensors
from ark.types import ConfigError


class Harm:
    """Runs a shell command where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(tmp_path: Path, zipped: bool) -> None:
    path, mark = tmp_path / "evil.pth.tar", tmp_path / "mark"
    content = {"teacher": foreign.ark_state(hidden=True), "epoch": Harm(mark)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ConfigError, match=r"posix\.system.*refused"):
        import_model("ark6", str(path), str(tmp_path / "model"))
    assert not mark.exists()
    assert not (tmp_path / "model").exists()
    os.system(f"touch {mark}")  # what it would have done
    assert mark.exists()


@pytest.mark.parametrize("stranger", [collections.Counter("a").items, pickle.Pickler, Path("x")])
def test_any_other_global_is_refused_by_name(tmp_path: Path, stranger: Any) -> None:
    class Other:
        def __reduce__(self) -> Any:
            return print, ("run!",)

    torch.save({"teacher": {"x": torch.zeros(1)}, "more": Other()}, tmp_path / "f.pth")
    with pytest.raises(ConfigError, match=r"print'"):
        read(tmp_path / "f.pth")
    torch.save({"x": torch.zeros(1), "more": stranger}, tmp_path / "f.pth")
    with pytest.raises(ConfigError, match="refused"):
        read(tmp_path / "f.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_numpy_scalars_and_arguments_are_plain_data(tmp_path: Path, zipped: bool) -> None:
    plain = {
        "lossMIN": np.float64(0.5),
        "best": np.float32(2),
        "step": np.int64(7),
        "flag": np.bool_(True),
        "args": argparse.Namespace(lr=0.1, names=["a"]),
        "state": {"x": torch.arange(3)},
    }
    torch.save(plain, tmp_path / "f.pth", _use_new_zipfile_serialization=zipped)
    found = read(tmp_path / "f.pth")
    assert found["lossMIN"] == 0.5
    assert found["args"].lr == 0.1
    assert torch.equal(found["state"]["x"], torch.arange(3))


def test_numpys_older_name_of_a_scalar_is_known(tmp_path: Path) -> None:
    # numpy 1 wrote numpy.core, numpy 2 numpy._core
    torch.save({"a": np.float64(1.5)}, tmp_path / "f.pth", _use_new_zipfile_serialization=False)
    found = (tmp_path / "f.pth").read_bytes()
    names = (b"cnumpy._core.multiarray\nscalar", b"cnumpy.core.multiarray\nscalar")
    assert names[0] in found
    (tmp_path / "f.pth").write_bytes(found.replace(*names))
    assert read(tmp_path / "f.pth") == {"a": 1.5}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_cut_off_says_so(tmp_path: Path, share: float, zipped: bool) -> None:
    path = tmp_path / "f.pth"
    torch.save(foreign.ark_plus_file(), path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ConfigError, match=r"f\.pth: cannot be read"):
        import_model("ark_plus", str(path), str(tmp_path / "model"))


def test_other_contents_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read(tmp_path / "none.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ConfigError, match="holds a list"):
        read(tmp_path / "list.pth")
    (tmp_path / "f.safetensors").write_bytes(b"12345678 nothing")
    with pytest.raises(ConfigError, match="cut off or damaged"):
        read(tmp_path / "f.safetensors")
    with pytest.raises(ConfigError, match="no state dict"):
        tensors({"epoch": 1}, "teacher", "f.pth")
    with pytest.raises(ConfigError, match=r"has no student, it holds \['teacher'\]"):
        tensors({"teacher": {"x": torch.zeros(1)}}, "student", "f.pth")
    assert tensors({"model": {"x": torch.zeros(1)}}, "teacher", "f.pth")[1] == "model"


@pytest.mark.parametrize("name", ["page", "script", "empty", "numpy"])
def test_no_refusal_repeats_torchs_advice_to_unpickle(tmp_path: Path, name: str) -> None:
    path = tmp_path / "f.pth"
    if name == "script":
        torch.jit.script(torch.nn.Linear(2, 2)).save(path)  # type: ignore[no-untyped-call]
    elif name == "numpy":
        path.write_bytes(pickle.dumps({"teacher": np.zeros(3)}))
    else:
        path.write_text("<html>404</html>" if name == "page" else "")
    with pytest.raises(ConfigError) as error:
        read(path)
    said = str(error.value)
    assert said.startswith(f"{path}: ")
    assert "weights_only" not in said
    assert "likely succeed" not in said
    assert not said.endswith(": ")


@pytest.mark.parametrize("prefix", ["module.", "module.module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("place", ["teacher", "model_state_dict", "net", ""])
def test_wraps_and_places_of_other_trainers_are_found(prefix: str, place: str) -> None:
    state = {f"{prefix}a.weight": torch.zeros(1)}
    found, _ = tensors({place: state, "epoch": 3} if place else state, "teacher", "f.pth")
    assert list(found) == ["a.weight"]
