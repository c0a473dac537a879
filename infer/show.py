"""Predictions with titles: what some users chose before, what was thought (`~`), what came next, what was recommended.

reads   a prediction directory, the data set, its semantic IDs (optional); writes nothing

`*` marks the item that was chosen next, `(seen)` items of the history. The rows are a seeded sample, not chosen by outcome,
or those named by --examples.

python -m infer.show --predictions outputs/quickstart/eval/grpo.test --data data/toystore --sids data/toystore/sids/rqkmeans
"""

from __future__ import annotations

from dataclasses import dataclass, field

from configs import program
from configs.program import InputError
from data.predictions import made_by, refuse_other_sids
from data.sid import read_sids
from data.store.lineage import require_same_data
from data.store.output import require_manifest
from infer.page.showcase import as_text, stories


@dataclass
class ShowArgs:
    """Which predictions, how many of them."""

    predictions: str
    """prediction directory, outputs/<run>/eval/<model>.<split>"""
    data: str
    """prepared data set: titles, histories, targets"""
    sids: str | None = None
    """SID directory: shows semantic IDs beside the titles"""
    users: int = 5
    """how many rows, a seeded sample"""
    examples: list[int] = field(default_factory=list)
    """these rows instead of the sample, by example id"""
    top: int = 10
    """recommendations per row"""
    seed: int = 0
    """of the sample"""

    def __post_init__(self) -> None:
        if self.users < 1 or self.top < 1:
            raise InputError(f"users {self.users} and top {self.top} must be at least 1")


def main(args: ShowArgs) -> None:
    require_same_data(args.predictions, args.data, again=made_by(args.predictions))
    sids = None if args.sids is None else read_sids(args.sids)
    if sids is not None:
        facts = require_manifest(args.predictions, written_by="evaluate.sh")["facts"]
        refuse_other_sids(facts, sids, where=args.predictions, sids=args.sids)
    told = stories(
        args.predictions,
        args.data,
        sids,
        count=args.users,
        top=args.top,
        seed=args.seed,
        examples=args.examples,
    )
    print("\n".join(as_text(told)), flush=True)


if __name__ == "__main__":
    program.run(ShowArgs, main)
