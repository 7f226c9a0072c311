"""Small published models."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ark.network import Network
from ark.published.config import CONFIG, Facts
from ark.published.writing import write_model
from toys import HEADS, SIZE, make_task

KINDS = sorted(HEADS)


def make_network(*kinds: str, seed: int = 0, backbone: str = "test_efficientnet") -> Network:
    torch.manual_seed(seed)
    tasks = [make_task(kind) for kind in kinds or KINDS]
    network = Network({"name": backbone, "image_size": SIZE}, {"width": 8}, tasks)
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(torch.randn_like(buffer))  # as after training
    return network.eval()


def publish(folder: Path, network: Network | None = None, **facts: object) -> Path:
    network = network or make_network()
    return write_model(folder, network, Facts(network.architecture, **facts))  # type: ignore[arg-type]


def change(folder: Path, path: str, value: Any) -> None:
    """Sets `ark.<path>` of config.json."""
    content = json.loads((folder / CONFIG).read_text())
    *keys, last = path.split(".")
    place = content["ark"]
    for key in keys:
        place = place[int(key) if key.isdigit() else key]
    place[last] = value
    (folder / CONFIG).write_text(json.dumps(content))


def pictures() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)


def image_file(height: int = 90, width: int = 120, seed: int = 0) -> bytes:
    """A gray PNG."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (6, 8), np.uint8))
    data = io.BytesIO()
    coarse.resize((width, height)).save(data, "PNG")
    return data.getvalue()
