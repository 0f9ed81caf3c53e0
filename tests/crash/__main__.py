"""The long form: ``python -m tests.crash``, or ``make crash``. It ends with one line of JSON."""

from __future__ import annotations

import argparse
import sys
import time

from tests.crash.counts import Counts
from tests.crash.scenarios import SCENARIOS, play


def main() -> int:
    arguments = _arguments()
    counts = Counts()
    for name in arguments.only or SCENARIOS:
        began = time.monotonic()
        run = play(name, max(1, round(SCENARIOS[name].long * arguments.times)), arguments.seed)
        counts.add(run.counts)
        seconds = time.monotonic() - began
        print(f"{name:16} {seconds:6.1f} s  {run.counts.line()}", flush=True)
        for note in run.counts.notes[:20]:
            print(f"    {note}")
        if run.skipped is not None:
            print(f"    skipped: {run.skipped}")
    print(counts.line())
    return 0 if counts.sound else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--only", nargs="*", choices=SCENARIOS, metavar="NAME", help=f"of {', '.join(SCENARIOS)}")
    parser.add_argument("--times", type=float, default=1.0, help="so many times the usual number of rounds")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments and places")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
