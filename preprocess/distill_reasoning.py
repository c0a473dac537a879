"""Stage 06, third part: one paragraph per row that leads from the history over the drafts of a search to how its prompt is written.

reads   a directory of prompts (preprocess.search_prompts)
writes  <output_dir>/reasoning.parquet (data/reasoning.py, kind reasoning), calls.parquet, answers/answers.jsonl, manifest.json

The paragraph is a model's thought before an instruction: in the first person, without the words of the search (selection,
crossover, mutation, founder, elite, mate, but for terms of the target), the target's terms near its end. What is not so
is asked for again with the reason (status repaired), and given up after `ask.repairs` times (rejected, no text).
With `ask.form clue` it is one sentence about the latest item, without target and search.
Differs from NaviGen, which takes any text with an I in it for first-person.

python -m preprocess.distill_reasoning --search data/toystore/reasoning/keywords_instructions \
    --output_dir data/toystore/reasoning/keywords_thoughts --ask.client.backend heuristic
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs import program
from data.reasoning import read_reasoning
from data.store import output
from infer.chat.client import chat_client
from preprocess.teacher.rules import heuristic_distillation
from preprocess.teacher.samples import TermSample, taught_samples
from preprocess.teacher.talks import (
    ANSWERS,
    ParagraphTalk,
    check_arguments,
    forecast,
    hold,
    require_answers,
    write_talks,
)
from preprocess.teacher.thoughts import (
    ThoughtChat,
    clue_messages,
    clue_problem,
    distilled_messages,
    distilled_problem,
)

STAGE, VERSION = "distill_reasoning", 1


@dataclass
class DistillReasoningArgs:
    """Arguments of the third part of stage 06."""

    search: str
    """Prompts with the summaries of their searches (preprocess.search_prompts)."""
    output_dir: str
    """Where to write, e.g. data/<set>/reasoning/<name>_thoughts."""
    ask: ThoughtChat = field(default_factory=ThoughtChat)
    """Who writes, and how they are asked."""
    most_failed: float = 0.0
    """Share of samples that may stay without an answer; more of them are exit code 5."""
    dry_run: bool = False
    """Say what would be asked and about what it costs; ask nobody, write nothing."""
    overwrite: bool = False
    """Replace an output of another configuration."""

    def __post_init__(self) -> None:
        check_arguments(self.ask, most_failed=self.most_failed)

    def not_chosen(self) -> set[str]:
        """What decides when a run gives up, not what it writes."""
        return {"dry_run", "most_failed"}


def main(args: DistillReasoningArgs) -> None:
    """Read, ask, check, write."""
    if args.dry_run:
        calls = f"one call each, {args.ask.repairs} more at most"
        told = forecast(
            read_talks(args)[0],
            args.ask,
            Path(args.output_dir) / ANSWERS,
            args.ask.rule(heuristic_distillation),
            calls,
        )
        program.say(f"{STAGE}: {told}")
        return
    with output.open_output(args, STAGE, version=VERSION, inputs={"search": args.search}) as out:
        client = chat_client(args.ask.client, heuristic=args.ask.rule(heuristic_distillation))
        talks, left_out = read_talks(args)
        counts = hold(talks, client, out.path / ANSWERS, label="thoughts", calls=1)
        require_answers(talks, args.most_failed)
        program.say(f"{STAGE}: {write_talks(out, talks, 'reasoning', counts=counts, left_out=left_out)}")


def read_talks(args: DistillReasoningArgs) -> tuple[list[ParagraphTalk], dict[str, int]]:
    """(a talk per row with a prompt, how many rows have none)."""
    taught, left_out = taught_samples(read_reasoning(args.search, kind="instruction"))
    return [_talk(sample, row, args.ask) for sample, row in taught], left_out


def _talk(sample: TermSample, row: dict[str, Any], ask: ThoughtChat) -> ParagraphTalk:
    if ask.form == "clue":
        messages = clue_messages(sample, ask.history)
        return ParagraphTalk(sample, messages, ask, lambda text: clue_problem(text, sample))
    messages = distilled_messages(
        sample, ask.history, thought=row["thought"], summary=row["summary"], prompt=row["text"]
    )
    return ParagraphTalk(sample, messages, ask, lambda text: distilled_problem(text, sample))


if __name__ == "__main__":
    program.run(DistillReasoningArgs, main)
