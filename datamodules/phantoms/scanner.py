"""What a scanner makes of the beam: three makes, three looks of the same anatomy."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class Scanner:
    """How one make of scanner turns a beam into gray values."""

    photons: float  # per pixel in open air: fewer, grainier
    scatter: float  # share of the beam that arrives as a wide haze
    blur: float  # of the detector, standard deviation in 1/192 of the side
    sharpen: float  # weight of the unsharp mask of the maker's processing
    contrast: float  # slope of the film curve
    gamma: float
    vignette: float  # darkening of the corners
    collimated: float  # how often the shutters show


SCANNERS = {
    "digital": Scanner(9000, 0.03, 0.45, 0.6, 3.6, 1.0, 0.0, 0.15),
    "computed": Scanner(2600, 0.10, 0.8, 0.0, 3.0, 0.8, 0.05, 0.5),
    "film": Scanner(1300, 0.06, 0.7, 0.0, 5.0, 1.25, 0.22, 0.3),
}


def record(rng: np.random.Generator, attenuation: np.ndarray, scanner: Scanner) -> np.ndarray:
    """The radiograph, (H, W) uint8 with dense parts bright, of `attenuation`, (H, W) float32."""
    density = _density(rng, attenuation, scanner)
    picture = (_film_curve(rng, density, scanner) * 245 + 4).astype(np.uint8)
    _marker(rng, picture)
    if rng.random() < scanner.collimated:
        _collimate(rng, picture)
    return picture


def _density(rng: np.random.Generator, attenuation: np.ndarray, scanner: Scanner) -> np.ndarray:
    """What the detector counts, as a negative logarithm: scattered, blurred and grainy."""
    size = attenuation.shape[0]
    beam = np.exp(-attenuation)
    haze = cv2.GaussianBlur(beam, (0, 0), size * 0.12)
    beam = (1 - scanner.scatter) * beam + scanner.scatter * haze
    beam = cv2.GaussianBlur(beam, (0, 0), scanner.blur * size / 192)
    counts = rng.normal(beam * scanner.photons, np.sqrt(beam * scanner.photons))
    density = -np.log(np.maximum(counts, 1) / scanner.photons).astype(np.float32)
    density += scanner.sharpen * (density - cv2.GaussianBlur(density, (0, 0), size * 0.012))
    return density


def _film_curve(rng: np.random.Generator, density: np.ndarray, scanner: Scanner) -> np.ndarray:
    """Gray values 0..1: an S-shaped curve between the extremes of `density`."""
    low, high = np.quantile(density, [0.02, 0.98])
    level = (density - low) / (high - low) - rng.uniform(0.46, 0.54)
    gray = 1 / (1 + np.exp(-scanner.contrast * rng.uniform(0.9, 1.1) * level))
    ends = 1 / (1 + np.exp(np.array([0.5, -0.5]) * scanner.contrast))
    gray = np.clip((gray - ends[0]) / (ends[1] - ends[0]), 0, 1) ** scanner.gamma
    return gray * _vignette(len(density), scanner.vignette)


def _vignette(size: int, strength: float) -> np.ndarray:
    across = np.linspace(-1, 1, size, dtype=np.float32)
    return 1 - strength * (across[:, None] ** 2 + across[None, :] ** 2) / 2


def _marker(rng: np.random.Generator, picture: np.ndarray) -> None:
    """The lead letter L, on the patient's left."""
    size = picture.shape[0]
    place = (int(size * rng.uniform(0.88, 0.92)), int(size * rng.uniform(0.09, 0.16)))
    cv2.putText(picture, "L", place, cv2.FONT_HERSHEY_DUPLEX, size / 420, 250, 1, cv2.LINE_AA)


def _collimate(rng: np.random.Generator, picture: np.ndarray) -> None:
    left, right, top, bottom = (rng.uniform(0, 0.035, 4) * picture.shape[0]).astype(int)
    inner = picture[top : picture.shape[0] - bottom, left : picture.shape[1] - right].copy()
    picture[:] = 2
    picture[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
