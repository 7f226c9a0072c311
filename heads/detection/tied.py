"""A module that saves each of its tensors once.

mmdet repeats one layer under several names, such as the class layer of every decoder layer in
Deformable DETR without box refinement. safetensors refuses to save such a tensor twice, and an
average over the entries of a state dict would move it twice.
"""

from __future__ import annotations

from typing import Any

from torch import nn


class TiedOnce(nn.Module):
    """Saves a tensor that has several names under the first of them, and loads it back."""

    def state_dict(self, *args: Any, prefix: str = "", **kwargs: Any) -> Any:
        state = super().state_dict(*args, prefix=prefix, **kwargs)
        for name in self._other_names():
            del state[prefix + name]
        return state

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name, first in self._other_names().items():
            if prefix + first in state_dict:
                state_dict.setdefault(prefix + name, state_dict[prefix + first])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _other_names(self) -> dict[str, str]:
        """Every further name of a tensor -> its first one."""
        named = [
            *self.named_parameters(remove_duplicate=False),
            *self.named_buffers(remove_duplicate=False),
        ]
        first: dict[int, str] = {}
        names = {name: first.setdefault(id(tensor), name) for name, tensor in named}
        return {name: origin for name, origin in names.items() if name != origin}
