"""The other pages of a run, so that its results page is the index of all of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

PAGE = "index.html"


@dataclass(frozen=True)
class Link:
    """A page that exists: what it is called, where it lies."""

    name: str
    file: Path

    def href(self, folder: Path) -> str:
        """The relative address from a page in `folder`: outputs can be copied as a whole."""
        return quote(Path(os.path.relpath(self.file.resolve(), folder.resolve())).as_posix())


def pages_of_run(run: Path, *, data: str, own: Path) -> list[Link]:
    """The quality page of the data set (scripts/report_quality.sh puts it beside the runs), then every page one or two folders
    below the run (galleries of images and videos), by path; `own` is the folder of the results page itself."""
    beside = run.resolve().parent / "quality" / data / PAGE
    quality = [Link("quality of semantic IDs", beside)] if beside.is_file() else []
    below = sorted([*run.glob(f"*/{PAGE}"), *run.glob(f"*/*/{PAGE}")])
    others = [file for file in below if file.parent.resolve() != own.resolve()]
    return quality + [Link(file.parent.relative_to(run).as_posix(), file) for file in others]
