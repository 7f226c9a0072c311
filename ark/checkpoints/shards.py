"""Checkpoints that every rank writes its part of: a sealed folder, by torch.distributed.checkpoint.

`.metadata` says which file holds which part of a tensor, `__RANK_N.distcp` are the parts, `rest.pt`
is what is no tensor, `seal.json` the checksums.
"""

from __future__ import annotations

import errno
import logging
import os
import pickle
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from ark.checkpoints.integrity import give_way, remove, sync_folder, unwritable
from ark.checkpoints.saving import LAST, PREVIOUS
from ark.checkpoints.sealed_folder import (
    Facts,
    facts_of,
    seal_folder,
    step_of_folder,
    verify_folder,
)
from ark.checkpoints.sealing import DamagedCheckpoint, verify

log = logging.getLogger("ark")
METADATA, REST = ".metadata", "rest.pt"
Like = Callable[[list[str]], Tensor | None]


def write_folder(checkpoint: dict[str, Any], path: Path) -> None:
    """Every rank calls it, and all return when it is done. The folder has its name once all of it
    is on the disk; the LAST before becomes PREVIOUS.

    Args:
        checkpoint: Lightning's, whose tensors may be sharded.

    Raises:
        ConfigError: on all ranks, if one cannot write; `path` is what it was.
    """
    half = path.with_name(f".{path.name}.tmp")
    if dist.get_rank() == 0:
        remove(half)
    dist.barrier()
    tensors, rest = _split(checkpoint)
    try:
        _save(tensors, half)
        parts = _together(lambda: facts_of(half, _own(half)))
        _together(lambda: _finish(rest, parts, half, path) if dist.get_rank() == 0 else None)
    except OSError as error:
        if dist.get_rank() == 0:
            remove(half)
        raise unwritable(path, error, 0) from error


def _save(tensors: dict[str, Tensor], half: Path) -> None:
    """Returns when all ranks have written and synced their parts; raises the same on all."""
    try:
        dcp.save(tensors, checkpoint_id=half)
    except CheckpointException as failed:  # no Exception
        causes = [cause for cause, _ in failed.failures.values()]
        if any(re.search("failed writing|unexpected pos", str(cause)) for cause in causes):
            # torch.save's own words for a write that failed
            causes.append(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        if error := next((cause for cause in causes if isinstance(cause, OSError)), None):
            raise error from failed
        raise


def _finish(rest: dict[str, Any], parts: list[Facts], half: Path, path: Path) -> None:
    with (half / REST).open("wb") as file:
        torch.save(rest, file)
        file.flush()
        os.fsync(file.fileno())
    facts = facts_of(half, [METADATA, REST])
    for part in parts:
        facts |= part
    seal_folder(half, int(rest["global_step"]), facts)
    sync_folder(half)
    keep = path.name == LAST and path.exists() and _sound(path)
    give_way(path, path.with_name(PREVIOUS) if keep else None)
    os.replace(half, path)
    sync_folder(path.parent)


def _sound(path: Path) -> bool:
    """A damaged LAST must not take the place of an intact PREVIOUS."""
    try:
        step_of_folder(path) if path.is_dir() else verify(path)
    except DamagedCheckpoint as error:
        log.warning("%s; it is written anew, and %s stays", error, PREVIOUS)
        return False
    return True


def _own(folder: Path) -> list[str]:
    return [file.name for file in folder.glob(f"__{dist.get_rank()}_*.distcp")]


def _together(work: Callable[[], Any]) -> list[Any]:
    """What each rank's work gives, by rank.

    Raises:
        OSError, DamagedCheckpoint: on all ranks, where it was raised on one.
    """
    try:
        mine: tuple[Any, Exception | None] = work(), None
    except (OSError, DamagedCheckpoint) as error:
        mine = None, error
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    if failed := [error for _, error in found if error is not None]:
        raise failed[0]
    return [result for result, _ in found]


def read_folder(path: Path, like: Like, without: Sequence[str] = ()) -> dict[str, Any]:
    """The checkpoint, with each tensor sharded as another one; every rank calls it.

    Args:
        like: keys of a tensor in the checkpoint -> the parameter or buffer that it belongs to, or
            None: it is read whole.
        without: parts whose tensors are not read, such as "optimizer_states".

    Raises:
        DamagedCheckpoint: on all ranks; each has looked at its share of the files.
    """
    _together(lambda: verify_folder(path, dist.get_rank(), dist.get_world_size()))
    reader = PlainReader(path)
    tensors: dict[str, Tensor] = {}
    for name, facts in reader.read_metadata().state_dict_metadata.items():
        keys = name.split("\n")
        if keys[0] in without:
            continue
        assert isinstance(facts, TensorStorageMetadata)
        model = like(keys)
        if model is not None and model.shape == facts.size:
            tensors[name] = torch.zeros_like(model)
        else:
            tensors[name] = torch.zeros(facts.size, dtype=facts.properties.dtype)
    dcp.load(tensors, storage_reader=reader)
    checkpoint = torch.load(path / REST, map_location="cpu", weights_only=True)
    for name, value in tensors.items():
        *keys, last = name.split("\n")
        place = checkpoint
        for key in keys:
            place = place[int(key)] if isinstance(place, list) or key.isdigit() else place[key]
        place[last] = value
    return checkpoint


class PlainReader(dcp.FileSystemReader):
    """torch's, which unpickles `.metadata` whatever it holds; this one only what torch writes."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """
        Raises:
            DamagedCheckpoint: it holds something else.
        """
        with (Path(self.path) / METADATA).open("rb") as file:
            metadata = _Plain(file).load()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        of_torch = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if of_torch or f"{module}.{name}" in _PLAIN:
            return super().find_class(module, name)
        raise DamagedCheckpoint(
            f"checkpoint: {METADATA} holds {module}.{name}, which no checkpoint of Ark does; it is "
            "not loaded"
        )


_PLAIN = {
    "pathlib.PosixPath",
    "pathlib._local.PosixPath",  # Python 3.13
    "torch.Size",
    "torch.distributed.checkpoint.filesystem._StorageInfo",
    "torch.distributed.checkpoint.metadata.ChunkStorageMetadata",
    "torch.distributed.checkpoint.metadata.Metadata",
    "torch.distributed.checkpoint.metadata.MetadataIndex",
    "torch.distributed.checkpoint.metadata.StorageMeta",
    "torch.distributed.checkpoint.metadata.TensorProperties",
    "torch.distributed.checkpoint.metadata.TensorStorageMetadata",
    "torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING",
    "torch.serialization._get_layout",
}


def _split(checkpoint: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors by their path, keys joined by line ends (parameters' names hold the rest), and
    the checkpoint without them."""
    tensors: dict[str, Tensor] = {}
    rest: dict[str, Any] = {**checkpoint, "state_dict": {}, "optimizer_states": []}
    for name, value in checkpoint["state_dict"].items():
        tensors[f"state_dict\n{name}"] = value
    for number, saved in enumerate(checkpoint.get("optimizer_states", [])):
        kept: dict[int, dict[str, Any]] = {}
        for index, state in saved["state"].items():
            kept[index] = {n: v for n, v in state.items() if not isinstance(v, Tensor)}
            for n, v in state.items():
                if isinstance(v, Tensor):
                    tensors[f"optimizer_states\n{number}\nstate\n{index}\n{n}"] = v
        rest["optimizer_states"].append({**saved, "state": kept})
    return tensors, rest
