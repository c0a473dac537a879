"""The trainer of rollouts with text from the arguments of train.grpo: which policy writes what, and what TRL is told."""

from __future__ import annotations

from typing import Any

from configs.program import say
from data.answers import BETWEEN
from data.store.lineage import require_common_data
from data.tids import read_tids
from infer.engine import Engine
from infer.text.tids import TidTrie
from infer.work.decoding import keep_room
from infer.work.instructing import make_room
from train.policy.dropout import without_dropout
from train.policy.text.instructions import InstructionPolicy
from train.policy.text.routing import Router
from train.policy.text.thoughts import ThoughtPolicy
from train.policy.text.trainer import ANSWER_ROOM, TextTrainer, check, grpo_fields


def config_fields(args: Any) -> dict[str, Any]:
    """Fields of trl.GRPOConfig; InputError for arguments that do not go with text."""
    check(
        args.rollout, train_what=args.train_what, lora=args.lora, hints=args.hints, reference=args.reference
    )
    answer = ANSWER_ROOM * (args.thought.beams if args.thought.learns == "list" else 1)
    answer += args.instruction.max_tokens if args.instructs else 0
    return grpo_fields(args.rollout, args.thought, args.trainer, answer=answer)


def make_router(args: Any, engine: Engine) -> Router:
    """The policy of every task; where instructions are among them the engine's prompts are bounded so that answers have room."""
    common = {"group": args.rollout.num_generations, "seed": args.seed}
    items = ThoughtPolicy(engine, args.thought, **common)
    if args.thought.learns == "list":
        make_room_for_lists(engine, items, chosen=args.max_prompt)
    if not args.instructs:
        return Router(items)
    require_common_data(args.sids, args.tids, again="scripts/05_generate_tids.sh")
    tids = read_tids(args.tids, num_items=engine.sids.num_items)
    trie = TidTrie(tids, engine.renderer.tokenizer, ending=BETWEEN)
    say(f"instructions name one of {trie}")
    make_room(engine, trie, longest_text=args.instruction.max_tokens, chosen=args.max_prompt)
    return Router(items, InstructionPolicy(engine, trie, args.thought, args.instruction, **common))


def make_room_for_lists(engine: Engine, policy: ThoughtPolicy, *, chosen: int | None) -> None:
    """Bound the prompts so that a thought and all its beams have room in the model's context; InputError where they have none."""
    behind = engine.thought_room + policy.list_tokens
    keep_room(
        engine,
        behind,
        chosen=chosen,
        told=f"a thought with {policy.settings.beams} beams behind it takes up to {behind}",
        smaller="smaller thought.max_tokens and thought.beams",
    )


def make_text_trainer(asked: Any, router: Router, **common: Any) -> TextTrainer:
    """`common` is what all trainers of train.grpo take."""
    if not asked.rollout.dropout:
        without_dropout(router.engine.model)
    return TextTrainer(policy=router, vllm=asked.vllm, samples=asked.samples, **common)
