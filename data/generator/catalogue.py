"""The items of the generated store: what is visible in their text and what only behaviour shows.

Visible: department, shelf, leaf, brand, product noun, price, and for half of the follow-ups the series name they share.
Hidden: the project an item belongs to (a project runs through five stages, each stocked from another leaf of one or two
departments, so that several projects share every leaf), the stage, the other half of the follow-ups, and seasons.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.generator.words import ADJECTIVES, BRANDS, COLORS, DETAILS, MATERIALS, OPENINGS, SERIES, SIZES, TREE

NUM_STAGES = 12
ITEMS_PER_PROJECT = 200
BRANDS_PER_DEPARTMENT = 7
POPULARITY_SPREAD = 0.9

LEAVES = [
    (department, shelf, leaf)
    for department in TREE
    for shelf in TREE[department]
    for leaf in TREE[department][shelf]
]
DEPARTMENT_OF_LEAF = np.array([list(TREE).index(department) for department, _, _ in LEAVES])


@dataclass(frozen=True)
class Catalogue:
    """Arrays over items [N] unless said; -1 stands for none.

    project, stage, leaf, brand: int32; popularity: float32 > 0; peak_month: int 0..11; release: day from the store's
    first; follow_up: the item that tends to be bought some purchases later, shared_name: bool, it says so in its title;
    refill: bool, bought again and again; cells: int32 [projects, NUM_STAGES, W] items of a stage, padded with -1;
    related: int32 [projects, 3] where an interest goes next.
    """

    project: np.ndarray
    stage: np.ndarray
    leaf: np.ndarray
    brand: np.ndarray
    popularity: np.ndarray
    peak_month: np.ndarray
    release: np.ndarray
    follow_up: np.ndarray
    shared_name: np.ndarray
    refill: np.ndarray
    cells: np.ndarray
    related: np.ndarray
    seed: int

    @property
    def size(self) -> int:
        return len(self.project)

    @property
    def department(self) -> np.ndarray:
        return DEPARTMENT_OF_LEAF[self.leaf]


def make_catalogue(num_items: int, *, days: int, seed: int) -> Catalogue:
    """A catalogue of `num_items` items for a store open `days` days."""
    rng = np.random.default_rng([seed, 1])
    projects = max(3, num_items // ITEMS_PER_PROJECT)
    place = rng.permutation(num_items)
    project = (place % projects).astype(np.int32)
    stage = ((place // projects) % NUM_STAGES).astype(np.int32)
    departments = len(TREE)
    homes = rng.integers(departments, size=(2, projects))
    # Three leaves stock all stages of a project, so that text does not tell the stage.
    leaves_each = len(LEAVES) // departments
    shelf = homes[[0, 0, 1]].T * leaves_each + rng.integers(leaves_each, size=(projects, 3))
    cell_leaf = np.take_along_axis(shelf, rng.integers(3, size=(projects, NUM_STAGES)), axis=1)
    leaf = cell_leaf[project, stage].astype(np.int32)
    shares = 1 / np.arange(1, BRANDS_PER_DEPARTMENT + 1) ** 0.7
    rank = rng.choice(BRANDS_PER_DEPARTMENT, size=num_items, p=shares / shares.sum())
    brand = (DEPARTMENT_OF_LEAF[leaf] * BRANDS_PER_DEPARTMENT + rank).astype(np.int32)
    cells = _cells(project, stage, projects)
    follow_up, shared_name, refill = _follow_ups(cells, num_items, rng)
    brand[follow_up[shared_name]] = brand[shared_name]
    return Catalogue(
        project=project,
        stage=stage,
        leaf=leaf,
        brand=brand,
        popularity=rng.lognormal(0.0, POPULARITY_SPREAD, num_items).astype(np.float32),
        peak_month=rng.integers(12, size=num_items),
        release=np.where(rng.random(num_items) < 0.12, rng.integers(days, size=num_items), 0),
        follow_up=follow_up,
        shared_name=shared_name,
        refill=refill,
        cells=cells,
        related=_related(homes, rng),
        seed=seed,
    )


def _cells(project: np.ndarray, stage: np.ndarray, projects: int) -> np.ndarray:
    cell = project * NUM_STAGES + stage
    order = np.argsort(cell, kind="stable")
    counts = np.bincount(cell, minlength=projects * NUM_STAGES)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    cells = np.full((projects * NUM_STAGES, int(counts.max())), -1, np.int32)
    cells[cell[order], np.arange(len(order)) - starts[cell[order]]] = order
    return cells.reshape(projects, NUM_STAGES, -1)


def _follow_ups(
    cells: np.ndarray, num_items: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(follow_up, shared_name, refill): 12 % of a stage's items lead to one item of the next; 5 % of all are refills."""
    follow_up = np.full(num_items, -1, np.int32)
    for before, after in zip(
        cells[:, :-1].reshape(-1, cells.shape[2]), cells[:, 1:].reshape(-1, cells.shape[2]), strict=True
    ):
        sources, targets = rng.permutation(before[before >= 0]), rng.permutation(after[after >= 0])
        count = min(len(sources), len(targets), round(0.12 * len(sources)))
        follow_up[sources[:count]] = targets[:count]
    shared_name = (follow_up >= 0) & (rng.random(num_items) < 0.5)
    refill = (follow_up < 0) & (rng.random(num_items) < 0.08)
    follow_up[refill] = np.flatnonzero(refill)
    return follow_up, shared_name, refill


