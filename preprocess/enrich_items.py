"""Stage 06 of SIDReasoner, first part: what is known of every item, as a narrative that names it by a placeholder only.

reads   <data>/items.parquet
writes  <output_dir>/reasoning.parquet (data/reasoning.py, kind item, `key` the item), calls.parquet, answers/answers.jsonl (every answer
        as it came), manifest.json

Two questions an item: facts from its title, brand, categories and description (description, use cases, audience, features, keywords),
then one paragraph of ten sentences and more with all of them. A paragraph that says the item's title, names another item, is no running
text, too short, too long, not English or holds a tokenizer's marker is asked for again with what is wrong (status repaired), and given up
after `ask.repairs` times (rejected, no text). An item without an answer ends the run with exit code 5 unless `most_failed` allows it. A run
that stopped or was killed asks nothing twice. Semantic IDs come in when examples are built (stage 07), so new ones cost no new call.
Differs from SIDReasoner: texts hold placeholders, not semantic IDs, and every one is checked.

python -m preprocess.enrich_items --data data/toystore --output_dir data/toystore/reasoning/rule_items --ask.client.backend heuristic
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from configs import program
from configs.needs import Need, require_needs
from data import artifacts
from data.store import output
from infer.chat.client import chat_client
from preprocess.teacher.narratives import FORMS, TextForm
from preprocess.teacher.placed import item_samples
from preprocess.teacher.rules import heuristic_item
from preprocess.teacher.tales import ItemTalk, sids_of
from preprocess.teacher.talks import (
    ANSWERS,
    ParagraphChat,
    check_arguments,
    forecast,
    hold,
    require_answers,
    write_talks,
)

STAGE, VERSION = "enrich_items", 1


@dataclass(kw_only=True)
class EnrichItemsArgs:
    """Arguments of preprocess.enrich_items."""

    data: str
    """Prepared data set (stage 01)."""
    output_dir: str
    """Where to write, e.g. data/<set>/reasoning/<name>_items."""
    sids: str | None = None
    """Semantic IDs of the day, so that stage 07 says when it writes the texts in others; the texts do not depend on them."""
    max_samples: int | None = None
    """Draw so many of the items; null for all."""
    seed: int = 42
    """Of that draw."""
    form: TextForm = field(default_factory=TextForm)
    """What a narrative must be; by default ten sentences and 60 words at least, in English."""
    ask: ParagraphChat = field(default_factory=lambda: ParagraphChat(max_tokens=1000))
    """Who writes, and how they are asked; history is not read."""
    most_failed: float = 0.0
    """Share of items that may stay without an answer; more of them are exit code 5."""
    dry_run: bool = False
    """Say what would be asked and about what it costs; ask nobody, write nothing."""
    overwrite: bool = False
    """Replace an output of another configuration."""

    def __post_init__(self) -> None:
        check_arguments(self.ask, most_failed=self.most_failed, max_samples=self.max_samples)
        self.form.over(FORMS["item"])
        require_needs(self)

    def needs(self) -> list[Need]:
        """Options that are read only where another one is set."""
        return [Need(("seed",), self.max_samples is not None, "max_samples")]

    def not_chosen(self) -> set[str]:
        """What does not decide what is written."""
        return {"dry_run", "most_failed", "sids"}


def main(args: EnrichItemsArgs) -> None:
    """Read, ask, check, write."""
    samples, left_out = item_samples(
        artifacts.read_items(args.data), max_samples=args.max_samples, seed=args.seed
    )
    talks = [ItemTalk(sample, args.ask, args.form.over(FORMS["item"])) for sample in samples]
    if args.dry_run:
        calls = f"two calls each, {args.ask.repairs} more at most"
        program.say(
            f"{STAGE}: {forecast(talks, args.ask, Path(args.output_dir) / ANSWERS, heuristic_item, calls)}"
        )
        return
    with output.open_output(args, STAGE, version=VERSION, inputs={"data": args.data}) as out:
        client = chat_client(args.ask.client, heuristic=heuristic_item)
        counts = hold(talks, client, out.path / ANSWERS, label="items", calls=2)
        require_answers(talks, args.most_failed)
        told = write_talks(out, talks, "item", counts=counts, left_out=left_out)
        out.facts |= sids_of(args.sids)
        program.say(f"{STAGE}: {told}")


if __name__ == "__main__":
    program.run(EnrichItemsArgs, main)
