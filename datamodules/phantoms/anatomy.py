"""A thorax by numbers: one random chest, and the exact masks of its parts.

Body frame: x to the right of the picture from the midline, so positive x is the PATIENT'S LEFT;
y downwards; the picture's side is 1. `Frame` turns and shifts the body within the picture.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

RIGHT, LEFT = -1, 1  # the patient's sides, as the sign of x in the picture
_FLATNESS = 0.62  # short axis of the heart over its long axis


@dataclass(frozen=True)
class Frame:
    """Where the body lies in a picture of `size` x `size` pixels."""

    size: int
    midline: float  # of the picture's width
    top: float  # of the picture's height
    angle: float  # radians, clockwise on the screen

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Body coordinates (x, y) of every pixel's centre, each (H, W) float32."""
        centres = (np.arange(self.size, dtype=np.float32) + 0.5) / self.size
        across, down = np.meshgrid(centres - self.midline, centres - 0.5)
        cos, sin = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        return cos * across + sin * down, cos * down - sin * across + np.float32(0.5 - self.top)

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Body coordinates (N, 2) -> picture coordinates (N, 2) in pixels."""
        x, y = points[:, 0], points[:, 1] - 0.5 + self.top
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        turned = np.stack([cos * x - sin * y + self.midline, sin * x + cos * y + 0.5], axis=1)
        return turned * self.size


@dataclass(frozen=True)
class Nodule:
    """A round opacity; lengths in sides of the picture."""

    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Effusion:
    """Fluid at the base of one lung."""

    side: int  # RIGHT or LEFT
    height: float  # of the meniscus over the costophrenic angle


@dataclass(frozen=True)
class Findings:
    """What is asked of a chest."""

    nodules: int = 0
    effusion: bool = False
    cardiomegaly: bool = False


@dataclass
class Chest:
    """One random chest; lengths in sides of the picture."""

    frame: Frame
    half_width: float  # of the rib cage inside
    apex: float  # y of the lungs' tops
    domes: dict[int, float]  # side -> y of the diaphragm's dome
    angle_depth: float  # of the costophrenic angles under the domes
    cardiothoracic_ratio: float  # heart width / inner width of the rib cage
    heart_tilt: float  # radians
    mediastinum: float  # half width
    effusion: Effusion | None = None
    nodules: list[Nodule] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.x, self.y = self.frame.grid()
        self.diaphragm = self._diaphragm()
        self.heart = self._heart()
        self.fields = {side: self._lung_field(side) for side in (RIGHT, LEFT)}
        self.fluid = self._fluid()

    def lung(self, side: int) -> np.ndarray:
        """Aerated lung, (H, W) bool: it goes on behind the heart and ends at an effusion."""
        return self.fields[side] & ~self.fluid

    def nodule_boxes(self) -> np.ndarray:
        """(N, 4) float64 xyxy in pixels of the picture."""
        centres = np.array([[n.x, n.y] for n in self.nodules]).reshape(-1, 2)
        radii = np.array([n.radius for n in self.nodules]).reshape(-1, 1) * self.frame.size
        centres = self.frame.pixels(centres)
        return np.concatenate([centres - radii, centres + radii], axis=1)

    def lateral(self, y: np.ndarray) -> np.ndarray:
        """Distance of the inner chest wall from the midline at height y."""
        widest = 0.64
        rise = np.clip((widest - y) / (widest - self.apex), 0, 1)
        return self.half_width * (1 - rise**2.3) ** (1 / 2.3)

    def _diaphragm(self) -> np.ndarray:
        """y of the diaphragm above each pixel's x, (H, W)."""
        out = np.abs(self.x) / self.half_width
        dome = np.where(self.x < 0, self.domes[RIGHT], self.domes[LEFT])
        lateral = np.clip((out - 0.45) / 0.55, 0, 1) ** 2.6
        medial = np.clip((0.45 - out) / 0.45, 0, 1) ** 2
        return dome + self.angle_depth * lateral + 0.03 * medial

    def _heart(self) -> np.ndarray:
        """(H, W) bool: a tilted ellipse whose apex points to the patient's left, cut below."""
        half = self.cardiothoracic_ratio * self.half_width
        cos, sin = np.cos(self.heart_tilt), np.sin(self.heart_tilt)
        long = half / np.hypot(cos, _FLATNESS * sin)  # so that the tilted ellipse is 2 `half` wide
        short = _FLATNESS * long
        reach = np.hypot(long * sin, short * cos)  # from its centre down
        dx = self.x - 0.33 * half
        dy = self.y - (self.domes[LEFT] + 0.02 - 0.8 * reach)
        along, across = cos * dx + sin * dy, cos * dy - sin * dx
        return ((along / long) ** 2 + (across / short) ** 2 < 1) & (self.y < self.diaphragm + 0.025)

    def _lung_field(self, side: int) -> np.ndarray:
        out = side * self.x
        medial = self.mediastinum + 0.13 * np.exp(-(self.y - self.apex) / 0.05)
        return (out > medial) & (out < self.lateral(self.y)) & (self.y < self.diaphragm)

    def _fluid(self) -> np.ndarray:
        """(H, W) bool: fluid whose surface climbs towards the chest wall."""
        if self.effusion is None:
            return np.zeros_like(self.heart)
        side, height = self.effusion.side, self.effusion.height
        bottom = self.domes[side] + self.angle_depth
        out = np.clip(side * self.x / self.half_width, 0, 1)
        surface = bottom - height * (0.55 + 0.45 * out**4)
        return self.fields[side] & (self.y > surface)


