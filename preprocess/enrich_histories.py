"""Stage 06 of SIDReasoner, second and third part, and MiniOneRec's pseudo-labels: texts about rows of sequences, by a chat model.

    --write history     where a history leads, in the first person; never names the target
    --write narrative   recites history and target around that reasoning (--reasoning, the output of --write history)
    --write intention   the search that the user would make     (kind preference: for reason_then_sid and preference_to_sid)
    --write taste       what they like in general               (likewise)
    --write interest    what they are interested in now         (likewise)

reads   <data>/{items,sequences}.parquet; narrative: <reasoning>/
writes  <output_dir>/reasoning.parquet (data/reasoning.py), calls.parquet, answers/answers.jsonl (every answer as it came), manifest.json

The teacher is told the target. So only train rows are asked about unless `splits` says more, each row names its split, and a row whose
items hold a target of its user's later splits is left out (preprocess/teacher/samples.py). A text that names another item, says a title,
gives the target away, or is not of its `form` is asked for again with what is wrong (status repaired) and given up after `ask.repairs`
times (rejected, no text). Items are placeholders: new semantic IDs cost no new call. A run that stopped or was killed asks nothing twice.
Differs from the published stages, which check nothing and write semantic IDs.

python -m preprocess.enrich_histories --write history --data data/toystore --output_dir data/toystore/reasoning/rule_histories \
    --ask.client.backend heuristic
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from configs import program
from configs.needs import Need, require_needs
from configs.program import InputError
from data import artifacts
from data.reasoning import WITH_TEXT, read_reasoning
from data.store import output
from data.store.lineage import require_same_data
from infer.chat.client import chat_client
from preprocess.teacher.narratives import FORMS, TextForm
from preprocess.teacher.placed import PlacedSample, row_samples
from preprocess.teacher.rules import heuristic_row
from preprocess.teacher.tales import PlacedTalk, history_talk, narrative_talk, preference_talk, sids_of
from preprocess.teacher.talks import (
    ANSWERS,
    ParagraphChat,
    check_arguments,
    forecast,
    hold,
    require_answers,
    write_talks,
)

STAGE, VERSION = "enrich_histories", 1
Split = Literal["train", "valid", "test"]
KIND = {
    "history": "history", "narrative": "narrative", "intention": "preference", "taste": "preference", "interest": "preference",
}  # fmt: skip


@dataclass(kw_only=True)
class EnrichHistoriesArgs:
    """Arguments of preprocess.enrich_histories."""

    write: Literal["history", "narrative", "intention", "taste", "interest"]
    """What is written about each row."""
    data: str
    """Prepared data set (stage 01)."""
    output_dir: str
    """Where to write, e.g. data/<set>/reasoning/<name>_histories."""
    reasoning: str | None = None
    """narrative: the output of --write history, whose rows are told."""
    sids: str | None = None
    """Semantic IDs of the day, so that stage 07 says when it writes the texts in others; the texts do not depend on them."""
    splits: list[Split] = field(default_factory=lambda: ["train"])
    """Rows to ask about. The teacher sees their targets: texts of valid and test rows must not be trained on."""
    max_samples: int | None = None
    """Draw so many of the rows; null for all."""
    seed: int = 42
    """Of that draw."""
    description: int = 300
    """Characters of an item's description that are shown; 0 for titles alone."""
    form: TextForm = field(default_factory=TextForm)
    """What a text must be; by default what suits `write` (preprocess/teacher/narratives.py)."""
    ask: ParagraphChat = field(default_factory=lambda: ParagraphChat(max_tokens=1000))
    """Who writes, and how they are asked."""
    most_failed: float = 0.0
    """Share of rows that may stay without an answer; more of them are exit code 5."""
    dry_run: bool = False
    """Say what would be asked and about what it costs; ask nobody, write nothing."""
    overwrite: bool = False
    """Replace an output of another configuration."""

    def __post_init__(self) -> None:
        check_arguments(self.ask, most_failed=self.most_failed, max_samples=self.max_samples)
        if self.description < 0:
            raise InputError(f"description {self.description} -> characters, 0 for none")
        if self.write == "narrative" and self.reasoning is None:
            raise InputError("a narrative is told around a reasoning -> --reasoning, made by --write history")
        self.form.over(FORMS[self.write])
        require_needs(self)

    def needs(self) -> list[Need]:
        """Options that are read only where another one is set."""
        return [
            Need(("seed",), self.max_samples is not None, "max_samples"),
            Need(("reasoning",), self.write == "narrative", "write narrative"),
        ]

    def not_chosen(self) -> set[str]:
        """What does not decide what is written."""
        return {"dry_run", "most_failed", "sids"}


def main(args: EnrichHistoriesArgs) -> None:
    """Read, ask, check, write."""
    if args.dry_run:
        talks, _ = read_talks(args)
        calls = f"one call each, {args.ask.repairs} more at most"
        program.say(
            f"{STAGE}: {forecast(talks, args.ask, Path(args.output_dir) / ANSWERS, heuristic_row, calls)}"
        )
        return
    inputs = {"data": args.data, "reasoning": args.reasoning}
    with output.open_output(args, STAGE, version=VERSION, inputs=inputs) as out:
        client = chat_client(args.ask.client, heuristic=heuristic_row)
        talks, left_out = read_talks(args)
        counts = hold(talks, client, out.path / ANSWERS, label=args.write, calls=1)
        require_answers(talks, args.most_failed)
        told = write_talks(out, talks, KIND[args.write], counts=counts, left_out=left_out)
        out.facts |= sids_of(args.sids)
        program.say(f"{STAGE}: {args.write}: {told}")


def read_talks(args: EnrichHistoriesArgs) -> tuple[list[PlacedTalk], dict[str, int]]:
    """(a talk per row, how many rows were left out and why)."""
    items = artifacts.read_items(args.data)
    sequences = artifacts.read_sequences(args.data, num_items=len(items))
    samples, left_out = row_samples(
        sequences, items, splits=args.splits, latest=args.ask.history, max_samples=args.max_samples, seed=args.seed
    )  # fmt: skip
    told = thoughts(args, num_items=len(items)) if args.write == "narrative" else {}
    if args.write == "narrative":
        known = [sample for sample in samples if sample.key in told]
        left_out["no_reasoning"] = len(samples) - len(known)
        samples = known
        if not known:
            raise InputError(
                f"{args.reasoning} has a text of none of the rows -> --write history of this data"
            )
    return [talk_of(args, sample, told) for sample in samples], left_out


def talk_of(args: EnrichHistoriesArgs, sample: PlacedSample, told: dict[int, str]) -> PlacedTalk:
    """The talk about one row; told: the reasoning of each, by its key, for a narrative."""
    form, shown = args.form.over(FORMS[args.write]), {"description": args.description}
    if args.write == "history":
        return history_talk(sample, args.ask, form, **shown)
    if args.write == "narrative":
        return narrative_talk(sample, told[sample.key], args.ask, form, **shown)
    return preference_talk(sample, args.write, args.ask, form, **shown)


def thoughts(args: EnrichHistoriesArgs, *, num_items: int) -> dict[int, str]:
    """The reasoning of each row that has one, by its example_id."""
    require_same_data(args.reasoning, args.data, again="preprocess.enrich_histories --write history")
    table = read_reasoning(args.reasoning, kind="history", num_items=num_items)
    columns = (table[name].to_pylist() for name in ("key", "status", "text"))
    return {key: text for key, status, text in zip(*columns, strict=True) if status in WITH_TEXT}


if __name__ == "__main__":
    program.run(EnrichHistoriesArgs, main)
