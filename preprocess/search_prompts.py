"""Stage 06, second part: per row a prompt for a picture of the target that does not name it, found by an evolutionary search.

reads   a directory of identifier paragraphs (preprocess.reason_identifiers)
writes  <output_dir>/reasoning.parquet (data/reasoning.py, kind instruction; columns thought and summary besides),
        trace.jsonl (NaviGen's names: founders, every round, scores, summary in plain words, final prompt), calls.parquet,
        answers/answers.jsonl, manifest.json

Three drafts, a judge's scores, the best two of them crossed and the best one changed, and so on for `rounds` rounds, then a last
judgement: 2 + 2 x rounds calls a sample. Scores: preprocess/teacher/evolution.py. An answer that is no JSON of the schema is
asked for again with what is wrong with it. A server that does not answer ends the run (ask.client.break_after faults in a row
and the rests after them, ask.client.stop_after samples in a row), with exit code 5 as after a spent budget or credit; every
answer is kept, and the same command goes on. Rows without a paragraph are left out.
Differs from NaviGen: scores are clamped, quoted terms are whole words, the judge is greedy, a broken answer is not the end of a
sample, and no finished call is paid for twice.

python -m preprocess.search_prompts --reasoning data/toystore/reasoning/keywords_identifiers \
    --output_dir data/toystore/reasoning/keywords_instructions --ask.client.backend heuristic
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pyarrow as pa

from configs import program
from configs.needs import Need, require_needs
from data.artifacts import text_array
from data.reasoning import read_reasoning
from data.store import output
from infer.chat.client import chat_client
from preprocess.teacher.rules import heuristic_search
from preprocess.teacher.samples import taught_samples
from preprocess.teacher.search import SearchTalk, calls, check_rounds
from preprocess.teacher.talks import (
    ANSWERS,
    TeacherChat,
    check_arguments,
    forecast,
    hold,
    require_answers,
    write_talks,
)

STAGE, VERSION = "search_prompts", 1
TRACE = "trace.jsonl"


@dataclass
class SearchPromptsArgs:
    """Arguments of the second part of stage 06."""

    reasoning: str
    """Identifier paragraphs (preprocess.reason_identifiers)."""
    output_dir: str
    """Where to write, e.g. data/<set>/reasoning/<name>_instructions."""
    rounds: int = 1
    """Rounds of crossing and changing; a sample takes 2 + 2 x rounds calls."""
    medium: Literal["image", "video"] = "image"
    """What the prompts are for."""
    max_samples: int | None = None
    """Draw so many of the rows; null for all."""
    seed: int = 42
    """Of that draw."""
    ask: TeacherChat = field(default_factory=lambda: TeacherChat(max_tokens=1500))
    """Who writes and judges, and how they are asked."""
    most_failed: float = 0.0
    """Share of samples that may stay without an answer; more of them are exit code 5."""
    dry_run: bool = False
    """Say what would be asked and about what it costs; ask nobody, write nothing."""
    overwrite: bool = False
    """Replace an output of another configuration."""

    def __post_init__(self) -> None:
        check_arguments(self.ask, most_failed=self.most_failed, max_samples=self.max_samples)
        check_rounds(self.rounds)
        require_needs(self)

    def needs(self) -> list[Need]:
        """Options that are read only where another one is set."""
        return [Need(("seed",), self.max_samples is not None, "max_samples")]

    def not_chosen(self) -> set[str]:
        """What decides when a run gives up, not what it writes."""
        return {"dry_run", "most_failed"}


def main(args: SearchPromptsArgs) -> None:
    """Read, search, write."""
    if args.dry_run:
        told = forecast(
            read_talks(args)[0],
            args.ask,
            Path(args.output_dir) / ANSWERS,
            heuristic_search,
            f"{calls(args.rounds)} calls each",
        )
        program.say(f"{STAGE}: {told}")
        return
    with output.open_output(args, STAGE, version=VERSION, inputs={"reasoning": args.reasoning}) as out:
        client = chat_client(args.ask.client, heuristic=heuristic_search)
        talks, left_out = read_talks(args)
        counts = hold(talks, client, out.path / ANSWERS, label="prompts", calls=calls(args.rounds))
        require_answers(talks, args.most_failed)
        done = [talk for talk in talks if talk.status == "ok"]
        lines = [json.dumps(talk.trace(), ensure_ascii=False) + "\n" for talk in done]
        out.write_text(TRACE, "".join(lines))
        more = {
            "thought": text_array([talk.thought for talk in talks]),
            "summary": text_array([talk.summary if talk.status == "ok" else "" for talk in talks]),
        }
        told = write_talks(out, talks, "instruction", counts=counts, left_out=left_out, more=more)
        out.facts |= search_facts(done)
        program.say(f"{STAGE}: {told}, {out.facts['prompts_that_quote']:,} prompts quote their target")


def read_talks(args: SearchPromptsArgs) -> tuple[list[SearchTalk], dict[str, int]]:
    """(a talk per row with a paragraph, how many rows have none)."""
    table = read_reasoning(args.reasoning, kind="identifier")
    taught, left_out = taught_samples(table, max_samples=args.max_samples, seed=args.seed)
    talks = [
        SearchTalk(sample, row["text"], args.ask, rounds=args.rounds, medium=args.medium)
        for sample, row in taught
    ]
    return talks, left_out


def search_facts(done: list[SearchTalk]) -> dict[str, object]:
    """How the searches ended: which draft won how often, the mean of the final scores, prompts that quote their target."""
    finals = [talk.rankings[-1][0] for talk in done]
    modes = pa.array([one.mode for one, _ in finals], pa.string()).value_counts().to_pylist()
    return {
        "final_modes": {entry["values"]: entry["counts"] for entry in modes},
        "mean_overall": sum(given.overall for _, given in finals) / max(len(finals), 1),
        "prompts_that_quote": sum(bool(given.quoted_terms) for _, given in finals),
    }


if __name__ == "__main__":
    program.run(SearchPromptsArgs, main)
