"""What runs there are and how far each is: stage, state (running, finished, interrupted), step, time left, last metric.

reads   manifests, locks, log.txt and metrics below the folder of runs; writes nothing

python -m infer.status --root outputs
"""

from __future__ import annotations

from dataclasses import dataclass

from configs import program
from infer.work.runs import as_table, find_runs


@dataclass
class StatusArgs:
    """Where to look."""

    root: str = "outputs"
    """folder of runs, or one run"""


def main(args: StatusArgs) -> None:
    runs = find_runs(args.root)
    program.say(as_table(runs) if runs else f"no runs in {args.root}")


if __name__ == "__main__":
    program.run(StatusArgs, main)
