"""`ark predict`: a checkpoint, a folder of images, and files that other tools read."""

from __future__ import annotations

import logging
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ark.exporting.onnx_network import OnnxNetwork
from ark.exporting.opening import load_network
from ark.network import Network
from ark.sliding_window import sliding_window
from ark.types import ConfigError, MaskPrediction
from datamodules.imaging.images import Window, check_window, decode_image
from datamodules.predicted_files import Item, Writer
from datamodules.transforms import Transform

log = logging.getLogger("ark")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".dcm")


def predict(
    checkpoint: str,
    images: str,
    output: str = "predictions",
    which: Literal["teacher", "student"] = "teacher",
    threshold: float = 0.5,
    score: float = 0.05,
    batch_size: int = 16,
    workers: int = 2,
    window: str | list[float] = "auto",
    tile: int = 0,
) -> None:
    """Runs every head of a checkpoint on a folder of images.

    Writes into `output`: classes.csv (a probability or, of kind values, a number a column,
    `<dataset>/<task>/<class>`), boxes/<dataset>/<task>.json (COCO results with their categories,
    pixels of the image's file), masks/<dataset>/<task>/<class>/<image>.png (0 and 255, the image's
    size), points/<dataset>/<task>.csv (a row a point, pixels of the image's file) and skipped.csv.

    Args:
        checkpoint: folder of a run, its model/ folder, a file in its checkpoints/, a folder of
            `ark export`, or a file of `ark onnx`.
        images: folder, searched with its subfolders for JPEG, PNG, WebP, TIFF and DICOM files; or
            one such file.
        output: folder to write.
        which: the network of the two; what was exported is one alone.
        threshold: probability from which a pixel belongs to a class; where classes exclude each
            other (mode multiclass), it belongs to the most probable, whatever the threshold.
        score: boxes below it are left out; a head leaves out those below its own
            score_threshold, whatever is asked for here.
        batch_size: images at once.
        workers: processes that decode.
        window: how pixels of more than 8 bits become 8, as in the dataset's YAML: auto, header,
            minmax, percentile, full or [low, high].
        tile: pixels of an image's longer side at which segmentation heads see it through
            overlapping windows of the network's input size; 0: the whole image at once, as in
            training. For structures that are lost when a large image is made small.

    Raises:
        ConfigError: no such folder, no image in it, no checkpoint, or `tile` is below 0.
    """
    if tile < 0:
        raise ConfigError(f"tile: {tile}; expected a longer side in pixels, or 0 to switch it off")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = load_network(checkpoint, which).to(device)
    side = network.backbone.image_size
    folder = _Folder(Path(images), side, check_window(window, "window"), tile)
    writer = Writer(Path(output), network, threshold, score)
    loader = DataLoader(folder, batch_size, num_workers=workers, collate_fn=list)
    for items in tqdm(loader, desc="predict", unit="batch"):
        good = [item for item in items if item.view is not None]
        writer.skipped += [item for item in items if item.view is None]
        if good:
            # gray among colour: all get three channels
            views = torch.stack([item.view.expand(3, -1, -1) for item in good]).to(device)
            predictions = {key: p.to("cpu") for key, p in network(views).items()}
            for item in good if tile else []:
                item.masks = _tiled(network, item, device)
            writer.add(good, predictions)
    log.info(writer.finish())


def _tiled(
    network: Network | OnnxNetwork, item: Item, device: torch.device
) -> dict[str, MaskPrediction]:
    """Of every segmentation task, (1, K, h, w), from windows over the image."""
    assert item.large is not None
    image, side = item.large.expand(3, -1, -1)[None].to(device), network.backbone.image_size
    return {
        key: sliding_window(partial(network.predict, key), image, side).to("cpu")
        for key, task in network.tasks.items()
        if task.kind == "segmentation"
    }


class _Folder(Dataset[Item]):
    """The images of a folder with its subfolders, or of one file, as the network sees them."""

    def __init__(self, folder: Path, image_size: int, window: Window, tile: int = 0) -> None:
        self.folder, self.window, self.tile = folder, window, tile
        if folder.is_file():
            self.folder, self.paths = folder.parent, [folder]
        elif folder.is_dir():
            self.paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        else:
            raise ConfigError(f"images: {str(folder)!r}; no such folder or file")
        if not self.paths:
            raise ConfigError(f"images: no {', '.join(SUFFIXES)} file in {str(folder)!r}")
        self.transform = Transform("multiclass", image_size, None)
        self.stems = Counter(path.with_suffix("") for path in self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Item:
        path = self.paths[index]
        name = path.relative_to(self.folder).as_posix()
        try:
            image = decode_image(path.read_bytes(), name, window=self.window)
        except (ConfigError, OSError) as error:
            return Item(name, error=str(error))
        view = self.transform(image, None, 0, image.shape[:2]).student.transpose(2, 0, 1)
        # a.jpg and a.png side by side would share a.png
        alone = self.stems[path.with_suffix("")] == 1
        mask_name = str(Path(name).with_suffix(".png")) if alone else f"{name}.png"
        pixels = torch.from_numpy(np.ascontiguousarray(view))
        large = _resized(image, self.tile) if self.tile else None
        return Item(name, image.shape[:2], pixels, large, mask_name=mask_name)


def _resized(image: np.ndarray, longer: int) -> Tensor:
    """(H, W, C) -> (C, h, w), whose longer side is `longer` pixels."""
    scale = longer / max(image.shape[:2])
    size = [max(1, round(scale * side)) for side in image.shape[1::-1]]
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small = cv2.resize(image, size, interpolation=method).reshape(size[1], size[0], -1)
    return torch.from_numpy(np.ascontiguousarray(small.transpose(2, 0, 1)))