def draw_chest(rng: np.random.Generator, size: int, findings: Findings) -> Chest:
    """A random chest that has exactly `findings`, in a picture of `size` x `size` pixels."""
    dome = rng.uniform(0.66, 0.73)
    ratio = rng.uniform(0.53, 0.61) if findings.cardiomegaly else rng.uniform(0.40, 0.49)
    side = LEFT if rng.random() < 0.5 else RIGHT
    effusion = Effusion(side, rng.uniform(0.17, 0.34)) if findings.effusion else None
    chest = Chest(
        frame=Frame(size, rng.uniform(0.47, 0.53), rng.uniform(-0.03, 0.03), rng.normal(0, 0.025)),
        half_width=rng.uniform(0.36, 0.415),
        apex=rng.uniform(0.11, 0.16),
        domes={RIGHT: dome, LEFT: dome + rng.uniform(0.01, 0.04)},
        angle_depth=rng.uniform(0.09, 0.14),
        cardiothoracic_ratio=ratio,
        heart_tilt=rng.uniform(0.45, 0.75),
        mediastinum=rng.uniform(0.045, 0.065),
        effusion=effusion,
    )
    chest.nodules = _place_nodules(rng, chest, findings.nodules)
    return chest


def _place_nodules(rng: np.random.Generator, chest: Chest, count: int) -> list[Nodule]:
    """Nodules wholly inside the aerated lung, clear of the heart and of each other."""
    free = (chest.lung(LEFT) | chest.lung(RIGHT)) & ~chest.heart
    nodules = []
    for _ in range(count):
        radius = rng.uniform(0.034, 0.062)
        room = cv2.distanceTransform(free.astype(np.uint8), cv2.DIST_L2, 5) / chest.frame.size
        places = np.flatnonzero(room > radius * 1.15)
        if not len(places):
            raise ValueError(f"no room for {count} nodules in a picture of {chest.frame.size} px")
        place = np.unravel_index(rng.choice(places), free.shape)
        nodules.append(Nodule(float(chest.x[place]), float(chest.y[place]), radius))
        free &= np.hypot(chest.x - nodules[-1].x, chest.y - nodules[-1].y) > radius * 1.3
    return nodules
