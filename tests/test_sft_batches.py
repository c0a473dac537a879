"""Batches that compute every prefix once have the losses and gradients of separate sequences; nothing is lost or doubled."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import families, tiny
from train.supervised.batches import IGNORED, Batches
from train.supervised.head import head_loss
from train.supervised.tokens import TokenRows
from train.supervised.trainer import answer_loss
from train.supervised.units import single_units, tree_units

VOCAB = 50
ROOT = [3, 4, 5]


def token_rows(sequences: list[tuple[list[int], list[int]]]) -> TokenRows:
    lengths = np.array([len(prompt) + len(answer) for prompt, answer in sequences], np.int32)
    flat = np.array([token for prompt, answer in sequences for token in prompt + answer], np.int32)
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    return TokenRows(flat, starts, lengths, np.array([len(prompt) for prompt, _ in sequences], np.int32))


def windows(rng: np.random.Generator, *, users: int, suffix: int, limit: int = 4) -> tuple:
    """(sequences, user of each, task of each): sliding windows over two-token items, clipped at `limit` items, some twice
    and some with another target, and examples of a second task that belong to no user."""
    sequences, groups, tasks = [], [], []
    for user in range(users):
        items = rng.integers(10, 40, (int(rng.integers(2, 9)), 2)).tolist()
        for end in range(1, len(items)):
            history = [token for item in items[max(0, end - limit) : end] for token in item]
            for _ in range(1 + (rng.random() < 0.2)):
                target = items[end] if rng.random() < 0.8 else rng.integers(10, 40, 2).tolist()
                sequences.append((ROOT + history + [6] * suffix, [*target, *[1] * suffix]))
                groups.append(user)
                tasks.append(1)
    for _ in range(int(rng.integers(0, 4))):
        prompt, answer = (rng.integers(10, 40, rng.integers(1, 6)).tolist() for _ in range(2))
        sequences.append(([7, 8, *prompt], answer))
        groups.append(-1)
        tasks.append(0)
    order = rng.permutation(len(sequences))
    return [sequences[i] for i in order], np.array(groups)[order], np.array(tasks)[order]


def reference(model, sequences, weights=None) -> torch.Tensor:
    """Sum of label losses: one padded batch, logits of every position."""
    width = max(len(prompt) + len(answer) for prompt, answer in sequences)
    ids, labels = torch.zeros((len(sequences), width), dtype=torch.long), None
    labels = torch.full_like(ids, IGNORED)
    mask = torch.zeros_like(ids)
    for row, (prompt, answer) in enumerate(sequences):
        length = len(prompt) + len(answer)
        ids[row, :length] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : length] = torch.tensor(answer)
        mask[row, :length] = 1
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="none"
    ).view(len(sequences), -1)
    return (losses if weights is None else losses * torch.from_numpy(weights)[:, None]).sum()


def packed(
    layout: str, sequences, groups, tasks, *, seed=0, step_windows=7, row_tokens=24, **options
) -> Batches:
    rows = token_rows(sequences)
    units = single_units(rows)
    if layout == "user_tree":
        units = tree_units(rows, groups_N=groups, tasks_N=tasks, most=5)
    row_tokens = None if layout == "padded" else row_tokens
    return Batches(units, step_windows=step_windows, row_tokens=row_tokens, seed=seed, **options)


def gradients(model, loss: torch.Tensor) -> list[torch.Tensor]:
    return torch.autograd.grad(loss, list(model.parameters()))


def assert_equal(model, found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    for ours, theirs in zip(gradients(model, found), gradients(model, expected), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4 * max(1.0, float(theirs.abs().max())))


@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_losses_and_gradients_equal_those_of_separate_sequences(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    sequences, groups, tasks = windows(
        rng, users=data.draw(st.integers(1, 6)), suffix=data.draw(st.integers(0, 2))
    )
    layout = data.draw(st.sampled_from(["user_tree", "packed", "padded"]))
    batches = packed(layout, sequences, groups, tasks, step_windows=data.draw(st.integers(1, 40)))
    model = tiny.model(vocab_size=VOCAB)
    found = sum(answer_loss(model, batches[index]) for index in range(len(batches)))
    assert_equal(model, found, reference(model, sequences))


@pytest.mark.parametrize("kind", ["gpt2", "mistral sliding", "gemma2", "gemma3", "granite", "cohere"])
def test_other_families_too(kind: str) -> None:
    """Learned positions, sliding windows, soft-capped and scaled logits."""
    rng = np.random.default_rng(3)
    sequences, groups, tasks = windows(rng, users=4, suffix=1, limit=7)
    model = families.model(kind, vocab_size=VOCAB, attention="eager" if kind == "gemma2" else "sdpa")
    batches = packed("user_tree", sequences, groups, tasks, step_windows=50)
    assert_equal(
        model, sum(answer_loss(model, batches[i]) for i in range(len(batches))), reference(model, sequences)
    )


def test_shared_tokens_by_hand() -> None:
    """Items 10 11, 12 13, 14 15; windows of one and two items, the third is clipped to two."""
    prompt, items = [3], [[10, 11], [12, 13], [14, 15], [16, 17]]
    sequences = [
        (prompt + items[0], items[1]),
        (prompt + items[0] + items[1], items[2]),
        (prompt + items[1] + items[2], items[3]),
    ]
    units = tree_units(token_rows(sequences), groups_N=np.zeros(3, int), tasks_N=np.zeros(3, int), most=9)
    assert units.members_N.tolist() == [1, 2, 0], "the longest first, and of equally long ones the earliest"
    assert units.root_U.tolist() == [1]
    assert units.inputs_N.tolist() == [4, 6, 6] and units.shared_N.tolist() == [4, 6, 1]
    assert units.tokens_U.tolist() == [5 + 5], (
        "the trunk behind the root, the clipped window; the first window is inside"
    )
    batch = Batches(units, step_windows=9, row_tokens=64, seed=None)[0]
    assert batch["real_tokens"] == 1 + 10 and batch["windows"] == 3
    assert batch["position_ids"][0, :11].tolist() == [0, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5]
    kept = batch["labels"] != IGNORED
    pairs = list(zip(batch["states"][kept].tolist(), batch["labels"][kept].tolist(), strict=True))
    assert pairs == [(4, 14), (5, 15), (9, 16), (10, 17), (2, 12), (3, 13)]


@pytest.mark.parametrize("layout", ["user_tree", "packed"])
def test_a_long_unit_makes_fewer_rows(layout: str) -> None:
    """One user of 60 tokens and nine of 20, rows of 24: not ten rows of 64 slots (of 640 then 240 are used), but four."""
    rng = np.random.default_rng(0)
    sequences = [(rng.integers(1, VOCAB, length).tolist(), [5]) for length in (60, *[20] * 9)]
    groups = tasks = np.zeros(10, int)
    batches = packed(layout, sequences, groups + np.arange(10), tasks, step_windows=99)
    batch = batches[0]
    assert batch["input_ids"].shape == (4, 64) and batch["real_tokens"] == 60 + 9 * 20
    model = tiny.model(vocab_size=VOCAB)
    assert_equal(model, answer_loss(model, batch), reference(model, sequences))


@given(st.integers(0, 10**6), st.sampled_from(["user_tree", "packed", "padded"]), st.integers(1, 3))
@settings(deadline=None, max_examples=30)
def test_every_epoch_has_every_window_once(seed: int, layout: str, processes: int) -> None:
    sequences, groups, tasks = windows(np.random.default_rng(seed), users=9, suffix=1)
    batches = packed(layout, sequences, groups, tasks, parts=processes, by_length=layout == "padded")
    assert len(batches) % processes == 0
    expected = sorted(token for _, answer in sequences for token in answer)
    firsts = []
    for epoch in (0, 1):
        batches.set_epoch(epoch)
        made = [batches[index] for index in range(len(batches))]
        labels = torch.cat([batch["labels"] for batch in made])
        assert sorted(labels[labels != IGNORED].tolist()) == expected
        assert sum(batch["windows"] for batch in made) == len(sequences)
        assert max(batch["windows"] for batch in made) <= 7 + 5
        firsts.append(labels.tolist())
    batches.set_epoch(0)
    assert torch.cat([batches[index]["labels"] for index in range(len(batches))]).tolist() == firsts[0]


@pytest.mark.parametrize("layout", ["user_tree", "packed", "padded"])
def test_weights_multiply_and_smoothing_spreads(layout: str) -> None:
    sequences, groups, tasks = windows(np.random.default_rng(1), users=3, suffix=0)
    weights = np.random.default_rng(2).random(len(sequences)).astype(np.float32)
    model = tiny.model(vocab_size=VOCAB)
    batches = packed(layout, sequences, groups, tasks, step_windows=99, weights_N=weights)
    found = sum(answer_loss(model, batches[index]) for index in range(len(batches)))
    assert_equal(model, found, reference(model, sequences, weights))
    head = torch.nn.Linear(8, VOCAB)
    holder = SimpleNamespace(get_output_embeddings=lambda: head, config=model.config)
    hidden, labels = torch.randn(40, 8, requires_grad=True), torch.randint(0, VOCAB, (40,))
    ours = 3 * head_loss(holder, hidden, labels, torch.ones(40), smoothing=0.1)
    theirs = 3 * torch.nn.functional.cross_entropy(head(hidden), labels, reduction="sum", label_smoothing=0.1)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    wanted = [hidden, *head.parameters()]
    pairs = zip(torch.autograd.grad(ours, wanted), torch.autograd.grad(theirs, wanted), strict=True)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in pairs)
