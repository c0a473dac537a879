"""All beams behind a thought as one text with it: what the completion holds, whose advantage a token has, that TRL's loss is that of the hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from configs.program import InputError
from infer.engine import DecodeSettings
from tests.test_text_trainer import GROUP, TABLE, engine_of, examples, make_trainer
from train.policy.settings import GrpoSettings, ThoughtSettings
from train.policy.text.build import make_room_for_lists
from train.policy.text.credit import code_advantages, per_token
from train.policy.text.thoughts import ThoughtPolicy
from train.policy.text.trainer import grpo_fields, total_rewards
from train.rewards.spec import RewardSpec

RANKS = [RewardSpec("rank_discount")]
WAYS = {"tail": "beams", "beams": 3, "learns": "list"}


@pytest.mark.parametrize("fmt", ["letters", "navigen"])
def test_a_completion_lists_the_beams_line_by_line(fmt: str) -> None:
    engine = engine_of(fmt)
    engine.settings = DecodeSettings(beams=3)
    rows, prompts = examples(engine)
    policy = ThoughtPolicy(engine, ThoughtSettings(max_tokens=6, **WAYS), group=GROUP, seed=1)
    made = policy.roll_out(rows, prompts, step=0)
    words = engine.renderer
    for entry, (ids, counted) in enumerate(zip(made.completion_ids, made.counted, strict=True)):
        thought = int(made.batch.thought_PG.ravel()[entry])
        finished = not made.unfinished_PG.ravel()[entry]
        close = len(words.close_thought("reason_then_sid", finished=finished))
        text = words.tokenizer.decode(ids[thought + close :], clean_up_tokenization_spaces=False)
        said = [words.answer_vocab.encode(codes) for codes in made.ranked.codes_PGL[entry]]
        lines = [words.tokenizer.decode(line, clean_up_tokenization_spaces=False) for line in said]
        start = words.tokenizer.decode(words.answer_vocab.prefix_ids, clean_up_tokenization_spaces=False)
        assert start + text == "\n".join(lines) + words.tokenizer.eos_token
        learned = [at for at, counts in enumerate(counted) if counts]
        codes = [at for at, beam in enumerate(made.beam_at[entry]) if beam >= 0]
        assert learned == [*range(thought + finished), *codes], (
            "what stands between the beams carries no loss"
        )
        assert [made.beam_at[entry][at] for at in codes] == [0] * 3 + [1] * 3 + [2] * 3
        assert len(ids) - thought - close <= policy.list_tokens
    alone = ThoughtPolicy(
        engine, ThoughtSettings(max_tokens=6, tail="beams", beams=3, learns="all"), group=GROUP, seed=1
    )
    first = alone.roll_out(rows, prompts, step=0)
    end = len(policy.end_ids)
    for one, several in zip(first.completion_ids, made.completion_ids, strict=True):
        assert several[: len(one) - end] == one[: len(one) - end], "up to the first beam they are the same"


def test_a_list_ends_where_no_more_items_are_legal() -> None:
    engine = engine_of()
    rows, prompts = examples(engine, 1)
    policy = ThoughtPolicy(engine, ThoughtSettings(max_tokens=4, **WAYS), group=2, seed=0)
    assert policy._listed(0, np.array([7, 2, -1])) == [0, 1]


def test_advantages_of_codes_by_hand() -> None:
    """Two thoughts, two beams each, rewards (1, 0) and (0, none): mean 1/3, deviation 1 / sqrt 3 of the three that count."""
    beam_at = [[-1, -1, 0, 0, -1, 1, 1, -1], [-1, 0, 0, -1]]
    rewards_EK = np.array([[1.0, 0.0], [0.0, 5.0]])  # the last beam is in no completion
    nan = float("nan")
    for scale, deviation in (("none", 1.0), ("group", 1 / math.sqrt(3) + 1e-4)):
        hit, miss = 2 / 3 / deviation, -1 / 3 / deviation
        found = code_advantages(beam_at, rewards_EK, group=2, scale=scale)
        expected = [[nan, nan, hit, hit, nan, miss, miss, nan], [nan, miss, miss, nan]]
        for own, hand in zip(found, expected, strict=True):
            assert np.allclose(own, hand, atol=1e-6, equal_nan=True)
    whole = per_token(
        torch.tensor([0.5, -0.5]), code_advantages(beam_at, rewards_EK, group=2, scale="none"), width=9
    )
    hit, miss = 2 / 3, -1 / 3
    assert torch.allclose(
        whole,
        torch.tensor(
            [[0.5, 0.5, hit, hit, 0.5, miss, miss, 0.5, 0.5], [-0.5, miss, miss, -0.5, *[-0.5] * 5]]
        ),
    )
    lost = code_advantages(beam_at, np.full((2, 2), nan), group=2, scale="none")
    assert lost[0][2] == 0, "a completion without a reward moves nothing"


@pytest.mark.parametrize("credit", ["shared", "own"])
def test_the_loss_is_that_of_the_hand(tmp_path, credit: str) -> None:
    """One micro-batch of TRL: -A log p summed over the tokens that count, a mean over tokens and completions, A per token as asked."""
    one = make_trainer(tmp_path, engine_of(seed=2), reward=RANKS, steps=1, credit=credit, **WAYS)
    one.current_gradient_accumulation_steps = 1
    one.model.train()
    batch = one._generate_and_score_completions(
        [{"prompt": str(at)} for at in range(4) for _ in range(GROUP)]
    )
    assert batch["advantages"].dim() == (2 if credit == "own" else 1)
    rolled = one.policy.items.roll_out(one.rows[:4], one.prompts[:4], step=0)
    totals = np.array([worth.total for worth in total_rewards(one, rolled)]).reshape(-1, GROUP)
    expected = np.array(
        [1 / np.log2(np.flatnonzero(hits)[0] + 2) if any(hits) else 0.0 for hits in rolled.ranked.hits]
    )
    assert np.allclose(totals.ravel(), expected) and 0 < (expected > 0).mean() < 1
    beams = np.where(np.array(rolled.ranked.hits), expected[:, None], 0.0).reshape(len(totals), -1)

    def standardised(part: np.ndarray) -> np.ndarray:
        return (part - part.mean(1, keepdims=True)) / (part.std(1, ddof=1, keepdims=True) + 1e-4)

    of_thoughts, of_beams = standardised(totals).ravel(), standardised(beams).reshape(-1, 3)
    weights = torch.zeros(batch["completion_ids"].shape)
    for entry, (counted, beam_at) in enumerate(zip(rolled.counted, rolled.beam_at, strict=True)):
        for at, (counts, beam) in enumerate(zip(counted, beam_at, strict=True)):
            own = credit == "own" and beam >= 0
            weights[entry, at] = counts * (of_beams[entry, beam] if own else of_thoughts[entry])
    lengths = torch.tensor([[sum(counted)] for counted in rolled.counted])
    model, width = one.engine.model, weights.shape[1]
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    seen = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    logits = model(input_ids=ids, attention_mask=seen).logits[:, -width - 1 : -1]
    logps = logits.float().log_softmax(-1).gather(2, batch["completion_ids"][..., None])[..., 0]
    by_hand = torch.autograd.grad(-(weights * logps / lengths).sum() / len(weights), model.lm_head.weight)[0]
    by_trl = torch.autograd.grad(one._compute_loss(one.model, batch), model.lm_head.weight)[0]
    assert by_hand.abs().max() > 1e-3 and torch.allclose(by_hand, by_trl, atol=1e-5)


def told_apart(engine, made) -> float:
    """How much likelier codes of targets are than those of the other beams, in given completions: a mean of log-probabilities."""
    hits, misses = [], []
    for entry, (prompt, ids) in enumerate(zip(made.prompt_ids, made.completion_ids, strict=True)):
        with torch.no_grad():
            logits = engine.model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        logps = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0].tolist()
        for logp, beam in zip(logps, made.beam_at[entry], strict=True):
            if beam >= 0:
                (hits if made.ranked.hits[entry][beam] else misses).append(logp)
    return float(np.mean(hits) - np.mean(misses))


def test_codes_of_the_target_are_told_from_the_others_of_their_list(tmp_path) -> None:
    """With credit of their own there is a signal within every list that holds the target, where all thoughts of a prompt are worth the same too."""
    ways = {"tail": "beams", "beams": 5, "learns": "list", "credit": "own"}
    engine = engine_of()
    one = make_trainer(tmp_path, engine, reward=RANKS, steps=4, rate=1e-2, **ways)
    made = one.policy.items.roll_out(one.rows, one.prompts, step=0)
    before = told_apart(engine, made)
    one.train()
    logs = [log for log in one.state.log_history if "reward" in log]
    assert max(log["frac_reward_zero_std"] for log in logs) >= 0.5, (
        "most groups say nothing about their thoughts"
    )
    assert all(np.isfinite(log["loss"]) and log["grad_norm"] > 0.01 for log in logs)
    assert told_apart(engine, made) > before + 0.05


def test_refusals() -> None:
    with pytest.raises(InputError, match="learns list is a list of beams, tail greedy has none"):
        ThoughtSettings(max_tokens=4, learns="list")
    with pytest.raises(InputError, match="credit own is read only with tail beams and learns all or list"):
        ThoughtSettings(max_tokens=4, tail="beams", credit="own")
    with pytest.raises(InputError, match="unknown thought.credit 'theirs'"):
        ThoughtSettings(max_tokens=4, credit="theirs", **WAYS)
    own = ThoughtSettings(max_tokens=4, credit="own", **WAYS)
    with pytest.raises(InputError, match="within their prompt -> rollout.scale_rewards group or none"):
        grpo_fields(GrpoSettings(scale_rewards="batch"), own, {})
    engine = engine_of()
    policy = ThoughtPolicy(engine, own, group=2, seed=0)
    behind = engine.thought_room + 3 * 3 + 2 * 1 + 1  # nine codes, two line breaks, the end of the turn
    engine.model.config.max_position_embeddings = behind + 20
    make_room_for_lists(engine, policy, chosen=20)
    assert engine.renderer.max_prompt == 20
    with pytest.raises(
        InputError, match=r"a thought with 3 beams behind it takes up to \d+ -> max_prompt of at most 20"
    ):
        make_room_for_lists(engine, policy, chosen=21)
    assert TABLE.num_levels == 3
