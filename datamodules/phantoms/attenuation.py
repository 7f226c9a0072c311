"""What the beam meets: attenuation along each ray through a chest.

Attenuation is the line integral of the linear attenuation coefficient, so parts add up; a part that
displaces lung takes the lung's air away. (H, W) float32 throughout.
"""

from __future__ import annotations

import cv2
import numpy as np

from datamodules.phantoms.anatomy import LEFT, RIGHT, Chest

_SHIFT = 4  # fractional bits of the points that OpenCV draws


def attenuation(rng: np.random.Generator, chest: Chest) -> np.ndarray:
    """Line integrals of attenuation through `chest`, (H, W) float32 from 0 in open air."""
    body = _body(chest)
    air = _air(rng, chest)
    total = 2.5 * body - 1.75 * air
    total += _mediastinum(rng, chest) + _abdomen(rng, chest)
    total += _bones(rng, chest) * np.minimum(body * 2, 1)
    total += _vessels(rng, chest) * air
    total += _nodules(rng, chest) + 0.4 * _smooth(chest.fluid, chest, 0.012)
    if rng.random() < 0.4:
        total += _breasts(rng, chest)
    total += 0.05 * _texture(rng, chest.frame.size, 12) * body
    return np.maximum(total, 0)


def _body(chest: Chest) -> np.ndarray:
    """Soft tissue's thickness, 1 at the spine: trunk, shoulders and neck."""
    x, y = np.abs(chest.x), chest.y
    trunk = chest.half_width + 0.065 + 0.02 * np.clip(y - 0.6, 0, 1)
    shoulder = 0.025 + 0.2 * (x / 0.5) ** 1.6  # y of the skin over the shoulders
    axilla = trunk + 0.3 * np.clip(0.42 - y, 0, 1)
    neck = np.where(y < shoulder, 0.115 + 0.02 * np.clip(0.1 - y, 0, 1), axilla)
    return _smooth(np.sqrt(np.clip(1 - (x / neck) ** 2, 0, 1)), chest, 0.008)


def _air(rng: np.random.Generator, chest: Chest) -> np.ndarray:
    """Share of each ray's lung path that holds air, 0..1."""
    size = chest.frame.size
    filling = np.zeros((size, size), np.float32)
    for side in (RIGHT, LEFT):
        lung = chest.lung(side)
        edge = cv2.distanceTransform(lung.astype(np.uint8), cv2.DIST_L2, 5) / size
        filling += lung * (0.45 + 0.55 * (1 - np.exp(-edge / 0.04)))
    heart = chest.heart.astype(np.uint8)
    depth = cv2.distanceTransform(heart, cv2.DIST_L2, 5) / size
    filling *= 1 - heart * (0.3 + 0.6 * (1 - np.exp(-depth / 0.035)))
    filling *= 1 + 0.06 * _texture(rng, size, 8)
    filling += 0.22 * _trachea(chest)
    return _smooth(filling, chest, 0.005)


def _trachea(chest: Chest) -> np.ndarray:
    """Air of the windpipe and the two main bronchi."""
    layer = np.zeros(chest.x.shape, np.uint8)
    carina = chest.apex + 0.24
    _stroke(layer, chest, [[0, -0.1], [0.003, carina]], 0.042)
    _stroke(layer, chest, [[0, carina - 0.01], [-0.09, carina + 0.07]], 0.026)
    _stroke(layer, chest, [[0, carina - 0.01], [0.1, carina + 0.06]], 0.024)
    return _smooth(layer / np.float32(255), chest, 0.006)