def _related(homes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Three next projects of each: two that share a department where there are any, and one anywhere."""
    projects = homes.shape[1]
    related = rng.integers(projects, size=(projects, 3)).astype(np.int32)
    for project in range(projects):
        near = np.flatnonzero((homes == homes[0, project]).any(axis=0))
        near = near[near != project]
        if len(near):
            related[project, :2] = rng.choice(near, 2)
    return related


@dataclass(frozen=True)
class ItemText:
    """What the store's page says about one item, clean."""

    title: str
    description: tuple[str, ...]
    categories: tuple[str, ...]
    brand: str
    price: float


def item_text(catalogue: Catalogue, item: int, leader: int) -> ItemText:
    """The text of one item; `leader` is the item whose series name it shares, -1 for none."""
    rng = np.random.default_rng([catalogue.seed, 2, item])
    department, shelf, leaf = LEAVES[catalogue.leaf[item]]
    nouns, uses = TREE[department][shelf][leaf]
    use = int(rng.integers(len(uses)))
    words = {
        "brand": BRANDS[catalogue.brand[item] % len(BRANDS)],
        "noun": _pick(nouns, rng),
        "adjective": _pick(ADJECTIVES, rng),
        "material": _pick(MATERIALS[department], rng),
        "color": _pick(COLORS, rng),
        "size": _pick(SIZES, rng),
        "series": _series(catalogue, leader if leader >= 0 else item),
        "use": uses[use],
        "other_use": uses[use - 1],
        "model": f"{_pick('BCDFGHKLMNPRSTVX', rng)}{_pick('ACEKLMRTX', rng)}-{rng.integers(100, 1000)}",
    }
    if catalogue.refill[item]:
        title = "{brand} {noun} Refill for {series} Series, {size}"
    elif leader >= 0:
        title = "{brand} {series} Series Add-On {noun}, {color}"
    elif catalogue.shared_name[item]:
        title = "{brand} {series} Series {adjective} {noun}, {color}"
    else:
        title = _pick(_TITLES, rng)
    sentence = words | {
        "noun": " ".join(w if w.isupper() else w.lower() for w in words["noun"].split()),
        "material": words["material"].lower(),
        "color": words["color"].lower(),
    }
    opening = _pick(OPENINGS, rng).format(**sentence)
    details = [DETAILS[n].format(**sentence) for n in rng.permutation(len(DETAILS))[:3]]
    length = int(rng.integers(1, 4))
    price = float(np.round(np.exp(rng.normal(3.0, 0.7)), 2))
    return ItemText(
        title.format(**words), (opening, *details[:length]), (department, shelf, leaf), words["brand"], price
    )


_TITLES = (
    "{brand} {adjective} {noun}, {size}",
    "{brand} {material} {noun} - {color}",
    "{brand} {noun} ({size}), {color}",
    "{brand} {model} {adjective} {noun}",
    "{adjective} {material} {noun} by {brand}",
    "{brand} {noun} for {use}, {material}",
)


def _series(catalogue: Catalogue, item: int) -> str:
    return SERIES[(item * 7 + catalogue.seed) % len(SERIES)]


def _pick(options: tuple[str, ...] | str, rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]
