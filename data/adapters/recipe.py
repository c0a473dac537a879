"""How a data set is made, apart from where it lies: adapter, its options, filters, split.

`data.prepare` follows a recipe and `data.validate` checks tables against one, so that both read the same YAML.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from configs.program import InputError
from data.adapters.amazon import Year
from data.adapters.item_text import TitleFilter
from data.adapters.tables import TablesOptions
from data.shaping.assemble import FilterOptions, SplitOptions


@dataclass(frozen=True)
class AmazonOptions:
    """Which dump, and what happens to its items and reviews."""

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

    def __post_init__(self) -> None:
        if self.title_filter == "published" and self.keep_without_metadata:
            raise InputError(
                "amazon.title_filter published drops items without a title, and items without metadata have none"
                " -> set keep_without_metadata false, or title_filter mark_missing"
            )
        if not self.metadata and not self.keep_without_metadata:
            raise InputError("amazon.metadata is empty -> set keep_without_metadata true, or name the files")
        if not 0 <= self.max_bad_share < 1:
            raise InputError(f"amazon.max_bad_share is {self.max_bad_share} -> between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What both programs are told."""

    adapter: Literal["amazon", "tables"] = "amazon"
    """amazon (review dumps) or tables (a user's own or a published data set)"""
    amazon: AmazonOptions = field(default_factory=AmazonOptions)
    """options of the amazon adapter"""
    tables: TablesOptions = field(default_factory=TablesOptions)
    """options of the tables adapter"""
    filters: FilterOptions = field(default_factory=FilterOptions)
    """k-core and time window; with split.kind published nothing may be filtered"""
    split: SplitOptions = field(default_factory=SplitOptions)
    """split and window options"""

    def not_chosen(self) -> set[str]:
        """Option groups of the other adapters."""
        return {"amazon", "tables"} - {self.adapter}

    def __post_init__(self) -> None:
        published = self.split.kind == "published"
        if published and self.adapter == "amazon":
            raise InputError(
                "split.kind published needs the tables adapter -> global_temporal or leave_one_out"
            )
        if published and not self.filters.keeps_everything:
            raise InputError(
                "a published split is kept whole -> set filters.user_k and item_k to 0, no start, no end"
            )
        if not published and self.adapter == "tables" and self.tables.sequences.file:
            raise InputError(f"tables.sequences ships a split -> split.kind published, not {self.split.kind}")
