"""Rollouts that think: what stands in a completion, what of it carries loss, and that TRL's own trainer learns from them."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from configs.program import InputError
from data.renderer import Renderer
from data.sid import SidTable, sid_format
from infer.engine import DecodeSettings, Engine
from infer.search.tree import search
from infer.text.thinking import ThinkSettings
from preprocess.model.vocabulary import add_sid_tokens
from tests import handmade, tiny
from tests.ranks import together
from train.policy.settings import GrpoSettings, ThoughtSettings
from train.policy.text.routing import Router
from train.policy.text.thoughts import ThoughtPolicy
from train.policy.text.trainer import TextTrainer, check, grpo_fields, total_rewards
from train.rewards.mixture import build_mixture
from train.rewards.needs import Sources
from train.rewards.spec import RewardSpec
from train.trainable import LoraSettings

TABLE = SidTable(handmade.CODES, handmade.SIZES)
GROUP = 4


def engine_of(fmt: str = "letters", seed: int = 0) -> Engine:
    """A random model whose thoughts often end in time."""
    tokenizer = handmade.tokenizer("ours")
    vocab = add_sid_tokens(tokenizer, sid_format(fmt), handmade.SIZES, sids_sha256="").vocab
    words = Renderer(tokenizer, vocab)
    model = tiny.model(vocab_size=len(tokenizer), tied=False, seed=seed)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.25)  # near uniform: the end marker comes once in some hundred tokens
        model.lm_head.weight[words.think_end_id()] = 0
        model.lm_head.weight[words.think_end_id(), :] += 0.05
    return Engine(
        model, words, TABLE, DecodeSettings(beams=5), mode="think", think=ThinkSettings(max_tokens=8)
    )


def examples(engine: Engine, count: int = 4) -> tuple[list[dict], list[list[int]]]:
    """(example columns, prompts) of histories of one or two items."""
    rows, prompts = [], []
    for at in range(count):
        history = [at, (at + 3) % 12][: 1 + at % 2]
        rows.append({"example_id": 10 + at, "history": history, "target": [(at + 1) % 12], "user_id": at})
        prompts.append(engine.renderer.prompt_ids(engine.histories.example(history), "think"))
    return rows, prompts


@pytest.mark.parametrize("fmt", ["letters", "navigen"])
@pytest.mark.parametrize("learns", ["thought", "all"])
def test_what_a_completion_holds_and_which_of_it_carries_loss(fmt: str, learns: str) -> None:
    engine = engine_of(fmt)
    settings = ThoughtSettings(max_tokens=12, temperature=1.5, tail="sample", learns=learns)
    rows, prompts = examples(engine)
    made = ThoughtPolicy(engine, settings, group=GROUP, seed=1).roll_out(rows, prompts, step=3)
    words, levels = engine.renderer, engine.sids.num_levels
    assert 0 < made.unfinished_PG.mean() < 1, "some thoughts end in time, some are cut"
    for entry, (ids, counted) in enumerate(zip(made.completion_ids, made.counted, strict=True)):
        p, g = divmod(entry, GROUP)
        assert made.prompt_ids[entry] == prompts[p] and len(counted) == len(ids)
        finished = not made.unfinished_PG[p, g]
        close = words.close_thought("reason_then_sid", finished=finished)
        tail = [*words.vocab.suffix_ids, *words.terminator_ids("think")]
        thought = ids[: len(ids) - len(tail) - levels - len(close)]
        codes = made.batch.codes_PGL[p, g]
        assert ids == [
            *thought,
            *close,
            *words.vocab.encode(codes)[len(words.vocab.prefix_ids) :][:levels],
            *tail,
        ]
        own = len(thought) + finished  # the marker is the first of what closes a finished thought
        assert counted == [1] * own + [0] * (len(close) - finished) + [int(learns == "all")] * levels + [
            0
        ] * len(tail)
        assert len(thought) <= 12 and (
            finished or len(thought) == 12 or ids[len(thought)] != words.think_end_id()
        )
        assert made.batch.item_ids[p][g] == tuple(TABLE.items_of(codes).tolist()) != ()
    again = ThoughtPolicy(engine, settings, group=GROUP, seed=1)
    backwards = again.roll_out(rows[::-1], prompts[::-1], step=3)
    assert backwards.completion_ids[-GROUP:] == made.completion_ids[:GROUP], "draws belong to the example"
    assert again.roll_out(rows, prompts, step=4).completion_ids != made.completion_ids


def test_the_greedy_tail_is_that_of_one_beam_behind_the_thought() -> None:
    engine = engine_of()
    engine.settings = DecodeSettings(beams=1)
    rows, prompts = examples(engine)
    made = ThoughtPolicy(engine, ThoughtSettings(max_tokens=6), group=GROUP, seed=0).roll_out(
        rows, prompts, step=0
    )
    cut = engine.sids.num_levels + 1
    nodes, scores = engine.rank(
        [a + b[:-cut] for a, b in zip(made.prompt_ids, made.completion_ids, strict=True)]
    )
    best = TABLE.sids_SL[nodes[:, 0]].reshape(len(rows), GROUP, -1)
    assert np.array_equal(best, made.batch.codes_PGL)
    assert np.allclose(scores[:, 0], made.batch.scores_PG.ravel(), atol=1e-4)


def test_beams_behind_every_thought_are_one_group_of_rewards_each() -> None:
    """The list behind a thought is that of evaluation; its worth is where the target stands, near misses where it does not."""
    engine = engine_of(seed=2)
    engine.settings = DecodeSettings(beams=4)
    rows, prompts = examples(engine)
    settings = ThoughtSettings(max_tokens=6, tail="beams", beams=4)
    made = ThoughtPolicy(engine, settings, group=GROUP, seed=0).roll_out(rows, prompts, step=0)
    cut = engine.sids.num_levels + 1
    behind = [a + b[:-cut] for a, b in zip(made.prompt_ids, made.completion_ids, strict=True)]
    nodes, scores = engine.rank(behind)
    assert made.ranked.codes_PGL.shape == (len(rows) * GROUP, 4, engine.sids.num_levels)
    assert np.array_equal(made.ranked.codes_PGL, TABLE.sids_SL[nodes])
    assert np.allclose(made.ranked.scores_PG, scores, atol=1e-4)
    assert np.array_equal(
        made.batch.codes_PGL.reshape(-1, engine.sids.num_levels), made.ranked.codes_PGL[:, 0]
    )
    near = {"fallback": [0.05, 0.2]}
    mixture = build_mixture([RewardSpec("rank_discount", params=near)], Sources(TABLE))
    silent = {"_log_metric": lambda *_: None, "written": SimpleNamespace(append=lambda *_: None)}
    trainer = SimpleNamespace(mixture=mixture, policy=SimpleNamespace(settings=settings), **silent)
    found, seen = [one.total for one in total_rewards(trainer, made)], set()
    for entry, beams in enumerate(made.ranked.item_ids):
        target = rows[entry // GROUP]["target"][0]
        rank = next((at for at, items in enumerate(beams, start=1) if target in items), None)
        same = made.ranked.codes_PGL[entry] == TABLE.codes_NL[target]
        agree = np.logical_and.accumulate(same, axis=1).sum(1)
        expected = 1 / np.log2(rank + 1) if rank else [0, 0.05, 0.2][agree.max()]
        assert found[entry] == pytest.approx(expected)
        seen.add("hit" if rank else "near" if agree.max() else "far")
    assert {"hit", "near"} <= seen
    settings = ThoughtSettings(max_tokens=6, tail="beams", beams=4, hindsight=True, learns="all")
    again = ThoughtPolicy(engine, settings, group=GROUP, seed=0).roll_out(rows, prompts, step=0)
    for entry, beams in enumerate(again.ranked.item_ids):
        target = rows[entry // GROUP]["target"][0]
        chosen = again.batch.item_ids[entry // GROUP][entry % GROUP]
        assert chosen == (next((items for items in beams if target in items), beams[0]))


def make_trainer(
    tmp_path, engine: Engine, *, reward, steps: int, rate: float = 5e-3, batch: int = 16, **settings
):
    from trl import GRPOConfig

    rows, prompts = examples(engine, 8)
    policy = ThoughtPolicy(engine, ThoughtSettings(max_tokens=12, **settings), group=GROUP, seed=0)
    specs = reward
    if isinstance(reward, str):
        file = tmp_path / f"reward_{len(list(tmp_path.iterdir()))}.py"  # a file is loaded once in a process
        file.write_text(reward)
        specs = [RewardSpec(f"{file}:mine")]
    config = GRPOConfig(
        output_dir=str(tmp_path / "out"), max_steps=steps, per_device_train_batch_size=batch, num_generations=GROUP, beta=0.0,
        learning_rate=rate, lr_scheduler_type="constant", use_cpu=True, bf16=False, report_to=[], save_strategy="no",
        logging_steps=1, disable_tqdm=True, gradient_checkpointing=False, max_completion_length=64, seed=0,
    )  # fmt: skip
    return TextTrainer(
        policy=Router(policy), rewards=build_mixture(specs, Sources(TABLE)), rows=rows, prompts=prompts,
        validate=dict, args=config, processing_class=engine.renderer.tokenizer,
    )  # fmt: skip


LOW = """
def mine(batch):
    return [[sum(token < 150 for token in ids) / len(ids) for ids in group] for group in batch.token_ids]
