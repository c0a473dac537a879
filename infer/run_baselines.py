"""Baselines: popularity, transitions, item-kNN plain and tuned; saved as item models, with predictions like a model's.

reads   the prepared data set (train rows to count, rows of each split to answer); saved item models of any kind where
        --models names their directories (train.train_sequential writes some)
writes  <models_root>/{pop,last,recent,itemknn,itemknn_tuned}/: the models (infer/models/contract.py) and their manifests
        <output_root>/{pop,last,...}.<split>/: predictions and a manifest; score = log-probability. Those of a directory have
        its last name

Counted on train rows only; zero scores are ordered by popularity and ties stand in random order. `last` counts what came next after the
last item, `recent` what came within three places after it (1, 1/2, 1/3). `itemknn` is the plain cosine (last ten items, no decay, no
shrinkage); `itemknn_tuned` takes the shrinkage and the decay (by position, or by time where times exist) with the best NDCG@10 on valid,
`itemknn_text` adds similar texts; `mixture` is infer/models/mixture.py. What an item of the history counts, nothing at all included, is
chosen on valid for all of them but `pop` and `itemknn`, whose history can be recommended again (infer/models/tuning.py).

python -m infer.run_baselines --data data/toystore --output_root outputs/quickstart/eval --splits [valid,test]
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs import program
from configs.needs import Need, require_needs
from configs.program import AlreadyComplete, InputError, warn
from data import artifacts
from data.rows import Rows, TrainLog, read_rows, read_train_log, sample_rows
from data.store.lineage import require_same_data
from data.store.output import Output, open_output
from infer.models import contract
from infer.models.answers import write_answers
from infer.models.recency import with_ages
from infer.models.tuning import TUNE_K, TuneArgs, tune_itemknn, tune_own, tune_text

if TYPE_CHECKING:
    from infer.models.counting import CountingModel

# Of saved models, others 1: what a history item counts is chosen on valid; before that the mixture's weights got a prior.
VERSIONS = {"mixture": 3, "last": 2, "recent": 2, "itemknn_tuned": 2, "itemknn_text": 2}
LISTS_VERSION = 2  # ties are listed whole
LAST_VERSION = 3  # what version 1 of `last` was is called `recent` now: infer/tables/results.py reads it so
NAMES = ("pop", "last", "recent", "itemknn", "itemknn_tuned")
MORE = ("repeat", "itemknn_text", "mixture", "trend")
TUNED = ("last", "recent", "itemknn_tuned", "itemknn_text", "mixture")


@dataclass
class RunBaselinesArgs:
    """Predictions of the baselines."""

    data: str
    """prepared data set"""
    output_root: str
    """folder of the prediction directories, outputs/<run>/eval"""
    models_root: str | None = None
    """folder of the saved models; null = baselines beside output_root, outputs/<run>/baselines"""
    models: list[str] = field(default_factory=lambda: list(NAMES))
    """which baselines: pop, last, recent, itemknn, itemknn_tuned, repeat (the user's own history, newest first), itemknn_text
    (with similar texts, tuned on valid), mixture (counts and texts, weights by EM on valid), trend (how much
    more popular an item is lately than in all of train: a member of products); or directories of saved item models of this
    data set"""
    splits: list[str] = field(default_factory=lambda: ["valid", "test"])
    """which rows to answer"""
    depth: int = 50
    """length of the lists; items that tie for the last place are written too"""
    max_rows: int | None = None
    """answer a seeded sample of this many rows per split only; null = all"""
    seed: int = 0
    """of that sample and of the tuning rows"""
    tune: TuneArgs = field(default_factory=TuneArgs)
    """what is tried on valid rows"""
    overwrite: bool = False
    """replace outputs of another configuration"""

    def __post_init__(self) -> None:
        unknown = {name for name in self.models if not is_directory(name)} - {*NAMES, *MORE}
        if unknown:
            raise InputError(
                f"unknown baseline {sorted(unknown)[0]!r} -> one of {', '.join(NAMES + MORE)}, or a directory with a /"
            )
        if twice := {name for name, count in Counter(map(name_of, self.models)).items() if count > 1}:
            raise InputError(
                f"two models are called {sorted(twice)[0]!r} -> one at a time, or rename a directory"
            )
        if wrong := set(self.splits) - set(artifacts.SPLITS):
            raise InputError(f"unknown split {sorted(wrong)[0]!r} -> one of {', '.join(artifacts.SPLITS)}")
        require_needs(self)
        if self.depth < 1:
            raise InputError(f"depth {self.depth} must be at least 1")

    def needs(self) -> list[Need]:
        """Options that are read only where another one is set."""
        return [Need(("tune",), bool(set(self.models) & set(TUNED)), f"one of the models {', '.join(TUNED)}")]


def is_directory(model: str) -> bool:
    """Whether an entry of `models` is a directory, not the name of a baseline."""
    return "/" in model


def name_of(model: str) -> str:
    """What the predictions of an entry of `models` are called."""
    return Path(model).name


@dataclass(frozen=True)
class OneModel:
    """What decides one saved model: the configuration of its manifest."""

    data: str
    model: str
    seed: int | None
    tune: TuneArgs | None
    overwrite: bool


@dataclass(frozen=True)
class OneBaseline:
    """What decides one prediction directory: the configuration of its manifest. `model` is a name, or a directory that
    counts by its content."""

    data: str
    model: str
    split: str
    depth: int
    max_rows: int | None
    seed: int
    tune: TuneArgs | None
    overwrite: bool


class DataSource:
    """The data set, read when something of it is first asked for."""

    def __init__(self, data: str) -> None:
        self.data = data

    @cached_property
    def num_items(self) -> int:
        return artifacts.read_items(self.data).num_rows

    @cached_property
    def train(self) -> TrainLog:
        return read_train_log(self.data, num_items=self.num_items)

    @cached_property
    def similar(self) -> Any:
        """Text cosines of the most similar items, sparse [N, N]; None where no item has text, or none shares a term with others."""
        from infer.models.mixture import similarity_matrix
        from infer.models.sequential.options import TextOptions
        from infer.models.sequential.text import similar_items
        from rq.vectors.embeddings import EMPTY_TEXT, NoTerms, item_texts

        options = TextOptions()
        texts = item_texts(artifacts.read_items(self.data), options.fields)
        if all(text == EMPTY_TEXT for text in texts):
            return None
        try:
            return similarity_matrix(*similar_items(texts, options, most=options.similar))
        except NoTerms as none:
            warn(f"{self.data}: {none.said}: no texts are compared")
            return None

    def rows(self, split: str) -> Rows:
        rows = read_rows(self.data, split, num_items=self.num_items)
        return with_ages(rows, self.data, num_items=self.num_items)


def fit(source: DataSource, one: OneModel) -> tuple[Any, dict[str, Any]]:
    """(the model, the settings it was given or found)."""
    if one.model == "mixture":
        return fit_mixture(source, one)
    if one.model == "trend":
        return fit_trend(source)
    if one.model in TUNED:
        return fit_tuned(source, one)
    return fit_plain(source, one.model), {"decay": 1.0, "shrink": 0.0} if one.model == "itemknn" else {}


def tuning_rows(source: DataSource, one: OneModel) -> Rows:
    """The valid rows that numbers are chosen on."""
    rows = source.rows("valid")
    return rows.take(sample_rows(len(rows), one.tune.max_rows, one.seed))


def fit_mixture(source: DataSource, one: OneModel) -> tuple[Any, dict[str, Any]]:
    """The mixture of counts and texts, its weights, and the shift of the history."""
    from infer.models import mixture
    from infer.models.recency import recent_popularity
    from infer.models.sequential.repeats import shift_of

    recent = recent_popularity(source.data, mixture.RECENT, num_items=source.num_items)
    found = list(mixture.components(source.train, source.similar, recent))
    told_RC = mixture.target_probabilities(found, source.rows("valid"), source.num_items)
    weight_C = mixture.em_weights(told_RC, prior=1.0)
    weights = {part.name: float(weight) for part, weight in zip(found, weight_C, strict=True)}
    beside = mixture.Beside(weights, source.similar, recent)
    model = mixture.MixtureModel.of(zip(found, weight_C, strict=True), source.num_items, beside)
    by = f"ndcg@{TUNE_K}"
    shift, means = shift_of(tuning_rows(source, one), model.score, num_items=source.num_items, by=by)
    shown = {name: round(weight, 4) for name, weight in weights.items()}
    facts = {"weights": shown, "repeats": {"shift": shift, by: means}, "tuned_on": "valid"}
    return replace(model, shift=shift), facts


def fit_trend(source: DataSource) -> tuple[Any, dict[str, Any]]:
    """The ratio of what was popular lately to what is popular in all of train, as one distribution for all rows."""
    from infer.models.mixture import MixtureModel
    from infer.models.recency import TREND, recent_popularity, trend

    recent = recent_popularity(source.data, TREND, num_items=source.num_items)
    if not recent:
        raise InputError(
            f"{source.data}: no train interaction has a time, which trend needs -> leave it out of --models"
        )
    return MixtureModel(trend(source.train.popularity_N, recent), []), {"latest": TREND}


def fit_plain(source: DataSource, name: str) -> CountingModel:
    """The models that valid rows say nothing of."""
    from scipy import sparse

    from infer.models.counting import CountingModel, matrix_of

    size, popularity_N = source.num_items, source.train.popularity_N
    if name == "pop":
        return CountingModel(popularity_N, sparse.csr_matrix((size, size)), counted={})
    if name == "repeat":
        return CountingModel(popularity_N, sparse.identity(size, format="csr"), decay=0.5, counted={})
    counted = {"shrink": 0.0}
    return CountingModel(popularity_N, matrix_of(source.train, counted), counted=counted)


def fit_tuned(source: DataSource, one: OneModel) -> tuple[CountingModel, dict[str, Any]]:
    """The model of one matrix between items with what valid rows chose of it, and that."""
    from infer.models.counting import CountingModel, matrix_of

    if one.model == "itemknn_text" and source.similar is None:
        raise InputError(
            f"{source.data}: no item has text with a term of others, which itemknn_text needs -> leave it out of --models"
        )
    train, rows = source.train, tuning_rows(source, one)
    if one.model in ("last", "recent"):
        counted = {"reach": 1 if one.model == "last" else 3}
        matrix = matrix_of(train, counted)
        own, ndcg = tune_own(rows, matrix, train.popularity_N, one.tune, last=1)
        model = CountingModel(train.popularity_N, matrix, last=1, counted=counted, own=own)
        return model, {"own": own, **chosen_on_valid(ndcg)}
    found = tune_itemknn(rows, train, one.tune)
    if one.model == "itemknn_text":
        found = tune_text(rows, train, source.similar, one.tune, found)
    counted = {"shrink": found.shrink}
    matrix, chosen = matrix_of(train, counted), counted | found.weights
    if one.model == "itemknn_text":
        chosen |= {"text_weight": found.text_weight}
        matrix, counted = matrix + found.text_weight * source.similar.power(2), None
    model = CountingModel(train.popularity_N, matrix, **found.weights, counted=counted)
    return model, chosen | chosen_on_valid(found.ndcg)


def chosen_on_valid(ndcg: float) -> dict[str, Any]:
    """What a manifest says of a choice."""
    return {f"valid_ndcg@{TUNE_K}": round(ndcg, 6), "tuned_on": "valid"}


def save_model(source: DataSource, one: OneModel, directory: Path) -> None:
    """Fit a model and save it, where that is not done yet."""
    stage, inputs = f"item model {one.model}", {"data": one.data}
    try:
        with open_output(
            one, stage, version=VERSIONS.get(one.model, 1), inputs=inputs, directory=directory
        ) as out:
            model, chosen = fit(source, one)
            model.save(out)
            out.counts |= {"items": model.num_items, "entries": model.entries}
            out.facts |= {"fitted_on": "train", **chosen}
    except AlreadyComplete:
        pass


def write_one(out: Output, source: DataSource, one: OneBaseline, directory: Path) -> None:
    """Predict one split with a saved model."""
    model = contract.load(directory)
    if model.num_items != source.num_items:
        raise InputError(
            f"{directory} scores {model.num_items} items, {one.data} has {source.num_items} -> a model of this data"
        )
    name, rows = name_of(one.model), source.rows(one.split)
    rows = rows.take(sample_rows(len(rows), one.max_rows, one.seed))
    write_answers(out, rows, model, saved=directory, name=name, split=one.split, depth=one.depth)
    out.facts["max_rows"] = one.max_rows


def answer(args: RunBaselinesArgs, source: DataSource, one: OneBaseline, directory: Path) -> None:
    """The prediction directory of one model and split, where it is not there yet."""
    name = name_of(one.model)
    version = LAST_VERSION if name == "last" else LISTS_VERSION
    inputs = {"data": args.data} | ({"model": one.model} if is_directory(one.model) else {})
    place = Path(args.output_root) / f"{name}.{one.split}"
    try:
        with open_output(one, f"baseline {name}", version=version, inputs=inputs, directory=place) as out:
            write_one(out, source, one, directory)
    except AlreadyComplete as complete:
        print(f"run_baselines: {complete}", flush=True)


def main(args: RunBaselinesArgs) -> None:
    source = DataSource(args.data)
    root = Path(args.models_root or Path(args.output_root).parent / "baselines")
    for model in args.models:
        tune = args.tune if model in TUNED else None
        directory = Path(model) if is_directory(model) else root / model
        if is_directory(model):
            contract.read_settings(directory)
            require_same_data(directory, args.data, again="the stage that fits it")
        else:
            saved = OneModel(args.data, model, args.seed if tune else None, tune, args.overwrite)
            save_model(source, saved, directory)
        for split in args.splits:
            one = OneBaseline(
                args.data, model, split, args.depth, args.max_rows, args.seed, tune, args.overwrite
            )
            answer(args, source, one, directory)


if __name__ == "__main__":
    program.run(RunBaselinesArgs, main)
