"""A price on the size of chosen weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ark.network import Network
from ark.optim import check_names_parameters


class NormPenalty:
    """Weight times the sum of the L2 norms of a module's parameters, in the tasks that use it.

    Foundation X adds 1e-4 times that of the localization encoder to its detection tasks (spec
    foundation_x.md, Optimiser).

    Args:
        weights: by module path, such as {"shared.detector_encoder": 1.0e-4}.

    Raises:
        ConfigError: a path names no module, or a module without parameters.
    """

    def __init__(self, network: Network, weights: Mapping[str, float]) -> None:
        self.paths = list(weights)
        self._terms: dict[str, list[tuple[float, list[nn.Parameter]]]] = {}  # by task
        modules = dict(network.named_modules())
        for path, weight in weights.items():
            check_names_parameters("model.norm_penalty", network, path)
            parameters = list(modules[path].parameters()) if path in modules else []
            mine = {id(p) for p in parameters}
            for task in network.tasks:
                used = (p for module in network.used_by(task) for p in module.parameters())
                if any(id(p) in mine for p in used):
                    self._terms.setdefault(task, []).append((weight, parameters))

    def __call__(self, task: str) -> Tensor | None:
        """The price in a step of `task`; None where nothing that it prices can move."""
        terms = [
            weight * torch.stack([p.norm() for p in free]).sum()
            for weight, parameters in self._terms.get(task, [])
            if (free := [p for p in parameters if p.requires_grad])
        ]
        return torch.stack(terms).sum() if terms else None
