"""Before a new run: heads that want it take their first weights from data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch

from ark.head import Head
from ark.module import ArkModule
from ark.types import Batch, Features, Target

Samples = Callable[[str, int], Iterable[Batch]]  # (task key, count) -> about so many, for training


def start_heads(module: ArkModule, samples: Samples) -> None:
    """Calls `Head.start` where a head has `start_samples`; then the teacher is the student again.

    What a head took from another run's weights (`ark.growing`) stays: its new classes start here.

    Every rank does the same with the same samples: nothing needs to be sent.
    """
    heads, growth = module.network.heads_by_key(), module.growth
    wanting = {k: h for k, h in heads.items() if h.start_samples and not growth.whole(k)}
    module.eval()
    for key, head in wanting.items():
        # Lightning scores in inference mode, whose tensors could never be trained
        with torch.inference_mode(False), torch.no_grad():
            head.start(_seen(module, head, samples(key, head.start_samples)))
            growth.restore(key, head)
    if wanting:
        module.teacher.update(module.network, 0.0)


def _seen(
    module: ArkModule, head: Head, batches: Iterable[Batch]
) -> Iterator[tuple[Features, Target]]:
    for batch in batches:
        if batch.keys:  # else all of its samples were skipped
            batch = batch.to(module.device)
            yield module.network.features(batch.images, head.reads), batch.target
