"""What every adapter can be told: one dataclass each, free of anything that reads files, so that `--help` stays quick."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from configs.program import InputError

Year = Literal[2014, 2018, 2023]
TitleFilter = Literal["published", "mark_missing", "none"]


def check_tolerance(options: Any) -> None:
    """InputError for a share of broken lines that is none, or a number of them below 0."""
    if not 0 <= options.max_bad_share < 1:
        raise InputError(f"{options.GROUP}.max_bad_share is {options.max_bad_share} -> between 0 and 1")
    if options.skip_bad_rows is not None and options.skip_bad_rows < 0:
        raise InputError(f"{options.GROUP}.skip_bad_rows is {options.skip_bad_rows} -> 0 or more, or null")


@dataclass(frozen=True)
class AmazonOptions:
    """Which dump, and what happens to its items and reviews."""

    GROUP: ClassVar[str] = "amazon"
    KIND: ClassVar[str] = "format"
    format: Year = 2018
    """release year of the dump: 2014, 2018 or 2023"""
    reviews: list[str] = field(default_factory=lambda: ["*_5.json*", "*reviews*"])
    """file patterns below raw, the first that matches anything is used"""
    metadata: list[str] = field(default_factory=lambda: ["meta_*"])
    """file patterns below raw, likewise; empty = there is no metadata"""
    title_filter: TitleFilter = "published"
    """published drops items without a usable title, mark_missing keeps them with an empty one, none cleans"""
    keep_without_metadata: bool = False
    """keep items that have no metadata line, with empty text"""
    drop_duplicates: bool = False
    """drop exact repeats of (user, item, time); the published protocol keeps them"""
    max_bad_share: float = 0.01
    """largest share of broken lines per file"""
    skip_bad_rows: int | None = None
    """broken lines per file that are left out whatever their share, each with its text in rejects.jsonl; null = max_bad_share decides"""
    time_unit: Literal["release", "s", "ms"] = "release"
    """unit of the times, s or ms; release = that of the release, s until 2018, ms in 2023"""
    allow_truncated: bool = False
    """use the whole lines of a file that ends in the middle of a line or of its gzip stream"""

    def __post_init__(self) -> None:
        if self.title_filter == "published" and self.keep_without_metadata:
            raise InputError(
                "amazon.title_filter published drops items without a title, and items without metadata have none"
                " -> set keep_without_metadata false, or title_filter mark_missing"
            )
        if not self.metadata and not self.keep_without_metadata:
            raise InputError("amazon.metadata is empty -> set keep_without_metadata true, or name the files")
        check_tolerance(self)

    @property
    def drops(self) -> str:
        """The option that may leave rows out, "" when none does."""
        if self.drop_duplicates:
            return "drop_duplicates"
        return (
            "title_filter"
            if self.title_filter == "published"
            else ""
            if self.keep_without_metadata
            else "keep_without_metadata"
        )

    @property
    def unit(self) -> str:
        """s or ms."""
        return self.time_unit if self.time_unit != "release" else "ms" if self.format == 2023 else "s"


@dataclass(frozen=True)
class TableFile:
    """One of the user's files."""

    file: str = ""
    """path below the raw folder; empty = there is none"""
    columns: dict[str, str] = field(default_factory=dict)
    """our column name -> the file's, for those that differ"""
    extras: list[str] = field(default_factory=list)
    """further columns to keep under their own names"""


@dataclass(frozen=True)
class TablesOptions:
    """The user's files and how to read them."""

    items: TableFile = field(default_factory=lambda: TableFile("items.parquet"))
    """item table"""
    interactions: TableFile = field(default_factory=lambda: TableFile("interactions.parquet"))
    """interaction table"""
    sequences: TableFile = field(default_factory=TableFile)
    """published sequences; without a file all windows are made here"""
    users: TableFile = field(default_factory=TableFile)
    """user table; without a file raw ids come from the interactions"""
    time_unit: str = "s"
    """unit of integer timestamps, s or ms"""
    sequence_by: Literal["refuse", "order", "time"] = "refuse"
    """what puts a user's rows in order where `order` contradicts the times: order or time; refuse = neither"""
    clean_text: bool = True
    """resolve HTML entities, strip tags and collapse whitespace in item text; false = keep it byte for byte"""

    def __post_init__(self) -> None:
        if self.time_unit not in ("s", "ms"):
            raise InputError(f"tables.time_unit is {self.time_unit!r} -> s or ms")
        if not self.items.file or not self.interactions.file:
            raise InputError("tables.items.file and tables.interactions.file are needed -> name both files")
        if self.interactions.extras:
            raise InputError(
                "tables.interactions.extras is not supported -> list extras of items, sequences or users"
            )


@dataclass(frozen=True)
class ReleaseOptions:
    """A folder that another system publishes."""

    SYSTEM: ClassVar[str]
    name: str = ""
    """which data set of a folder that holds several: the start of its file names, or its folder"""


@dataclass(frozen=True)
class MiniOneRecOptions(ReleaseOptions):
    """A MiniOneRec folder: {D}.item.json, {train,valid,test}/*.csv or {D}.*.inter; user2id and item2id where there."""

    SYSTEM: ClassVar[str] = "minionerec"


@dataclass(frozen=True)
class SidReasonerOptions(ReleaseOptions):
    """A SIDReasoner folder: that of MiniOneRec, index/*.index.json, narratives of items and texts of rows where there."""

    SYSTEM: ClassVar[str] = "sidreasoner"


@dataclass(frozen=True)
class MimiGenRecOptions(ReleaseOptions):
    """A MIMIGenRec folder: id2sid.json, sft/*.json or rl/*.json; item.json where there."""

    SYSTEM: ClassVar[str] = "mimigenrec"


@dataclass(frozen=True)
class NaviGenOptions(ReleaseOptions):
    """A NaviGen folder: {train,valid,test}_cid2cid.parquet; pid2cid2tid and the other tables where there."""

    SYSTEM: ClassVar[str] = "navigen"
