"""Answers drawn from a teacher give language models its item-level cross-entropy; the trainer learns from them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.rows import read_rows
from data.sid import SidTable
from tests import handmade, tiny
from tests.chain import Chain
from train.supervised.batches import Batches
from train.supervised.head import SoftLabels, head_loss
from train.supervised.soft_answers import HARD, PrefixMass, before, drawn_leaves, soften
from train.supervised.tokens import TokenRows
from train.supervised.trainer import answer_loss
from train.supervised.units import single_units, tree_units

SIZES = (3, 2, 4)
VOCAB = tiny.TEXT_TOKENS + sum(SIZES)


@given(seed=st.integers(0, 10**6), smoothing=st.sampled_from([0.0, 0.1]))
def test_soft_labels_equal_the_dense_cross_entropy(seed: int, smoothing: float) -> None:
    """Some labels are hard, some a distribution over a few tokens, some over all; weights differ."""
    rng = torch.Generator().manual_seed(seed)
    head, count = torch.nn.Linear(6, VOCAB), 20
    config = tiny.model(vocab_size=VOCAB).config
    labels = torch.randint(0, VOCAB, (count,), generator=rng)
    sizes = torch.randint(0, 4, (count,), generator=rng) * torch.randint(0, 9, (count,), generator=rng)
    target, tokens, shares = torch.zeros(count, VOCAB), [], []
    for row, size in enumerate(sizes.tolist()):
        chosen = torch.randperm(VOCAB, generator=rng)[:size]
        share = torch.rand(size, generator=rng)
        target[row, labels[row] if size == 0 else chosen] = 1.0 if size == 0 else share / share.sum()
        tokens.append(chosen)
        shares.append(share / share.sum())
    soft = SoftLabels(
        torch.cat([torch.zeros(1, dtype=torch.long), sizes.cumsum(0)]), torch.cat(tokens), torch.cat(shares)
    )
    hidden, weights = (
        torch.randn(count, 6, generator=rng, requires_grad=True),
        torch.rand(count, generator=rng),
    )
    holder = SimpleNamespace(get_output_embeddings=lambda: head, config=config)
    ours = head_loss(holder, hidden, labels, weights, smoothing=smoothing, soft=soft)
    losses = torch.nn.functional.cross_entropy(
        head(hidden), target, reduction="none", label_smoothing=smoothing
    )
    theirs, wanted = (losses * weights).sum(), [hidden, *head.parameters()]
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-4)
    pairs = zip(torch.autograd.grad(ours, wanted), torch.autograd.grad(theirs, wanted), strict=True)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in pairs)


def test_children_by_hand() -> None:
    """IDs (0 0) (0 1) (1 0), the last of two items: .1, .3, .2 + .4."""
    sids = SidTable(np.array([[1, 0], [0, 1], [0, 0], [1, 0]], np.int32), (2, 2))
    until = before(np.array([[0.2, 0.3, 0.1, 0.4]], np.float32), sids)
    assert until[0].tolist() == pytest.approx([0, 0.1, 0.4, 1])
    mass = PrefixMass(sids)
    count, code, share = mass.children(until, np.array([1]), 0)
    assert (count.tolist(), code.tolist()) == ([2], [0, 1]) and share.tolist() == pytest.approx([0.4, 0.6])
    count, code, share = mass.children(until[[0, 0]], np.array([1, 2]), 1)
    assert (count.tolist(), code.tolist()) == ([2, 1], [0, 1, 0])
    assert share.tolist() == pytest.approx([0.25, 0.75, 1])


@given(seed=st.integers(0, 10**6), draws=st.integers(1, 9))
def test_draws_are_as_many_as_the_probabilities_say(seed: int, draws: int) -> None:
    """Systematic draws: each leaf comes floor(M p) or ceil(M p) times; one of probability zero never."""
    rng = np.random.default_rng(seed)
    chance = rng.random((4, 6)) * (rng.random((4, 6)) < 0.7) + 1e-3 * np.eye(4, 6)
    chance /= chance.sum(1, keepdims=True)
    until = np.concatenate([np.zeros((4, 1)), np.cumsum(chance, axis=1)], axis=1)
    for row, leaves in enumerate(drawn_leaves(until, draws, rng)):
        found = np.bincount(leaves, minlength=6)
        assert (np.abs(found - draws * chance[row]) < 1).all() and not found[chance[row] == 0].any()


def windows_of(sids: SidTable, vocab, rng: np.random.Generator) -> tuple[TokenRows, np.ndarray]:
    """(rows, target of each): two users' growing histories, each item its codes; a token behind every answer."""
    tokens, prompts, targets, users = [], [], [], []
    for user in range(2):
        items = rng.integers(0, sids.num_items, 4)
        codes = [vocab.encode(sids.codes_NL[item]) for item in items]
        for end in range(1, 4):
            prompt = [5, 6, *(token for item in codes[:end] for token in item)]
            tokens.append(np.array([*prompt, *codes[end], 1], np.int32))
            prompts.append(len(prompt))
            targets.append(items[end])
            users.append(user)
    lengths = np.array([len(row) for row in tokens], np.int32)
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    rows = TokenRows(np.concatenate(tokens), starts, lengths, np.array(prompts, np.int32))
    return rows, np.array(targets), np.array(users)


