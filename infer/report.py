"""The results page of a run: one self-contained HTML file, rendered last from what the stages wrote.

reads   data/<D>, data/<D>/sids/<name>, outputs/<run>/*/metrics.jsonl, outputs/<run>/eval/*/metrics/metrics.json
        and which other pages the run has: outputs/quality/<D>, outputs/<run>/**/index.html
writes  <output_dir>/index.html, manifest.json

The page shows the metric table with intervals and baselines, the funnel of counts, reviews over time, the quality
of the semantic IDs with codebook usage and the embedding map, training curves, some users in words, and where every
number comes from, and it links the run's other pages (quality, galleries). It needs no network and runs no script; nothing ever parses it back. The table is also printed, as
Markdown.

--watch shows a job that still runs instead, on the screen and without writing anything: state of every output, newest losses.

python -m infer.report --data data/toystore --sids data/toystore/sids/rqkmeans --run outputs/quickstart \
    --output_dir outputs/quickstart/report
python -m infer.report --watch outputs/quickstart
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc

from configs import program
from configs.program import AlreadyComplete, InputError
from data import artifacts
from data.sid import read_sids
from data.store.output import open_output
from infer.page import sections as page
from infer.page.links import Link, pages_of_run
from infer.page.showcase import stories
from infer.tables import results
from infer.work import watching
from rq.quality.figures import sid_figures

STAGE, VERSION = "report", 3


@dataclass
class ReportArgs:
    """The results page."""

    data: str | None = None
    """prepared data set of the run"""
    sids: str | None = None
    """its semantic IDs"""
    run: str | None = None
    """run folder, outputs/<run>"""
    output_dir: str | None = None
    """where the page goes, e.g. outputs/<run>/report"""
    watch: str | None = None
    """show this run folder on the screen for as long as something in it runs; the four above are left out then"""
    every: float = 10.0
    """seconds between two looks"""
    title: str | None = None
    """heading; null = the name of the run folder"""
    split: str = "test"
    """split of the table"""
    model: str | None = None
    """model whose recommendations are shown in words; null = the newest, trained last"""
    users: int = 10
    """how many users, a seeded sample"""
    top: int = 5
    """recommendations shown per user"""
    seed: int = 0
    """of that sample"""
    overwrite: bool = True
    """replace an older page (it is derived from other outputs and holds nothing of its own)"""

    def __post_init__(self) -> None:
        needed = ("data", "sids", "run", "output_dir")
        given = [name for name in needed if getattr(self, name) is not None]
        if self.watch is not None and given:
            raise InputError(f"watch and {given[0]} are given -> watch shows a run, the others make its page")
        if self.watch is None and len(given) < len(needed):
            missing = ", ".join(name for name in needed if name not in given)
            raise InputError(f"missing: {missing} -> give them, or --watch outputs/<run>")
        if self.every <= 0:
            raise InputError(f"every {self.every} seconds -> above 0")
        if self.users < 0 or self.top < 1:
            raise InputError(f"users {self.users} and top {self.top} must not be negative, top at least 1")


def build(args: ReportArgs, found: list[results.Result], links: list[Link]) -> page.Page:
    """Read everything that the page shows."""
    data, sids_dir, run = Path(args.data), Path(args.sids), Path(args.run)
    sids = read_sids(sids_dir)
    final = results.final_model(found, args.split, args.model)
    months, timed, rows = page.reviews_over_time(data)
    items = artifacts.read_items(data)
    page.check_items(items, sids.num_items, data=data, sids=sids_dir)
    users = len(pc.unique(artifacts.read(data, artifacts.INTERACTIONS)["user_id"]))
    populations = results.by_rows(results.of_split(found, args.split), first=final)
    valid = results.by_rows(results.of_split(found, "valid"), first=final) if args.split != "valid" else []
    return page.Page(
        title=args.title or run.resolve().name,
        data=data.resolve().name,
        protocol=page.protocol_line(final),
        counts=[("items", items.num_rows), ("users", users), ("interactions", rows)],
        funnel=page.read_funnel(data),
        months=months,
        raw_months=page.reviews_read(data),
        timed=timed,
        rows=rows,
        quality=page.read_quality(sids_dir),
        sid_figures=sid_figures(sids_dir, sids),
        training=[(log, page.training_figures(log)) for log in results.read_logs(run)],
        final=final,
        results=populations[0],
        others=populations[1:],
        valid=valid[0] if valid else [],
        fitted_to_valid=results.fitted_to_valid(valid[0] if valid else []),
        marks=results.marks(populations[0], valid[0] if valid else []),
        stories=stories(final.directory, data, sids, count=args.users, top=args.top, seed=args.seed),
        stages=results.manifests(run, data, sids_dir),
        links=[(link.name, link.href(Path(args.output_dir))) for link in links],
    )


def main(args: ReportArgs) -> None:
    if args.watch is not None:
        watching.watch(args.watch, every=args.every)
        return
    run = Path(args.run)
    found = results.read_results(run, data=Path(args.data), sids=Path(args.sids))
    links = pages_of_run(run, data=Path(args.data).resolve().name, own=Path(args.output_dir))
    inputs = {
        "data": args.data,
        "sids": args.sids,
        "metrics": [result.directory / "metrics" for result in found],
        "logs": sorted(run.glob("*/metrics.jsonl")),
        "pages": [link.file for link in links] or None,
    }
    shown = results.of_split(found, args.split)
    try:
        with open_output(args, STAGE, version=VERSION, inputs=inputs) as out:
            built = build(args, found, links)
            out.write_text("index.html", page.render(built))
            out.counts |= {"models": len(shown), "users": len(built.stories)}
    except AlreadyComplete as kept:
        print(f"infer.report: {kept}", flush=True)
    for alike in results.by_rows(shown, first=results.final_model(found, args.split, args.model)):
        ks = {k for result in alike for k in result.protocol["ks"]}
        print(results.summary_table(alike, k=10 if 10 in ks else max(ks)))
    print(f"page: {Path(args.output_dir) / 'index.html'}", flush=True)


if __name__ == "__main__":
    program.run(ReportArgs, main)
