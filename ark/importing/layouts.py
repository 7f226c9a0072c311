"""How libraries name an encoder's tensors, found by looking at the names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

CLASSIFIER = "the classifier of another data set"
RECOMPUTED = "computed anew from the window and the image size"
PRETEXT = "of the pretext task, no part of the encoder"


@dataclass(frozen=True)
class Layout:
    """
    Args:
        sign: a key that only this layout has, as a pattern.
        rules: (whole key, its name in timm) as patterns; the first that fits counts.
        drops: (whole key, why it is left out).
    """

    name: str
    sign: str
    rules: tuple[tuple[str, str], ...] = ()
    drops: tuple[tuple[str, str], ...] = ()


_SWIN_BUFFERS = (r".*\.(attn_mask|relative_position_index)", RECOMPUTED)
_HEAD = (r"head\.(weight|bias|fc\..*)", CLASSIFIER)
LAYOUTS = (
    Layout("swin", r"layers\.0\.blocks\.0\..*", (), (_SWIN_BUFFERS, _HEAD)),
    Layout("convnext", r"stages\.0\.blocks\.0\.conv_dw\.weight", (), (_HEAD,)),
    Layout(
        "vit",  # timm, and the original DINO, DINOv2 and MAE
        r"blocks\.0\.attn\.qkv\.weight",
        (),
        (_HEAD, (r"decoder_.*|mask_token", PRETEXT)),
    ),
    Layout("resnet", r"layer1\.0\.conv1\.weight", (), ((r"fc\..*", CLASSIFIER),)),
    Layout(
        "torchvision swin",
        r"features\.1\.0\.attn\.qkv\.weight",
        (
            (r"features\.0\.0\.(.*)", r"patch_embed.proj.\1"),
            (r"features\.0\.2\.(.*)", r"patch_embed.norm.\1"),
            (r"(features\.\d+\.\d+\.mlp)\.0\.(.*)", r"\1.fc1.\2"),
            (r"(features\.\d+\.\d+\.mlp)\.3\.(.*)", r"\1.fc2.\2"),
        ),
        (_SWIN_BUFFERS, _HEAD),
    ),
    Layout(
        "torchvision convnext",
        r"features\.1\.0\.block\.0\.weight",
        (
            (r"features\.0\.(.*)", r"stem.\1"),
            (r"(features\.\d+\.\d+)\.layer_scale", r"\1.gamma"),
            (r"(features\.\d+\.\d+)\.block\.0\.(.*)", r"\1.conv_dw.\2"),
            (r"(features\.\d+\.\d+)\.block\.2\.(.*)", r"\1.norm.\2"),
            (r"(features\.\d+\.\d+)\.block\.3\.(.*)", r"\1.mlp.fc1.\2"),
            (r"(features\.\d+\.\d+)\.block\.5\.(.*)", r"\1.mlp.fc2.\2"),
            (r"classifier\.0\.(.*)", r"head.norm.\1"),
        ),
        ((r"classifier\.2\..*", CLASSIFIER),),
    ),
    Layout(
        "torchvision vit",
        r"conv_proj\.weight",
        (
            (r"class_token", "cls_token"),
            (r"conv_proj\.(.*)", r"patch_embed.proj.\1"),
            (r"encoder\.pos_embedding", "pos_embed"),
            (r"encoder\.ln\.(.*)", r"norm.\1"),
            (r"encoder\.layers\.encoder_layer_(\d+)\.ln_(\d)\.(.*)", r"blocks.\1.norm\2.\3"),
            (
                r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_(.*)",
                r"blocks.\1.attn.qkv.\2",
            ),
            (
                r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.(.*)",
                r"blocks.\1.attn.proj.\2",
            ),
            # older files say linear_1 and linear_2
            (
                r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.(.*)",
                r"blocks.\1.mlp.fc1.\2",
            ),
            (
                r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.(.*)",
                r"blocks.\1.mlp.fc2.\2",
            ),
        ),
        ((r"heads\..*", CLASSIFIER),),
    ),
    Layout(
        "transformers dinov2",  # RAD-DINO is one
        r"encoder\.layer\.0\.layer_scale1\.lambda1",
        (
            (r"embeddings\.cls_token", "cls_token"),
            (r"embeddings\.position_embeddings", "pos_embed"),
            (r"embeddings\.patch_embeddings\.projection\.(.*)", r"patch_embed.proj.\1"),
            (r"encoder\.layer\.(\d+)\.attention\.attention\.(.*)", r"blocks.\1.attn.\2"),
            (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(.*)", r"blocks.\1.attn.proj.\2"),
            (r"encoder\.layer\.(\d+)\.layer_scale(\d)\.lambda1", r"blocks.\1.ls\2.gamma"),
            (r"encoder\.layer\.(\d+)\.(norm\d|mlp)\.(.*)", r"blocks.\1.\2.\3"),
            (r"layernorm\.(.*)", r"norm.\1"),
        ),
        ((r"embeddings\.mask_token", PRETEXT), (r"(classifier|pooler)\..*", CLASSIFIER)),
    ),
)


def layout_of(state: Iterable[str]) -> Layout | None:
    """None: none that is known here, so it must be timm's own."""
    names = list(state)
    return next((x for x in LAYOUTS if any(re.fullmatch(x.sign, n) for n in names)), None)


def renamed(layout: Layout, name: str) -> str:
    for pattern, target in layout.rules:
        if re.fullmatch(pattern, name):
            name = re.sub(pattern, target, name)
            break
    if layout.name.startswith("torchvision") and (m := re.match(r"features\.(\d+)\.(.*)", name)):
        return _stage(layout.name, int(m[1]), m[2])
    return name


def _stage(layout: str, number: int, rest: str) -> str:
    """torchvision counts stages and what is between them: 1, 3, 5, 7 and 2, 4, 6."""
    stages = "layers" if layout.endswith("swin") else "stages"
    if number % 2:
        return f"{stages}.{number // 2}.blocks.{rest}"
    return f"{stages}.{number // 2}.downsample.{rest}"


def why_dropped(layout: Layout, name: str) -> str | None:
    return next((why for pattern, why in layout.drops if re.fullmatch(pattern, name)), None)
