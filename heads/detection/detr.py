"""Deformable DETR and DINO: mmdet's encoder, decoder and box head, with proposals that a teacher
can share with its student.

Shape letters: see `ark.types`; T tokens of the encoder, Q queries (of a loss: the noisy ones
first), D decoder layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ark.head import Comparable

from .annotated_classes import silence
from .families import Family, Maps, Scene


@dataclass
class Proposals:
    """What the encoder proposes to look at."""

    chosen: Tensor  # (B, Q) int64 indices of tokens
    scores: Tensor  # (B, T, C) class logits of all tokens
    boxes: Tensor  # (B, T, 4) cxcywh before the sigmoid


@dataclass
class DetrRaw:
    """What `Deformable.forward` computed."""

    scores: Tensor  # (D, B, Q, C) class logits
    boxes: Tensor  # (D, B, Q, 4) cxcywh in 0..1
    states: Tensor  # (D, B, Q, width): the decoder's, of matching queries only
    tokens: Tensor  # (B, Q or T, width): the encoder's, at the proposals where there are any
    proposals: Proposals | None
    noise: dict[str, int] | None = None  # mmdet's dn_meta

    @property
    def noisy(self) -> int:
        return self.noise["num_denoising_queries"] if self.noise else 0


class Deformable(Family):
    """Deformable DETR. Its proposals only tell boxes from no boxes: they learn from every image
    of which some class is known."""

    compared = ("decoder", "tokens")

    def forward(self, detector: Any, maps: Maps, scene: Scene, like: Any | None) -> DetrRaw:
        to_encoder, to_decoder = detector.pre_transformer(maps, scene.samples)
        encoded = detector.forward_encoder(**to_encoder)
        memory, proposals = encoded["memory"], None
        if detector.as_two_stage:
            proposals = self._propose(detector, encoded, like.proposals.chosen if like else None)
            queries, noise = self._queries(detector, proposals, scene)
            queries["memory"] = memory
            memory = _at(memory, proposals.chosen)
        else:
            queries, noise = detector.pre_decoder(**encoded)[0], None
        decoded = detector.forward_decoder(**to_decoder, **queries)
        scores, boxes = detector.bbox_head(decoded["hidden_states"], decoded["references"])
        raw = DetrRaw(scores.float(), boxes.float(), decoded["hidden_states"], memory, proposals)
        raw.noise = noise
        raw.states = raw.states[:, :, raw.noisy :]
        return raw

    def loss(self, detector: Any, raw: DetrRaw, scene: Scene) -> dict[str, Any]:
        scores, boxes = None, None
        if raw.proposals is not None:
            scores, boxes = raw.proposals.scores.float(), raw.proposals.boxes.float().sigmoid()
            if scene.unknown is not None:
                scores = silence(scores, scene.unknown.all(dim=1, keepdim=True) & scene.unknown)
        return detector.bbox_head.loss_by_feat(
            silence(raw.scores, scene.unknown), raw.boxes, scores, boxes, scene.truth, scene.metas
        )

    def predict(self, detector: Any, raw: DetrRaw, scene: Scene) -> list[Any]:
        return detector.bbox_head.predict_by_feat(
            _matching(raw),
            raw.boxes[:, :, raw.noisy :],
            batch_img_metas=scene.metas,
            rescale=False,
        )

    def comparable(self, detector: Any) -> dict[str, Comparable]:
        """Half the decoder's hidden states, half the encoder's tokens (spec foundation_x.md,
        Teacher, L), as (B, width, D, Q) and (B, width, Q or T); "logits": (B, C, D, Q)."""
        return {
            "decoder": lambda _, output: output.raw.states.permute(1, 3, 0, 2),
            "tokens": lambda _, output: output.raw.tokens.transpose(1, 2),
            "logits": lambda _, output: _matching(output.raw).permute(1, 3, 0, 2),
        }

    def _propose(self, detector: Any, encoded: dict[str, Any], chosen: Tensor | None) -> Proposals:
        """Every token proposes a box; the best of them, or those `chosen`, become queries."""
        tokens, places = detector.gen_encoder_output_proposals(
            encoded["memory"], encoded["memory_mask"], encoded["spatial_shapes"]
        )
        last = detector.decoder.num_layers
        scores = detector.bbox_head.cls_branches[last](tokens)
        boxes = detector.bbox_head.reg_branches[last](tokens) + places
        if chosen is None:
            chosen = self._rank(scores).topk(detector.num_queries, dim=1).indices
        return Proposals(chosen, scores, boxes)

    def _rank(self, scores: Tensor) -> Tensor:
        return scores[..., 0]  # the one class that proposals are taught

    def _queries(
        self, detector: Any, proposals: Proposals, scene: Scene
    ) -> tuple[dict[str, Any], dict[str, int] | None]:
        places = _at(proposals.boxes, proposals.chosen).detach()
        embedded = detector.pos_trans_fc(detector.get_proposal_pos_embed(places))
        position, content = detector.pos_trans_norm(embedded).chunk(2, dim=2)
        query = {"query": content, "query_pos": position, "reference_points": places.sigmoid()}
        return query, None


class Dino(Deformable):
    """DINO: proposals know classes; in training noisy boxes of the truth are queries too."""

    def loss(self, detector: Any, raw: DetrRaw, scene: Scene) -> dict[str, Any]:
        if raw.noise is None or raw.proposals is None:
            raise RuntimeError("the losses of an output that forward made without its target")
        chosen = raw.proposals.chosen
        return detector.bbox_head.loss_by_feat(
            silence(raw.scores, scene.unknown),
            raw.boxes,
            silence(_at(raw.proposals.scores, chosen).float(), scene.unknown),
            _at(raw.proposals.boxes, chosen).float().sigmoid(),
            scene.truth,
            scene.metas,
            dn_meta=raw.noise,
        )

    def _rank(self, scores: Tensor) -> Tensor:
        return scores.max(dim=-1).values

    def _queries(
        self, detector: Any, proposals: Proposals, scene: Scene
    ) -> tuple[dict[str, Any], dict[str, int] | None]:
        places = _at(proposals.boxes, proposals.chosen).detach()
        content = detector.query_embedding.weight.expand(len(places), -1, -1)
        mask, noise = None, None
        if scene.taught:
            noisy_content, noisy_places, mask, noise = detector.dn_query_generator(scene.samples)
            content = torch.cat([noisy_content, content], dim=1)
            places = torch.cat([noisy_places, places], dim=1)
        query = {"query": content, "reference_points": places.sigmoid(), "dn_mask": mask}
        return query, noise


def _matching(raw: DetrRaw) -> Tensor:
    """Class logits without those of the noisy queries."""
    return raw.scores[:, :, raw.noisy :]


def _at(tokens: Tensor, chosen: Tensor) -> Tensor:
    """(B, T, F) at (B, Q) -> (B, Q, F)."""
    return tokens.gather(1, chosen[..., None].expand(-1, -1, tokens.shape[-1]))
