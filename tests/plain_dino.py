"""DINO's forward pass in evaluation, written down from its papers (arXiv 2203.03605, 2010.04159),
for comparison. Reads the original's names as Foundation X has them. One image, no padding.

Shape letters: T tokens of all levels, Q queries, D width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
HEADS, POINTS = 8, 4


class PlainDino:
    """One dataset's detector.

    Args:
        number: of the dataset.
        plus: one decoder for all datasets (X+); else a decoder each (X).
        groups: of the input layers' GroupNorm.
    """

    def __init__(self, state: State, number: int, plus: bool, groups: int) -> None:
        self.state, self.groups = state, groups
        own, part = "" if plus else f".{number}", f".{number}"
        self.decoder, self.memory = f"transformer.decoder{own}", f"transformer.enc_output{own}"
        self.memory_norm = f"transformer.enc_output_norm{own}"
        self.content = state[f"transformer.tgt_embed{part}.weight"]
        self.proposal = {k: f"transformer.enc_out_{k}_embed{part}" for k in ("bbox", "class")}
        outputs = "transformer.decoder.{}_embed" if plus else "{}_embed_"
        self.outputs = {k: outputs.format(k) + part for k in ("bbox", "class")}

    def __call__(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Three maps (1, C, h, w) -> class logits (Q, C), boxes (Q, 4) cxcywh in 0..1."""
        levels = self._levels(maps)
        sizes = [(level.shape[-2], level.shape[-1]) for level in levels]
        tokens = torch.cat([level[0].flatten(1).T for level in levels])
        places = torch.cat(
            [_sine(h, w, tokens.shape[1]) + self.state["transformer.level_embed"][n]
             for n, (h, w) in enumerate(sizes)]
        )  # fmt: skip
        centres = torch.cat([_centres(h, w) for h, w in sizes])
        n = 0
        while f"transformer.encoder.layers.{n}.linear1.weight" in self.state:
            name = f"transformer.encoder.layers.{n}"
            seen = self._look(f"{name}.self_attn", tokens + places, centres, tokens, sizes)
            tokens = self._norm(tokens + seen, f"{name}.norm1")
            tokens = self._norm(tokens + self._feed(tokens, name), f"{name}.norm2")
            n += 1
        return self._decode(tokens, self._propose(tokens, centres, sizes), sizes)

    def _levels(self, maps: list[Tensor]) -> list[Tensor]:
        normed = []
        for n, level in enumerate(maps):
            channels_last = self._norm(level.movedim(1, -1), f"backbone.0.Locnorm{n + 1}")
            normed.append(channels_last.movedim(-1, 1))
        found = []
        for n, x in enumerate([*normed, normed[-1]]):
            weight, bias = (self.state[f"input_proj.{n}.0.{p}"] for p in ("weight", "bias"))
            x = F.conv2d(x, weight, bias, stride=1 if n < 3 else 2, padding=0 if n < 3 else 1)
            scale, shift = (self.state[f"input_proj.{n}.1.{p}"] for p in ("weight", "bias"))
            found.append(F.group_norm(x, self.groups, scale, shift))
        return found

    def _propose(self, tokens: Tensor, centres: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
        """(Q, 4) boxes before the sigmoid."""
        sides = torch.cat([torch.full((h * w, 2), 0.05 * 2.0**n) for n, (h, w) in enumerate(sizes)])
        start = torch.cat([centres, sides], dim=1)
        inside = ((start > 0.01) & (start < 0.99)).all(dim=1, keepdim=True)
        start = torch.log(start / (1 - start)).masked_fill(~inside, math.inf)
        memory = self._linear(tokens.masked_fill(~inside, 0.0), self.memory)
        memory = self._norm(memory, self.memory_norm)
        scores = self._linear(memory, self.proposal["class"]).max(dim=1).values
        boxes = self._boxes(memory, self.proposal["bbox"]) + start
        return boxes[scores.topk(len(self.content)).indices]

    def _decode(
        self, tokens: Tensor, boxes: Tensor, sizes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        x, where, layer = self.content, boxes.sigmoid(), 0
        while f"{self.decoder}.layers.{layer}.linear1.weight" in self.state:
            name = f"{self.decoder}.layers.{layer}"
            head = f"{self.decoder}.ref_point_head.layers"
            place = self._linear(self._linear(_box_sine(where), f"{head}.0").relu(), f"{head}.1")
            x = self._norm(x + self._self_attention(x, place, f"{name}.self_attn"), f"{name}.norm2")
            seen = self._look(f"{name}.cross_attn", x + place, where, tokens, sizes)
            x = self._norm(x + seen, f"{name}.norm1")
            x = self._norm(x + self._feed(x, name), f"{name}.norm3")
            before = where
            where = (self._boxes(x, f"{self.outputs['bbox']}.{layer}") + _logit(before)).sigmoid()
            layer += 1
        last = self._norm(x, f"{self.decoder}.norm")
        layer -= 1
        final = self._boxes(last, f"{self.outputs['bbox']}.{layer}") + _logit(before)
        return self._linear(last, f"{self.outputs['class']}.{layer}"), final.sigmoid()

    def _self_attention(self, x: Tensor, place: Tensor, name: str) -> Tensor:
        weights = self.state[f"{name}.in_proj_weight"].chunk(3)
        biases = self.state[f"{name}.in_proj_bias"].chunk(3)
        q, k, v = (
            F.linear(a, w, b).reshape(len(x), HEADS, -1).transpose(0, 1)
            for a, w, b in zip((x + place, x + place, x), weights, biases, strict=True)
        )
        mixed = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v
        return self._linear(mixed.transpose(0, 1).flatten(1), f"{name}.out_proj")

    def _look(
        self, name: str, query: Tensor, where: Tensor, tokens: Tensor, sizes: list[tuple[int, int]]
    ) -> Tensor:
        """Deformable attention. where: (N, 2) points or (N, 4) boxes, cxcywh in 0..1."""
        count, levels = len(query), len(sizes)
        values = self._linear(tokens, f"{name}.value_proj").reshape(len(tokens), HEADS, -1)
        offsets = self._linear(query, f"{name}.sampling_offsets")
        offsets = offsets.reshape(count, HEADS, levels, POINTS, 2)
        weights = self._linear(query, f"{name}.attention_weights").reshape(count, HEADS, -1)
        weights = weights.softmax(-1).reshape(count, HEADS, levels, POINTS)
        total, begin = torch.zeros(count, HEADS, values.shape[-1]), 0
        for n, (h, w) in enumerate(sizes):
            grid = values[begin : begin + h * w].permute(1, 2, 0).reshape(HEADS, -1, h, w)
            begin += h * w
            if where.shape[1] == 2:
                moved = offsets[:, :, n] / torch.tensor([w, h])
            else:
                moved = offsets[:, :, n] / POINTS * where[:, None, None, 2:] * 0.5
            points = where[:, None, None, :2] + moved
            found = F.grid_sample(grid, 2 * points.transpose(0, 1) - 1, align_corners=False)
            total += torch.einsum("hdqp,qhp->qhd", found, weights[:, :, n])
        return self._linear(total.flatten(1), f"{name}.output_proj")

    def _boxes(self, x: Tensor, name: str) -> Tensor:
        x = self._linear(self._linear(x, f"{name}.layers.0").relu(), f"{name}.layers.1").relu()
        return self._linear(x, f"{name}.layers.2")

    def _feed(self, x: Tensor, name: str) -> Tensor:
        return self._linear(self._linear(x, f"{name}.linear1").relu(), f"{name}.linear2")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return F.layer_norm(x, x.shape[-1:], weight, bias, 1e-5)


def _centres(h: int, w: int) -> Tensor:
    """(h * w, 2) x, y in 0..1."""
    y, x = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def _sine(h: int, w: int, width: int) -> Tensor:
    """(h * w, width): half of y, half of x, at temperature 20."""
    y, x = torch.meshgrid(torch.arange(1, h + 1) / h, torch.arange(1, w + 1) / w, indexing="ij")
    halves = [_waves(2 * math.pi * a.flatten(), width // 2, 20) for a in (y, x)]
    return torch.cat(halves, dim=1)


def _box_sine(boxes: Tensor) -> Tensor:
    """(Q, 4) -> (Q, 512): y, x, w, h."""
    return torch.cat([_waves(2 * math.pi * boxes[:, n], 128, 10000) for n in (1, 0, 2, 3)], dim=1)


def _waves(angles: Tensor, count: int, temperature: float) -> Tensor:
    pairs = torch.arange(count // 2)
    scaled = angles[:, None] / temperature ** (2 * pairs / count)
    return torch.stack([scaled.sin(), scaled.cos()], dim=2).flatten(1)


def _logit(p: Tensor) -> Tensor:
    p = p.clamp(0, 1)
    return torch.log(p.clamp(min=1e-3) / (1 - p).clamp(min=1e-3))