"""
EQUAL = """
def mine(batch):
    return [[1.0] * len(group) for group in batch.token_ids]
"""
LEVELS = """
def mine(batch):
    return [[[1.0, 0.0, 0.0]] * len(group) for group in batch.token_ids]
"""


def test_trl_learns_from_the_rollouts(tmp_path) -> None:
    """Rewarded for tokens of small numbers, thoughts hold more and more of them; equal rewards move nothing."""
    one = make_trainer(tmp_path, engine_of(), reward=LOW, steps=25)
    one.train()
    rewards = [log["reward"] for log in one.state.log_history if "reward" in log]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.1, rewards
    assert {"hit_rate", "unfinished_share", "reward/mine"} <= set(one.state.log_history[0])
    still = engine_of()
    before = [parameter.clone() for parameter in still.model.parameters()]
    make_trainer(tmp_path, still, reward=EQUAL, steps=2).train()
    assert all(torch.equal(a, b) for a, b in zip(before, still.model.parameters(), strict=True))


def test_thoughts_are_learned_from_the_rank_of_the_target_behind_them_and_kept_short(tmp_path) -> None:
    specs = [
        RewardSpec("rank_discount", params={"fallback": [0.05, 0.2]}),
        RewardSpec("thought_length", weight=0.5, params={"most": 12, "soft": 8}),
    ]
    one = make_trainer(
        tmp_path, engine_of(), reward=specs, steps=20, tail="beams", beams=5, drop_unfinished=False
    )
    one.train()
    logs = [log for log in one.state.log_history if "reward" in log]
    assert {
        "reward/rank_discount",
        "reward/thought_length",
        "unfinished_share",
        "thought_tokens",
        "hit_rate",
    } <= set(logs[0])
    first, last = logs[:4], logs[-4:]
    mean = lambda part, name: np.mean([log[name] for log in part])  # noqa: E731
    assert mean(last, "reward") > mean(first, "reward") + 0.05, logs
    assert mean(last, "thought_tokens") < mean(first, "thought_tokens")
    assert all(0 <= log["reward/rank_discount"] <= 1 and np.isfinite(log["loss"]) for log in logs)


def test_forced_tokens_and_codes_carry_no_loss(tmp_path) -> None:
    """With the thought alone learned, a row of the output layer that only codes use has no gradient but that of the softmax."""
    one = make_trainer(tmp_path, engine_of(), reward=LOW, steps=1, learns="thought")
    inputs = one._generate_and_score_completions(
        [{"prompt": str(at)} for at in range(2) for _ in range(GROUP)]
    )
    counted = inputs["completion_mask"] * inputs["tool_mask"]
    code_ids = torch.cat(
        [torch.as_tensor(level.token_ids) for level in one.policy.engine.renderer.vocab.levels]
    )
    is_code = torch.isin(inputs["completion_ids"], code_ids)
    forced_codes = is_code & (inputs["completion_mask"] > 0)
    assert forced_codes.any() and counted.sum() > 0
    last = inputs["completion_mask"].sum(1) - 1 - one.policy.engine.sids.num_levels
    for row, end in enumerate(last.tolist()):
        assert not counted[row, end:].any()


def test_thoughts_that_were_cut_off_can_be_left_out(tmp_path) -> None:
    """A group's baseline is then that of its finished rollouts, and the others have no reward."""
    cut_PG, made = np.arange(8 * GROUP).reshape(8, GROUP) % 3 == 0, {}
    for drop in (False, True):
        one = make_trainer(tmp_path, engine_of(), reward=LOW, steps=1, drop_unfinished=drop)
        rolled = replace(one.policy.items.roll_out(one.rows, one.prompts, step=0), unfinished_PG=cut_PG)
        made[drop] = [one.total for one in total_rewards(one, rolled)]
    assert [reward is None for reward in made[True]] == cut_PG.ravel().tolist()
    assert all(a == b for a, b in zip(made[True], made[False], strict=True) if a is not None)
    assert None not in made[False]


