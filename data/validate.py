"""Is my data what the stages expect? Every kind of violation, with file, column, rows and values.

reads   a raw folder of any adapter, with the recipe (YAML) of data.prepare          or a prepared data set
writes  nothing; the violations go to stdout, at most 3 rows of each kind; what is usable but odd is said

A raw folder is prepared in memory, so what passes here passes stage 01, with the same counts.

python -m data.validate --config configs/minionerec/industrial/prepare.yaml --raw RAW
python -m data.validate --data data/industrial

Exit code 0 when there is nothing to complain about, else 2. Rows count from 0, without a csv file's header.
"""

from __future__ import annotations

from dataclasses import dataclass

from configs import program
from configs.program import InputError, say
from data.adapters.build import build
from data.adapters.checks import check_prepared
from data.adapters.recipe import Recipe
from data.artifacts import ITEMS, read_sequences
from data.shaping.findings import Finding
from data.shaping.remarks import remarks
from data.store.output import require_manifest


@dataclass(frozen=True, kw_only=True)
class ValidateArgs(Recipe):
    """Arguments of data.validate: the recipe of data.prepare, and what to check with it."""

    raw: str = ""
    """folder of the raw files"""
    data: str = ""
    """a prepared data set, instead of raw"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.raw) == bool(self.data):
            raise InputError(
                "nothing to check, or two things -> give either --raw (with --config) or --data (prepared)"
            )


def check_raw(args: ValidateArgs) -> tuple[str, list[str], list[Finding]]:
    """(summary, remarks, findings) of a raw folder."""
    prepared, findings = build(args.raw, args)
    if prepared is None:
        return "", [], findings
    timed = 100 * prepared.funnel.facts["share_with_time"]
    summary = f"{_counted(prepared.counts())}; {timed:.0f} % of the interactions have a time"
    return summary, prepared.funnel.notes, findings


def check_data(args: ValidateArgs) -> tuple[str, list[str], list[Finding]]:
    """(summary, remarks, findings) of a prepared data set."""
    manifest = require_manifest(args.data, written_by=ITEMS.written_by)
    rows, findings = check_prepared(args.data)
    longest = manifest["config"].get("split", {}).get("max_history", args.split.max_history)
    told = [] if findings else remarks(read_sequences(args.data), max_history=longest)
    return _counted({file.removesuffix(".parquet"): count for file, count in rows.items()}), told, findings


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def main(args: ValidateArgs) -> None:
    """Check, print what is wrong, and end with one line."""
    place = args.raw or args.data
    summary, told, findings = check_raw(args) if args.raw else check_data(args)
    for text in told:
        say(f"validate: {text}")
    for finding in findings:
        say(str(finding))
    if findings:
        kinds = f"{len(findings)} kind{'s' if len(findings) > 1 else ''} of violation"
        raise InputError(
            f"{place}: {kinds}, first: {findings[0].where}: {findings[0].what} -> see the lines above"
        )
    say(f"validate: {place} is fine ({summary})")


if __name__ == "__main__":
    program.run(ValidateArgs, main)
