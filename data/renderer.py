"""Example <-> token ids: the only place that turns a row into a prompt or generated ids into an answer.

    prompt_ids(example, mode)   ends exactly where the first answer token goes
    answer_ids(example)         what the model should say, without terminator
    terminator_ids(mode)        what ends an answer
    parse(example.task, ids)    an Answer, or None where the ids are no answer of that task

Training, rollouts, evaluation and serving call these and nothing else, so all of them see the same bytes.

An answer in JSON (data/answers.py: terms always, semantic IDs with `json_sids`) has its fixed first words in the prompt.

Modes: `direct` - the answer starts right after the assistant header; `empty_think` - after an empty think block (a
reasoning model's own way of not thinking); `think` - after an open think block: the thought comes first, then
`close_thought` leads from its last token to the first of the answer. Where a chat template writes these blocks itself
(`enable_thinking`), its own way of writing them is taken. An example whose answer begins with a thought is always `think`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from configs.program import InputError
from data import answers
from data.prompts import FRAMED, PLAIN, TITLE_LINE, Wording
from data.sid import SidTable, SidVocab
from data.signals import ITEM_TOKEN, Signals
from data.store.fingerprints import sha256_json
from data.tasks import SID_TASKS, Answer, Example, TaskContext, history_to_sid

THINK_START, THINK_END = "<think>", "</think>"
HISTORY_TASKS = frozenset(
    {
        "history_to_sid", "history_to_title", "history_to_description", "titles_to_sid", "titles_to_title",
        "reason_then_sid", "history_to_tid", "history_to_instruction",
    }
)  # fmt: skip
# Tasks whose rows may have a thought before the answer: those that have one are trained with it.
MAY_THINK = frozenset({"chat", "history_to_sid", "history_to_tid", "history_to_instruction"})
MODES = {"direct": "", "empty_think": f"<think>\n\n{THINK_END}\n\n", "think": "<think>\n"}


class Renderer:
    """Renders for one tokenizer and one SidVocab; `answer_vocab` is that vocabulary as answers are written.

    `max_prompt` tokens bound the prompts of HISTORY_TASKS: an over-long history loses its oldest items, never the
    instruction; `shortened` counts such prompts by task. Prompts of other tasks are not cut. Without a chat template a prompt
    begins with the BOS token where the tokenizer puts one in front of text; a text without a prompt begins with that token, or
    with the eos token where there is none, so that its first word is learned too.
    """

    def __init__(
        self,
        tokenizer: Any,
        vocab: SidVocab,
        *,
        max_prompt: int | None = None,
        json_sids: bool = False,
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise InputError("the tokenizer has no eos token -> set one before expanding the vocabulary")
        self.tokenizer = tokenizer
        self.vocab = self.answer_vocab = vocab
        self._head_ids, *ends = answers.piece_ids(
            tokenizer, [answers.HEAD, answers.SID_HEAD, answers.SID_END]
        )
        if json_sids:
            self.answer_vocab = vocab.within(*ends)
        self.max_prompt = max_prompt
        self._takes_system = takes_system(tokenizer)
        self.shortened: Counter[str] = Counter()
        self.bos_ids = _bos_ids(tokenizer)
        self._sid = re.compile(ITEM_TOKEN + vocab.format.pattern(len(vocab.levels)).pattern)

    def prompt_ids(self, example: Example, mode: str = "direct") -> list[int]:
        """Token ids up to where the first answer token goes, a prefix token of the semantic ID included."""
        return self.prompts([example], mode)[0]

    def prompts(self, examples: Sequence[Example], mode: str = "direct") -> list[list[int]]:
        """`prompt_ids` of many examples, tokenised together."""
        if mode not in MODES:
            raise InputError(f"unknown mode {mode!r} -> one of {', '.join(MODES)}")
        rows = self.uncut(examples, mode)
        if self.max_prompt is None:
            return rows
        return [
            self._cut(example, ids, mode)
            if len(ids) > self.max_prompt and example.task in HISTORY_TASKS
            else ids
            for example, ids in zip(examples, rows, strict=True)
        ]

    def uncut(self, examples: Sequence[Example], mode: str = "direct") -> list[list[int]]:
        """`prompts` without a bound."""
        modes = [_mode(example, mode) for example in examples]
        texts = [self.prompt_text(example, own) for example, own in zip(examples, modes, strict=True)]
        return [
            [*self._start_ids(example), *ids, *(() if own == "think" else self._prefix_ids(example.task))]
            for example, own, ids in zip(examples, modes, self._encode_all(texts), strict=True)
        ]

    def _prefix_ids(self, task: str) -> Sequence[int]:
        """The ids that every answer of `task` begins with; the prompt holds them."""
        if task in SID_TASKS:
            return self.answer_vocab.prefix_ids
        return self._head_ids if task in answers.TERM_TASKS else ()

    def _cut(self, example: Example, ids: list[int], mode: str) -> list[int]:
        """The prompt of the longest end of the history that `max_prompt` holds; one item must stay."""
        content = example.messages[-1]["content"]
        lines = example.task.startswith("titles")
        starts = [found.start() for found in (TITLE_LINE if lines else self._sid).finditer(content)]

        def of_last(kept: int) -> list[int]:
            left = content[: starts[0]] + content[starts[len(starts) - kept] :]
            last = example.messages[-1] | {"content": left}
            return self.uncut([replace(example, messages=(*example.messages[:-1], last))], mode)[0]

        shortest = of_last(1) if starts else ids
        if len(shortest) > self.max_prompt:
            raise InputError(
                f"example {example.example_id}: a history of one item needs {len(shortest)} tokens, more than max_prompt "
                f"{self.max_prompt} -> raise max_prompt"
            )
        self.shortened[example.task] += 1
        return self._longest(of_last, shortest, len(starts), len(ids))

    def _longest(self, of_last: Any, shortest: list[int], count: int, length: int) -> list[int]:
        """Bisection that starts where items of equal length, as semantic IDs are, have their answer at once."""
        fits, too_many = 1, count
        guess = 1 + int(
            (self.max_prompt - len(shortest)) / max((length - len(shortest)) / max(count - 1, 1), 1e-9)
        )
        best = shortest
        while too_many - fits > 1:
            kept = min(max(guess, fits + 1), too_many - 1)
            ids = of_last(kept)
            if len(ids) <= self.max_prompt:
                fits, best, guess = kept, ids, kept + 1
            else:
                too_many, guess = kept, (fits + kept) // 2
        return best

    def answer_ids(self, example: Example) -> list[int]:
        """Token ids of the answer that follow `prompt_ids(example)`: codes and suffix, or text."""
        return self._answers([example])[0]

    def _answers(self, examples: Sequence[Example]) -> list[list[int]]:
        texts: list[tuple[int, str]] = []
        pieces: list[tuple[int, str]] = []
        made: list[list[int]] = [[] for _ in examples]
        for row, example in enumerate(examples):
            if example.task in SID_TASKS:
                if example.answer.sid is None:
                    raise InputError(
                        f"example {example.example_id} ({example.task}) has no semantic ID as its answer"
                    )
                made[row] = self.answer_vocab.encode(example.answer.sid)[len(self.answer_vocab.prefix_ids) :]
            else:
                kind = pieces if example.task in answers.TERM_TASKS else texts
                kind.extend((row, piece) for piece in answer_pieces(example))
        encoded = self._encode_all([text for _, text in texts])
        encoded += answers.piece_ids(self.tokenizer, [piece for _, piece in pieces])
        for (row, _), ids in zip([*texts, *pieces], encoded, strict=True):
            made[row] += ids
        return made

    def think_end_id(self) -> int:
        """The token that ends a thought; InputError where the tokenizer has no single token for it."""
        ids = self._encode(THINK_END)
        if len(ids) != 1:
            raise InputError(
                f"this tokenizer has no token of its own for {THINK_END} (it needs {len(ids)}) -> give it one before training "
                '(EXPAND_ARGS="--add_tokens [<think>,</think>]" bash scripts/08_expand_vocab.sh), or do not use mode think'
            )
        return ids[0]

    def thought_ids(self, reasoning: str) -> list[int]:
        """A written thought as the token ids between the open think block and its end marker."""
        return self._encode(reasoning.strip() + "\n")

    def close_thought(self, task: str, *, finished: bool) -> list[int]:
        """The ids between a thought and its answer: end marker, blank line and what every answer of the task begins with.

        A thought that was cut off (not `finished`) gets the newline before the marker as well.
        """
        self.think_end_id()
        return [*self._encode(("" if finished else "\n") + THINK_END + "\n\n"), *self._prefix_ids(task)]

    def terminator_ids(self, mode: str = "direct") -> list[int]:
        """The token that ends an answer: the tokenizer's eos, which closes the assistant turn in a chat template."""
        return [self.tokenizer.eos_token_id]

    def supervised(self, example: Example, mode: str = "direct") -> tuple[list[int], list[int]]:
        """(prompt ids, completion ids): what supervised fine-tuning trains on."""
        return self.prompt_ids(example, mode), self.completions([example], mode)[0]

    def completions(self, examples: Sequence[Example], mode: str = "direct") -> list[list[int]]:
        """Answer ids with terminator of each example; `think` puts the reasoning before them.

        A prompt that is plain text goes on with the next item, so its answer has no terminator.
        """
        rows = []
        for example, ids in zip(examples, self._answers(examples), strict=True):
            answer = ids if _plain(example) else [*ids, *self.terminator_ids(mode)]
            if _mode(example, mode) == "think":
                if not (example.answer.reasoning or "").strip():
                    raise InputError(
                        f"example {example.example_id} ({example.task}) has no reasoning -> leave it out of mode think"
                    )
                thought = self.thought_ids(example.answer.reasoning)
                answer = [*thought, *self.close_thought(example.task, finished=True), *answer]
            rows.append(answer)
        return rows

    def identity(self) -> dict[str, Any]:
        """What decides how an example is rendered, besides the example: the key of rendered rows that are kept."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        words = sorted(self.tokenizer.get_vocab().items()) if backend is None else backend.to_str()
        return {
            "tokenizer": sha256_json(words),
            "template": self.tokenizer.chat_template,
            "start": self.bos_ids,
            "end": self.terminator_ids(),
            "vocab": self.answer_vocab.to_json(),
            "max_prompt": self.max_prompt,
            # as earlier, where nothing is rendered otherwise
            **({} if self._takes_system else {"system_turn": "before the user's words"}),
        }

    def parse(self, task: str, ids: Sequence[int]) -> Answer | None:
        """The answer in generated `ids` (terminator and what follows it are dropped); None when it is not one."""
        ids = list(ids)
        for stop in self.terminator_ids():
            if stop in ids:
                ids = ids[: ids.index(stop)]
        if task in SID_TASKS:
            codes = self.answer_vocab.parse([*self.answer_vocab.prefix_ids, *ids])
            return None if codes is None else Answer(sid=codes)
        text = self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        ).strip()
        if task not in answers.TERM_TASKS:
            return Answer(text=text)
        read = answers.read_answer(task, answers.HEAD + text)
        return Answer(text=read.text, terms=read.terms) if read.how == "strict" else None

    def _start_ids(self, example: Example) -> list[int]:
        """[BOS] in front of plain text where the tokenizer puts one; a chat template writes its own."""
        if not example.messages:
            return self.bos_ids or self.terminator_ids()
        return self.bos_ids if self.tokenizer.chat_template is None or not _turns(example) else []

    def prompt_text(self, example: Example, mode: str) -> str:
        """The prompt as text, without BOS and without the ids that its answer begins with."""
        contents = [message["content"] for message in example.messages]
        if not _turns(example):
            return "".join(contents) + MODES[mode]
        if self.tokenizer.chat_template is None:
            return "\n".join(contents) + "\n" + MODES[mode]
        messages = list(example.messages)
        text = self._templated(messages)
        if not MODES[mode]:
            return text
        own = self._templated(messages, enable_thinking=mode == "think")
        if own != text and mode != "think":
            return own
        return own if own.rstrip().endswith(THINK_START) else own + MODES[mode]

    def _templated(self, messages: list[dict[str, str]], **options: Any) -> str:
        messages = messages if self._takes_system else without_system(messages)
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **options
        )

    def _encode(self, text: str) -> list[int]:
        return self._encode_all([text])[0]

    def _encode_all(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []


def answer_pieces(example: Example) -> list[str]:
    """The text of an answer that is no semantic ID, behind what its prompt holds of it; InputError where it has none."""
    answer, task = example.answer, example.task
    of_terms, told = task in answers.TERM_TASKS, task != "sid_to_tid" and task != "history_to_tid"
    if of_terms and not answer.terms or told and answer.text is None:
        what = "terms" if of_terms and not answer.terms else "text"
        raise InputError(f"example {example.example_id} ({task}) has no {what} as its answer")
    return answers.pieces(task, answer.terms, answer.text)[1:] if of_terms else [answer.text]


def takes_system(tokenizer: Any) -> bool:
    """Whether the chat template writes a system turn; Gemma's refuses one, others leave it out. True where there is no template."""
    from jinja2.exceptions import TemplateError

    if tokenizer.chat_template is None:
        return True
    words = "You are asked."
    turns = [{"role": "system", "content": words}, {"role": "user", "content": "Who?"}]
    try:
        return words in tokenizer.apply_chat_template(turns, tokenize=False)
    except TemplateError:
        return False


