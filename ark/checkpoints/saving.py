"""Writes checkpoints while training goes on, and verifies what is loaded."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from ark.checkpoints.integrity import link, remove_halves, verify_checkpoint, write_checkpoint
from ark.checkpoints.sealing import verify
from ark.types import ConfigError

log = logging.getLogger("ark")
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


class SealedCheckpointIO(TorchCheckpointIO):
    """Writes sealed files in a thread, from a copy of the state; the LAST before becomes PREVIOUS.

    At most one write is under way, so that there are two copies of the state at most. A write that
    fails is said at once and raised by the next call, or by the trainer's end; what it was to
    replace stays.

    Args:
        background: False writes before `save_checkpoint` returns, without a copy.
    """

    def __init__(self, background: bool = True) -> None:
        self.background = background
        self._thread: ThreadPoolExecutor | None = None
        self._under_way: Future[None] | None = None
        self._intact: set[Path] = set()  # files that this process wrote or verified
        self._saved: tuple[str, Path] | None = None  # the state saved last, and where

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Returns when the state is copied; waits before for the write under way, if any.

        A state that was just saved under another name gets a second name, and is not written
        again.

        Raises:
            ConfigError: this write failed, or the one before; no local path; storage options.
        """
        if storage_options is not None or ":/" in str(path):
            raise ConfigError(
                f"checkpoint {path}: written to local folders only, without storage options"
            )
        path, state = _absolute(path), _fingerprint(checkpoint)
        if self._saved is not None and self._saved[0] == state and path.name != LAST:
            source = self._saved[1]
            self._submit(lambda: link(source, path))
            return
        self.flush()
        if self._thread is None:
            remove_halves(path.parent)
        copied = host_copy(checkpoint) if self.background else checkpoint
        self._submit(lambda: self._write(copied, path))
        self._saved = state, path

    def _write(self, checkpoint: Mapping[str, Any], path: Path) -> None:
        previous = path.with_name(PREVIOUS) if path.name == LAST and self._sound(path) else None
        write_checkpoint(checkpoint, path, previous)
        self._intact.add(path)

    def _sound(self, path: Path) -> bool:
        """A damaged LAST must not take the place of an intact PREVIOUS."""
        if path.exists() and path not in self._intact:
            try:
                verify_checkpoint(path)
            except ConfigError as error:
                log.warning("%s; it is written anew, and %s stays", error, PREVIOUS)
                return False
        return True

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """
        Raises:
            DamagedCheckpoint: names the file and what is wrong with it.
        """
        self.flush()
        path = _absolute(path)
        if path.is_dir():
            raise ConfigError(
                f"checkpoint {path} is a folder of shards; go on with --trainer.strategy=fsdp2 and "
                "save_distributed_checkpoint, which reads it on any number of ranks"
            )
        if verify(path) is None:
            log.info("checkpoint %s has no seal: checked by the sums of its archive", path)
        self._intact.add(path)
        return super().load_checkpoint(path, map_location, weights_only is not False)

    def remove_checkpoint(self, path: str | Path) -> None:
        """After the writes that were asked for before, and only if they succeeded."""
        if self._saved is not None and self._saved[1] == _absolute(path):
            self._saved = None
        self._submit(lambda: super(SealedCheckpointIO, self).remove_checkpoint(path))

    def flush(self) -> None:
        """Returns when all is on the disk.

        Raises:
            ConfigError: what went wrong since the last call.
        """
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def teardown(self) -> None:
        try:
            self.flush()
        finally:
            if self._thread is not None:
                self._thread.shutdown()
                self._thread = None

    def _submit(self, work: Callable[[], None]) -> None:
        if not self.background:
            work()
            return
        before = self._under_way

        def run() -> None:
            if before is not None:
                before.result()  # is done; raises again what went wrong
            try:
                work()
            except Exception as error:
                log.error("%s", error)
                raise

        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._under_way = self._thread.submit(run)


def host_copy(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A copy that training does not change: tensors in host memory (pinned where they come from a
    GPU), everything else copied deeply. Tensors that are one stay one.

    Returns when the copies are complete.
    """
    copies: dict[tuple[Any, ...], Tensor] = {}
    memo: dict[int, Any] = {}

    def remember(tensor: Tensor) -> Tensor:
        if type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout == torch.strided:
            place = tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
            if place not in copies:
                copies[place] = _to_host(tensor.detach())
            memo[id(tensor)] = copies[place]
        return tensor

    apply_to_collection(checkpoint, Tensor, remember)
    for device in {place[0] for place in copies if place[0].type == "cuda"}:
        torch.cuda.current_stream(device).synchronize()
    return copy.deepcopy(checkpoint, memo)


def _to_host(tensor: Tensor) -> Tensor:
    if tensor.device.type == "cpu":
        return tensor.clone()
    pinned = tensor.device.type == "cuda"
    return torch.empty_like(tensor, device="cpu", pin_memory=pinned).copy_(tensor, pinned)


def _fingerprint(checkpoint: Mapping[str, Any]) -> str:
    """Equal of two checkpoints between which nothing was trained, evaluated or changed."""
    state = checkpoint.get("state_dict", {}).values()
    tensors = [(t.data_ptr(), t._version) for t in state if isinstance(t, Tensor)]
    step, loops = checkpoint.get("global_step"), checkpoint.get("loops")
    return repr((step, loops, sorted(checkpoint), tensors))


def _absolute(path: str | Path) -> Path:
    """One name of a file, however it is asked for; itself it may be a link."""
    return Path(path).parent.resolve() / Path(path).name
