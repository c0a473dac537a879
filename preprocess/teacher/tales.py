"""The talks with a teacher whose texts name items by placeholders (preprocess/teacher/narratives.py)."""

from __future__ import annotations

from typing import Any

from data.sid import read_sids
from infer.chat.client import ChatRequest, ChatResult
from preprocess.teacher import narratives
from preprocess.teacher.narratives import Preference, TextForm
from preprocess.teacher.placed import PlacedSample
from preprocess.teacher.talks import ParagraphChat, ParagraphTalk


class PlacedTalk(ParagraphTalk):
    """Asks for a text with placeholders, and again with what is wrong with it."""

    names_items = True


class ItemTalk(PlacedTalk):
    """First the facts of an item, then its narrative."""

    def __init__(self, sample: PlacedSample, ask: ParagraphChat, form: TextForm) -> None:
        super().__init__(sample, [], ask, lambda text: narratives.item_problem(text, sample, form))
        self.form = form
        self.facts: dict[str, Any] | None = None

    def question(self) -> ChatRequest:
        if self.facts is None:
            return self.ask.request(
                self.sample, "facts", narratives.facts_messages(self.sample), narratives.FACTS
            )
        return super().question()

    def heard(self, result: ChatResult) -> None:
        if self.facts is None:
            self.facts = result.parsed
            self.messages = narratives.item_messages(self.sample, self.facts, self.form)
            return
        super().heard(result)


def history_talk(sample: PlacedSample, ask: ParagraphChat, form: TextForm, *, description: int) -> PlacedTalk:
    """The reasoning over a history."""
    messages = narratives.history_messages(sample, form, description=description)
    return PlacedTalk(sample, messages, ask, lambda text: narratives.history_problem(text, sample, form))


def narrative_talk(
    sample: PlacedSample, thought: str, ask: ParagraphChat, form: TextForm, *, description: int
) -> PlacedTalk:
    """The integrated narrative around such a reasoning."""
    messages = narratives.narrative_messages(sample, thought, form, description=description)
    return PlacedTalk(sample, messages, ask, lambda text: narratives.narrative_problem(text, sample, form))


def preference_talk(
    sample: PlacedSample, which: Preference, ask: ParagraphChat, form: TextForm, *, description: int
) -> PlacedTalk:
    """One of MiniOneRec's pseudo-labels."""
    messages = narratives.preference_messages(sample, which, form, description=description)
    return PlacedTalk(sample, messages, ask, lambda text: narratives.preference_problem(text, sample, form))


def sids_of(directory: str | None) -> dict[str, str]:
    """For the manifest: of which semantic IDs the day was."""
    return {} if directory is None else {"sids_sha256": read_sids(directory).sha256}
