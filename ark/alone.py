"""The comparison every joint run owes: each task trained alone, from the same start, with the
same number of steps."""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys

from ark import report
from ark.network import Network
from ark.run import RunConfig
from ark.types import ConfigError

log = logging.getLogger("ark")


def train_each(run: RunConfig, network: Network, recipe: str) -> None:
    """Runs this very command once a task with `--data.only`, then joins the tables.

    Each task gets a process and a folder of its own, `<run>/alone/<dataset>/<task>`. One that was
    finished with this very recipe is not run again. Where `<run>` holds the joint run's results
    they stand beside.

    Args:
        recipe: the whole configuration, to know it again.

    Raises:
        ConfigError: a task's run failed, or a head needs another task's (`guide`).
    """
    for key, head in network.heads_by_key().items():
        if head.guide is not None:
            raise ConfigError(
                f"run.alone: the head of {key} looks where its guide {head.guide!r} says, and "
                "alone it has none; choose a head without guide for this comparison (data.heads)"
            )
    columns: dict[str, report.Results] = {"alone student": {}, "alone teacher": {}}
    folder = run.folder / "alone"
    digest = hashlib.sha256(recipe.encode()).hexdigest()
    for key in network.tasks:
        made_with = folder / key / "recipe.sha256"
        if not made_with.is_file() or made_with.read_text() != digest:
            _train(f"{run.name}/alone/{key}", key)
            made_with.write_text(digest)
        found = report.read_json(folder / key / report.RESULTS)
        for who in ("student", "teacher"):
            columns[f"alone {who}"].update(found[who])
    together = report.read_json(run.folder / report.RESULTS) or {}
    columns |= {f"joint {who}": together[who] for who in ("student", "teacher") if who in together}
    heads = network.heads_by_key()
    facts = ["each task alone, from the same start and with the same steps as in the joint run"]
    log.info("\n%s\n", report.write_report(folder, f"{run.name}: alone", columns, facts, heads))


def _train(name: str, key: str) -> None:
    own = [
        "--run.alone=false",
        "--run.overwrite=true",
        "--run.baseline=false",
        f"--run.name={name}",
        f"--data.only=[{key}]",
    ]
    log.info("alone: %s", key)
    done = subprocess.run([sys.executable, "-m", "ark", *sys.argv[1:], *own], check=False)
    if done.returncode:
        raise ConfigError(f"alone: the run of {key} failed with exit code {done.returncode}")
