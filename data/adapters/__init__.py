"""Every kind of raw folder that stage 01 reads, by name (contract: `data.adapters.contract`).

To add one: write its options class and its module, and name both here; the recipe gets a group of that name.
"""

from __future__ import annotations

from data.adapters.contract import Adapter
from data.adapters.logs.options import (
    AtomicOptions,
    GoodreadsOptions,
    KuaiRandOptions,
    MindOptions,
    MovieLensOptions,
    P5Options,
    YelpOptions,
)
from data.adapters.options import (
    AmazonOptions,
    MimiGenRecOptions,
    MiniOneRecOptions,
    NaviGenOptions,
    SidReasonerOptions,
    TablesOptions,
)

ADAPTERS: dict[str, Adapter] = {
    "amazon": Adapter(AmazonOptions, "data.adapters.amazon", published=True),
    "p5": Adapter(P5Options, "data.adapters.logs.p5"),
    "tables": Adapter(TablesOptions, "data.adapters.tables", published=True),
    "movielens": Adapter(MovieLensOptions, "data.adapters.logs.movielens"),
    "kuairand": Adapter(KuaiRandOptions, "data.adapters.logs.kuairand"),
    "yelp": Adapter(YelpOptions, "data.adapters.logs.yelp"),
    "goodreads": Adapter(GoodreadsOptions, "data.adapters.logs.goodreads"),
    "mind": Adapter(MindOptions, "data.adapters.logs.mind"),
    "recbole": Adapter(AtomicOptions, "data.adapters.logs.atomic", published=True),
    "minionerec": Adapter(MiniOneRecOptions, "data.adapters.releases", published=True),
    "sidreasoner": Adapter(SidReasonerOptions, "data.adapters.releases", published=True),
    "mimigenrec": Adapter(MimiGenRecOptions, "data.adapters.releases", published=True),
    "navigen": Adapter(NaviGenOptions, "data.adapters.releases", published=True),
}
