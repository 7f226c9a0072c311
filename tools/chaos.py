"""A run on several ranks that is struck again and again; it must end as if nothing had been.

    python tools/chaos.py [--strikes 30] [--ranks 2] [--cycles 10] [--seed 0] --out FOLDER

Strikes are SIGKILL, SIGTERM, SIGUSR1 and SIGINT to one rank or all, and SIGKILL to a data worker,
at random moments: while it starts, trains, validates, writes, reports. Compared bit for bit with a
run that nothing struck. `tests/test_chaos.py` does a little of it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import chaos  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strikes", type=int, default=30)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--cycles", type=int, default=10, help="of 9 steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    options = parser.parse_args()
    most = max(1, 9 * options.cycles // options.strikes)  # so that they fill the run
    wrong, rows = chaos.compare(
        options.out,
        options.ranks,
        options.cycles,
        chaos.strikes_of(options.strikes, options.seed, most),
        say=lambda row: print(*row, sep="  ", flush=True),
    )
    print(tabulate(rows, chaos.TITLES, tablefmt="github"))
    print("\n".join(wrong) or "student, teacher, results and ledger are equal, bit for bit")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
