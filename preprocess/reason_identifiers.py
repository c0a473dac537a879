"""Stage 06, first part: a paragraph per row that reads the terms of a history and ends in the target's, by a chat model.

reads   <data>/sequences.parquet and a directory of TIDs (stage 05); or a file of samples of NaviGen's (preprocess/teacher/foreign.py)
writes  <output_dir>/reasoning.parquet (data/reasoning.py, kind identifier), calls.parquet (every question of every sample:
        prompt hash, status, attempts, tokens), answers/answers.jsonl (every answer as it came), manifest.json

The teacher sees the target. So only train rows are asked about unless `splits` says more, each row names its split, and a row
whose items hold a target of its user's later splits is left out (preprocess/teacher/samples.py). A text that is not one
first-person paragraph with the target's terms at its end is asked for again with what is wrong (status repaired), and given
up after `ask.repairs` times (rejected, no text). A sample without an answer ends the run with exit code 5 unless
`most_failed` allows it; the next run asks for it again. A run that stopped or was killed asks nothing twice.
With `ask.form clue` a sentence about the latest item stands in place of the paragraph, and the teacher does not see the target.
Differs from NaviGen, which puts the valid item into every history, drops ids that are no ASINs and takes any text.

python -m preprocess.reason_identifiers --data data/toystore --tids data/toystore/tids/keywords \
    --output_dir data/toystore/reasoning/keywords_identifiers --ask.client.backend heuristic
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from configs import program
from configs.needs import Need, require_needs
from configs.program import InputError
from data import artifacts
from data.rows import sample_rows
from data.store import output
from data.tids import read_tids
from infer.chat.client import chat_client
from preprocess.teacher.foreign import foreign_samples
from preprocess.teacher.rules import heuristic_identifier
from preprocess.teacher.samples import TermSample, data_samples
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
    identifier_messages,
    identifier_problem,
)

STAGE, VERSION = "reason_identifiers", 1
Split = Literal["train", "valid", "test"]


@dataclass(kw_only=True)
class ReasonIdentifiersArgs:
    """Arguments of the first part of stage 06."""

    data: str | None = None
    """Prepared data set (stage 01)."""
    tids: str | None = None
    """TIDs of its items (stage 05)."""
    samples: str | None = None
    """A file of samples in one of NaviGen's schemas, in place of data and tids."""
    item_terms: str | None = None
    """The terms of the items that `samples` names by id."""
    output_dir: str
    """Where to write, e.g. data/<set>/reasoning/<name>_identifiers."""
    splits: list[Split] = field(default_factory=lambda: ["train"])
    """Rows to ask about. The teacher sees their targets: texts of valid and test rows must not be trained on."""
    samples_split: Split = "train"
    """Of the targets of `samples`, which its file does not say."""
    append_valid: bool = False
    """samples: the valid item of an entry ends its history, as in NaviGen."""
    max_samples: int | None = None
    """Draw so many of the rows; null for all."""
    seed: int = 42
    """Of that draw."""
    ask: ThoughtChat = field(default_factory=ThoughtChat)
    """Who writes, and how they are asked."""
    most_failed: float = 0.0
    """Share of samples that may stay without an answer; more of them are exit code 5."""
    dry_run: bool = False
    """Say what would be asked and about what it costs; ask nobody, write nothing."""
    overwrite: bool = False
    """Replace an output of another configuration."""

    def __post_init__(self) -> None:
        check_arguments(self.ask, most_failed=self.most_failed, max_samples=self.max_samples)
        require_needs(self)

    def needs(self) -> list[Need]:
        """Options that are read only where another one is set, or is not."""
        own = ("data", "tids", "splits")
        foreign = ("item_terms", "append_valid", "samples_split")
        return [
            Need(own, self.samples is None, "without samples"),
            Need(foreign, self.samples is not None, "samples"),
            Need(("seed",), self.max_samples is not None, "max_samples"),
        ]

    def not_chosen(self) -> set[str]:
        """What decides when a run gives up, not what it writes."""
        return {"dry_run", "most_failed"}


def main(args: ReasonIdentifiersArgs) -> None:
    """Read, ask, check, write."""
    if not (args.samples or args.data and args.tids):
        raise InputError("nothing to read is named -> give data and tids, or samples")
    if args.dry_run:
        talks = [talk_of(sample, args.ask) for sample in read_samples(args)[0]]
        calls = f"one call each, {args.ask.repairs} more at most"
        program.say(
            f"{STAGE}: {forecast(talks, args.ask, Path(args.output_dir) / ANSWERS, args.ask.rule(heuristic_identifier), calls)}"
        )
        return
    inputs = {name: getattr(args, name) for name in ("data", "tids", "samples", "item_terms")}
    with output.open_output(args, STAGE, version=VERSION, inputs=inputs) as out:
        client = chat_client(args.ask.client, heuristic=args.ask.rule(heuristic_identifier))
        samples, left_out = read_samples(args)
        talks = [talk_of(sample, args.ask) for sample in samples]
        counts = hold(talks, client, out.path / ANSWERS, label="identifiers", calls=1)
        require_answers(talks, args.most_failed)
        told = write_talks(out, talks, "identifier", counts=counts, left_out=left_out)
        program.say(f"{STAGE}: {told}")


def read_samples(args: ReasonIdentifiersArgs) -> tuple[list[TermSample], dict[str, int]]:
    """(samples, how many rows were left out and why)."""
    if args.samples is not None:
        made, left_out = foreign_samples(
            args.samples, item_terms=args.item_terms, split=args.samples_split, append_valid=args.append_valid
        )
        return [made[place] for place in sample_rows(len(made), args.max_samples, args.seed)], left_out
    items = len(artifacts.read_items(args.data))
    sequences = artifacts.read_sequences(args.data, num_items=items)
    tids = read_tids(args.tids, num_items=items)
    return data_samples(sequences, tids, splits=args.splits, max_samples=args.max_samples, seed=args.seed)


def talk_of(sample: TermSample, ask: ThoughtChat) -> ParagraphTalk:
    """The talk about one sample."""
    if ask.form == "clue":
        messages = clue_messages(sample, ask.history)
        return ParagraphTalk(sample, messages, ask, lambda text: clue_problem(text, sample))
    messages = identifier_messages(sample, ask.history)
    return ParagraphTalk(sample, messages, ask, lambda text: identifier_problem(text, sample))


if __name__ == "__main__":
    program.run(ReasonIdentifiersArgs, main)
