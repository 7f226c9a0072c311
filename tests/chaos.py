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
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import pandas as pd
import torch
from commands import ark_in_a_child, write_recipe
from safetensors.torch import load_file
from tracing import Samples, traced

# imports once and forks for each rank
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["ark.cli", "heads.classification", "heads.segmentation", "commands"]
)
GRACE = 30.0  # seconds between a launcher's SIGTERM and its SIGKILL: torchrun's and SLURM's
LONGEST = 180.0  # seconds of a session; more is a hang
RUN = "run"


@dataclass
class Strike:
    """What happens to a session.

    Args:
        steps: optimiser steps of this session before it; -1: at once, while it starts.
        delay: seconds after that.
        number: the signal.
        whom: "one" rank, "all" of them, or a "worker" of a loader.
    """

    steps: int
    delay: float
    number: signal.Signals
    whom: str

    @classmethod
    def draw(cls, random: random.Random, most_steps: int) -> Strike:
        """A worker dies of SIGKILL alone: what is meant for the trainer it survives."""
        whom = random.choice(["one", "one", "all", "worker"])
        kinds = [signal.SIGKILL]
        if whom != "worker":
            kinds += [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]
        if whom != "worker" and random.random() < 0.2:
            return cls(-1, random.uniform(0, 4), random.choice(kinds), whom)
        delay = random.choice([random.uniform(0, 0.3), random.uniform(0, 2)])
        return cls(random.randint(1, most_steps), delay, random.choice(kinds), whom)


@dataclass
class Outcome:
    """Of a session.

    Args:
        codes: the ranks' exit codes.
        struck: the step in which the strike came, -1 before the first; None if it did not come.
        seconds: from the strike to the end of the last process, workers too.
        forced: ranks that the launcher had to kill.
    """

    codes: list[int | None]
    struck: int | None = None
    seconds: float = 0.0
    forced: int = 0
    steps: dict[int, Samples] = field(default_factory=dict)


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
    started = _start(recipe, trace, ranks)
    outcome, began = Outcome([]), time.monotonic()
    children: set[int] = set()
    ready: float | None = None  # when the strike's step was reached
    hit: float | None = None
    failed: float | None = None
    while any(process.is_alive() for process in started):
        now = time.monotonic()
        if now - began > LONGEST:
            raise TimeoutError(f"{trace}: ranks hang: {[p.is_alive() for p in started]}")
        children |= {child for process in started for child in _children(process)}
        if strike and hit is None:
            step = _steps(trace)
            ready = now if ready is None and step >= strike.steps else ready
            if ready is not None and now - ready >= strike.delay and _strike(strike, started):
                outcome.struck, hit = max([-1, *traced(trace)]), now
        if any(process.exitcode for process in started):
            failed = failed or now
            outcome.forced += _end(started, first=failed == now, force=now - failed > GRACE)
        time.sleep(0.01)
    if hit is not None:
        _wait_for(children)
        outcome.seconds = time.monotonic() - hit
    outcome.codes = [process.exitcode for process in started]
    outcome.steps = traced(trace)
    return outcome


def _start(recipe: Path, trace: Path, ranks: int) -> list[BaseProcess]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    callback = {"class_path": "tracing.Trace", "init_args": {"folder": str(trace)}}
    args = ["fit", "--config", str(recipe), "--ckpt_path=auto", f"--trainer.devices={ranks}"]
    args.append(f"--trainer.callbacks=[{json.dumps(callback)}]")
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


def _steps(trace: Path) -> int:
    """Batches that the first rank began in this session."""
    lines = trace / "rank0.jsonl"
    return len(lines.read_bytes().splitlines()) if lines.is_file() else 0


def _strike(strike: Strike, started: list[BaseProcess]) -> bool:
    """Whether there was anything to strike."""
    alive = [process.pid for process in started if process.is_alive()]
    victims = alive if strike.whom == "all" else alive[-1:]
    if strike.whom == "worker":
        victims = [child for process in started for child in _children(process)][-1:]
    for pid in victims:
        with suppress(ProcessLookupError):
            os.kill(pid, strike.number)  # type: ignore[arg-type]
    return bool(victims)


def _children(process: BaseProcess) -> list[int]:
    """The loaders' workers that live."""
    found = []
    with suppress(OSError):
        for path in Path(f"/proc/{process.pid}/task").glob("*/children"):
            found += [int(child) for child in path.read_text().split()]
    return [child for child in found if not _is_of_python(child)]


def _is_of_python(pid: int) -> bool:
    """Whether a process is multiprocessing's own."""
    with suppress(OSError):
        return b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return True


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
    """Nobody may outlive the ranks; torch's workers look every 5 s whether their trainer is there.

    Raises:
        TimeoutError: somebody does.
    """
    end = time.monotonic() + GRACE
    while left := [pid for pid in children if Path(f"/proc/{pid}").exists() and not _zombie(pid)]:
        if time.monotonic() > end:
            raise TimeoutError(f"workers outlive their trainer: {left}")
        time.sleep(0.05)


def _zombie(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def run_through(
    recipe: Path, traces: Path, ranks: int, strikes: Iterator[Strike]
) -> Iterator[tuple[Strike | None, Outcome]]:
    """Sessions until the run is finished, each but the last ones with a strike of `strikes`."""
    for number in range(1000):
        strike = next(strikes, None)
        outcome = session(recipe, traces / str(number), ranks, strike)
        yield strike, outcome
        if outcome.codes == [0] * ranks:
            return


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


def strikes_of(count: int, seed: int, most_steps: int) -> Iterator[Strike]:
    draw = random.Random(seed)
    for _ in range(count):
        yield Strike.draw(draw, most_steps)


def describe(strike: Strike | None, outcome: Outcome) -> list[object]:
    """A row of a table."""
    what = "nothing" if strike is None else f"{strike.number.name} to {strike.whom}"
    at = "-" if outcome.struck is None else "start" if outcome.struck < 0 else outcome.struck
    steps = sorted(outcome.steps)
    span = f"{steps[0]}-{steps[-1]}" if steps else "-"
    codes = " ".join(map(str, outcome.codes))
    return [what, at, span, codes, f"{outcome.seconds:.1f}", outcome.forced or ""]


TITLES = ["strike", "in step", "steps", "exit codes", "ended after s", "killed by launcher"]


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
    strikes: Iterator[Strike],
    say: Callable[[list[object]], None] = lambda row: None,
) -> tuple[list[str], list[list[object]]]:
    """A whole run and a struck one: what they differ in, and a row a session.

    Args:
        folder: new.
        say: called with each row.
    """
    recipe = recipe_of(folder / "whole", cycles)
    whole = session(recipe, folder / "whole" / "trace", ranks)
    wrong = [f"the whole run ended with {whole.codes}"] if any(whole.codes) else []
    rows = []
    recipe = recipe_of(folder / "struck", cycles)
    for strike, outcome in run_through(recipe, folder / "struck" / "traces", ranks, strikes):
        rows.append(describe(strike, outcome))
        say(rows[-1])
        wrong += compare_samples(whole.steps, outcome)
    return wrong + differences(folder / "whole" / RUN, folder / "struck" / RUN), rows
