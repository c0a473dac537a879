"""infer.fuse on a small store: item models, caches and a language model's predictions as members; pools; what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from configs.program import InputError
from data.predictions import read_predictions
from data.rows import read_rows
from data.store.output import read_manifest
from infer.fuse import sample
from infer.models import contract
from infer.models.cache import cached
from infer.models.members import fitted_on, members_of
from infer.models.recency import with_ages
from tests.handmade import call, refuse, resign, succeed
from tests.store import ITEMS, write_store

SPLITS = ("valid", "test")


@pytest.fixture(scope="module")
def run(chain, tmp_path_factory):
    """A run folder with popularity, item-kNN and the answers of an untrained language model; and the rows of both splits."""
    root = tmp_path_factory.mktemp("fuse") / "run"
    baselines = "[pop,itemknn,itemknn_tuned,recent]"
    call(
        "infer.run_baselines", "--data", chain.data, "--output_root", root / "eval", "--models", baselines, "--splits", "[test]",
        "--tune.decays", "[0.6]", "--tune.shrinks", "[0.0]",
    )  # fmt: skip
    for split in SPLITS:
        answers = root / f"eval/llm.{split}"
        call(
            "infer.recommend", *chain.flags(), "--output_dir", answers, "--split", split, "--decode.beams", 8
        )
    rows = {split: read_rows(chain.data, split, num_items=ITEMS) for split in SPLITS}
    return root, {split: with_ages(one, chain.data, num_items=ITEMS) for split, one in rows.items()}


def command(chain, folder, members, *flags, name="fused") -> tuple:
    listed = ",".join(map(str, members))
    return (
        "infer.fuse", "--members", f"[{listed}]", "--data", chain.data, "--output_dir", folder / f"baselines/{name}",
        "--output_root", folder / "eval", *flags,
    )  # fmt: skip


def facts_of(directory) -> dict:
    return read_manifest(directory)["facts"]


def test_a_product_from_members_to_the_table(chain, run, tmp_path):
    root, rows = run
    members = [root / "baselines/pop", root / "baselines/itemknn_tuned"]
    fuse = command(chain, tmp_path, members, "--depth", 12)
    call(*fuse)
    fused, separate = contract.load(tmp_path / "baselines/fused"), list(map(contract.load, members))
    mean_RN = sum(one.score(rows["test"]).astype(float) for one in separate) / 2
    expected = np.exp(mean_RN) / np.exp(mean_RN).sum(1, keepdims=True)
    assert fused.num_items == ITEMS and np.allclose(np.exp(fused.score(rows["test"])), expected, atol=1e-6)
    facts = facts_of(tmp_path / "eval/fused.test")
    assert facts["weights"] == {str(member): 0.5 for member in members} and facts["how"] == "product"
    assert (facts["fitted_on"], facts["depth"], facts["split"]) == ("train", 12, "test")
    assert "tuned_on" not in facts and "pool_k" not in facts
    read = read_predictions(tmp_path / "eval/fused.test")[0]
    best = [read.items_M[start] for start in read.offsets[:-1]]
    assert (np.take_along_axis(expected, np.array(best)[:, None], 1)[:, 0] >= expected.max(1) - 1e-6).all()
    stamps = [path.stat().st_mtime_ns for path in tmp_path.rglob("manifest.json")]
    with pytest.raises(InputError, match="pool_k 7 is read only with how pool"):
        call(*fuse, "--pool_k", 7)
    assert [path.stat().st_mtime_ns for path in tmp_path.rglob("manifest.json")] == stamps
    # As any other model: answered by run_baselines, measured, compared.
    again = tmp_path / "again"
    call(
        "infer.run_baselines", "--models", f"[{tmp_path}/baselines/fused]", "--data", chain.data, "--output_root", again,
        "--splits", "[test]", "--depth", 12,
    )  # fmt: skip
    tables = [pq.read_table(next(place.glob("*.parquet"))) for place in (tmp_path / "eval/fused.test", again / "fused.test")]  # fmt: skip
    assert tables[0].equals(tables[1])
    for place in (tmp_path / "eval/fused.test", root / "eval/pop.test"):
        call(
            "infer.evaluate",
            "--predictions",
            place,
            "--data",
            chain.data,
            "--sids",
            chain.sids,
            "--resamples",
            20,
        )
    metrics = json.loads((tmp_path / "eval/fused.test/metrics/metrics.json").read_text())
    assert metrics["protocol"]["weights"] == facts["weights"] and "sid_level/hr@10" in metrics
    printed = succeed(
        "infer.compare", "--runs", f"[{tmp_path},{root}]", "--output_dir", tmp_path / "table", "--resamples", 50,
        "--reference", "pop",
    )  # fmt: skip
    assert "fused" in printed


def test_a_product_weighed_by_the_likelihood_of_valid_rows(chain, run, tmp_path):
    root, rows = run
    members = [root / "baselines/pop", root / "baselines/recent", root / "baselines/itemknn"]
    call(*command(chain, tmp_path, members, "--weights", "likelihood", "--splits", "[test]"))
    facts, fused = facts_of(tmp_path / "baselines/fused"), contract.load(tmp_path / "baselines/fused")
    assert facts["tuned_on"] == "valid" and facts["tuned_rows"] == len(rows["valid"]) and "scale" not in facts
    assert list(facts["weights"].values()) == pytest.approx(fused.weights_M, abs=1e-6)
    target_R1 = rows["valid"].target_R[:, None].astype(np.int64)
    nll = -fused.score(rows["valid"], target_R1).astype(float).mean()
    assert facts["valid_nll_likelihood"] == pytest.approx(nll, abs=1e-4) and nll < facts["valid_nll_equal"]
    some = sample(rows["valid"], 7)
    assert len(some) == 7 and set(some.example_ids_R) < set(rows["valid"].example_ids_R)
    assert (sample(rows["valid"], 7).example_ids_R == some.example_ids_R).all() and sample(some, 7) is some
    for more, message in (
        (["--how", "mixture"], "not of a mixture"),
        (["--how", "pool"], "not of a pool"),
        (["--scale", "fitted"], "with scale fitted"),
    ):
        told = refuse(*command(chain, tmp_path, members, "--weights", "likelihood", *more, name="other"))
        assert message in told and not (tmp_path / "baselines/other").exists()


def test_a_mixture_by_em(chain, run, tmp_path):
    root, rows = run
    members = [root / "baselines/pop", root / "baselines/recent", root / "baselines/itemknn"]
    call(*command(chain, tmp_path, members, "--how", "mixture", "--weights", "em", "--splits", "[test]"))
    facts = facts_of(tmp_path / "baselines/fused")
    assert (facts["tuned_on"], facts["tuned_rows"], facts["fitted_on"]) == (
        "valid",
        len(rows["valid"]),
        "train",
    )
    assert facts["valid_nll_em"] < facts["valid_nll_equal"] - 0.01
    weights = list(facts["weights"].values())
    assert sum(weights) == pytest.approx(1, abs=1e-5) and max(weights) > 0.5
    fused = contract.load(tmp_path / "baselines/fused")
    target_R1 = rows["valid"].target_R[:, None]
    assert -fused.score(rows["valid"], target_R1).mean() == pytest.approx(facts["valid_nll_em"], abs=1e-4)
    given = command(
        chain, tmp_path, members, "--how", "mixture", "--weights", "[1,0,3]", "--splits", "[]", name="given"
    )
    call(*given)
    assert list(facts_of(tmp_path / "baselines/given")["weights"].values()) == [0.25, 0, 0.75]


def test_caches_of_the_catalogue_fuse_to_what_the_models_do(chain, run, tmp_path):
    root, rows = run
    models = [root / "baselines/itemknn", root / "baselines/recent"]
    caches = [tmp_path / model.name for model in models]
    for model, directory in zip(models, caches, strict=True):
        cached(directory, model=model, rows=rows["test"], k=ITEMS)
    for how in ("product", "mixture", "pool"):
        flags = ("--how", how, "--splits", "[test]", *(("--pool_k", 5) if how == "pool" else ()))
        for name, members in (("exact", models), ("cached", caches)):
            call(*command(chain, tmp_path / how, members, *flags, name=name))
        exact, other = (contract.load(tmp_path / how / "baselines" / name) for name in ("exact", "cached"))
        assert (exact.score(rows["test"]) == other.score(rows["test"])).all()
    assert facts_of(tmp_path / "mixture/baselines/cached")["fitted_on"] == "train", "through the cached model"
    small = cached(tmp_path / "small", model=models[0], rows=rows["test"], k=6)
    call(*command(chain, tmp_path, [tmp_path / "small", models[1]], "--splits", "[test]", name="few"))
    mean_RN = (small.score(rows["test"]) + contract.load(models[1]).score(rows["test"])) / 2
    score_RN = contract.load(tmp_path / "baselines/few").score(rows["test"])
    assert np.ptp(score_RN - mean_RN, axis=1).max() < 1e-4, "the rest has what the cache says"


def test_predictions_of_a_language_model_as_a_member(chain, run, tmp_path):
    root, rows = run
    knn, answers = root / "baselines/itemknn", [root / f"eval/llm.{split}" for split in SPLITS]
    assert [member.name for member in members_of([knn, *answers])] == [str(knn), str(root / "eval/llm")]
    call(*command(chain, tmp_path, [knn, *answers], "--how", "mixture", "--weights", "em"))
    assert set(facts_of(tmp_path / "baselines/fused")["weights"]) == {str(knn), str(root / "eval/llm")}
    for split in SPLITS:
        assert read_predictions(tmp_path / f"eval/fused.{split}")[1]["counts"]["examples"] == len(rows[split])
    # One split alone serves where one split is asked for.
    call(*command(chain, tmp_path, [knn, answers[1]], "--splits", "[test]", name="test_only"))
    (member,) = members_of(answers[1:])
    llm_RN = member.open(ITEMS).score(rows["test"])
    half_RN = (llm_RN + contract.load(knn).score(rows["test"])) / 2
    score_RN = contract.load(tmp_path / "baselines/test_only").score(rows["test"])
    assert np.ptp(score_RN - half_RN, axis=1).max() < 1e-4


def test_a_pool_and_how_many_targets_it_holds(chain, run, tmp_path):
    root, rows = run
    knn, llm = root / "baselines/itemknn", root / "eval/llm.test"
    flags = ("--how", "pool", "--pool_k", 4, "--splits", "[test]")
    call(*command(chain, tmp_path, [knn, llm], *flags, "--weights", "[1,0]"))
    facts = facts_of(tmp_path / "eval/fused.test")
    rows, exact_RN = rows["test"], contract.load(knn).score(rows["test"])
    beams = read_predictions(llm)[0]
    order = np.searchsorted(beams.example_ids_R, rows.example_ids_R)
    lists = contract.ranked_lists(exact_RN, 4)
    found, sizes = {"knn": 0, "llm": 0, "pool": 0}, []
    read = read_predictions(tmp_path / "eval/fused.test")[0]
    for row in range(len(rows)):
        first = set(lists.item_E[lists.offsets[row] : lists.offsets[row + 1]].tolist())
        entries = beams.items_M[beams.offsets[order[row]] : beams.offsets[order[row] + 1]]
        second, target = set(entries[:4].tolist()), int(rows.target_R[row])
        found["knn"] += target in first
        found["llm"] += target in second
        found["pool"] += target in first | second
        sizes.append(len(first | second))
        listed = read.items_M[read.offsets[row] : read.offsets[row + 1]]
        assert set(listed.tolist()) == first | second
        assert (np.diff(exact_RN[row, listed]) <= 0).all(), "in the order of the first member"
    assert list(facts["targets_listed"].values()) == list(found.values())
    assert found["pool"] > found["knn"] and facts["pool_items"] == round(np.mean(sizes), 2)
    assert facts["targets_listed"].keys() == {str(knn), str(root / "eval/llm"), "pool"}
    call("infer.evaluate", "--predictions", tmp_path / "eval/fused.test", "--data", chain.data, "--resamples", 20, "--ks", "[1,4]")  # fmt: skip
    metrics = json.loads((tmp_path / "eval/fused.test/metrics/metrics.json").read_text())
    assert metrics["protocol"]["targets_listed"] == facts["targets_listed"]
    assert "holds another run (pool_k 4 -> 5)" in refuse(*command(chain, tmp_path, [knn, llm], *flags, "--pool_k", 5, "--weights", "[1,0]"))  # fmt: skip


def test_options_that_do_not_fit(chain, run, tmp_path):
    root, _ = run
    pair = [root / "baselines/pop", root / "baselines/itemknn"]
    for flags, words in (
        (("--how", "sum"), "unknown how 'sum' -> one of product, mixture, pool"),
        (("--weights", "searched"), "unknown weights 'searched'"),
        (("--weights", "em"), "EM fits the weights of a mixture, not of a product"),
        (("--weights", "[1,-1]"), "must not be negative"),
        (("--weights", "[0,0]"), "not all be 0"),
        (("--weights", "[.nan,1]"), "must not be negative"),
        (("--weights", "[1,1,1]"), "3 weights for 2 members"),
        (("--splits", "[tset]"), "unknown split 'tset'"),
        (("--how", "pool", "--pool_k", 0), "pool_k 0 and depth 50 must be at least 1"),
    ):
        assert words in refuse(*command(chain, tmp_path, pair, *flags))
    assert "one member" in refuse(*command(chain, tmp_path, pair[:1]))
    assert "is a member twice" in refuse(*command(chain, tmp_path, [*pair, pair[0]]))
    assert "neither an item model nor predictions" in refuse(*command(chain, tmp_path, [pair[0], chain.data]))
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_members_that_rank_different_rows(chain, run, tmp_path):
    root, rows = run
    pop, knn, llm = root / "baselines/pop", root / "baselines/itemknn", root / "eval/llm.test"
    assert "has answered test, not valid" in refuse(*command(chain, tmp_path, [pop, llm]))
    em = ("--how", "mixture", "--weights", "em", "--splits", "[test]")
    assert "has answered test, not valid" in refuse(*command(chain, tmp_path, [pop, llm], *em))
    other = write_store(
        tmp_path / "store", [[item % 30 for item in range(u, u + 6)] for u in range(30)], items=30
    )
    call("infer.run_baselines", "--data", other, "--output_root", tmp_path / "o/eval", "--models", "[pop]", "--splits", "[test]")  # fmt: skip
    for member in (tmp_path / "o/baselines/pop", tmp_path / "o/eval/pop.test"):
        said = refuse(*command(chain, tmp_path / "x", [knn, member], "--splits", "[test]"))
        assert "was made from another state of the data" in said
    with pytest.raises(InputError, match="scores 30 items, the others 40 -> members of one catalogue"):
        members_of([tmp_path / "o/baselines/pop"])[0].open(ITEMS)
    half = cached(tmp_path / "half", model=knn, rows=rows["test"].take(np.arange(5)), k=4)
    assert half.num_items == ITEMS
    said = refuse(*command(chain, tmp_path / "x", [pop, tmp_path / "half"], "--splits", "[test]"))
    assert "has no scores of example" in said and not (tmp_path / "x").exists()
    sample = tmp_path / "eval/sample.test"
    call("infer.run_baselines", "--data", chain.data, "--output_root", tmp_path / "eval", "--models", "[pop]", "--splits", "[test]", "--max_rows", 9)  # fmt: skip
    shutil.copytree(tmp_path / "eval/pop.test", sample)
    assert "examples are missing" in refuse(
        *command(chain, tmp_path / "x", [knn, sample], "--splits", "[test]")
    )


def changed(source, place, **facts):
    """A copy of a finished directory whose manifest says something else."""
    shutil.copytree(source, place)
    stage = facts.pop("stage", read_manifest(place)["stage"])
    return resign(place, stage=stage, facts=read_manifest(place)["facts"] | facts)


def test_members_that_were_fitted_or_made_differently(chain, run, tmp_path):
    root, _ = run
    pop, knn, llm = root / "baselines/pop", root / "baselines/itemknn", root / "eval/llm.test"
    test = ("--splits", "[test]")
    more = changed(knn, tmp_path / "more", fitted_on="train+valid")
    said = refuse(*command(chain, tmp_path / "x", [pop, more], *test))
    assert "fitted on different rows" in said and f"{more} on train+valid" in said
    also = changed(pop, tmp_path / "also", fitted_on="train+valid")
    assert "cannot tell their weights" in refuse(
        *command(chain, tmp_path / "x", [more, also], *test, "--how", "mixture", "--weights", "em")
    )
    theirs = changed(llm, tmp_path / "theirs.test", stage="import_predictions", fitted_on="unknown")
    assert fitted_on(theirs) == "unknown"
    assert "has ranks, no probabilities" in refuse(*command(chain, tmp_path / "x", [pop, theirs], *test))
    call(
        *command(chain, tmp_path, [pop, theirs], *test, "--how", "pool", "--weights", "[1,0]", name="pooled")
    )
    limited = changed(llm, tmp_path / "limited.test", allowed="in_stock.parquet")
    assert "was restricted to in_stock.parquet" in refuse(
        *command(chain, tmp_path / "x", [pop, limited], *test)
    )
    one, two = changed(llm, tmp_path / "m.test"), changed(root / "eval/llm.valid", tmp_path / "m.valid", model_hash="0" * 64)  # fmt: skip
    assert "are answers of two models" in refuse(*command(chain, tmp_path / "x", [pop, one, two], *test))


def test_a_member_that_changed_after_the_fusion(chain, run, tmp_path):
    root, rows = run
    member = tmp_path / "baselines/knn"
    shutil.copytree(root / "baselines/itemknn", member)
    call(*command(chain, tmp_path, [member, root / "baselines/pop"], "--splits", "[test]"))
    call(
        *command(chain, tmp_path, [tmp_path / "baselines/fused", member], "--splits", "[test]", name="nested")
    )
    settings = json.loads((member / contract.FILE).read_text())
    before = contract.load(tmp_path / "baselines/nested").score(rows["test"])
    assert np.isfinite(before).all(), "a fusion is a member like any other"
    (member / contract.FILE).write_text(json.dumps(settings | {"last": 3}))
    resign(member)
    with pytest.raises(InputError, match="is not what .*fused was made of"):
        contract.load(tmp_path / "baselines/fused")
    shutil.rmtree(member)
    with pytest.raises(InputError, match="input does not exist"):
        contract.load(tmp_path / "baselines/fused")
