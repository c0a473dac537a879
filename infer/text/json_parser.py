"""lm-format-enforcer's JSON schema parser, narrowed to what json.loads accepts.

Relations: infer.text.constraints wraps every schema in it; a module of its own because it subclasses a library class, and the
library is imported by those who constrain text only.
"""

from __future__ import annotations

from collections.abc import Hashable

from lmformatenforcer import CharacterLevelParser, CharacterLevelParserConfig

NO_SPACE = str.maketrans("", "", " \t\n\r")
NO_BRACKET = str.maketrans("", "", "}]")


class StrictJson(CharacterLevelParser):
    """Immutable like every parser of the library: `add_character` returns a new one.

    The library's parser allows a comma before a closing brace, up to twelve blanks anywhere and blanks after the end, and
    does not count the first blanks of a string as part of it. Here a comma is followed by a value, one space may follow a
    comma or a colon, a finished text ends, and a string does not begin with a blank.
    """

    def __init__(
        self, inner: CharacterLevelParser, *, last: str = "", in_string: bool = False, escaped: bool = False
    ) -> None:
        self.inner, self.last, self.in_string, self.escaped = inner, last, in_string, escaped

    def add_character(self, new_character: str) -> StrictJson:
        inner = self.inner.add_character(new_character)
        if not self.in_string:
            last = self.last + " " if new_character == " " else new_character
            opens = new_character == '"'
            return StrictJson(inner, last="" if opens else last, in_string=opens)
        ends = new_character == '"' and not self.escaped
        escaped = new_character == "\\" and not self.escaped
        return StrictJson(inner, last=new_character, in_string=not ends, escaped=escaped)

    def get_allowed_characters(self) -> str:
        allowed = self.inner.get_allowed_characters()
        if self.in_string and not self.fresh:
            return allowed
        allowed = allowed.translate(NO_SPACE)
        if self.last.startswith(","):
            allowed = allowed.translate(NO_BRACKET)
        return " " + allowed if self.last in (",", ":") else allowed

    @property
    def fresh(self) -> bool:
        """Right behind the quote that opens a string."""
        return self.in_string and not self.last

    def can_end(self) -> bool:
        return self.inner.can_end()

    def shortcut_key(self) -> Hashable | None:
        return self.inner.shortcut_key()

    @property
    def config(self) -> CharacterLevelParserConfig:
        return self.inner.config

    @config.setter
    def config(self, new_config: CharacterLevelParserConfig) -> None:
        self.inner.config = new_config