def without_system(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """The conversation with its system turn in front of the first words of the user."""
    if len(messages) < 2 or messages[0]["role"] != "system":
        return messages
    first, second, *others = messages
    return [second | {"content": f"{first['content']}\n\n{second['content']}"}, *others]


def _plain(example: Example) -> bool:
    """Whether the answer goes on with the prompt: nothing behind it, no terminator."""
    return all(message["role"] == PLAIN for message in example.messages)


def _turns(example: Example) -> bool:
    """Whether the messages are turns of a conversation, which a chat template lays out."""
    return any(message["role"] not in (PLAIN, FRAMED) for message in example.messages)


def _mode(example: Example, mode: str) -> str:
    """The mode of one example: an answer that begins with a thought is behind an open think block."""
    if not example.messages:
        return "direct"
    thought = example.task == "reason_then_sid" or (example.task in MAY_THINK and example.answer.reasoning)
    return "think" if thought else mode


def _bos_ids(tokenizer: Any) -> list[int]:
    """[BOS] where the tokenizer puts it in front of text."""
    if tokenizer.bos_token_id is None:
        return []
    return [tokenizer.bos_token_id] if tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id else []


class HistoryRenderer:
    """Histories of item ids -> prompt ids of `history_to_sid`, equal to those of the example on disk."""

    def __init__(
        self,
        renderer: Renderer,
        sids: SidTable,
        wording: Wording,
        *,
        mode: str = "direct",
        signals: Signals | None = None,
        category: str = "items",
    ) -> None:
        self.renderer = renderer
        self.mode = mode
        self.context = TaskContext(sids, renderer.vocab.format, wording, category=category, signals=signals)

    def example(self, history: Sequence[int], *, user_id: int | None = None) -> Example:
        """The example of a history without a known target; InputError for an empty history or unknown items."""
        if not len(history):
            raise InputError("empty history -> give at least one item")
        unknown = [item for item in history if not 0 <= item < self.context.sids.num_items]
        if unknown:
            raise InputError(
                f"unknown item ids in the history: {unknown[:5]} -> ids are 0..{self.context.sids.num_items - 1}"
            )
        return replace(
            history_to_sid(self.context, key=0, history=history, target=history[-1], user_id=user_id),
            answer=Answer(),
            target=(),
        )

    def most_items(self) -> int | None:
        """How many items of a history the renderer's `max_prompt` holds; None = any number. InputError where not even one fits.

        Every item takes as many tokens as any other, so two prompts tell it of all.
        """
        if self.renderer.max_prompt is None:
            return None
        one, two = (
            len(ids)
            for ids in self.renderer.uncut([self.example([0] * count) for count in (1, 2)], self.mode)
        )
        self.prompt_ids([0])
        return 1 + (self.renderer.max_prompt - one) // (two - one)

    def prompt_ids(self, history: Sequence[int]) -> list[int]:
        """Prompt ids of one history, within the renderer's `max_prompt`: its oldest items go first."""
        return self.renderer.prompt_ids(self.example(history), self.mode)
