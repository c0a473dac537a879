"""GRPO over two tasks: next items and instructions behind thoughts, in one pass on token ids, with a judge among the rewards."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from data.answers import BETWEEN, INSTRUCTION_TASK, TEXT_END, piece_ids, read_answer
from data.renderer import THINK_END
from data.tids import read_tids
from infer.chat.judge import SCORES
from infer.engine import DecodeSettings, load_engine
from infer.text.thinking import ThinkSettings
from infer.text.tids import TidTrie
from tests import handmade
from tests.fake_openai_server import serving
from tests.test_configs import parse_config
from tests.test_layering import ROOT
from train.grpo import GrpoArgs, prompt_rows
from train.policy.settings import InstructionSettings, ThoughtSettings
from train.policy.text.build import config_fields, make_router

GROUP = 4
TASKS = '["history_to_sid", "history_to_instruction"]'
SHORT = [
    "--tasks", TASKS, "--task_rows", '{"history_to_sid": 8, "history_to_instruction": 8}', "--thought.max_tokens", 6,
    "--thought.tail", "sample", "--thought.learns", "all", "--instruction.max_tokens", 8, "--rollout.num_generations", GROUP,
    "--valid_rows", 8, "--valid_beams", 10, "--eval_share", 1, "--rollout.loss", "dapo",
    "--trainer.per_device_train_batch_size", 4, "--trainer.logging_steps", 1, "--trainer.eval_steps", 4, "--trainer.max_steps", 4,
    "--trainer.learning_rate", "1e-3", "--rollout.beta", 0,
]  # fmt: skip


def flags(dual, output: Path, *more: object) -> list[object]:
    return [*dual.flags(output), *SHORT, *more]


def args_of(dual, **changes: object) -> GrpoArgs:
    usual = {
        "tasks": ["history_to_sid", INSTRUCTION_TASK], "rewards": ["exact_match", "terms_f1"],
        "thought": ThoughtSettings(max_tokens=8, temperature=1.3, tail="sample", learns="all"),
        "instruction": InstructionSettings(max_tokens=10),
    }  # fmt: skip
    paths = {name: str(path) for name, path in vars(dual).items()}
    return GrpoArgs(**paths, output_dir="none", **usual | changes)


@pytest.fixture(scope="module")
def rolled(dual):
    """(router, rows, prompts, rollouts) of both tasks, mixed."""
    args = args_of(dual, task_rows={"history_to_sid": 3, INSTRUCTION_TASK: 3})
    think = ThinkSettings(max_tokens=8)
    engine = load_engine(
        dual.model,
        dual.sids,
        dual.examples,
        DecodeSettings(beams=10),
        trainable=True,
        mode="think",
        think=think,
    )
    router = make_router(args, engine)
    rows = prompt_rows(args)
    rows = [rows[at] for at in (0, 3, 1, 4, 5, 2)]
    from data.tasks import from_row

    prompts = engine.renderer.prompts([from_row(row) for row in rows], "think")
    return router, rows, prompts, router.roll_out(rows, prompts, step=2)


def test_every_prompt_is_answered_in_the_way_of_its_task(dual, rolled):
    router, rows, prompts, made = rolled
    words = router.engine.renderer
    group = router.group
    assert made.prompt_ids == [list(prompt) for prompt in prompts for _ in range(group)]
    assert sorted(at for positions, _ in made.parts for at in positions) == list(range(len(rows)))
    groups = read_tids(dual.tids).groups
    for positions, part in made.parts:
        for place, at in enumerate(positions):
            for g in range(group):
                text = part.batch.answers[place][g]
                assert made.completion_ids[at * group + g] == part.batch.token_ids[place][g]
                assert text.startswith("<think>\n") and text.count(THINK_END) == 1
                behind = text.split(THINK_END)[1].removeprefix("\n\n")
                if rows[at]["task"] == INSTRUCTION_TASK:
                    said = read_answer(INSTRUCTION_TASK, behind)
                    assert said.how == "strict" and groups[said.terms] == list(part.batch.item_ids[place][g])
                else:
                    codes = words.vocab.format.parse(behind, num_levels=3)
                    assert codes == tuple(part.batch.codes_PGL[place, g])


def test_instructions_carry_loss_where_the_model_had_a_choice(dual, rolled):
    """The thought, the terms that were a choice and the text; not what leads to them, nor the end of a text that was cut off."""
    router, rows, _, made = rolled
    engine, words = router.engine, router.engine.renderer
    trie = TidTrie(read_tids(dual.tids), words.tokenizer, ending=BETWEEN)
    rows_of = dict(zip(map(tuple, _tid_rows(trie)), trie.terms, strict=True))
    (closing,) = piece_ids(words.tokenizer, [TEXT_END])
    eos, seen = words.terminator_ids("think"), set()
    for positions, part in made.parts:
        if rows[positions[0]]["task"] != INSTRUCTION_TASK:
            continue
        for place, at in enumerate(positions):
            for g in range(router.group):
                ids, counted = (part_[at * router.group + g] for part_ in (made.completion_ids, made.counted))
                finished = not part.unfinished_PG[place, g]
                close = words.close_thought(INSTRUCTION_TASK, finished=bool(finished))
                thought = int(part.batch.thought_PG[place, g])
                assert ids[thought : thought + len(close)] == close
                assert counted[: thought + len(close)] == [1] * (thought + finished) + [0] * (
                    len(close) - finished
                )
                said = read_answer(INSTRUCTION_TASK, part.batch.answers[place][g].split(THINK_END)[1].strip())
                start = thought + len(close)
                tid = next(row for row, terms in rows_of.items() if terms == said.terms)
                assert tuple(ids[start : start + len(tid)]) == tid
                for at_token, flag in enumerate(counted[start : start + len(tid)]):
                    others = {row[at_token] for row in rows_of if row[:at_token] == tid[:at_token]}
                    assert flag == (len(others) > 1)
                tail = counted[start + len(tid) :]
                cut = ids[-len(closing) - 1 : -1] == closing and tail[-len(closing) - 1 :] == [0] * (
                    len(closing) + 1
                )
                assert ids[-1:] == eos and tail == [1] * (len(tail) - 1 - len(closing) * cut) + [0] * (
                    1 + len(closing) * cut
                )
                seen.add(bool(cut))
    assert True in seen, "a random model's text is cut off"
    assert engine.mode == "think"


def _tid_rows(trie: TidTrie) -> list[tuple[int, ...]]:
    return [trie.answer(number, 0.0).ids for number in range(len(trie))]


def test_draws_belong_to_the_example_and_the_step(rolled):
    router, rows, prompts, made = rolled
    backwards = router.roll_out(rows[::-1], prompts[::-1], step=2)
    group = router.group
    assert backwards.completion_ids[-group:] == made.completion_ids[:group]
    assert router.roll_out(rows, prompts, step=3).completion_ids != made.completion_ids
    assert len({tuple(ids) for ids in made.completion_ids}) > len(rows)


def logged(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def fixed(turn: str, call: int) -> tuple[str, str]:
    count = turn.count("\ninstruction: ")
    return "ok", json.dumps({f"sample_{n}": dict.fromkeys(SCORES, 0.5) for n in range(1, count + 1)})


def asked(url: str, *more: object) -> list[object]:
    return [
        "--rewards", "[navigen_item, navigen_instruction]", "--judge.client.backend", "openai", "--judge.client.model", "fake",
        "--judge.client.base_url", url, "--judge.client.retries", 0, "--judge.client.backoff", 0.01, "--judge.batch", 1, *more,
    ]  # fmt: skip


def test_a_judge_without_credit_saves_the_state_and_the_same_command_goes_on(dual, tmp_path, monkeypatch):
    """Exit code 5 with the command that resumes; the resumed run ends as one that was never stopped."""
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key-of-a-test")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    credit = {"left": 10**6}

    def paid(turn: str, call: int) -> tuple[str, str]:
        credit["left"] -= 1
        return fixed(turn, call) if credit["left"] >= 0 else ("402", "")

    with serving(write=paid) as (url, log):
        handmade.call("train.grpo", *flags(dual, whole), *asked(url))
        credit["left"] = len(log.bodies) // 2
        stopped = handmade.run("train.grpo", *flags(dual, parts), *asked(url))
        assert stopped.returncode == 5 and "secret-key" not in stopped.stdout + stopped.stderr
        *_, resume, last = stopped.stderr.strip().splitlines()
        assert resume.startswith("to resume: python -m train.grpo --model") and "wants payment" in last
        saved = int(last.split("the state of step ")[1].split()[0])
        assert 0 < saved < 4 and (parts / f"checkpoint-{saved}").is_dir() and not (parts / "final").exists()
        credit["left"] = 10**6
        handmade.call("train.grpo", *flags(dual, parts), *asked(url))
    both = [[line["loss"] for line in logged(run) if "loss" in line] for run in (whole, parts)]
    assert both[0] == both[1] and len(both[0]) == 4
    names = {
        "reward/navigen_item",
        "reward/navigen_instruction",
        f"reward/task={INSTRUCTION_TASK}",
        "tid_hit_rate",
        "reward_none",
    }
    assert names <= set().union(*logged(whole))
    lines = [json.loads(line) for line in (parts / "samples.jsonl").read_text().splitlines()]
    assert lines == [json.loads(line) for line in (whole / "samples.jsonl").read_text().splitlines()]
    told = next(line for line in lines if line["task"] == INSTRUCTION_TASK)
    assert told["judge"] == "openai:fake" and told["rewards"]["navigen_item"] is None
    assert told["reward"] == pytest.approx((0.9 * 0.5 * (0.2 + 0.8 * told["thinks"]) + 0.1) * 1.0, abs=1e-5)
    facts = json.loads((whole / "manifest.json").read_text())
    assert facts["facts"]["judge"] == "openai:fake" and facts["counts"][f"prompts_{INSTRUCTION_TASK}"] == 8


def test_a_judge_without_its_key_stops_before_anything_is_written(dual, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    said = handmade.refuse("train.grpo", *flags(dual, tmp_path / "no"), *asked("http://localhost:9/v1"))
    assert "environment variable OPENAI_API_KEY is not set" in said and not (tmp_path / "no").exists()


RULE = ["--judge.client.backend", "heuristic", "--rewards", "[cid_prefix, instruction_grade]"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--thought.max_tokens", 0, "--thought.tail", "greedy", "--thought.learns", "thought"], "is answered behind thoughts"),
        (["--rewards", "[cid_prefix]"], "rewards: none speaks for task history_to_instruction"),
        (["--rewards", "[cid_prefix, instruction_grade]"], "a reward needs a judge -> say which with --judge.client.backend"),
        (["--judge.client.backend", "heuristic", "--rewards", "[cid_prefix, terms_f1]"], "read only with a reward that needs a judge"),
        (["--task_rows", '{"sid_to_tid": 3}'], "task_rows.sid_to_tid 3"),
        (["--instruction.max_tokens", 100000, *RULE], "max_prompt of at most"),
        (["--vllm.gpu_memory", 0.5], "vllm.gpu_memory 0.5 is read only with vllm.mode colocate"),
        (["--train_what", "lora", *RULE], "lora with lora.new_rows false"),
        (["--tids", "nowhere", *RULE], "nowhere"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_writes_nothing(dual, tmp_path, more, said):
    line = handmade.refuse("train.grpo", *flags(dual, tmp_path / "no"), *more)
    assert said in line and not (tmp_path / "no" / "final").exists()


def test_rl_sh_names_the_terms_only_where_instructions_are_among_the_tasks():
    def command(**variables: str) -> str:
        run = subprocess.run(
            ["bash", "rl.sh"], cwd=ROOT, env=os.environ | {"DRY_RUN": "1"} | variables, capture_output=True, text=True, timeout=60
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        return run.stdout

    for names in ({"NAME": "grpo"}, {"NAME": "grpo_published"}, {"PAPER": "toy", "NAME": "grpo_dual"}):
        two = {"PAPER": "navigen", "STAGE": "dual", "EXAMPLES": "dual", "DATASET": "shop"} | names
        assert "--tids data/shop/tids/terms" in command(**two)
    assert "--tids" not in command(TIDS="terms")


def test_the_published_values_reach_trl():
    """64 completions a process and micro-batch, two of those a step: 512 on four processes, 64 prompts; dapo, beta .01, LoRA 16 / 32 / .05."""
    args = parse_config(ROOT / "configs/navigen/grpo_published.yaml")
    told = config_fields(args)
    assert (told["per_device_train_batch_size"], told["num_generations"]) == (64, 8)
    assert args.trainer["gradient_accumulation_steps"] * told["per_device_train_batch_size"] * 4 == 512
    assert (told["loss_type"], told["beta"], told["epsilon"], told["scale_rewards"]) == (
        "dapo",
        0.01,
        0.2,
        "group",
    )
    assert (args.lora.rank, args.lora.alpha, args.lora.dropout, args.lora.new_rows) == (16, 32, 0.05, False)
    assert (args.thought.max_tokens, args.instruction.max_tokens, args.vllm.mode) == (768, 192, "server")
    assert args.judge.client.concurrency == 20 and args.rewards[1].params == {"ungraded": 0.1}


def test_a_plan_says_what_would_be_done(dual, tmp_path, capsys):
    handmade.call("train.grpo", *flags(dual, tmp_path / "no"), *RULE, "--plan", "cpu")
    said = capsys.readouterr().out
    assert "history_to_instruction: 8 prompts" in said
    assert "4 steps of 4 prompts x 4 rollouts = 16 completions" in said
    assert "at most 32 instructions in 8 calls" in said and "not estimated where rollouts think" in said
    assert not (tmp_path / "no").exists()


def test_ours_with_beams_and_lora_on_the_linear_layers(dual, tmp_path):
    """Rank and prefix rewards for items, a marked rule for instructions; with LoRA the frozen model is the reference."""
    run = tmp_path / "lora"
    handmade.call(
        "train.grpo", *flags(dual, run), "--judge.client.backend", "heuristic", "--rollout.beta", 0.01, "--thought.tail", "beams",
        "--thought.beams", 4, "--train_what", "lora", "--lora.new_rows", "false", "--trainer.max_steps", 2,
        "--rewards", "[cid_prefix, rank_discount, instruction_grade, {name: thought_present, weight: 0.1}]",
    )  # fmt: skip
    lines = [line for line in logged(run) if "loss" in line]
    assert {
        "reward/rank_discount",
        "reward/instruction_grade",
        "reward/thought_present",
        "kl",
    } <= set().union(*lines)
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-6) and lines[1]["kl"] > 0
    assert all(np.isfinite(line["loss"]) for line in lines)
    told = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert {line["judge"] for line in told if "judge" in line} == {"heuristic:word_overlap"}
    assert json.loads((run / "manifest.json").read_text())["facts"]["judge"] == "heuristic:word_overlap"