def item_level_loss(model, rows: TokenRows, sids: SidTable, vocab, chance_RN: np.ndarray) -> torch.Tensor:
    """Sum over rows of -sum over items of chance * log P(item), P the product over its codes; one forward per item."""
    total = torch.zeros(())
    for row in range(len(rows)):
        start, prompt = int(rows.starts_N[row]), int(rows.prompts_N[row])
        before_answer = rows.tokens_S[start : start + prompt].tolist()
        for item in np.flatnonzero(chance_RN[row]):
            codes = vocab.encode(sids.codes_NL[item])
            logits = model(torch.tensor([[*before_answer, *codes]])).logits[0, prompt - 1 : -1]
            losses = torch.nn.functional.cross_entropy(
                logits.float(), torch.tensor(list(codes)), reduction="sum"
            )
            total = total + float(chance_RN[row, item]) * losses
    return total


@pytest.mark.parametrize("layout", ["user_tree", "packed"])
def test_the_loss_is_the_item_level_cross_entropy(layout: str) -> None:
    """Probabilities that are eighths, eight draws: nothing is left to chance. Weight w of the teacher, 1 - w of the target."""
    rng, share, draws = np.random.default_rng(4), 0.7, 8
    sids, vocab = tiny.catalogue(rng, items=9, sizes=SIZES), tiny.vocabulary(SIZES)
    rows, targets, users = windows_of(sids, vocab, rng)
    eighths = np.stack(
        [np.bincount(rng.integers(0, sids.num_items, 8), minlength=sids.num_items) for _ in rows.prompts_N]
    )
    chance_RN = (eighths / 8).astype(np.float32)
    made = soften(
        rows, examples_N=100 + np.arange(len(rows)), soft_N=np.ones(len(rows), bool), sids=sids, vocab=vocab, share=share,
        probabilities=lambda ids: chance_RN[ids - 100], draws=draws, seed=0,
    )  # fmt: skip
    assert (made.answers.leaf_W[: len(rows)] == HARD).all() and len(made.rows) == len(rows) * (1 + draws)
    units = single_units(made.rows)
    if layout == "user_tree":
        source = made.source_W
        units = tree_units(
            made.rows, groups_N=users[source], tasks_N=np.zeros(len(source), np.int64), most=30
        )
        assert units.tokens_U.sum() < 0.4 * single_units(made.rows).tokens_U.sum()
    batches = Batches(
        units, step_windows=20, row_tokens=64, seed=0, weights_N=made.weight_W, soft=made.answers
    )
    model = tiny.model(vocab_size=VOCAB)
    ours = sum(answer_loss(model, batches[index]) for index in range(len(batches))) / (1 + draws)
    ends = batches.collate(np.arange(len(units)))
    assert (ends["labels"] == 1).sum() == len(rows), "one end per window"
    hard = np.eye(sids.num_items, dtype=np.float32)[targets]
    theirs = item_level_loss(model, rows, sids, vocab, (1 - share) * hard + share * chance_RN)
    for row in range(len(rows)):  # the end behind the window's own answer
        start, length = int(rows.starts_N[row]), int(rows.lengths_N[row])
        ids = torch.tensor(rows.tokens_S[start : start + length].astype(np.int64))[None]
        last = torch.nn.functional.cross_entropy(model(ids).logits[:, -2].float(), ids[:, -1])
        theirs = theirs + (1 - share) * last
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-4)
    parameters = list(model.parameters())
    pairs = zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), strict=True)
    assert all(torch.allclose(a, b, atol=1e-4 * max(1.0, float(b.abs().max()))) for a, b in pairs)


def test_every_epoch_draws_anew_and_an_epoch_is_the_same_again() -> None:
    rng = np.random.default_rng(5)
    sids, vocab = tiny.catalogue(rng, items=12, sizes=SIZES), tiny.vocabulary(SIZES)
    rows, _, users = windows_of(sids, vocab, rng)
    chance_RN = rng.dirichlet(np.ones(sids.num_items), len(rows)).astype(np.float32)

    def drawn(epoch: int):
        made = soften(
            rows, examples_N=np.arange(len(rows)), soft_N=np.ones(len(rows), bool), sids=sids, vocab=vocab, share=0.5,
            probabilities=lambda ids: chance_RN[ids], draws=2, seed=0, epoch=epoch,
        )  # fmt: skip
        groups = users[made.source_W]
        return tree_units(made.rows, groups_N=groups, tasks_N=0 * groups, most=30), made.answers

    first, answers = drawn(0)
    batches = Batches(first, step_windows=9, row_tokens=64, seed=0, soft=answers, redraw=drawn)
    seen = []
    for epoch in (0, 1, 2, 1, 0):
        batches.set_epoch(epoch)
        assert len(batches.units) == len(first)
        seen.append([batches[at] for at in range(len(batches))])
    ids = [torch.cat([batch["input_ids"].flatten() for batch in epoch]).tolist() for epoch in seen]
    assert ids[0] == ids[4] and ids[1] == ids[3] and ids[0] != ids[1] != ids[2]
    shares = [torch.cat([batch["soft_shares"] for batch in epoch]).sum().item() for epoch in seen]
    assert shares == pytest.approx([2 * 3 * len(rows)] * 5), "a distribution per level of each drawn answer"


