"""A run on several ranks that is struck again and again, at any moment, by anything that can."""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from commands import ark_in_a_child, write_recipe
from pytorch_lightning.callbacks import Callback
from safetensors.torch import load_file
from tracing import Samples, traced

from ark.stopping import INTERRUPTED

# imports once and forks for each rank
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["ark.cli", "heads.classification", "heads.segmentation", "commands"]
)
GRACE = 30.0  # seconds between a launcher's SIGTERM and its SIGKILL: torchrun's and SLURM's
OUTLIVES = 10.0  # seconds; torch's workers look every 5 s whether their trainer is there
LONGEST = 600.0  # seconds of a session; more is a hang
RUN = "run"
Kind = tuple[signal.Signals, str]
KINDS: list[Kind] = [  # a worker dies of SIGKILL alone: what is meant for the trainer it survives
    (signal.SIGKILL, "worker"),
    *(
        (number, whom)
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
        for whom in ("one", "all")
    ),
]


@dataclass
class Strike:
    """What happens to a session.

    Args:
        delay: seconds that the first rank computes before it: what else the machine does makes no
            difference.
        number: the signal.
        whom: "one" rank, "all" of them, or a "worker" of a loader.
    """

    delay: float
    number: signal.Signals
    whom: str


@dataclass
class Outcome:
    """Of a session.

    Args:
        codes: the ranks' exit codes.
        first: seconds that the first rank computed before its first batch; None if there was none.
        computed: seconds in all.
        seconds: from the start to the end of the last rank.
        struck: seconds from the start to the strike; None if the session ended before.
        doing: what the first rank did when the strike came.
        step: the step that was reached then, -1 before the first.
        end: seconds from the strike to the end of the last process, workers too.
        forced: ranks that the launcher had to kill.
        steps: what was trained on.
    """

    codes: list[int | None]
    first: float | None = None
    computed: float = 0.0
    seconds: float = 0.0
    struck: float | None = None
    doing: str = ""
    step: int = -1
    end: float = 0.0
    forced: int = 0
    steps: dict[int, Samples] = field(default_factory=dict)


class Doing(Callback):
    """Says what the first rank does, as far as a strike can tell it apart.

    Args:
        file: holds the one word that is true.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def _say(self, trainer: pl.Trainer, word: str) -> None:
        if trainer.is_global_zero:
            self.file.write_text(word)

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._say(trainer, "train")

    def on_validation_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._say(trainer, "validate")

    def on_save_checkpoint(self, trainer: pl.Trainer, *_: Any) -> None:
        self._say(trainer, "save")

    def on_test_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._say(trainer, "score")

    def on_test_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._say(trainer, "report")


def recipe_of(folder: Path, cycles: int) -> Path:
    """9 steps a cycle: classes and masks, locks, BatchNorm, drop-path, workers."""
    folder.mkdir(parents=True, exist_ok=True)
    return write_recipe(
        folder,
        cycle={"cycles": cycles, "each": [{"lock": ["backbone"], "steps": 1}, {"steps": 2}]},
        data={
            "image_size": 32,
            "batch_size": 4,
            "workers": 1,
            "only": ["tiny_findings/findings", "tiny_organs/organs", "tiny_organs/diagnosis"],
        },
        model={"backbone": {"name": "test_efficientnet", "args": {"drop_path_rate": 0.2}}},
        run={
            "root": str(folder),
            "name": RUN,
            "wandb": "off",
            "pictures": 1,
            "baseline": False,
            "bootstraps": 20,
            "checkpoint_every": 2,
        },
    )


def session(recipe: Path, trace: Path, ranks: int, strike: Strike | None = None) -> Outcome:
    """`ark fit --ckpt_path=auto` as a launcher of `ranks` processes runs it: when one fails the
    others are told to end, and killed after GRACE.

    Args:
        trace: an empty folder for what the ranks trained on and said.

    Raises:
        TimeoutError: it hangs.
    """
    trace.mkdir(parents=True)
    started = start(recipe, trace, ranks)
    outcome, began = Outcome([]), time.monotonic()
    children: set[int] = set()
    failed: float | None = None
    while any(process.is_alive() for process in started):
        now = time.monotonic()
        if now - began > LONGEST:
            raise TimeoutError(f"{trace}: ranks hang: {[p.is_alive() for p in started]}")
        children |= {child for process in started for child in _children(process)}
        outcome.computed = max(outcome.computed, _computed(started[0]))
        if outcome.first is None and (trace / "rank0.jsonl").is_file():
            outcome.first = outcome.computed
        due = strike is not None and outcome.struck is None and outcome.computed >= strike.delay
        if strike is not None and due and _strike(strike, started, doing := _doing(trace)):
            outcome.struck, outcome.step = now - began, max([-1, *traced(trace)])
            outcome.doing = doing
        if any(process.exitcode for process in started):
            failed = failed or now
            outcome.forced += _end(started, first=failed == now, force=now - failed > GRACE)
        time.sleep(0.01)
    outcome.seconds = time.monotonic() - began
    _wait_for(children)
    if outcome.struck is not None:
        outcome.end = time.monotonic() - began - outcome.struck
    outcome.codes = [process.exitcode for process in started]
    outcome.steps = traced(trace)
    return outcome


def _computed(process: BaseProcess) -> float:
    """Seconds on any processor, up to now."""
    with suppress(OSError):
        numbers = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _doing(trace: Path) -> str:
    file = trace / "doing"
    return (file.read_text() or "train") if file.is_file() else "start"


def start(recipe: Path, trace: Path, ranks: int, *more: Any) -> list[BaseProcess]:
    """The ranks of `ark fit --ckpt_path=auto`, without a launcher that looks after them.

    Args:
        trace: an existing folder for what they trained on and said.
        more: callbacks as {class_path, init_args}, and further arguments.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    callbacks = [
        {"class_path": "tracing.Trace", "init_args": {"folder": str(trace)}},
        {"class_path": "chaos.Doing", "init_args": {"file": str(trace / "doing")}},
        *(callback for callback in more if isinstance(callback, dict)),
    ]
    args = ["fit", "--config", str(recipe), "--ckpt_path=auto", f"--trainer.devices={ranks}"]
    args.append(f"--trainer.callbacks={json.dumps(callbacks)}")
    args += [argument for argument in more if isinstance(argument, str)]
    started = []
    for rank in range(ranks):
        environment = {  # what torchrun tells the ranks of one host
            "RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": ranks,
            "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            "TORCHELASTIC_RUN_ID": "chaos",
        }  # fmt: skip
        said = trace / f"rank{rank}.log"
        process = CONTEXT.Process(target=_rank, args=(environment, said, args))
        process.start()
        started.append(process)
    return started


