"""HiD-VAE: tags that are learned and read back, uniqueness that works, training piece by piece."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file

from configs import program
from configs.program import InputError, Interrupted
from data import tags as tagging
from data.tags import OTHER, UNKNOWN
from rq.constructors.hidvae import quantizer as hidvae
from rq.constructors.hidvae.model import HidVae
from rq.constructors.hidvae.options import Align, Unique
from rq.constructors.hidvae.problem import Miner
from rq.stack import residual, training
from rq.stack.options import LoopOptions, Source
from tests.categorised import ITEMS, SMALL, catalogue, fit, problem_of, write_tags


def value(tensor):
    return pytest.approx(tensor, abs=1e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(vectors, tags directory, quantizer directory, quantizer)."""
    root = tmp_path_factory.mktemp("hidvae")
    x_ND, tags = catalogue()
    directory = write_tags(root / "tags", tags)
    return x_ND, directory, root / "q", fit(root / "q", x_ND, directory)


def test_tags_of_held_out_items_are_predicted(trained):
    x_ND, directory, path, quantizer = trained
    report = json.loads((path / hidvae.ACCURACY).read_text())
    for split in ("valid", "test"):
        first, second = report[split]
        assert first["accuracy"] > 0.9 and second["accuracy"] > 0.75, report
        assert first["largest_class"] < 0.6 and first["items"] >= 10
    tags = tagging.read_tags(directory)
    classes_NT, confidence_NT = quantizer.predict_tags(quantizer.encode(x_ND))
    assert classes_NT.shape == confidence_NT.shape == (ITEMS, 2)
    assert (confidence_NT > 0).all() and (confidence_NT <= 1).all()
    test = (tags.split_N == "test") & (tags.classes_NL[:, 0] != UNKNOWN)
    right = (classes_NT[test, 0] == tags.classes_NL[test, 0]).mean()
    assert report["test"][0]["accuracy"] == pytest.approx(right)


def test_every_item_has_a_path_in_words(trained):
    x_ND, directory, path, quantizer = trained
    rows = pq.read_table(path / hidvae.PATHS).to_pylist()
    assert [row["item_id"] for row in rows] == list(range(ITEMS))
    names = {name for level in quantizer.vocab.names for name in level}
    assert all(set(row["tags"]) <= names and len(row["codes"]) == 3 for row in rows)
    right = [row["tags"][0] == f"family {row['item_id'] % 4}" for row in rows]
    assert np.mean(right) > 0.9 and rows[1]["tags"][0] is not None, "an item without tags has a path, too"
    codes = json.loads((path / hidvae.CODES).read_text())
    first = {row["codes"][0]: row["tags"][0] for row in rows}
    assert {row["code"]: row["tag"] for row in codes} == first and sum(row["items"] for row in codes) == ITEMS
    assert [row["items"] for row in codes] == sorted((row["items"] for row in codes), reverse=True)
    text = hidvae.path_text([4, 2, 7], ["family 0", None], [0.987, 0.1])
    assert text == "4 family 0 (0.99) > 2 > 7"


def test_training_and_evaluation_agree_on_codes(trained):
    """Rotation with the norm rescaled: what a level passes on in training is the codeword itself."""
    x_ND, _, _, quantizer = trained
    model = HidVae(quantizer.model.shape)
    model.load_state_dict(quantizer.model.state_dict())
    model.train()
    out = model(torch.from_numpy(x_ND))
    assert (out.quantized.codes_BL.numpy() == quantizer.encode(x_ND)).all()
    words = torch.from_numpy(quantizer.codewords(quantizer.encode(x_ND)))
    torch.testing.assert_close(out.quantized.quantized_BE.detach(), words, atol=1e-5, rtol=0)
    assert torch.allclose(out.latent_BE.norm(dim=1), torch.ones(ITEMS), atol=1e-5)
    assert torch.allclose(out.restored_BD.norm(dim=1), torch.ones(ITEMS), atol=1e-5)


