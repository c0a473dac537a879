"""Requests that wait for the model go to it together: a forward of many costs little more than a forward of one.

Nobody waits for company: a request that finds the model free is answered at once. Those that come meanwhile stand in line,
and whoever of them wakes first takes the eldest along and all that may share its search. There is no thread but those of
the requests.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Waiting:
    """A question, what it must have in common with others of its search, and what came of it."""

    question: Any
    kind: Hashable
    answer: Any = None
    error: Exception | None = None
    done: bool = False


@dataclass
class Turns:
    """Calls `search(questions of one kind) -> an answer each` for one caller at a time, with `most` questions at most.

    An answer must not depend on the questions beside its own. Where a search of several fails, each is searched alone: no
    question fails for another's fault.
    """

    search: Callable[[Sequence[Any]], Sequence[Any]]
    most: int
    _line: list[Waiting] = field(default_factory=list)
    _turn: threading.Condition = field(default_factory=threading.Condition)
    _busy: bool = False

    def ask(self, question: Any, kind: Hashable) -> Any:
        """The answer to `question`; raises what its search raised."""
        mine = Waiting(question, kind)
        with self._turn:
            self._line.append(mine)
        while not mine.done:
            with self._turn:
                self._turn.wait_for(lambda: mine.done or not self._busy)
                together = [] if mine.done else self._take()
            if together:
                self._answer(together)
        if mine.error is not None:
            raise mine.error
        return mine.answer

    def _take(self) -> list[Waiting]:
        """The eldest in line and the next of its kind; whoever holds them holds the turn."""
        kind = self._line[0].kind
        together = [one for one in self._line if one.kind == kind][: self.most]
        self._line = [one for one in self._line if one not in together]
        self._busy = True
        return together

    def _answer(self, together: list[Waiting]) -> None:
        try:
            self._search(together)
        finally:
            with self._turn:
                self._busy = False
                for one in together:
                    one.done = True
                self._turn.notify_all()

    def _search(self, together: list[Waiting]) -> None:
        try:
            answers = self.search([one.question for one in together])
            for one, answer in zip(together, answers, strict=True):
                one.answer = answer
        except Exception as error:
            if len(together) == 1:
                together[0].error = error
                return
            for one in together:
                self._search([one])