def _rank(environment: dict[str, object], said: Path, args: list[str]) -> None:
    os.environ.update({name: str(value) for name, value in environment.items()})
    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    faulthandler.register(signal.SIGUSR2)  # where it was when the launcher lost its patience
    ark_in_a_child(*args)


def _strike(strike: Strike, started: list[BaseProcess], doing: str) -> bool:
    """Whether there was anything to strike."""
    if strike.whom == "worker" and doing == "start":
        return False  # those that read a first batch for the heads have done so already
    alive = [process.pid for process in started if process.is_alive()]
    victims = alive if strike.whom == "all" else alive[-1:]
    if strike.whom == "worker":
        victims = [child for process in started for child in _children(process)][-1:]
    for pid in victims:
        with suppress(ProcessLookupError):
            os.kill(pid, strike.number)  # type: ignore[arg-type]
    return bool(victims)


def _children(process: BaseProcess) -> list[int]:
    """The loaders' workers that live: forks of a rank that run nothing else, such as git."""
    mine, found = _command(process.pid), []
    with suppress(OSError):
        for path in Path(f"/proc/{process.pid}/task").glob("*/children"):
            found += [int(child) for child in path.read_text().split()]
    return [child for child in found if mine and _command(child) == mine]


def _command(pid: int | None) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _end(started: list[BaseProcess], first: bool, force: bool) -> int:
    alive = [process for process in started if process.is_alive()]
    for process in alive:
        if force:
            os.kill(process.pid, signal.SIGUSR2)  # type: ignore[arg-type]
            time.sleep(0.5)
            process.kill()
        elif first:
            process.terminate()
    return len(alive) if force else 0


def _wait_for(children: set[int]) -> None:
    """Nobody may outlive the ranks for long.

    Raises:
        TimeoutError: somebody does.
    """
    end = time.monotonic() + OUTLIVES
    while left := [pid for pid in children if Path(f"/proc/{pid}").exists() and not _zombie(pid)]:
        if time.monotonic() > end:
            raise TimeoutError(f"workers outlive their trainer: {left}")
        time.sleep(0.05)


