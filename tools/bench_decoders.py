"""Images a CPU-second of the decoders that Ark could use, as one table.

    python tools/bench_decoders.py [--seconds 1]

The images: a synthetic chest-like one of each kind and, where the folder is there, real ones of
$ARK_DATA (default ../shared/data). "differs" is the largest difference to Pillow's pixels.
"""

from __future__ import annotations

import argparse
import io
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import torch
from PIL import Image
from tabulate import tabulate
from torchvision.io import ImageReadMode, decode_jpeg, decode_png

from datamodules.imaging.images import decode_image

Decoder = Callable[[bytes], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="CPU-seconds for each number")
    seconds = parser.parse_args().seconds
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rows = []
    for name, files, decoders in cases():
        expected = pillow(files[0])
        for decoder, decode in decoders.items():
            pixels = decode(files[0]).squeeze()
            same = pixels.shape == expected.shape
            differs = int(np.abs(pixels.astype(int) - expected).max()) if same else "smaller"
            rows.append([name, decoder, rate(decode, files, seconds), differs])
    print(tabulate(rows, ["image", "decoder", "images/CPU-s", "differs"], floatfmt=".0f"))


def cases() -> Sequence[tuple[str, Sequence[bytes], dict[str, Decoder]]]:
    png: dict[str, Decoder] = {"Pillow": pillow, "opencv": opencv, "torchvision": torchvision_png}
    png["decode_image"] = lambda data: decode_image(data, "")
    found = [
        ("JPEG 512 gray", [jpeg(chest(512))], jpegs("GRAY")),
        ("JPEG 512 colour", [jpeg(chest(512, 3))], jpegs("RGB")),
        ("JPEG 1024 gray, min_side 512", [jpeg(chest(1024))], jpegs("GRAY", 512)),
        ("JPEG 1024 colour, min_side 512", [jpeg(chest(1024, 3))], jpegs("RGB", 512)),
        ("PNG 512 gray", [encoded(chest(512), "PNG")], png),
        ("PNG 1024 gray", [encoded(chest(1024), "PNG")], png),
    ]
    root = Path(os.environ.get("ARK_DATA", "../shared/data"))
    if real := [path.read_bytes() for path in sorted(root.glob("nih14/images/*.jpg"))[:50]]:
        found.append(("real JPEG 512 gray", real, jpegs("GRAY")))
    if real := [path.read_bytes() for path in sorted(root.glob("wingspan/masks/heart/*.png"))[:50]]:
        found.append(("real mask PNG 512", real, png))
    return found


def jpegs(colours: str, min_side: int = 0) -> dict[str, Decoder]:
    decoders: dict[str, Decoder] = {
        "Pillow": pillow,
        "opencv": opencv,
        "torchvision": torchvision_jpeg,
        "simplejpeg": lambda data: simplejpeg.decode_jpeg(data, colours),
        "simplejpeg, fast DCT": lambda data: simplejpeg.decode_jpeg(data, colours, fastdct=True),
    }
    if min_side:
        decoders["simplejpeg, scaled"] = lambda data: simplejpeg.decode_jpeg(
            data, colours, min_height=min_side, min_width=min_side
        )
    decoders["decode_image"] = lambda data: decode_image(data, "", min_side=min_side)
    return decoders


def rate(decode: Decoder, files: Sequence[bytes], seconds: float) -> float:
    done, start = 0, time.process_time()
    while time.process_time() - start < seconds:
        decode(files[done % len(files)])
        done += 1
    return done / (time.process_time() - start)


def chest(side: int, channels: int = 1) -> np.ndarray:
    """A bright body with two dark lungs, ribs and the grain of a detector."""
    rng = np.random.default_rng(side)
    y, x = np.mgrid[0:side, 0:side] / side
    gray = 170.0 + 25 * np.sin(60 * y + 6 * np.abs(x - 0.5)) - 60 * (np.abs(x - 0.5) > 0.42)
    for centre in (0.3, 0.7):
        gray -= 90 * np.exp(-(((x - centre) / 0.13) ** 4) - ((y - 0.45) / 0.3) ** 4)
    gray += cv2.GaussianBlur(rng.normal(0, 30, (side, side)), (0, 0), 1.5)
    pixels = [gray + 8 * channel + rng.normal(0, 2, gray.shape) for channel in range(channels)]
    return np.stack(pixels, -1).clip(0, 255).astype(np.uint8).squeeze()


def encoded(pixels: np.ndarray, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(pixels: np.ndarray) -> bytes:
    return encoded(pixels, "JPEG", quality=90)


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def opencv(data: bytes) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels is not None
    return pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def torchvision_jpeg(data: bytes) -> np.ndarray:
    return decode_jpeg(_tensor(data), ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()


def torchvision_png(data: bytes) -> np.ndarray:
    return decode_png(_tensor(data), ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()


def _tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


if __name__ == "__main__":
    main()