def test_a_saved_quantizer_comes_back_and_a_damaged_one_is_refused(trained):
    x_ND, _, path, quantizer = trained
    again, description = residual.load(path)
    codes_NL = again.encode(x_ND)
    assert (codes_NL == quantizer.encode(x_ND)).all() and again.vocab == quantizer.vocab
    assert (again.predict_tags(codes_NL)[0] == quantizer.predict_tags(codes_NL)[0]).all()
    np.testing.assert_allclose(again.decode(codes_NL), quantizer.decode(codes_NL), atol=1e-6)
    assert description["kind"] == "hidvae"
    tensors = load_file(path / residual.WEIGHTS)
    for change in ({"drop": "model.heads.0.out.5.bias"}, {"add": "model.heads.9.bias"}, {"cut": "model.heads.1.out.5.bias"}):  # fmt: skip
        broken = dict(tensors)
        if "drop" in change:
            del broken[change["drop"]]
        if "add" in change:
            broken[change["add"]] = np.zeros(3, np.float32)
        if "cut" in change:
            broken[change["cut"]] = broken[change["cut"]][:1]
        with pytest.raises(InputError, match="do not fit"):
            hidvae.HidVaeQuantizer.build(broken, description)


def test_best_and_last_states_and_measures_are_on_disk(trained):
    _, _, path, _ = trained
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [25, 50]
    for name in ("best_collisions.safetensors", "best_loss.safetensors", "checkpoint-50/COMPLETE.json"):
        assert (path / name).exists()
    wanted = {"collisions", "reconstruction", "quantization", "prediction", "loss", "tag_accuracy_valid_1", "tag_accuracy_train_2",
              "used_1", "entropy_nats_3", "perplexity_2", "train_alignment", "train_prediction", "train_uniqueness"}  # fmt: skip
    assert wanted <= set(lines[-1])
    assert lines[-1]["tag_accuracy_train_1"] > 0.9


# Training, piece by piece.


def test_the_loss_is_the_weighted_sum_of_its_terms():
    problem = problem_of()
    terms = problem.terms(torch.arange(ITEMS), generator=torch.Generator().manual_seed(0))
    expected = terms["reconstruction"] + terms["quantization"] + 0.15 * terms["alignment"]
    expected = expected + 0.55 * terms["prediction"] + 1.5 * terms["uniqueness"]
    assert float(terms["loss"].detach()) == value(float(expected.detach()))
    assert all(float(terms[name].detach()) > 0 for name in ("alignment", "prediction", "uniqueness"))
    off = replace(SMALL, align=Align(weight=0), tags=replace(SMALL.tags, weight=0), unique=Unique(weight=0))
    terms = problem_of(off).terms(torch.arange(ITEMS), generator=torch.Generator().manual_seed(0))
    assert set(terms) == {"reconstruction", "quantization", "loss"}


def test_tags_of_held_out_items_do_not_reach_the_loss():
    def loss(**changes):
        problem = problem_of(**changes)
        return float(
            problem.terms(torch.arange(ITEMS), generator=torch.Generator().manual_seed(0))["loss"].detach()
        )

    known = problem_of().learn_NT.numpy()
    hidden = known.copy()
    hidden[40:80] = UNKNOWN
    swapped = known.copy()
    swapped[40:80] = (known[40:80] + 1) % 4
    assert loss(learn_NT=known) != loss(learn_NT=hidden) != loss(learn_NT=swapped)
    x_ND, tags = catalogue()
    split_N = tagging.split_items(ITEMS, valid=0.1, test=0.1, seed=0)
    vocab = tagging.build_vocab(tags, split_N == "train", rare_threshold=0)
    sources = [[None if tag is None else "given" for tag in row] for row in tags]
    found = tagging.TagSet(tags, sources, split_N, vocab)
    learn_NT = hidvae.classes_to_learn(found, SMALL)
    assert (learn_NT[split_N != "train"] == UNKNOWN).all() and (
        learn_NT[split_N == "train", 0] >= 0
    ).sum() > 100
    assert hidvae.items_to_learn(found, SMALL).tolist() == np.flatnonzero(split_N == "train").tolist()
    assert len(hidvae.items_to_learn(found, replace(SMALL, held_out="tags"))) == ITEMS
    assert (hidvae.classes_to_judge(found, split="valid")[split_N != "valid"] == UNKNOWN).all()


def test_only_chosen_sources_are_learned_and_only_given_tags_judge():
    tags = [["a"], ["b"], ["a"]]
    found = tagging.TagSet(
        tags, [["given"], ["graph"], ["llm"]], np.array(["train"] * 3), tagging.TagVocab((("a", "b"),), ((),))
    )
    chosen = replace(SMALL, tag_sources=["given", "llm"])
    assert hidvae.classes_to_learn(found, chosen)[:, 0].tolist() == [0, UNKNOWN, 0]
    assert hidvae.classes_to_judge(found, split="train")[:, 0].tolist() == [0, UNKNOWN, UNKNOWN]
    clusters = tagging.TagSet(tags, [["cluster"]] * 3, found.split_N, found.vocab)
    assert hidvae.classes_to_judge(clusters, split="train")[:, 0].tolist() == [0, 1, 0]


