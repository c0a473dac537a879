"""Runs and published numbers in one table, with paired tests.

reads   evaluated predictions (<run>/eval/*/metrics of infer.evaluate), configs/<paper>/published.csv
writes  <output_dir>/{compare.md,compare.tex,compare.json,manifest.json}; prints the Markdown
--record, --verify, --stored and --table are about the tables of a paper's README instead (infer/tables/stored.py, sheet.py): the first
keeps these runs as rows of configs/<paper>/results/<dataset>.json, the second holds a row to what its runs give now, the third lists the
rows of such a file, the last renders the tables of configs/<paper>/README.md from rows.csv, published.csv and results/.

Baselines come first, then published rows, then models in the order of their training. Prediction directories of one name in
several runs are seeds of one recipe and become one row, mean and spread. p-values are a paired bootstrap over users
against the row named `reference`. Runs on other data, another split or other rows are refused, and so are published
numbers that were measured on another number of rows.

python -m infer.compare --runs [outputs/seed1,outputs/seed2,outputs/seed3] --reference itemknn_tuned \
    --published [configs/minionerec/published.csv] --dataset industrial --output_dir outputs/compare
python -m infer.compare --runs [outputs/s0/eval/compact.test,outputs/s1/eval/compact.test] \
    --record configs/minionerec/results/industrial.json --command "bash scripts/reproduce/minionerec_industrial.sh"
python -m infer.compare --table
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from configs import program
from configs.needs import Need, require_needs
from configs.program import AlreadyComplete, InputError, NumericError, say, warn
from data import artifacts
from data.store.output import open_output
from infer.tables import correlations, sheet, stored
from infer.tables import layout as tables
from infer.tables.comparison import (
    KINDS,
    Evaluation,
    TableRow,
    add_tests,
    find_evaluations,
    grouped,
    list_columns,
    our_rows,
    published_rows,
)
from infer.tables.published import METRIC, known_data, read_published, refuse_other_rows

STAGE, VERSION = "compare", 1
LISTS = (
    "coverage", "gini", "novelty", "popularity", "popularity_lift", "diversity_1", "diversity_2", "unfinished_rate", "invalid_rate",
    "users_per_second",
)  # fmt: skip
LEVELS = ("sid_level", "item_level", "item_level_unseen", "item_level_merged", "item_level_dedup")
# what only a table of runs beside each other reads
OF_COMPARISON = (
    "published", "dataset", "levels", "metrics", "groups", "lists", "reference", "separate", "intervals", "quality", "resamples", "seed",
)  # fmt: skip


@dataclass
class CompareArgs:
    """Which evaluations, which numbers, against which row."""

    runs: list[str] = field(default_factory=list)
    """run folders, their eval folders, or single prediction directories"""
    output_dir: str | None = None
    """where the tables go, e.g. outputs/compare"""
    record: str | None = None
    """keep every model of these runs as a row of this file, configs/<paper>/results/<dataset>.json; runs of one model are its seeds"""
    command: str = ""
    """how the recorded rows are made, word for word"""
    hardware: str | None = None
    """what they were made on; null = what this machine says"""
    verify: str | None = None
    """hold these runs to the rows of this file: HR@10 and NDCG@10 of both levels, run by run"""
    tolerance: float = 1e-6
    """how far a verified number may be from its row"""
    stored: str | None = None
    """print the rows of this file, a line for each: its name, then its run folders"""
    table: bool = False
    """render the tables of the READMEs"""
    papers: list[str] = field(default_factory=list)
    """with table: folders of configs/; empty = all that have a rows.csv"""
    published: list[str] = field(default_factory=list)
    """files of published numbers, configs/<paper>/published.csv; one without rows of this data set adds none and is named"""
    dataset: str | None = None
    """data set of these files (industrial, office, toys18, beauty14, ...); needed with them"""
    split: str = "test"
    """which evaluations of the runs"""
    levels: list[str] = field(default_factory=lambda: ["sid_level", "item_level", "item_level_dedup"])
    """one table each: sid_level, item_level, item_level_unseen, item_level_merged, item_level_dedup"""
    metrics: list[str] = field(default_factory=lambda: ["hr@1", "hr@5", "hr@10", "ndcg@5", "ndcg@10"])
    """columns: hr@K, ndcg@K, mrr@K"""
    groups: list[str] = field(default_factory=list)
    """one more table each, at item level: groups of rows that were evaluated apart, e.g. [target=cold,popularity=head,popularity=tail]"""
    lists: list[str] = field(default_factory=list)
    """one more table, of what the lists show: any of coverage, gini (0: every item as often, 1: one item alone), novelty, popularity,
    popularity_lift, diversity_1, diversity_2, unfinished_rate (thoughts that were cut off), invalid_rate, users_per_second"""
    reference: str | None = None
    """name of the row that the others are tested against; null = no tests"""
    separate: bool = False
    """a row per run, named run/model, instead of seeds merged"""
    intervals: bool = False
    """print the 95 % intervals, over users (compare.json always has them)"""
    quality: bool = False
    """the rows differ in their semantic IDs: which figure of their quality.json goes with which number (rank correlation)"""
    resamples: int = 2000
    """bootstrap resamples of the users for the tests"""
    seed: int = 0
    """of the bootstrap"""
    overwrite: bool = True
    """replace an older table (it is derived from other outputs and holds nothing of its own)"""

    def __post_init__(self) -> None:
        modes = [
            name
            for name in ("output_dir", "record", "verify", "stored", "table")
            if getattr(self, name) not in (None, False)
        ]
        if len(modes) != 1:
            raise InputError(
                f"{' and '.join(modes) or 'nothing'} asked for -> one of output_dir, record, verify, stored, table"
            )
        listing = self.table or self.stored is not None
        if not self.runs and not listing:
            raise InputError("runs is empty -> name at least one run")
        require_needs(self)
        if self.tolerance < 0:
            raise InputError(f"tolerance {self.tolerance} is below 0")
        if self.split not in artifacts.SPLITS:
            raise InputError(f"unknown split {self.split!r} -> one of {', '.join(artifacts.SPLITS)}")
        if unknown := [level for level in self.levels if level not in LEVELS]:
            raise InputError(f"unknown level {unknown[0]!r} -> one of {', '.join(LEVELS)}")
        if unknown := [metric for metric in self.metrics if not METRIC.fullmatch(metric)]:
            raise InputError(f"unknown metric {unknown[0]!r} -> hr@K, ndcg@K or mrr@K")
        if unknown := [name for name in self.lists if name not in LISTS]:
            raise InputError(f"unknown column {unknown[0]!r} of lists -> any of {', '.join(LISTS)}")
        if not self.levels or not self.metrics or self.resamples < 1:
            raise InputError("levels, metrics and resamples must not be empty or below 1")
        if self.quality and not any(metric.endswith("@10") for metric in self.metrics):
            raise InputError("quality is about metrics at 10 -> hr@10, ndcg@10 or mrr@10 among metrics")
        if self.published and self.dataset is None:
            raise InputError(
                "dataset is missing -> say which data set of the published files these runs are on"
            )

    def needs(self) -> list[Need]:
        """Options that are read only where another one is set."""
        return [
            Need(("command", "hardware"), self.record is not None, "record"),
            Need(("tolerance",), self.verify is not None, "verify"),
            Need(("papers",), self.table, "table"),
            Need(("runs", "split"), not self.table and self.stored is None, "without table and stored"),
            Need(OF_COMPARISON, self.output_dir is not None, "output_dir"),
        ]


def record(args: CompareArgs) -> None:
    """The models of the runs into a file of rows, which is replaced at once or not at all."""
    path = Path(args.record)
    rows = stored.read_stored(path)
    if not args.command:
        raise InputError("command is missing -> a row says how it is made")
    for name, seeds in grouped(find_evaluations(args.runs, split=args.split), separate=False).items():
        made = stored.measured_row(seeds, command=args.command, hardware=args.hardware)
        if left := sorted(rows.get(name, made)["runs"].keys() - made["runs"].keys()):
            warn(
                f"{path} {name}: the row no longer has {', '.join(left)} -> record it with them to have it back"
            )
        rows = stored.with_row(rows, name, made)
        item = sheet.pair(made["metrics"], "item_level")
        say(f"compare: {path} {name}: {item}, {len(seeds)} runs, look {rows[name]['looks']} at {args.split}")
    path.parent.mkdir(parents=True, exist_ok=True)
    stored.replace_text(path, stored.stored_text(rows))


def verify(args: CompareArgs) -> None:
    """Every number of the runs beside its row; NumericError when one is further off than the tolerance."""
    rows = stored.read_stored(args.verify)
    wrong = []
    for name, seeds in grouped(find_evaluations(args.runs, split=args.split), separate=False).items():
        if name not in rows:
            raise InputError(f"{args.verify} has no row {name} -> it has {', '.join(rows) or 'none'}")
        for what, (before, now) in stored.differences(rows[name], seeds).items():
            held = abs(now - before) <= args.tolerance
            say(f"{name} {what}: stored {before:.6f}, now {now:.6f}{'' if held else '  NOT HELD'}")
            wrong += [] if held else [f"{name} {what}"]
    if wrong:
        raise NumericError(
            f"{len(wrong)} numbers are further than {args.tolerance} from {args.verify} (first: {wrong[0]}) "
            "-> find what changed before recording the row anew"
        )


def render(args: CompareArgs) -> None:
    """The tables of every paper, printed, and into the blocks of its README."""
    folders = [sheet.PAPERS / paper for paper in args.papers]
    for folder in folders or sorted(path.parent for path in sheet.PAPERS.glob("*/rows.csv")):
        tables = sheet.tables_of(folder)
        for dataset, table in tables.items():
            print(f"**{folder.name}, {dataset}**\n\n{table}", flush=True)
        readme = folder / "README.md"
        if readme.exists():
            text = readme.read_text(encoding="utf-8")
            groups = sheet.group_tables_of(folder)
            if (made := sheet.with_tables(text, tables, groups, where=str(readme))) != text:
                stored.replace_text(readme, made)


def main(args: CompareArgs) -> None:
    """One of the five."""
    if args.table:
        render(args)
    elif args.stored is not None:
        for name, row in stored.read_stored(args.stored).items():
            print(name, *row["runs"], flush=True)
    elif args.record is not None:
        record(args)
    elif args.verify is not None:
        verify(args)
    else:
        compare(args)


def compare(args: CompareArgs) -> None:
    """The tables of runs beside each other."""
    evaluations = find_evaluations(args.runs, split=args.split)
    inputs = {
        "runs": [evaluation.result.directory / "metrics" for evaluation in evaluations],
        "published": [Path(path) for path in args.published],
    }
    try:
        with open_output(args, STAGE, version=VERSION, inputs=inputs) as out:
            groups = grouped(evaluations, separate=args.separate)
            levels = [*args.levels, *(f"item_level/{group}" for group in args.groups)]
            keys = [f"{level}/{metric}" for level in levels for metric in args.metrics]
            require_groups(args.groups, evaluations)
            shown = list_columns(evaluations, args.lists)
            rows = our_rows(groups, [*keys, *(f"all/{name}" for name in shown)])
            if not any(row.cells for row in rows):
                raise InputError(
                    f"these runs have none of {', '.join(keys[:3])} ... -> other --levels or --metrics, or infer.evaluate "
                    "with --ks and --sids"
                )
            theirs, missing = published(args, keys, len(evaluations[0].example_ids_R))
            rows += theirs
            rows.sort(key=lambda row: KINDS.index(row.kind))
            if args.reference is not None:
                add_tests(
                    rows, groups, keys, reference=args.reference, resamples=args.resamples, seed=args.seed
                )
            facts = {
                "rows": len(evaluations[0].example_ids_R),
                "users": len(set(evaluations[0].users_R.tolist())),
            }
            said = tables.remarks(
                rows,
                reference=args.reference,
                resamples=args.resamples,
                num_rows=facts["rows"],
                users=facts["users"],
            )
            said += missing
            related = (
                correlations.of_rows(groups, [key for key in keys if key.endswith("@10")])
                if args.quality
                else {}
            )
            columns = dict.fromkeys(levels, args.metrics) | ({"all": shown} if shown else {})
            body = tables.markdown(rows, columns, intervals=args.intervals)
            if related:
                body += "\n" + correlations.markdown(related)
            out.write_text("compare.md", body + "\n" + "".join(f"- {line}\n" for line in said))
            out.write_text("compare.tex", tables.latex(rows, columns, intervals=args.intervals))
            facts |= {"split": args.split, "reference": args.reference, "remarks": said, "quality": related}
            out.write_json("compare.json", tables.as_json(rows, facts))
            out.counts |= {"table_rows": len(rows), "evaluations": len(evaluations)}
    except AlreadyComplete as kept:
        print(f"infer.compare: {kept}", flush=True)
    print((Path(args.output_dir) / "compare.md").read_text(), flush=True)


def require_groups(groups: list[str], evaluations: list[Evaluation]) -> None:
    """InputError for a group that no evaluation has, naming those that there are."""
    known = {group for one in evaluations for group in one.result.protocol.get("group_rows", {})}
    if unknown := [group for group in groups if group not in known]:
        raise InputError(
            f"no evaluation has the group {unknown[0]!r} -> one of {', '.join(sorted(known))}, or infer.evaluate --group_columns"
        )


def published(args: CompareArgs, keys: list[str], num_rows: int) -> tuple[list[TableRow], list[str]]:
    """(table rows of every published file, checked to be of as many rows as ours; a sentence per file without any)."""
    rows: list[TableRow] = []
    missing: list[str] = []
    for path in args.published:
        found = read_published(path, dataset=args.dataset, split=args.split)
        refuse_other_rows(found, num_rows, where=path)
        rows += published_rows(found, keys)
        if not found:
            there = known_data(path)
            missing.append(
                f"{path} has no rows of {args.dataset!r}, split {args.split!r}: it has {there or 'none at all'}."
            )
    return rows, missing


if __name__ == "__main__":
    program.run(CompareArgs, main)
