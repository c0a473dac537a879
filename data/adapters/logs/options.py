"""Options of the adapters that read a publisher's log: MovieLens, KuaiRand, Yelp, Goodreads, MIND, RecBole's atomic files, P5's archive."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from configs.program import InputError
from data.adapters.options import check_tolerance


@dataclass(frozen=True)
class MovieLensOptions:
    """A MovieLens folder: u.data and u.item (100k), ratings.dat and movies.dat (1M, 10M), ratings.csv and movies.csv (later)."""

    scale: list[float] = field(default_factory=lambda: [0.5, 5.0])
    """lowest and highest rating of the file; others are refused"""
    doubled: bool = False
    """ratings become whole numbers, twice the stars (HiD-VAE)"""
    time_unit: Literal["s", "ms"] = "s"
    """unit of the times"""

    def __post_init__(self) -> None:
        if len(self.scale) != 2 or self.scale[0] >= self.scale[1]:
            raise InputError(
                f"movielens.scale {self.scale} -> the lowest and the highest rating, e.g. [0.5, 5]"
            )


@dataclass(frozen=True)
class KuaiRandOptions:
    """A KuaiRand folder: log_*.csv, video captions and categories; which clicks, users and videos count."""

    logs: list[str] = field(default_factory=lambda: ["log_standard_*.csv*", "log_random_*.csv*"])
    """file patterns below raw or raw/data, all of them are read"""
    captions: str = "kuairand_video_captions.csv"
    """file of the captions; empty = none, items have no text then"""
    categories: str = "kuairand_video_categories.csv"
    """file of the categories; empty = none"""
    clicks_only: bool = True
    """only rows with is_click 1"""
    min_clicks: int = 25
    """least rows of a user in the logs"""
    max_users: int = 30_000
    """at most so many users, drawn by `seed`; 0 = all"""
    min_levels: int = 2
    """least known category levels of a video, of the first three; 0 keeps videos without a caption too"""
    max_items: int = 30_000
    """at most so many videos, drawn by `seed` from every first-level category in proportion; 0 = all"""
    time_unit: Literal["s", "ms"] = "ms"
    """unit of time_ms"""
    seed: int = 42
    """seed of both draws"""

    def __post_init__(self) -> None:
        if not self.logs:
            raise InputError("kuairand.logs is empty -> name the log files")
        if self.min_levels and not (self.captions and self.categories):
            raise InputError(
                "kuairand.min_levels asks for captions and categories -> name both files, or set min_levels 0"
            )
        if self.min_levels > 3 or min(self.min_levels, self.min_clicks, self.max_users, self.max_items) < 0:
            raise InputError("kuairand: min_levels is at most 3, and no limit is negative")


@dataclass(frozen=True)
class YelpOptions:
    """A Yelp folder: one JSON object a line, of reviews and of businesses."""

    GROUP: ClassVar[str] = "yelp"
    KIND: ClassVar[str] = "reviews"
    reviews: list[str] = field(
        default_factory=lambda: ["yelp_academic_dataset_review.json*", "*review*.json*"]
    )
    """file patterns below raw, the first that matches anything is used"""
    businesses: list[str] = field(
        default_factory=lambda: ["yelp_academic_dataset_business.json*", "*business*.json*"]
    )
    """file patterns below raw, likewise"""
    max_bad_share: float = 0.01
    """largest share of broken lines per file"""
    skip_bad_rows: int | None = None
    """broken lines per file that are left out whatever their share, each with its text in rejects.jsonl; null = max_bad_share decides"""
    allow_truncated: bool = False
    """use the whole lines of a file that ends in the middle of a line or of its gzip stream"""

    def __post_init__(self) -> None:
        check_tolerance(self)


@dataclass(frozen=True)
class GoodreadsOptions:
    """A folder of the UCSD Book Graph: one JSON object a line, of interactions and of books."""

    GROUP: ClassVar[str] = "goodreads"
    KIND: ClassVar[str] = "interactions"
    interactions: list[str] = field(
        default_factory=lambda: ["goodreads_interactions*.json*", "goodreads_reviews*.json*"]
    )
    """file patterns below raw, the first that matches anything is used"""
    books: list[str] = field(default_factory=lambda: ["goodreads_books*.json*"])
    """file patterns below raw, likewise"""
    authors: list[str] = field(default_factory=lambda: ["goodreads_book_authors*.json*"])
    """likewise, names of authors, which are an item's brand; where none matches items have none"""
    read_only: bool = True
    """only books that were read: a book may be on a shelf without (lines of reviews have no such field: set it false there)"""
    shelves: int = 3
    """how many of a book's most used shelves are its categories; those that say what a reader does with it are left out"""
    max_bad_share: float = 0.01
    """largest share of broken lines per file"""
    skip_bad_rows: int | None = None
    """broken lines per file that are left out whatever their share, each with its text in rejects.jsonl; null = max_bad_share decides"""
    allow_truncated: bool = False
    """use the whole lines of a file that ends in the middle of a line or of its gzip stream"""

    def __post_init__(self) -> None:
        check_tolerance(self)
        if self.shelves < 0:
            raise InputError(f"goodreads.shelves is {self.shelves} -> 0 or more")