def _mediastinum(rng: np.random.Generator, chest: Chest) -> np.ndarray:
    """Spine with its discs, great vessels with the aortic knob, and the heart's own thickness."""
    x, y = chest.x, chest.y
    spine = _plateau(x / 0.045) * (0.36 + 0.10 * np.cos(2 * np.pi * y / 0.085))
    vessels = 0.35 * _plateau(x / (chest.mediastinum + 0.012)) * _step(y - 0.27, 0.05)
    knob_y = chest.apex + rng.uniform(0.14, 0.18)
    knob = 0.55 * _plateau(np.hypot((x - 0.062) / 0.034, (y - knob_y) / 0.045))
    depth = cv2.distanceTransform(chest.heart.astype(np.uint8), cv2.DIST_L2, 5) / chest.frame.size
    heart = _smooth(0.5 * (1 - np.exp(-depth / 0.06)), chest, 0.008)
    hila = 0.3 * np.exp(-(((np.abs(x) - 0.105) / 0.035) ** 2) - ((y - knob_y - 0.13) / 0.06) ** 2)
    return _smooth((spine + vessels + knob + heart + hila).astype(np.float32), chest, 0.006)


def _abdomen(rng: np.random.Generator, chest: Chest) -> np.ndarray:
    """Organs under the diaphragm and, mostly, the stomach's gas bubble on the patient's left."""
    below = chest.y - chest.diaphragm
    organs = 0.5 * _step(below, 0.02) + 0.35 * np.clip(below / 0.3, 0, 1)
    inside = _step(chest.half_width + 0.05 - np.abs(chest.x), 0.02)
    gas = np.zeros_like(organs)
    if rng.random() < 0.7:
        where = (rng.uniform(0.13, 0.2), chest.domes[LEFT] + rng.uniform(0.075, 0.1))
        wide, high = rng.uniform(0.05, 0.08), rng.uniform(0.03, 0.045)
        round_ = ((chest.x - where[0]) / wide) ** 2 + ((chest.y - where[1]) / high) ** 2
        gas = 0.55 * _step(1 - round_, 0.6)
    return (organs * inside - gas).astype(np.float32)


def _bones(rng: np.random.Generator, chest: Chest) -> np.ndarray:
    """Ribs behind and in front, clavicles and shoulder blades."""
    shape = chest.x.shape
    behind, front, clavicles = (np.zeros(shape, np.uint8) for _ in range(3))
    spacing = rng.uniform(0.068, 0.076)
    for side in (RIGHT, LEFT):
        for rib in range(10):
            top = chest.apex - 0.015 + rib * spacing
            _stroke(behind, chest, _posterior_rib(chest, side, top), 0.021, hollow=True)
        for rib in range(6):
            top = chest.apex + 0.07 + rib * spacing * 1.15
            _stroke(front, chest, _anterior_rib(chest, side, top), 0.024, hollow=True)
        lift = rng.uniform(0.0, 0.03)
        points = [[0.035, 0.165], [0.12, 0.150 - lift], [0.22, 0.115 - lift], [0.36, 0.085 - lift]]
        shift = np.array([0.0, chest.apex - 0.12])
        _stroke(clavicles, chest, np.array(points) * [side, 1] + shift, 0.028, hollow=True)
    out = np.abs(chest.x) - chest.half_width - 0.02
    blades = _plateau(out / 0.055) * _plateau((chest.y - 0.27) / 0.14)
    strokes = 0.42 * behind + 0.2 * front + 0.42 * clavicles
    return _smooth(strokes.astype(np.float32) / 255, chest, 0.004) + 0.16 * blades


def _posterior_rib(chest: Chest, side: int, top: float) -> np.ndarray:
    """From the spine up and out, then down along the chest wall."""
    t = np.linspace(0, 1, 16)
    y = top - 0.035 * np.sin(np.pi * np.minimum(t * 1.3, 1)) + 0.13 * t**2.4
    wall = chest.lateral(y) + 0.012
    return np.stack([side * (0.035 + (wall - 0.035) * np.sin(t * np.pi / 2)), y], axis=1)


def _anterior_rib(chest: Chest, side: int, top: float) -> np.ndarray:
    """From the chest wall down and in; it fades where cartilage begins."""
    t = np.linspace(0, 1, 12)
    y = top + 0.16 * t**1.2
    wall = chest.lateral(np.full_like(t, top)) + 0.01
    return np.stack([side * wall * (1 - 0.62 * t), y], axis=1)