def _zombie(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def run_through(
    recipe: Path, traces: Path, ranks: int, kinds: Sequence[Kind], delay: Callable[[], float]
) -> Iterator[tuple[Strike | None, Outcome]]:
    """Sessions, one of each of `kinds` struck and the last one not. One that ends before its strike
    does not count: the run is finished, and the next session reports again.

    Args:
        delay: draws when a strike comes.
    """
    number = 0
    for kind in [*kinds, None]:
        outcome = None
        while outcome is None or (kind is not None and outcome.struck is None):
            strike = Strike(delay(), *kind) if kind else None
            outcome = session(recipe, traces / str(number), ranks, strike)
            number += 1
            yield strike, outcome


def differences(whole: Path, struck: Path) -> list[str]:
    """What two runs that ought to be equal differ in."""
    found = []
    for who in ("student", "teacher"):
        one, other = (load_file(run / "model" / f"{who}.safetensors") for run in (whole, struck))
        found += [f"{who}: {n}" for n, value in one.items() if not torch.equal(value, other[n])]
    for name in ("results.json", "intervals.json"):
        one, other = (json.loads((run / name).read_text()) for run in (whole, struck))
        found += [name] * (one != other)
    one, other = (_last_lines(run / "ledger.csv") for run in (whole, struck))
    found += ["the ledger's last lines"] * (not one.equals(other))
    found += [f"left behind: {path}" for path in struck.rglob("*.tmp")]
    return found


def _last_lines(ledger: Path) -> pd.DataFrame:
    lines = pd.read_csv(ledger)
    last = lines[lines["step"] == lines["step"].max()]
    return last.drop_duplicates().reset_index(drop=True)  # a finished run may have gone on


def kinds_of(count: int, draw: random.Random) -> list[Kind]:
    """Every kind as often as any other, in a random order."""
    rounds = (draw.sample(KINDS, len(KINDS)) for _ in range(count // len(KINDS) + 1))
    return list(chain.from_iterable(rounds))[:count]


TITLES = [
    "strike", "after s", "while it", "in step", "steps", "exit codes", "ended after s",
]  # fmt: skip


def describe(strike: Strike | None, outcome: Outcome) -> list[object]:
    """A row of a table."""
    steps = sorted(outcome.steps)
    span = f"{steps[0]}-{steps[-1]}" if steps else "-"
    codes = " ".join(map(str, outcome.codes))
    if strike is None or outcome.struck is None:
        return ["nothing", "-", "-", "-", span, codes, f"{outcome.seconds:.1f} (all)"]
    what = f"{strike.number.name} to {strike.whom}"
    step = outcome.step if outcome.step >= 0 else "-"
    return [
        what, f"{outcome.struck:.1f}", outcome.doing, step, span, codes, f"{outcome.end:.1f}"
    ]  # fmt: skip


def misbehaves(strike: Strike | None, outcome: Outcome) -> list[str]:
    """What a session did that it must not do."""
    said = [f"the launcher had to kill {outcome.forced} ranks"] * bool(outcome.forced)
    if strike is None or outcome.struck is None:
        return said + [f"ended with {outcome.codes} by itself"] * any(outcome.codes)
    # before it listens a signal has its usual effect; at the end it may come too late to matter
    heard = outcome.doing in ("train", "validate", "save")
    asked = strike.number != signal.SIGKILL and heard
    if asked and outcome.codes != [INTERRUPTED] * len(outcome.codes):
        said.append(f"{strike.number.name} while it was to {outcome.doing}: {outcome.codes}")
    return said


def compare_samples(expected: dict[int, Samples], outcome: Outcome) -> list[str]:
    """Steps that a session trained on other samples than the whole run."""
    wrong = [step for step, samples in outcome.steps.items() if samples != expected[step]]
    # the last steps of a rank that died may lack its part
    tail = max([-1, *outcome.steps])
    return [f"step {step} saw other samples" for step in wrong if step < tail]


def compare(
    folder: Path,
    ranks: int,
    cycles: int,
    kills: int,
    seed: int,
    say: Callable[[list[object]], None] = lambda row: None,
) -> tuple[list[str], list[list[object]]]:
    """A whole run and one that is struck `kills` times at moments uniform in time: what they differ
    in, and a row a session.

    Args:
        folder: new.
        say: called with each row.
    """
    recipe = recipe_of(folder / "whole", cycles)
    imports = CONTEXT.Process(target=int)  # for all: sessions are timed without
    imports.start()
    imports.join()
    whole = session(recipe, folder / "whole" / "trace", ranks)
    assert whole.first is not None, f"{folder}/whole has no step"
    assert not any(whole.codes), f"{folder}/whole ended with {whole.codes}"
    draw, rows, wrong = random.Random(seed), [], []
    # what dies before a checkpoint is done again: three times the share of each session gets there
    longest = whole.first + 3 * (whole.computed - whole.first) / kills
    struck = folder / "struck"
    sessions = run_through(
        recipe_of(struck, cycles),
        struck / "traces",
        ranks,
        kinds_of(kills, draw),
        lambda: draw.uniform(0, longest),
    )
    seen: dict[int, Samples] = {}
    for strike, outcome in sessions:
        rows.append(describe(strike, outcome))
        say(rows[-1])
        found = [*misbehaves(strike, outcome), *compare_samples(whole.steps, outcome)]
        wrong += [f"session {len(rows) - 1}: {what}" for what in found]
        seen |= outcome.steps
    wrong += ["the last time of each step, its samples"] * (seen != whole.steps)
    return wrong + differences(folder / "whole" / RUN, struck / RUN), rows
