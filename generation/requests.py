"""What is to be drawn: one request per user, from stage 12, from the teacher's instructions, or from a file of prompts.

    requests = read_requests(settings, kind="image", instructions="outputs/<run>/instructions/<name>", examples="data/<D>/examples/dual")

Sources: `prediction` is the instruction that a model wrote, `oracle` the teacher's for the same row (its `ground_truth`). A file of
prompts (JSON lines) may come from anywhere: `uid` and `prompt`, or NaviGen's fields `target_ins`, `normalized_target_ins`,
`ground_truth_ins`, `target_type`, `source_dataset`, at the top or inside `source_row`, its predictions (`prediction`) among them. What was chosen is written as prompts.jsonl,
which is such a file again.

A seed is a hash of (seed, uid, prompt): two users whose names have the same letters draw different noise, and a row keeps its
picture whatever else is drawn with it.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np

from configs.needs import Need, require_needs
from configs.program import InputError
from data import artifacts
from data.answers import INSTRUCTION_TASK
from data.reasoning import PLACEHOLDER
from data.releases.navigen import read_terms
from data.rows import sample_rows
from data.store.json_text import json_lines, parse_json
from data.store.output import require_manifest

Kind = Literal["image", "video"]
TAGS = re.compile(r"<think>.*?</think>|</?think>|<\|[^<>|]{1,40}\|>|<[a-z]{1,3}(?:_[a-z])?_\d+>", re.DOTALL)
QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "«": "»"}
APOSTROPHE = re.compile(r"(?<=\w)['’](?=\w)")
SEEDS = (1 << 31) - 1
LONGEST_NAME = 120


@dataclass
class RequestSettings:
    """Whose prompts are drawn, and how they are worded."""

    source: Literal["prediction", "oracle"] = "prediction"
    """the model's instruction, or the teacher's for the same row"""
    normalise: bool = False
    """one line without markup, thoughts, semantic IDs and quotation marks around it (see `normalised`)"""
    suffix: str = ""
    """put behind every prompt, e.g. ", product photography, no text"."""
    ids: str | None = None
    """file of the uids to draw: one a line, a JSON list, or {"image": [...], "video": [...]}; null = all"""
    first: int | None = None
    """the first so many of them; null = all"""
    sample: int | None = None
    """a seeded sample of so many; null = all"""
    sample_seed: int = 0
    """of that sample"""

    def __post_init__(self) -> None:
        if min(self.first or 1, self.sample or 1) < 1 or 0 in (self.first, self.sample):
            raise InputError(f"first {self.first} and sample {self.sample} must be at least 1")
        if self.first is not None and self.sample is not None:
            raise InputError("first and sample are two ways to choose -> one of them")
        require_needs(self, "requests.")

    def needs(self) -> list[Need]:
        """Options that are read only where another one is set."""
        return [Need(("sample_seed",), self.sample is not None, "requests.sample")]


@dataclass(frozen=True, kw_only=True)
class MediaRequest:
    """One picture or video to make. (dataset, uid) is unique; uid is the example id where the row is one of ours.

    target_item is what its user chose next, item_ids are the items that terms and prompt are about: those that the model
    recommends by these terms, of an oracle the target.
    """

    uid: str
    dataset: str
    type: str
    source: str
    prompt: str
    ground_truth: str | None = None
    example_id: int | None = None
    user_id: int | None = None
    target_item: int | None = None
    terms: tuple[str, ...] = ()
    item_ids: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """`<dataset>/<uid>` as a path without an ending: any text is a safe name, and no two requests share one."""
        return f"{_safe(self.dataset)}/{_safe(self.uid)}"

    @property
    def prompt_sha256(self) -> str:
        return hashlib.sha256(self.prompt.encode()).hexdigest()

    def noise_seed(self, seed: int) -> int:
        """1 to 2^31 - 1: Open-Sora takes 0 for no seed, others take 31 bits only."""
        text = "\x1f".join((str(seed), self.uid, self.prompt))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) % SEEDS + 1


def _safe(text: str) -> str:
    name = quote(text, safe="")
    if len(name) > LONGEST_NAME:
        name = f"{name[:80]}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return f"%2E{name[1:]}" if name.startswith(".") else name


def normalised(text: str) -> str:
    """One line of plain words: Unicode NFKC, no control characters, no thought, semantic ID, item placeholder or markdown
    mark, white space collapsed, quotation marks around the whole dropped.

    >>> normalised('<think>a shot</think>  "A **bright** photo\\n of <a_1><b_2> a bolt."')
    'A bright photo of a bolt.'
    """
    text = TAGS.sub(" ", unicodedata.normalize("NFKC", text))
    text = PLACEHOLDER.sub(" ", text)
    text = re.sub(r"[*#`_]{2,}|^\s*[#>*-]+\s", " ", text, flags=re.MULTILINE)
    kept = "".join(c if unicodedata.category(c)[0] != "C" else " " for c in text)
    return _without_quotes(" ".join(kept.split()))


def _without_quotes(text: str) -> str:
    """Without the pairs of quotation marks around all of it: a mark that has its other inside (a "sign", 10" x 12") stays."""
    while len(text) > 1 and QUOTES.get(text[0]) == text[-1]:
        inside = APOSTROPHE.sub("", text[1:-1])
        if text[0] in inside or text[-1] in inside:
            break
        text = text[1:-1].strip()
    return text


def read_requests(
    settings: RequestSettings,
    *,
    kind: Kind,
    instructions: str | None,
    examples: str | None,
    prompts: str | None,
    dataset: str,
) -> list[MediaRequest]:
    """The chosen requests in the order of their file; InputError where there is none, or a source has nothing to say."""
    if (instructions is None) == (prompts is None):
        raise InputError(
            "prompts come from one place -> either --instructions (stage 12) or --prompts (JSON lines)"
        )
    if settings.source == "oracle" and prompts is None and examples is None:
        raise InputError(
            "source oracle reads a teacher's instructions -> --examples data/<D>/examples/<name>"
        )
    if prompts is not None:
        found = list(_of_file(Path(prompts), kind, settings.source, dataset))
    else:
        found = list(_of_instructions(instructions, examples, kind, settings.source, dataset))
    counts = Counter(request.name for request in found)
    if twice := next((name for name, count in counts.items() if count > 1), None):
        raise InputError(
            f"{prompts or instructions}: {twice} comes {counts[twice]} times -> one row per uid and data set"
        )
    chosen = chosen_requests(found, settings, kind=kind)
    if not chosen:
        raise InputError(f"{prompts or instructions} has no row of type {kind} to draw -> check the file, --requests.ids and --requests.first")  # fmt: skip
    return [replace(request, prompt=worded(request.prompt, settings)) for request in chosen]


def worded(prompt: str, settings: RequestSettings) -> str:
    """The prompt as it is drawn; one without words stays empty."""
    prompt = normalised(prompt) if settings.normalise else " ".join(prompt.split())
    return prompt + settings.suffix if prompt else ""


def chosen_requests(
    found: Sequence[MediaRequest], settings: RequestSettings, *, kind: Kind
) -> list[MediaRequest]:
    """Those that the settings name, in file order."""
    if settings.ids is not None:
        wanted = read_ids(Path(settings.ids), kind)
        unknown = wanted - {request.uid for request in found}
        if unknown:
            raise InputError(
                f"{settings.ids} names {len(unknown)} uids that are not there (first: {min(unknown)})"
            )
        found = [request for request in found if request.uid in wanted]
    if settings.sample is not None:
        return [found[row] for row in np.sort(sample_rows(len(found), settings.sample, settings.sample_seed))]
    return list(found[: settings.first])


def read_ids(path: Path, kind: Kind) -> set[str]:
    """uids of a file; InputError where it is none."""
    text = _text(path)
    try:
        content = parse_json(text, where=path)
    except InputError:
        content = [uid for line in text.split("\n") if (uid := line.strip())]
    if isinstance(content, dict):
        content = content.get(kind)
    if isinstance(content, (int, str)):
        content = [content]
    if not isinstance(content, list) or not content:
        raise InputError(
            f'{path} lists no uids of type {kind} -> one a line, a JSON list, or {{"{kind}": [...]}}'
        )
    return {str(uid) for uid in content}


def _of_instructions(
    instructions: str | None, examples: str | None, kind: Kind, source: str, dataset: str
) -> Iterator[MediaRequest]:
    table = artifacts.read(instructions, artifacts.INSTRUCTIONS)
    facts = require_manifest(instructions, written_by=artifacts.INSTRUCTIONS.written_by)["facts"]
    truth = {} if examples is None else ground_truths(examples, facts["split"])
    if source == "oracle" and not truth:
        raise InputError(
            f"{examples} has no instructions of a teacher for split {facts['split']} -> --requests.source prediction, or build "
            "examples with them (scripts/06_write_reasoning.sh, scripts/07_build_examples.sh)"
        )
    for row in table.to_pylist():
        own = truth.get(row["example_id"])
        if source == "oracle" and own is None:
            continue  # the teacher has nothing for this row
        yield MediaRequest(
            uid=str(row["example_id"]),
            dataset=dataset,
            type=kind,
            source=source,
            prompt=row["instruction"] if own is None or source == "prediction" else own[0],
            ground_truth=None if own is None else own[0],
            example_id=row["example_id"],
            user_id=row["user_id"],
            target_item=row["target_item"],
            terms=own[1] if source == "oracle" else tuple(row["terms"]),
            item_ids=(row["target_item"],) if source == "oracle" else tuple(row.get("item_ids") or ()),
        )


def ground_truths(examples: str | Path, split: str) -> dict[int, tuple[str, tuple[str, ...]]]:
    """{example_id: the teacher's instruction and the target's terms} of a split of the examples."""
    table = artifacts.read_split(examples, split, columns=["example_id", "task", "answer"])
    rows = zip(*(table[name].to_pylist() for name in ("example_id", "task", "answer")), strict=True)
    return {
        key: (answer["text"], tuple(answer["terms"] or ()))
        for key, task, answer in rows
        if task == INSTRUCTION_TASK and answer["text"]
    }


def _of_file(path: Path, kind: Kind, source: str, dataset: str) -> Iterator[MediaRequest]:
    for number, row in json_lines(_text(path), path):
        try:
            row = row.get("source_row") | row if isinstance(row.get("source_row"), dict) else row
            if isinstance(
                row.get("prediction"), dict
            ):  # a line of hist_cid2ins_predictions: the row has the teacher's text
                row = row | {"ground_truth": row.get("target_ins")} | row["prediction"]
        except AttributeError:
            raise InputError(
                f"{path}:{number} is no JSON object -> one a line, with uid and prompt"
            ) from None
        if row.get("type", row.get("target_type", kind)) != kind:
            continue
        truth = row.get("ground_truth", row.get("ground_truth_ins"))
        said = next(
            (row[name] for name in ("prompt", "normalized_target_ins", "target_ins") if name in row), None
        )
        prompt = truth if source == "oracle" else said
        if row.get("uid") is None or not isinstance(prompt, str):
            raise InputError(f"{path}:{number} lacks uid or the text of source {source} -> uid, prompt and, for oracle, ground_truth")  # fmt: skip
        yield MediaRequest(
            uid=str(row["uid"]),
            dataset=str(row.get("dataset", row.get("source_dataset", dataset))),
            type=kind,
            source=source,
            prompt=prompt,
            ground_truth=truth,
            terms=read_terms(told)
            if isinstance(told := row.get("terms") or row.get("target_tid"), (list, str))
            else (),
            item_ids=_numbers(row.get("item_ids"), f"{path}:{number}: item_ids"),
            **{
                name: _numbers([row[name]], f"{path}:{number}: {name}")[0]
                for name in ("example_id", "user_id", "target_item")
                if row.get(name) is not None
            },
        )


def _numbers(value: Any, what: str) -> tuple[int, ...]:
    if value is not None and not (isinstance(value, list) and all(type(one) is int for one in value)):
        raise InputError(f"{what} are {str(value)[:60]} -> whole numbers, or leave them out")
    return tuple(value or ())


def as_lines(requests: Iterable[MediaRequest]) -> str:
    """JSON lines that `read_requests` reads again."""
    return "".join(json.dumps(_plain(request), ensure_ascii=False) + "\n" for request in requests)


def _plain(request: MediaRequest) -> dict[str, Any]:
    return asdict(request) | {"prompt_sha256": request.prompt_sha256}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({type(error).__name__}) -> check the path") from None