@dataclass(frozen=True)
class MindOptions:
    """A folder of MIND, the Microsoft News data: behaviors.tsv and news.tsv, of one part or of several."""

    behaviors: list[str] = field(default_factory=lambda: ["behaviors.tsv*", "*/behaviors.tsv*"])
    """file patterns below raw, the first that matches anything is used; files are read in the order of their first impression"""
    news: list[str] = field(default_factory=lambda: ["news.tsv*", "*/news.tsv*"])
    """file patterns below raw, likewise; of several lines of an article the first counts"""

    def __post_init__(self) -> None:
        if not self.behaviors or not self.news:
            raise InputError("mind.behaviors and mind.news are needed -> name both files")


@dataclass(frozen=True)
class AtomicOptions:
    """RecBole's atomic files: {name}.inter or {name}.{train,valid,test}.inter, {name}.item, {name}.user; plain or .gz."""

    name: str = ""
    """the start of the file names; empty = the only one in the folder"""
    title: list[str] = field(default_factory=lambda: ["title", "movie_title", "name"])
    """fields of .item that may hold the title, the first that is there counts"""
    categories: list[str] = field(default_factory=lambda: ["categories", "class", "genre"])
    """likewise; words are separated by spaces, labels by commas where it has any"""
    time_unit: Literal["s", "ms"] = "s"
    """unit of the times"""


@dataclass(frozen=True)
class P5Options:
    """A folder of P5's archive, or of S3-Rec: whole sequences of numbers, the names of the numbers, item text.

    Of every list of file patterns the first that matches counts; of the three last ones none has to.
    """

    GROUP: ClassVar[str] = "p5"
    KIND: ClassVar[str] = "metadata"
    format: ClassVar[Literal[2014]] = 2014
    sequences: list[str] = field(default_factory=lambda: ["sequential_data.txt*"])
    """lines of a user and his items, oldest first"""
    maps: list[str] = field(default_factory=lambda: ["datamaps.json*", "*datamaps.json*"])
    """id2user and id2item (or user2id and item2id): reviewer ids and ASINs of the numbers; none = the numbers are the raw ids"""
    metadata: list[str] = field(default_factory=lambda: ["meta.json*", "meta_*.json*"])
    """lines of JSON, or Python literals, with the asin of an item; none = no item has text"""
    attributes: list[str] = field(default_factory=lambda: ["item2attributes.json*", "*item2attributes.json*"])
    """S3-Rec's numbered attributes of an item, a column of their own"""
    max_bad_share: float = 0.01
    """largest share of broken lines of metadata"""
    skip_bad_rows: int | None = None
    """broken lines per file that are left out whatever their share, each with its text in rejects.jsonl; null = max_bad_share decides"""
    allow_truncated: bool = False
    """use the whole lines of metadata that ends in the middle of a line or of its gzip stream"""

    def __post_init__(self) -> None:
        if not self.sequences:
            raise InputError("p5.sequences is empty -> name the file of the sequences")
        if self.metadata and not self.maps:
            raise InputError("p5.metadata is found by ASIN -> name p5.maps too, or set p5.metadata []")
        check_tolerance(self)