def test_heads_learn_at_their_own_rates():
    tags = replace(SMALL.tags, weight_decay=0.05, learning_rate_factor=2.0)
    groups = problem_of(replace(SMALL, tags=tags)).parameter_groups(LoopOptions(learning_rate=1e-3))
    assert "lr" not in groups[0]
    assert [group["lr"] for group in groups[1:]] == pytest.approx([2e-3, 2.2e-3])
    assert [group["weight_decay"] for group in groups[1:]] == pytest.approx([0.05, 0.05 / 1.2])
    problem = problem_of()
    counted = sum(p.numel() for group in problem.parameter_groups(SMALL.loop) for p in group["params"])
    assert counted == sum(p.numel() for p in problem.model.parameters())


def test_gamma_and_balance_of_a_level_reach_its_loss():
    def level_losses(**changes):
        problem = problem_of(replace(SMALL, tags=replace(SMALL.tags, **changes)))
        problem.model.eval()
        levels_BLE = problem.model(problem.x_ND).quantized.levels_BLE
        logits = problem.model.logits(levels_BLE)
        return [
            float(problem.level_loss(level, logits[level], problem.learn_NT[:, level]).detach())
            for level in (0, 1)
        ]

    base = level_losses(gamma=[2.0], alpha=[1.0])
    second = level_losses(gamma=[2.0, 0.0, 0.0], alpha=[1.0])
    assert second[0] == value(base[0]) and second[1] > base[1] * 1.1
    halved = level_losses(gamma=[2.0], alpha=[1.0, 0.5, 0.5])
    assert halved == pytest.approx([base[0], base[1] / 2])
    assert level_losses(gamma=[2.0], alpha=[1.0], smoothing_rule="fixed", smoothing=0.0) != base


@pytest.mark.parametrize("where", ["features", "logits"])
def test_mixup_mixes_inputs_and_targets_alike(where):
    options = replace(SMALL, tags=replace(SMALL.tags, mixup=where, gamma=[0.0], alpha=[1.0], smoothing_rule="fixed", smoothing=0.0))  # fmt: skip
    problem = problem_of(options)
    problem.model.eval()
    out, classes_BT = problem.model(problem.x_ND), problem.learn_NT
    order_B, share = problem.mixing(ITEMS, torch.Generator().manual_seed(3))
    assert sorted(order_B.tolist()) == list(range(ITEMS)) and 0 < share < 1
    expected = []
    for level, head in enumerate(problem.model.heads):
        prefix = problem.model.prefix(out.quantized.levels_BLE, level)
        mix = lambda v: share * v + (1 - share) * v[order_B]  # noqa: E731
        logits = head(mix(prefix)) if where == "features" else mix(head(prefix))
        log = logits.log_softmax(1)
        mine, theirs = classes_BT[:, level], classes_BT[order_B, level]
        terms = [
            -log[known, y[known]].mean()
            for y, known in ((mine, mine != UNKNOWN), (theirs, theirs != UNKNOWN))
        ]
        expected.append(share * terms[0] + (1 - share) * terms[1])
    found = problem.prediction(out, classes_BT, generator=torch.Generator().manual_seed(3))
    assert float(found.detach()) == value(float(torch.stack(expected).detach().mean()))


def test_noise_views_are_measured_beside_the_plain_accuracy():
    problem = problem_of(replace(SMALL, tags=replace(SMALL.tags, noise_views=3, noise_scale=0.0)))
    problem.model.eval()
    with torch.no_grad():
        measures = problem.measure()
    assert measures["tag_accuracy_noisy_1"] == value(measures["tag_accuracy_valid_1"]), (
        "no noise, same answer"
    )
    loud = problem_of(replace(SMALL, tags=replace(SMALL.tags, noise_views=3, noise_scale=50.0)))
    loud.model.eval()
    with torch.no_grad():
        assert set(loud.measure()) == set(measures)
    assert "tag_accuracy_noisy_1" not in problem_of().noisy_accuracy()