SHORT = [
    "--trainer.max_steps", 40, "--trainer.eval_steps", 40, "--eval_share", 1, "--trainer.per_device_train_batch_size", 64, "--trainer.learning_rate", 5e-3,
    "--valid_rows", 20, "--tasks", "[history_to_sid]",
]  # fmt: skip


@pytest.fixture(scope="module")
def teacher(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("teacher")
    handmade.call(
        "infer.run_baselines", "--data", chain.data, "--output_root", root / "eval", "--models", "[pop]", "--splits", "[valid]"
    )  # fmt: skip
    return root / "baselines/pop"


def test_training_from_a_teacher(chain: Chain, teacher: Path, tmp_path: Path) -> None:
    """Told nothing but how popular items are, sharpened, a model says that; one that saw the targets does not."""
    from infer.models.contract import load

    soft = ["--soft_targets.teacher", teacher, "--soft_targets.share", 1.0, "--soft_targets.temperature", 0.3]
    found = {}
    for name, flags in {"hard": [], "soft": soft}.items():
        out = tmp_path / name
        handmade.call("train.sft", *chain.flags(), *SHORT, *flags, "--output_dir", out)
        manifest = json.loads((out / "manifest.json").read_text())
        drawn = manifest["counts"].get("drawn_answers", 0)
        assert drawn == (0 if name == "hard" else 2 * manifest["counts"]["history_to_sid examples"])
        found[name] = divergence(out / "final", chain, load(teacher), temperature=0.3)
    assert found["soft"] < 0.03 and found["hard"] > 0.1, found
    assert (teacher.parent.parent / "scores").is_dir(), "the teacher's scores are kept"


def divergence(final: Path, chain: Chain, teacher, *, temperature: float) -> float:
    """Mean of sum p log (p / q) over valid rows, p the teacher's first code and q the model's."""
    from data import artifacts
    from infer.engine import DecodeSettings, load_engine

    engine = load_engine(str(final), str(chain.sids), str(chain.examples), DecodeSettings(beams=5))
    table = artifacts.read(chain.examples, artifacts.EXAMPLES, file="valid.parquet").slice(0, 40)
    rows = read_rows(chain.data, "valid", num_items=engine.sids.num_items)
    by_id = {example: at for at, example in enumerate(rows.example_ids_R.tolist())}
    rows = rows.take(np.array([by_id[example] for example in table["example_id"].to_pylist()]))
    p_RN, total = np.exp(teacher.score(rows) / temperature), 0.0
    columns = engine.renderer.vocab.levels[0].token_ids
    for row, prompt in enumerate(engine.renderer.prompts([example_of(one) for one in table.to_pylist()])):
        with torch.no_grad():
            log_q = engine.model(torch.tensor([prompt])).logits[0, -1, columns].log_softmax(0).numpy()
        p = np.bincount(engine.sids.codes_NL[:, 0], weights=p_RN[row], minlength=len(columns))
        p /= p.sum()
        total += float(p @ (np.log(p) - log_q))
    return total / table.num_rows


def example_of(row: dict):
    from data.tasks import from_row

    return from_row(row)


def test_other_ranks_read_what_rank_0_has_scored(
    chain: Chain, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from configs.program import InputError
    from train.soft_targets import SoftTargets, TaughtRows

    options = SoftTargets(teacher=str(teacher), scores=str(tmp_path))
    with monkeypatch.context() as other:
        other.setenv("RANK", "1")
        with pytest.raises(InputError):
            TaughtRows.of(options, data=chain.data, num_items=40)
    first = TaughtRows.of(options, data=chain.data, num_items=40)
    monkeypatch.setenv("RANK", "1")
    second = TaughtRows.of(options, data=chain.data, num_items=40)
    some = read_rows(chain.data, "train", num_items=40).example_ids_R[:3]
    assert np.array_equal(first.dense(some), second.dense(some))


def test_refusals(chain: Chain, teacher: Path, tmp_path: Path) -> None:
    flags = [*chain.flags(), "--output_dir", tmp_path / "out", "--soft_targets.teacher", teacher]
    told = handmade.refuse("train.sft", *flags, "--tasks", "[sid_to_title]")
    assert "history_to_sid" in told
    assert "soft_draws" in handmade.refuse("train.sft", *flags, "--soft_draws", 0)
    assert "TEACHER" in handmade.refuse("train.sft", *flags[:-2], "--soft_draws", 3)
    other = handmade.write_data(tmp_path / "other")
    assert "another state of the data" in handmade.refuse("train.sft", *flags, "--data", other)
    assert not (tmp_path / "out/final").exists()
