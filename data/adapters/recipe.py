"""How a data set is made, apart from where it lies: adapter, its options, filters, split.

`data.prepare` follows a recipe and `data.validate` checks a folder against one, so that both read the same YAML. The
group of options of every adapter comes from the registry.
"""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from typing import Any, Literal

from configs.program import InputError
from data.adapters import ADAPTERS
from data.adapters.contract import Adapter
from data.shaping.assemble import BY_TIME, FilterOptions, SplitOptions


@dataclass(frozen=True, kw_only=True)
class _Shared:
    """What every recipe has beside the options of the adapters."""

    adapter: Literal[tuple(ADAPTERS)] = "amazon"
    """what kind of folder raw is; the group of its name has its options"""
    filters: FilterOptions = field(default_factory=FilterOptions)
    """k-core and time window; with split.kind published nothing may be filtered"""
    split: SplitOptions = field(default_factory=SplitOptions)
    """split and window options"""

    def not_chosen(self) -> set[str]:
        """Option groups of the other adapters."""
        return set(ADAPTERS) - {self.adapter}

    def __post_init__(self) -> None:
        published = self.split.kind == "published"
        if published and not self.entry.published:
            others = ", ".join(name for name, entry in ADAPTERS.items() if entry.published)
            raise InputError(
                f"split.kind published, but adapter {self.adapter} brings no split -> global_temporal or leave_one_out,"
                f" or one of the adapters {others}"
            )
        if published and not self.filters.keeps_everything:
            raise InputError(
                "a published split is kept whole -> set filters.user_k and item_k to 0, no start, no end"
            )
        if published and (dropping := getattr(self.options, "drops", "")):
            raise InputError(
                f"a published split is kept whole, {self.adapter}.{dropping} leaves rows out -> title_filter none,"
                " keep_without_metadata true, drop_duplicates false"
            )
        shipped = getattr(getattr(self.options, "sequences", None), "file", "")
        if not published and shipped:
            raise InputError(
                f"{self.adapter}.sequences ships a split -> split.kind published, not {self.split.kind}"
            )
        if self.split.kind in BY_TIME and getattr(self.options, "sequence_by", "") == "order":
            raise InputError(
                f"split.kind {self.split.kind} cuts by time, {self.adapter}.sequence_by is order: later rows would be history"
                " of earlier targets -> set sequence_by to time, or split.kind to leave_one_out"
            )

    @property
    def entry(self) -> Adapter:
        """The adapter's entry in the registry."""
        return ADAPTERS[self.adapter]

    @property
    def options(self) -> Any:
        """The options of the chosen adapter."""
        return getattr(self, self.adapter)


Recipe = make_dataclass(
    "Recipe",
    [(name, entry.options, field(default_factory=entry.options)) for name, entry in ADAPTERS.items()],
    bases=(_Shared,),
    frozen=True,
    kw_only=True,
    namespace={"__module__": __name__, "__doc__": "What both programs are told; every adapter has a group."},
)