@pytest.mark.parametrize("codebook", [{}, {"update": "ema", "normalise": "none", "ema_decay": 0.5}])
def test_accumulated_batches_are_one_step(tmp_path, codebook):
    """Without losses between items, two batches of 40 accumulated are one batch of 80: weights, averages, idle steps."""
    x_ND, tags = catalogue()
    directory = write_tags(tmp_path / "tags", tags)
    plain = replace(SMALL, align=Align(weight=0), tags=replace(SMALL.tags, weight=0), unique=Unique(weight=0), held_out="tags",
                    codebook=replace(SMALL.codebook, restart_after=1, **codebook),
                    loop=replace(SMALL.loop, epochs=2, eval_every=2, batch_size=80))  # fmt: skip
    halves = replace(plain, loop=replace(plain.loop, batch_size=40, accumulate=2))
    one = fit(tmp_path / "one", x_ND, directory, plain)
    two = fit(tmp_path / "two", x_ND, directory, halves)
    for name, weight in one.tensors().items():
        np.testing.assert_allclose(two.tensors()[name], weight, atol=2e-5, err_msg=name)


def test_the_miner_pairs_colliding_items_of_different_vectors():
    x_ND = np.array([[1, 0], [1, 0], [0.9, 0.1], [0, 1], [0, 2]], np.float32)
    miner = Miner(x_ND, np.arange(5))
    assert miner.empty
    miner.search(np.array([[1, 1], [1, 1], [2, 2], [3, 3], [3, 3]]), seed=0)
    assert sorted(miner.pairs_P2[0].tolist()) == [3, 4] and len(miner.pairs_P2) == 1, (
        "0 and 1 are exact duplicates"
    )
    miner.search(np.zeros((5, 2), int), seed=0)
    assert 2 <= len(miner.pairs_P2) <= 4 and len(miner.draw(1, None)) == 1
    held = Miner(x_ND, np.array([0, 2]))
    held.search(np.zeros((5, 2), int), seed=0)
    assert sorted(held.pairs_P2[0].tolist()) == [0, 2], "items that training does not see are not mined"


def test_mined_pairs_reach_the_loss_though_they_share_no_batch():
    """Items 0 and 80 are near-duplicates; a batch of item 5 alone repels them when they were mined."""
    problem = problem_of(replace(SMALL, align=Align(weight=0), tags=replace(SMALL.tags, weight=0)))
    problem.x_ND[80] = problem.x_ND[0] + 1e-3
    problem.model.train()
    rows = torch.tensor([5])
    before = problem.terms(rows, generator=torch.Generator().manual_seed(0))
    assert float(before["uniqueness"].detach()) == 0
    problem.miner.pairs_P2 = torch.tensor([[0, 80]])
    after = problem.terms(rows, generator=torch.Generator().manual_seed(0))
    assert float(after["uniqueness"].detach()) > 0.9
    after["uniqueness"].backward()
    assert problem.model.network.encoder[0].weight.grad.abs().sum() > 0


def near_duplicates(folder):
    """(60 pairs of near-duplicates float32 [120, 12], a tags directory that tells none of them apart)."""
    rng = np.random.default_rng(1)
    x_ND = np.repeat(rng.normal(size=(60, 12)), 2, axis=0) + 0.1 * rng.normal(size=(120, 12))
    x_ND = (x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)).astype(np.float32)
    return x_ND, write_tags(folder / "tags", [[f"t{i // 30}"] for i in range(120)])