def partial_groups(path) -> str:
    with pytest.raises(InputError) as caught:
        make_trainer(path, engine_of(), reward=LOW, steps=1, batch=GROUP // 2)
    return str(caught.value)


def test_a_process_with_half_a_group_is_refused(tmp_path) -> None:
    paths = [tmp_path / "two"]
    paths[0].mkdir()
    for said in together(partial_groups, *paths):
        assert said.startswith(
            f"a process rolls out {GROUP // 2} completions at once, which groups of {GROUP} do not divide"
        )


def test_an_unmodified_trainer_of_trl_is_driven_by_the_search(tmp_path) -> None:
    """Beams of the trie as completions: best first, legal, none twice; the target becomes likelier."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    engine, seen = engine_of(), []
    engine.mode = "direct"
    rows, _ = examples(engine, 4)
    prompts = [engine.renderer.prompt_ids(engine.histories.example(row["history"])) for row in rows]
    end = engine.renderer.terminator_ids()[:1]

    def by_search(asked, trainer):
        group = trainer.num_generations
        at = [int(prompt) for prompt in asked[::group]]
        assert list(asked) == [str(one) for one in at for _ in range(group)], "groups side by side"
        trainer.model.eval()
        found = search(trainer.model, [prompts[one] for one in at], engine.trie, group, "full")
        trainer.model.train()
        tokens = torch.stack(
            [engine.trie.tokens[level][found.codes_BKL[..., level]] for level in range(3)], 2
        )
        hits = (
            found.nodes_BK
            == torch.tensor([int(TABLE.sid_of_item_N[rows[one]["target"][0]]) for one in at])[:, None]
        )
        seen.append((found, hits))
        return {
            "prompt_ids": [prompts[one] for one in at for _ in range(group)],
            "completion_ids": [[*ids, *end] for ids in tokens.flatten(0, 1).tolist()],
            "logprobs": None,
            "hit": hits.flatten().tolist(),
        }

    def hits(completions, hit, **columns):
        assert {"prompts", "trainer_state"} <= columns.keys(), "what TRL adds is taken"
        return [float(one) for one in hit]

    config = GRPOConfig(
        output_dir=str(tmp_path / "out"), max_steps=12, per_device_train_batch_size=4 * 8, num_generations=8, beta=0.0,
        learning_rate=5e-3, lr_scheduler_type="constant", use_cpu=True, bf16=False, report_to=[], save_strategy="no",
        logging_steps=1, disable_tqdm=True, gradient_checkpointing=False, max_completion_length=8, seed=0,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=engine.model, reward_funcs=hits, rollout_func=by_search, args=config, processing_class=engine.renderer.tokenizer,
        train_dataset=Dataset.from_dict({"prompt": [str(at) for at in range(4)]}),
    )  # fmt: skip
    trainer.train()
    for found, _ in seen:
        assert (found.scores_BK.diff(dim=1) <= 1e-5).all() and (found.counts_B == 8).all()
        assert all(len(set(nodes)) == 8 and min(nodes) >= 0 for nodes in found.nodes_BK.tolist())
    lines = [line for line in trainer.state.log_history if "grad_norm" in line]
    assert max(line["grad_norm"] for line in lines) > 0
    rewards = [line["reward"] for line in lines]
    assert max(rewards) <= 1 / 8 + 1e-6, "one beam of a group is the target at most"
    places = [float(hits_BK.float().argmax(1)[hits_BK.any(1)].float().mean()) for _, hits_BK in seen]
    assert np.mean(places[-3:]) < np.mean(places[:3]), "the target rises among the beams"


@pytest.mark.parametrize(("loss", "scale"), [("grpo", "group"), ("dapo", "group"), ("dr_grpo", "none")])
def test_advantages_are_divided_as_the_loss_has_it(loss: str, scale: str) -> None:
    thought = ThoughtSettings(max_tokens=4)
    assert grpo_fields(GrpoSettings(loss=loss), thought, {})["scale_rewards"] == scale
    asked = GrpoSettings(loss=loss, scale_rewards="batch")
    assert grpo_fields(asked, thought, {})["scale_rewards"] == "batch"


def test_refusals(tmp_path) -> None:
    engine = engine_of()
    with pytest.raises(InputError, match="per level"):
        make_trainer(tmp_path, engine, reward=LEVELS, steps=1).train()
    with pytest.raises(InputError, match="greedy thoughts"):
        ThoughtSettings(max_tokens=4, temperature=0)
    with pytest.raises(InputError, match="thought.tail sample is read only with thought.max_tokens above 0"):
        ThoughtSettings(tail="sample")
    with pytest.raises(InputError, match=r"thought.beams 4 is read only with tail beams"):
        ThoughtSettings(max_tokens=4, beams=4)
    with pytest.raises(
        InputError, match=r"thought.hindsight True is read only with tail beams and learns all"
    ):
        ThoughtSettings(max_tokens=4, tail="beams", hindsight=True)
    with pytest.raises(InputError, match="thought.learns"):
        ThoughtSettings(max_tokens=4, learns="codes")
    with pytest.raises(InputError, match="reference elsewhere: rollouts with thoughts"):
        check(GrpoSettings(), train_what="all", lora=LoraSettings(), hints=None, reference="elsewhere")
    engine.mode = "direct"
    with pytest.raises(InputError, match="mode think"):
        ThoughtPolicy(engine, ThoughtSettings(max_tokens=4), group=2, seed=0)


def stopped_at(training_step, *, step: int):
    """A training step that gets SIGTERM as step `step` is taken."""

    def stopped(self, *args, **kwargs):
        if self.state.global_step == step - 1:
            signal.raise_signal(signal.SIGTERM)
        return training_step(self, *args, **kwargs)

    return stopped


def test_the_program_trains_with_thoughts_and_resumes_exactly(chain, tmp_path, monkeypatch) -> None:
    """As a user runs it: from an SFT model, validation thinks too; a run that stopped half way ends with the same weights."""
    flags = [
        *chain.flags(), "--thought.max_tokens", 6, "--rollout.num_generations", 4, "--max_rows", 12, "--valid_rows", 8,
        "--valid_beams", 10, "--trainer.per_device_train_batch_size", 2, "--trainer.learning_rate", 1e-3, "--rollout.beta", 0.01,
        "--trainer.logging_steps", 1, "--trainer.eval_steps", 2, "--eval_share", 1, "--rewards", "[exact_match]",
    ]  # fmt: skip
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    handmade.call("train.grpo", *flags, "--trainer.max_steps", 4, "--output_dir", whole)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line["step"] for line in lines if "eval_ndcg@10" in line]
    assert evaluated == [0, 2, 4] and {"hit_rate", "kl", "unfinished_share"} <= set().union(*lines)
    with monkeypatch.context() as patched:
        patched.setattr(TextTrainer, "training_step", stopped_at(TextTrainer.training_step, step=4))
        assert (
            handmade.run("train.grpo", *flags, "--trainer.max_steps", 4, "--output_dir", parts).returncode
            == 143
        )
    # its rollouts are broken off: the checkpoint is that of the step before
    assert (parts / "checkpoint-3").is_dir() and not (parts / "final").exists()
    handmade.succeed("train.grpo", *flags, "--trainer.max_steps", 4, "--output_dir", parts)
    again = [json.loads(line) for line in (parts / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines if "loss" in line] == [
        line["loss"] for line in again if "loss" in line
    ]
    refused = handmade.refuse("train.grpo", *flags, "--rollout.hint", "true", "--output_dir", tmp_path / "no")
    assert "rollout.hint is for rollouts of semantic IDs alone" in refused
    refused = handmade.refuse("train.grpo", *flags, "--train_what", "lora", "--output_dir", tmp_path / "no")
    assert "whole models" in refused
