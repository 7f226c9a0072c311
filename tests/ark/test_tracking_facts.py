from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ark.tracking import facts
from ark.tracking.artifacts import dataset_artifact
from ark.tracking.facts import DatasetVersion, GitState, environment, patch_name, write_patches


def git(folder: Path, *args: str) -> str:
    who = ["-c", "user.email=a@b", "-c", "user.name=a"]
    command = ["git", "-C", str(folder), *who, *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    (folder / "sub").mkdir(parents=True)
    git(folder, "init", "-q", "-b", "trunk")
    (folder / "code.py").write_text("one\ntwo\n")
    (folder / "blob.bin").write_bytes(bytes(range(256)))
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    git(folder, "remote", "add", "origin", "https://me:secret@git.example.org:8443/a/b.git")
    return folder


def test_a_clean_repository(repository: Path) -> None:
    state = GitState.of(repository / "sub")  # a folder within it
    assert state is not None
    assert (state.root, state.commit) == (repository, git(repository, "rev-parse", "HEAD"))
    assert state.branch == "trunk"
    record = state.record()
    assert record["remote"] == "https://git.example.org:8443/a/b.git"
    assert (record["dirty"], record["patch"]) == (False, None)
    assert write_patches({"ark": state}, repository / "out") == []


def test_the_patch_makes_the_commit_what_ran(repository: Path, tmp_path: Path) -> None:
    (repository / "code.py").write_text("one\nchanged \n\n")
    (repository / "blob.bin").write_bytes(bytes(100))
    git(repository, "add", "blob.bin")  # staged or not, it ran
    (repository / "new.py").write_text("new")
    state = GitState.of(repository)
    assert state is not None
    record = state.record()
    assert record["dirty"]
    assert record["untracked"] == ["new.py"]
    (path,) = write_patches({"ark": state}, tmp_path / "code")
    assert path.name == record["patch"] == patch_name(state)
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(repository), str(clone))
    git(clone, "apply", str(path))
    for name in ("code.py", "blob.bin"):
        assert (clone / name).read_bytes() == (repository / name).read_bytes()
    (repository / "code.py").write_text("other\n")
    other = GitState.of(repository)
    assert other is not None
    assert patch_name(other) != path.name


def test_a_patch_that_is_data_is_left_out(repository: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(facts, "LARGEST_PATCH", 10)
    (repository / "code.py").write_text("x")
    state = GitState.of(repository)
    assert state is not None
    assert write_patches({"ark": state}, tmp_path / "code") == []


def test_no_repository_no_commit_no_git(tmp_path: Path, monkeypatch) -> None:
    assert GitState.of(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert GitState.of(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert GitState.of(facts.CODE) is None


def test_the_users_own_repository_is_recorded_beside_arks(repository: Path, monkeypatch) -> None:
    monkeypatch.setattr(facts, "CODE", repository)
    monkeypatch.chdir(repository / "sub")
    assert list(facts.repositories()) == ["ark"]
    monkeypatch.chdir(repository.parent)
    assert list(facts.repositories()) == ["ark"]
    git(repository.parent, "clone", "-q", str(repository), "mine")
    monkeypatch.chdir(repository.parent / "mine")
    assert list(facts.repositories()) == ["ark", "project"]


def test_the_environment_names_the_slurm_job(monkeypatch) -> None:
    for name in facts._SLURM:
        monkeypatch.delenv(name, raising=False)
    assert "slurm" not in environment()
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    monkeypatch.setenv("SLURM_JWT", "secret")
    found = environment(world_size=8)
    assert found["slurm"] == {"job_id": "17", "restart_count": "2"}
    assert found["world_size"] == 8


def test_a_dataset_is_its_index_and_not_its_name(tmp_path: Path) -> None:
    index = tmp_path / "_info.json"
    index.write_bytes(bytes(1000))
    one = DatasetVersion(str(index), "1" * 64, {"train": 3})
    same = DatasetVersion(str(index), "1" * 64, {"train": 3})
    changed = DatasetVersion(str(index), "2" * 64, {"train": 3})
    digests = [dataset_artifact("a", version).digest for version in (one, same, changed)]
    assert digests[0] == digests[1] != digests[2]
    entries = dataset_artifact("a", one).manifest.entries.values()
    assert [entry.ref for entry in entries if entry.ref] == [index.as_uri()]
    copied = [entry.size or 0 for entry in entries if not entry.ref]
    assert sum(copied) < 200  # none of the data
    web = dataset_artifact("a", DatasetVersion("s3://bucket/a/_info.json", "1" * 64, {}))
    assert [e.ref for e in web.manifest.entries.values() if e.ref] == ["s3://bucket/a/_info.json"]