@pytest.mark.parametrize("mine_every", [1, 3])
def test_a_run_interrupted_between_two_searches_ends_as_an_uninterrupted_one(
    tmp_path, monkeypatch, mine_every
):
    """Searches before epochs 1 and 4; the signal comes in the 2nd, so that the 3rd needs what the 1st search found."""
    x_ND, tags = near_duplicates(tmp_path)
    options = replace(SMALL, held_out="tags", unique=Unique(mined_pairs=8, mine_every=mine_every),
                      loop=replace(SMALL.loop, epochs=4, eval_every=4))  # fmt: skip
    fit(tmp_path / "whole", x_ND, tags, options)
    run_epoch = training.run_epoch

    def interrupted_epoch(*given, epoch, seed):
        if epoch == 1:
            program.signal.raise_signal(program.signal.SIGTERM)
        return run_epoch(*given, epoch=epoch, seed=seed)

    monkeypatch.setattr(training, "run_epoch", interrupted_epoch)
    with pytest.raises(Interrupted):
        fit(tmp_path / "parts", x_ND, tags, options)
    fit(tmp_path / "parts", x_ND, tags, options)
    for name in ("quantizer.safetensors", "checkpoint-4/state.json", "metrics.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name


def test_uniqueness_halves_collisions_of_near_duplicates(tmp_path):
    """Measured: 35 % of the items without, 8 % with."""
    x_ND, tags = near_duplicates(tmp_path)
    options = replace(SMALL, sizes=[16, 16, 16], held_out="tags", align=Align(weight=0), tags=replace(SMALL.tags, weight=0),
                      loop=replace(SMALL.loop, epochs=60, eval_every=60))  # fmt: skip
    rates = {}
    for name, unique in (("off", Unique(weight=0)), ("on", Unique(weight=3.0, reach=0.5))):
        quantizer = fit(tmp_path / name, x_ND, tags, replace(options, unique=unique))
        rates[name] = 1 - len(np.unique(quantizer.encode(x_ND), axis=0)) / 120
    assert rates["off"] > 0.2 and rates["on"] <= rates["off"] / 2, rates


@pytest.mark.parametrize("prefix", ["concat", "sum"])
def test_prefixes_side_by_side_or_added(prefix):
    model = problem_of(replace(SMALL, prefix=prefix)).model
    levels_BLE = torch.arange(2 * 3 * 8.0).reshape(2, 3, 8)
    found = model.prefix(levels_BLE, 1)
    expected = levels_BLE[:, :2].reshape(2, 16) if prefix == "concat" else levels_BLE[:, 0] + levels_BLE[:, 1]
    torch.testing.assert_close(found, expected)


def test_flags_are_restored_as_probabilities(tmp_path):
    x_ND, tags = catalogue()
    flags = (np.arange(ITEMS) % 4 < 2)[:, None].astype(np.float32)
    options = replace(SMALL, binary_columns=1, loop=replace(SMALL.loop, epochs=15, eval_every=15))
    directory = write_tags(tmp_path / "tags", tags)
    quantizer = fit(tmp_path / "q", np.concatenate([x_ND, flags], 1), directory, options)
    restored = quantizer.decode(quantizer.encode(np.concatenate([x_ND, flags], 1)))
    assert ((restored[:, -1] > 0.5) == (flags[:, 0] > 0.5)).mean() > 0.95
    assert restored[:, -1].min() >= 0 and restored[:, -1].max() <= 1


def test_bad_combinations_are_refused(tmp_path):
    x_ND, tags = catalogue()
    directory = write_tags(tmp_path / "tags", tags)
    with pytest.raises(InputError, match="--tags"):
        hidvae.fit_hidvae(Source(x_ND), SMALL, seed=0, out=None)
    with pytest.raises(InputError, match="160 items"):
        hidvae.fit_hidvae(Source(x_ND[:5], tags=str(directory)), SMALL, seed=0, out=None)
    with pytest.raises(InputError, match="2 levels of tags"):
        hidvae.fit_hidvae(Source(x_ND, tags=str(directory)), replace(SMALL, sizes=[8]), seed=0, out=None)
    with pytest.raises(InputError, match="one per level"):
        replace(SMALL, tags=replace(SMALL.tags, gamma=[1.0, 2.0]))
    with pytest.raises(InputError, match="mined_pairs"):
        Unique(mined_pairs=-1)


def test_folded_classes_are_left_out_of_the_second_accuracy(trained):
    _, _, _, quantizer = trained
    classes = [OTHER if i % 2 else "x" for i in range(4)]
    vocab = tagging.TagVocab((("x", OTHER),), (("y",),))
    tags = [["y"] if name == OTHER else ["x"] for name in classes]
    found = tagging.TagSet(tags, [["given"]] * 4, np.array(["test"] * 4), vocab)

    class Always:
        def __init__(self):
            self.vocab = vocab

        def predict_tags(self, codes_NL):
            return np.zeros((4, 1), np.int32), np.ones((4, 1), np.float32)

    report = hidvae.tag_accuracy(Always(), np.zeros((4, 1), np.int32), found)
    assert report["test"] == [
        {"items": 4, "accuracy": 0.5, "accuracy_without_other": 1.0, "largest_class": 0.5}
    ]
    assert report["train"] == [None]
