"""Stage 05: a textual identifier (TID) for every item, up to 10 ordered English terms, written by a chat model.

reads   <data>/items.parquet; a file of captions, where `captions` names one (list, map, one object or JSON lines, by raw_id)
writes  <output_dir>/tids.parquet (item_id, terms, source), tid_report.json (coverage, collisions), answers/answers.jsonl
        (every answer as it came), manifest.json

An item that has no TID has no terms, and `source` says why: no_caption (no text, or no entry in the file `given`),
caption_refused (the caption is a refusal of the model that wrote it), refused (the chat model refuses), unusable (no term is
left of its answer, or none stands in the file). A failed item, that is one
without an answer, ends the run with exit code 5 unless `most_failed` allows it; the next run asks for it again. Keywords
stand in for a model only where `fallback: keywords` or backend `heuristic` say so, and have source `keywords`.
Differs from NaviGen, whose stage takes refusals, free text and pieces of captions for terms (see preprocess/teacher/terms.py).

python -m preprocess.generate_tids --data data/toystore --output_dir data/toystore/tids/keywords --ask.client.backend heuristic
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from configs import program
from configs.needs import Need, require_needs
from configs.program import InputError, ServiceError
from data import artifacts
from data import tids as identifiers
from data.prompts import RESERVED
from data.releases.navigen import read_terms_table
from data.store import output
from infer.chat.client import ChatRequest, chat_client, read_results
from preprocess.teacher.captions import read_captions
from preprocess.teacher.foreign import LONGEST_TERM, read_item_terms
from preprocess.teacher.terms import Keywords, TermChat, clean_terms
from rq.vectors import embeddings

STAGE, VERSION = "generate_tids", 1
ANSWERS = "answers/answers.jsonl"  # in a folder: paid work, which an error of the run does not take away


@dataclass
class GenerateTidsArgs:
    """Arguments of stage 05."""

    data: str
    """Prepared data set (stage 01)."""
    output_dir: str
    """Where to write, e.g. data/<set>/tids/<name>."""
    captions: str | None = None
    """Captions to take instead of the items' own text; an item without one gets no TID."""
    text_fields: list[str] = field(default_factory=lambda: ["title", "categories", "brand", "description"])
    """Columns of the items' text, without `captions`."""
    given: str | None = None
    """TIDs that are written already, by raw_id, kept as they are spelt; nobody is asked: NaviGen's pid2cid2tid.parquet, a JSON list
    of {id, tid} or a map. Refused: terms with a token's marker in them, or longer than 200 characters."""
    ask: TermChat = field(default_factory=TermChat)
    """Who writes the terms, and how they are asked for."""
    fallback: Literal["none", "keywords"] = "none"
    """keywords: an item whose caption gives no terms by the model gets keywords of it, marked as such."""
    most_failed: float = 0.0
    """Share of items that may stay without an answer; more of them are exit code 5. They count as unusable."""
    dry_run: bool = False
    """Say what would be asked and about what it costs; ask nobody, write nothing."""
    overwrite: bool = False
    """Replace an output of another configuration."""

    def __post_init__(self) -> None:
        if self.given and (self.captions or self.dry_run or self.fallback != "none"):
            raise InputError("given TIDs are taken as they are -> leave out captions, fallback and dry_run")
        if self.ask.client.backend == "none" and not self.given:
            raise InputError(
                "no chat model is chosen -> set ask.client.backend, or backend heuristic for keywords without one"
            )
        if not 0 <= self.most_failed <= 1:
            raise InputError(f"most_failed {self.most_failed} is a share of items -> 0 to 1")
        require_needs(self)

    def needs(self) -> list[Need]:
        """Options that are read only where another one is not set."""
        return [
            Need(("ask", "most_failed", "text_fields"), self.given is None, "without given"),
            Need(("text_fields",), self.captions is None, "without captions"),
        ]

    def not_chosen(self) -> set[str]:
        """What decides when a run gives up, not what it writes."""
        return {"dry_run", "most_failed"}


@dataclass
class CaptionTexts:
    """Per item its text, None without one, and then `sources` says why."""

    texts: list[str | None]
    sources: list[str | None]


def main(args: GenerateTidsArgs) -> None:
    """Read, ask, clean, report, write."""
    if args.dry_run:
        items = artifacts.read_items(args.data)
        asked = list(requests(item_captions(items, args), args.ask))
        if args.ask.client.backend == "heuristic":
            program.say(f"generate_tids: keywords for {len(asked):,} items, nobody is asked")
            return
        told = chat_client(args.ask.client, asks=False).forecast(asked, Path(args.output_dir) / ANSWERS)
        program.say(f"generate_tids: {told}")
        return
    inputs = {"data": args.data, "captions": args.captions, "given": args.given}
    with output.open_output(args, STAGE, version=VERSION, inputs=inputs) as out:
        items = artifacts.read_items(args.data)
        if args.given:
            terms, sources = given_terms(items["raw_id"].to_pylist(), args)
        else:
            terms, sources = written_terms(items, args, out)
        sources = [source or "unusable" for source in sources]
        out.write_table(artifacts.TIDS.file, identifiers.tid_table(terms, sources))
        report = identifiers.tid_report(identifiers.Tids([tuple(row) for row in terms], sources))
        out.write_json("tid_report.json", report)
        out.counts |= {"items": len(items)} | report["sources"]
        out.facts |= {name: report[name] for name in ("coverage", "distinct_tids", "collision_rate")}
        program.say(f"generate_tids: {summary(report)}")


