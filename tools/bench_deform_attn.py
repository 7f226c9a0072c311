"""Multi-scale deformable attention without mmcv's compiled operator: plain or compiled by torch.

    python tools/bench_deform_attn.py [--device cuda] [--image 224] [--batch 24] [--width 256]

One layer of DINO's encoder, whose queries are its tokens, and one of its decoder, forward and
backward, in milliseconds:

- mmcv: the plain form as mmcv calls it. It reads the maps' sizes from the device, so on a GPU
  every layer waits for all before it.
- plain: the same with the sizes as numbers.
- torch.compile: plain, compiled; "first" is what the first call costs.
- operator: mmcv's compiled one, where it is installed and the device is a GPU.

"differs" is the largest difference to mmcv's values and gradients.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from tabulate import tabulate
from torch import Tensor
from torch.utils.benchmark import Timer

from heads.detection.mmdet_adapter import mmdet_models

STRIDES = (8, 16, 32, 64)
Attention = Callable[["Case"], Tensor]


@dataclass
class Case:
    """One call; T tokens, Q queries, h heads, L levels, p points."""

    name: str
    value: Tensor  # (B, T, h, width / h)
    sizes: list[tuple[int, int]]  # (H, W) of each level
    shapes: Tensor  # (L, 2): the same on the device
    starts: Tensor  # (L,): the level's first token
    places: Tensor  # (B, Q, h, L, p, 2) in 0..1
    weights: Tensor  # (B, Q, h, L, p)

    def inputs(self) -> list[Tensor]:
        return [self.value, self.places, self.weights]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--image", type=int, default=224, help="pixels of a side")
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--points", type=int, default=4)
    parser.add_argument("--queries", type=int, default=1100, help="of the decoder, noisy ones too")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each number")
    args = parser.parse_args()
    torch.manual_seed(0)
    rows = [row for case in cases(args) for row in compare(case, args.device, args.seconds)]
    columns = ["layer", "form", "ms", "mmcv = 1", "first, s", "differs"]
    print(f"{args.device}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(tabulate(rows, columns, floatfmt=("", "", ".2f", ".2f", ".1f", ".0e")))


def cases(args: argparse.Namespace) -> Iterator[Case]:
    sizes = [(-(-args.image // stride),) * 2 for stride in STRIDES]
    shapes = torch.tensor(sizes, device=args.device)
    counts = shapes.prod(1)
    tokens = int(counts.sum())
    for name, queries in (("encoder", tokens), ("decoder", args.queries)):
        samples = (args.batch, queries, args.heads, len(sizes), args.points)
        make = {"device": args.device, "requires_grad": True}
        weights = torch.rand(samples, device=args.device).flatten(3).softmax(-1).view(samples)
        yield Case(
            name=f"{name}, {queries} queries",
            value=torch.randn(args.batch, tokens, args.heads, args.width // args.heads, **make),
            sizes=sizes,
            shapes=shapes,
            starts=counts.cumsum(0) - counts,
            places=torch.rand(*samples, 2, **make),
            weights=weights.detach().requires_grad_(),
        )


def compare(case: Case, device: str, seconds: float) -> Iterator[list[object]]:
    expected, base = None, None
    for name, attend in forms(device).items():
        start = time.perf_counter()
        found = results(attend, case)
        first = time.perf_counter() - start
        timer = Timer(
            "results(attend, case)", globals={**globals(), "attend": attend, "case": case}
        )
        milliseconds = timer.blocked_autorange(min_run_time=seconds).median * 1e3
        expected, base = expected or found, base or milliseconds
        differs = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
        yield [case.name, name, milliseconds, milliseconds / base, first, differs]


def results(attend: Attention, case: Case) -> list[Tensor]:
    """The output and its gradients."""
    output = attend(case)
    return [output.detach(), *torch.autograd.grad(output.square().sum(), case.inputs())]


def forms(device: str) -> dict[str, Attention]:
    mmdet_models()
    from mmcv.ops import multi_scale_deform_attn as mmcv_ops

    plain = mmcv_ops.multi_scale_deformable_attn_pytorch
    compiled = torch.compile(plain, dynamic=False)
    found: dict[str, Attention] = {
        "mmcv": lambda case: plain(case.value, case.shapes, case.places, case.weights),
        "plain": lambda case: plain(case.value, case.sizes, case.places, case.weights),
        "torch.compile": lambda case: compiled(case.value, case.sizes, case.places, case.weights),
    }
    if device.startswith("cuda") and mmcv_ops.IS_CUDA_AVAILABLE:
        apply = mmcv_ops.MultiScaleDeformableAttnFunction.apply
        found["operator"] = lambda case: apply(
            case.value, case.shapes, case.starts, case.places, case.weights, 64
        )
    return found


if __name__ == "__main__":
    main()
