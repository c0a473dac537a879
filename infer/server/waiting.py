"""Requests that wait for the model go to it together: a forward of many costs little more than a forward of one.

Nobody waits for company: a request that finds the model free is answered at once. Those that come meanwhile stand in line;
whoever has the model then hands it to the eldest of them, who takes along all that may share its search. There is no thread
but those of the requests, and none is woken but for its answer or its turn.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Waiting:
    """A question, what it must have in common with others of its search, and what came of it.

    called: it has its answer, or the turn with those of `leads`, itself among them.
    """

    question: Any
    kind: Hashable
    answer: Any = None
    error: Exception | None = None
    leads: list[Waiting] = field(default_factory=list)
    called: threading.Event = field(default_factory=threading.Event)


@dataclass
class Turns:
    """Calls `search(questions of one kind) -> an answer each` for one caller at a time, with `most` questions at most.

    An answer must not depend on the questions beside its own. Where a search of several fails, each is searched alone: no
    question fails for another's fault.
    """

    search: Callable[[Sequence[Any]], Sequence[Any]]
    most: int
    _line: list[Waiting] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _busy: bool = False

    def ask(self, question: Any, kind: Hashable) -> Any:
        """The answer to `question`; raises what its search raised."""
        mine = Waiting(question, kind)
        with self._lock:
            self._line.append(mine)
            if not self._busy:  # then nobody else is in line
                self._call_next()
        mine.called.wait()
        if mine.leads:
            self._answer(mine.leads)
        if mine.error is not None:
            raise mine.error
        return mine.answer

    def _call_next(self) -> None:
        """Give the turn to the eldest in line with the next of its kind; to nobody where nobody is."""
        self._busy = bool(self._line)
        if not self._busy:
            return
        eldest = self._line[0]
        eldest.leads = [one for one in self._line if one.kind == eldest.kind][: self.most]
        taken = set(map(id, eldest.leads))
        self._line = [one for one in self._line if id(one) not in taken]
        eldest.called.set()

    def _answer(self, together: list[Waiting]) -> None:
        try:
            self._search(together)
        finally:
            with self._lock:
                self._call_next()
            for one in together:
                one.called.set()

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