def _vessels(rng: np.random.Generator, chest: Chest) -> np.ndarray:
    """Branches of the pulmonary vessels, thinning from the hila outwards."""
    layer = np.zeros(chest.x.shape, np.uint8)
    for side in (RIGHT, LEFT):
        root = np.array([side * 0.1, chest.apex + 0.3])
        for heading in np.linspace(-1.25, 1.35, 11) + rng.normal(0, 0.1, 11):
            _branch(rng, layer, chest, root, heading, side, 0.013, 3)
    return 0.4 * _smooth(layer / np.float32(255), chest, 0.0035)


def _branch(
    rng: np.random.Generator,
    layer: np.ndarray,
    chest: Chest,
    start: np.ndarray,
    heading: float,
    side: int,
    width: float,
    generations: int,
) -> None:
    length = rng.uniform(0.06, 0.11)
    end = start + length * np.array([side * np.cos(heading), np.sin(heading)])
    _stroke(layer, chest, [start, end], width, value=int(130 + 110 * width / 0.013))
    if generations > 1:
        for turn in (rng.uniform(0.1, 0.5), -rng.uniform(0.1, 0.5)):
            _branch(rng, layer, chest, end, heading + turn, side, width * 0.62, generations - 1)


def _nodules(rng: np.random.Generator, chest: Chest) -> np.ndarray:
    """Balls of soft tissue with a slightly uneven outline."""
    total = np.zeros(chest.x.shape, np.float32)
    for nodule in chest.nodules:
        dx, dy = chest.x - nodule.x, chest.y - nodule.y
        wobble = 1 + 0.06 * np.sin(3 * np.arctan2(dy, dx) + rng.uniform(0, 6))
        reach = np.hypot(dx, dy) / (nodule.radius * wobble)
        total += rng.uniform(0.6, 1.0) * np.sqrt(np.clip(1 - reach**2, 0, 1))
    return _smooth(total, chest, 0.004)


def _breasts(rng: np.random.Generator, chest: Chest) -> np.ndarray:
    low, wide = rng.uniform(0.60, 0.70), rng.uniform(0.15, 0.19)
    total = np.zeros(chest.x.shape, np.float32)
    for side in (RIGHT, LEFT):
        round_ = ((chest.x - side * 0.22) / wide) ** 2 + ((chest.y - low + 0.1) / 0.14) ** 2
        total += np.sqrt(np.clip(1 - round_, 0, 1)) * rng.uniform(0.25, 0.4)
    return _smooth(total, chest, 0.006)


def _stroke(
    layer: np.ndarray,
    chest: Chest,
    points: np.ndarray | list,
    width: float,
    value: int = 255,
    hollow: bool = False,
) -> None:
    """Draws a line into `layer`, (H, W) uint8; a hollow one has a denser rim, as bone has."""
    pixels = chest.frame.pixels(np.asarray(points, float)) - 0.5  # OpenCV: pixel centres are whole
    line = [np.round(pixels * 2**_SHIFT).astype(np.int32)]
    thick = max(1, round(width * chest.frame.size))
    cv2.polylines(layer, line, False, value, thick, cv2.LINE_AA, _SHIFT)
    if hollow and thick > 2:
        cv2.polylines(layer, line, False, int(value * 0.62), thick - 2, cv2.LINE_AA, _SHIFT)


def _texture(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise of about unit variance with `cells` hills a side, and finer ones on top."""
    total = np.zeros((size, size), np.float32)
    for octave in range(3):
        coarse = rng.standard_normal((cells * 2**octave,) * 2, np.float32)
        total += cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC) / 2**octave
    return total


def _smooth(layer: np.ndarray, chest: Chest, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(layer.astype(np.float32), (0, 0), sigma * chest.frame.size)


def _plateau(distance: np.ndarray) -> np.ndarray:
    """1 around 0, falling steeply to 0 past a `distance` of 1."""
    return np.exp(-np.square(np.square(distance)))


def _step(distance: np.ndarray, softness: float) -> np.ndarray:
    """0 -> 1 where `distance` passes from negative to positive, over about `softness`."""
    return 1 / (1 + np.exp(-np.clip(distance / softness * 4, -30, 30)))
