"""Stage 11, second half: predictions become metrics with intervals.

reads   predictions (of infer.recommend, infer.run_baselines or infer.import_predictions), the data set, optionally
        the semantic IDs
writes  <predictions>/metrics/metrics.json, metrics.tsv (the same without groups, one row, 4 decimals), rows.parquet
        (where each target stands, for infer.compare), manifest.json

Full ranking over the catalogue with one relevant item per row. What each number means: infer/metrics/measure.py and
infer/metrics/levels.py. Nothing is predicted here: it can be repeated at any time, with other list lengths or groups.
Fails with exit code 4 when a prediction is not a catalogue item or a score is NaN, with 2 when an example is missing,
double or of another split.

Differs from the published evaluations: a target that was not recommended counts as a miss in every row (no
row is dropped), colliding items are told apart at item level, and every number has an interval.

python -m infer.evaluate --predictions outputs/quickstart/eval/grpo.test --data data/toystore \
    --sids data/toystore/sids/rqkmeans
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs import program
from configs.program import InputError, say, warn
from data import artifacts
from data.predictions import align, made_by, read_predictions, refuse_other_sids
from data.rows import products, read_columns, read_rows, read_train_log
from data.sid import SidTable, read_sids
from data.store.lineage import require_same_data
from data.store.output import open_output
from infer.metrics.groups import apart_masks, column_masks
from infer.metrics.levels import FILE, level_table
from infer.metrics.measure import KS, Settings, measure
from infer.tables.results import one_row

STAGE, VERSION = "evaluate", 3


@dataclass
class EvaluateArgs:
    """Metrics of predictions."""

    predictions: str
    """prediction directory, outputs/<run>/eval/<model>.<split>"""
    data: str
    """prepared data set: targets, histories, train popularity"""
    sids: str | None = None
    """SID directory: gives models that rank items a SID level, and checks the codes of those that do not"""
    output_dir: str | None = None
    """null = <predictions>/metrics"""
    ks: list[int] = field(default_factory=lambda: list(KS))
    """list lengths to report, those up to the length of the predictions"""
    group_columns: list[str] = field(default_factory=list)
    """columns of sequences.parquet (or of items.parquet, for the target) whose values are groups of rows too; category and
    category_2, where no column has the name: the target's first and second category"""
    apart_items: list[int] = field(default_factory=list)
    """items whose rows are a group of their own, all other rows being `apart=no`: a product that is listed twice, say"""
    resamples: int = 1000
    """bootstrap resamples of the users"""
    seed: int = 0
    """of the bootstrap"""
    overwrite: bool = False
    """replace an output of another configuration"""

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1 or self.resamples < 1:
            raise InputError(f"ks {self.ks} and resamples {self.resamples} must be positive")


def main(args: EvaluateArgs) -> None:
    inputs = {"predictions": args.predictions, "data": args.data, "sids": args.sids}
    directory = args.output_dir or str(Path(args.predictions) / "metrics")
    with open_output(args, STAGE, version=VERSION, inputs=inputs, directory=directory) as out:
        # Example ids alone fit many data sets.
        require_same_data(args.predictions, args.data, again=made_by(args.predictions))
        if args.sids is not None:
            require_same_data(args.sids, args.data, again="scripts/04_build_sids.sh")
        predictions, manifest = read_predictions(args.predictions)
        facts = manifest["facts"]
        items = artifacts.read_items(args.data)
        sids = checked_sids(args, facts, items.num_rows)
        rows = read_rows(args.data, facts["split"], num_items=items.num_rows)
        if not len(predictions.example_ids_R):
            warn(
                f"{args.predictions} has a list for none of its examples: every one of them counts as a miss"
            )
            predictions = predictions.and_unanswered(rows.example_ids_R)
        positions = align(
            predictions, rows.example_ids_R, max_rows=facts.get("max_rows"), where=args.predictions
        )
        rows = rows.take(positions)
        measured = measure(
            predictions,
            rows,
            popularity_N=read_train_log(args.data, num_items=items.num_rows).popularity_N,
            sids=sids,
            settings=Settings(tuple(sorted(set(args.ks))), args.resamples, args.seed),
            depth=facts.get("depth"),
            product_N=products(items),
            groups=column_masks(read_columns(args.data, args.group_columns, rows))
            | apart_masks(args.apart_items, rows.target_R, items.num_rows),
            restricted=facts.get("allowed") is not None,
            where=args.predictions,
        )
        metrics, row_facts = measured.metrics, measured.facts
        if speed := facts.get("users_per_second"):
            metrics["all/users_per_second"] = {"value": speed, "low": None, "high": None}
        if (unfinished := facts.get("unfinished_thought_rate")) is not None:
            metrics["all/unfinished_rate"] = {"value": unfinished, "low": None, "high": None}
        protocol = facts | row_facts | {"resamples": args.resamples, "bootstrap_seed": args.seed}
        out.write_json("metrics.json", metrics | {"protocol": protocol | {"seed": manifest["seed"]}})
        out.write_text("metrics.tsv", one_row(metrics))
        out.write_table(FILE, level_table(measured.levels, rows))
        out.counts |= {"rows": row_facts["rows"], "users": row_facts["users"], "metrics": len(metrics)}
        out.facts |= {"split": facts["split"]}
        say(headline(Path(args.predictions).name, metrics, row_facts))


def checked_sids(args: EvaluateArgs, facts: dict[str, Any], num_items: int) -> SidTable | None:
    """The semantic IDs, if any; InputError when they are not of this data set or not the model's."""
    if args.sids is None:
        return None
    sids = read_sids(args.sids)
    if sids.num_items != num_items:
        raise InputError(
            f"{args.sids} has {sids.num_items} items, {args.data} {num_items} -> assign the SIDs again"
        )
    refuse_other_sids(facts, sids, where=args.predictions, sids=args.sids)
    require_same_data(args.sids, args.data, again="scripts/04_build_sids.sh")
    return sids


def headline(name: str, metrics: dict[str, dict[str, float]], facts: dict[str, int]) -> str:
    """One line: HR and NDCG at 10 (or the longest list below it), item and SID level."""
    k = max((k for k in facts["ks"] if k <= 10), default=min(facts["ks"]))
    parts = []
    for level in ("item_level", "sid_level"):
        if f"{level}/hr@{k}" in metrics:
            hr, ndcg = metrics[f"{level}/hr@{k}"], metrics[f"{level}/ndcg@{k}"]
            parts.append(f"{level.replace('_', ' ')} HR@{k} {_interval(hr)} NDCG@{k} {_interval(ndcg)}")
    return f"{name}: {'; '.join(parts)} ({facts['rows']:,} rows, {facts['users']:,} users)"


def _interval(metric: dict[str, float]) -> str:
    return f"{metric['value']:.4f} [{metric['low']:.4f}, {metric['high']:.4f}]"


if __name__ == "__main__":
    program.run(EvaluateArgs, main)
