"""Is my data what the stages expect? Every kind of violation, with file, column, rows and values.

reads   the user's tables, with the recipe (YAML) of data.prepare          or a prepared data set
writes  nothing; the violations go to stdout, at most 3 rows of each kind

python -m data.validate --config configs/minionerec/industrial/prepare.yaml --raw RAW
python -m data.validate --data data/industrial

Exit code 0 when there is nothing to complain about, else 2. Rows count from 0, without a csv file's header.
"""

from __future__ import annotations

from dataclasses import dataclass

from configs import program
from configs.program import InputError, say
from data.adapters import tables
from data.adapters.checks import check_prepared
from data.adapters.recipe import Recipe
from data.artifacts import ITEMS
from data.shaping.findings import Finding
from data.store.output import require_manifest


@dataclass(frozen=True, kw_only=True)
class ValidateArgs(Recipe):
    """Arguments of data.validate: the recipe of data.prepare, and what to check with it."""

    raw: str = ""
    """folder of the user's tables"""
    data: str = ""
    """a prepared data set, instead of raw"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.raw) == bool(self.data):
            raise InputError(
                "nothing to check, or two things -> give either --raw (tables) or --data (prepared)"
            )
        if self.raw and self.adapter != "tables":
            raise InputError(
                f"adapter {self.adapter}: only tables are checked before stage 01 -> give --config with adapter tables;"
                " data.prepare counts the broken lines of a dump itself"
            )


def check_tables(args: ValidateArgs) -> tuple[str, list[Finding]]:
    """(summary, findings) of a user's tables."""
    loaded, findings = tables.load(args.raw, args.tables)
    if loaded is None:
        return "", findings
    counts = {
        "items": loaded.items.num_rows,
        "users": loaded.users.num_rows,
        "interactions": len(loaded.user),
    }
    if loaded.sequences is not None:
        counts["sequences"] = loaded.sequences.num_rows
    timed = 100 * loaded.known.mean() if len(loaded.known) else 0
    return f"{_counted(counts)}; {timed:.0f} % of the interactions have a time", findings


def check_data(args: ValidateArgs) -> tuple[str, list[Finding]]:
    """(summary, findings) of a prepared data set."""
    require_manifest(args.data, written_by=ITEMS.written_by)
    rows, findings = check_prepared(args.data)
    return _counted({file.removesuffix(".parquet"): count for file, count in rows.items()}), findings


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def main(args: ValidateArgs) -> None:
    """Check, print what is wrong, and end with one line."""
    place = args.raw or args.data
    summary, findings = check_tables(args) if args.raw else check_data(args)
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