def written_terms(
    items: pa.Table, args: GenerateTidsArgs, out: output.Output
) -> tuple[list[Any], list[str | None]]:
    """(terms, sources) by the chat model, by keywords, or by both."""
    texts = item_captions(items, args)
    if args.ask.client.backend == "heuristic":
        terms, sources = [()] * len(items), list(texts.sources)
    else:
        terms, sources, counts = by_chat(texts, args, out.path / ANSWERS)
        out.facts["chat"] = counts
    if args.fallback == "keywords" or args.ask.client.backend == "heuristic":
        return with_keywords(items, texts, terms, sources, most=args.ask.most_terms)
    return terms, sources


def given_terms(ids: list[str], args: GenerateTidsArgs) -> tuple[list[Any], list[str | None]]:
    """(terms, sources) of a file; an item that it does not name has none.

    InputError where it names no item at all, or a term would be read as a token or is too long.
    """
    read = read_terms_table if args.given.endswith(".parquet") else read_item_terms
    told = read(args.given)
    if not told.keys() & set(ids):
        raise InputError(
            f"{args.given}: none of its {len(told)} ids is a raw_id of {args.data} (it has e.g. {ids[0]!r}) -> another file"
        )
    terms = [list(told.get(key, ()))[: identifiers.MOST_TERMS] for key in ids]
    for key, row in zip(ids, terms, strict=True):
        if faulty := [term for term in row if len(term) > LONGEST_TERM or RESERVED.search(term)]:
            raise InputError(
                f"{args.given}: id {key!r} has the term {faulty[0][:60]!r}, with a token's marker in it or more than "
                f"{LONGEST_TERM} characters -> correct it, or leave the id out"
            )
    sources = {key: "given" if row else "unusable" for key, row in told.items()}
    return terms, [sources.get(key, "no_caption") for key in ids]


def item_captions(items: pa.Table, args: GenerateTidsArgs) -> CaptionTexts:
    """The text of every item: its caption, or its own columns; InputError for captions of other items only."""
    if args.captions is None:
        texts = embeddings.item_texts(items, args.text_fields)
        remedy = "a file of captions (--captions), or other text_fields"
        embeddings.require_text(texts, args.text_fields, needed_by="a textual identifier", remedy=remedy)
        known = [None if text == embeddings.EMPTY_TEXT else text for text in texts]
        return CaptionTexts(known, [None if text else "no_caption" for text in known])
    given = read_captions(args.captions)
    ids = items["raw_id"].to_pylist()
    foreign = (given.texts.keys() | given.empty | given.refused) - set(ids)
    if len(foreign) == len(given.texts) + len(given.empty) + len(given.refused):
        raise InputError(
            f"{args.captions}: none of its {len(foreign)} ids is a raw_id of {args.data} (it has e.g. {ids[0]!r}, the file "
            f"{min(foreign)!r}) -> give captions of this data"
        )
    if foreign:
        program.warn(
            f"{args.captions}: {len(foreign)} captions of items that {args.data} does not have, e.g. {min(foreign)!r}"
        )
    texts = [given.texts.get(key) for key in ids]
    why = ["caption_refused" if key in given.refused else "no_caption" for key in ids]
    return CaptionTexts(texts, [None if text else reason for text, reason in zip(texts, why, strict=True)])


def requests(texts: CaptionTexts, ask: TermChat) -> Iterator[ChatRequest]:
    """A question for every item with a text."""
    for item, text in enumerate(texts.texts):
        if text:
            yield ask.request(item, text)


def by_chat(
    texts: CaptionTexts, args: GenerateTidsArgs, answers: Path
) -> tuple[list[list[str]], list[str | None], dict[str, int]]:
    """(terms, sources, counts of the run); ServiceError where too many items have no answer."""
    client = chat_client(args.ask.client)
    asked = list(requests(texts, args.ask))
    counts = client.run_to_file(asked, answers, label="tids")
    results = read_results(answers)
    terms: list[list[str]] = [[] for _ in texts.texts]
    sources, failed = list(texts.sources), Counter()
    for request in asked:
        item, result = int(request.key.split()[1]), results[request.key]
        if result.status == "ok":
            terms[item] = clean_terms(result.parsed["terms"], most=args.ask.most_terms)
            sources[item] = "chat" if terms[item] else "unusable"
        else:
            sources[item] = "refused" if result.status == "refused" else "unusable"
            failed[result.error] += result.status != "refused"
    if failed.total() > args.most_failed * len(asked):
        reason, often = failed.most_common(1)[0]
        raise ServiceError(
            f"{failed.total()} of {len(asked)} items have no answer ({often}: {reason}) -> run again to ask for them once "
            "more, or allow them with most_failed"
        )
    return terms, sources, counts


def with_keywords(
    items: pa.Table, texts: CaptionTexts, terms: list[Any], sources: list[str | None], *, most: int
) -> tuple[list[Any], list[str | None]]:
    """(terms, sources) with keywords where an item has a text and no terms."""
    keywords = Keywords(items, texts.texts, most=most)
    terms, sources = list(terms), list(sources)
    for item, text in enumerate(texts.texts):
        if text and not terms[item] and (found := keywords.of(item)):
            terms[item], sources[item] = found, "keywords"
    return terms, sources


def summary(report: dict[str, Any]) -> str:
    """One line per run."""
    sources = ", ".join(f"{count:,} {name}" for name, count in report["sources"].items() if count)
    return (
        f"{report['items']:,} items ({sources}), {report['distinct_tids']:,} distinct TIDs of {report['distinct_terms']:,} "
        f"terms; {report['collision_rate']:.1%} of the items with a TID share it"
    )


if __name__ == "__main__":
    program.run(GenerateTidsArgs, main)
