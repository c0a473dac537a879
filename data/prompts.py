"""Every template in one place. A wording is a named set of templates, one per task; `data.tasks` fills them in.

Fields: {sids} the history as semantic IDs, {sid} one semantic ID, {title}. `system` may be empty. The history stands
last before a fixed ending, so that cutting its oldest items never touches the instruction.
"""

from __future__ import annotations

from dataclasses import dataclass

from configs.program import InputError

PLAIN = "text"  # role of a message that is no turn of a conversation


@dataclass(frozen=True)
class Wording:
    """Templates of the user turn by task, an optional system turn, and what stands between history items.

    Prompts of the tasks in `plain` are text that the answer goes on with: no chat template, nothing behind the history.
    """

    templates: dict[str, str]
    system: str = ""
    separator: str = ""
    plain: frozenset[str] = frozenset()

    def user(self, task: str, **fields: str) -> str:
        """The user turn of `task`; InputError when this wording has none."""
        if task not in self.templates:
            raise InputError(
                f"this wording has no template for task {task} -> choose another wording or task"
            )
        return self.templates[task].format(**fields)


WORDINGS = {
    # A few tokens: for a base model trained from scratch every word of an instruction is a cost and teaches nothing.
    "short": Wording(
        {
            "history_to_sid": "next:{sids}",
            "title_to_sid": "sid of: {title}",
            "sid_to_title": "title of:{sid}",
        }
    ),
    # Nothing behind the history: the next item follows the last one, so that one row of a user trains all their items.
    "bare": Wording(
        {
            "history_to_sid": "next:{sids}",
            "title_to_sid": "sid of: {title}",
            "sid_to_title": "title of:{sid}",
        },
        plain=frozenset({"history_to_sid"}),
    ),
    # Whole sentences: a pretrained model already knows what they mean.
    "sentence": Wording(
        {
            "history_to_sid": "A customer chose these items, oldest first: {sids}. Which item will they choose next?",
            "title_to_sid": 'Which item is called "{title}"?',
            "sid_to_title": "What is the title of item {sid}?",
        },
        system="Items of a shop are written as semantic IDs. Answer with nothing but what is asked for.",
        separator=", ",
    ),
}


def wording(name: str) -> Wording:
    """A wording by name; InputError for an unknown one."""
    if name not in WORDINGS:
        raise InputError(f"unknown wording {name!r} -> one of {', '.join(WORDINGS)}")
    return WORDINGS[name]
