"""Which texts are a model's refusal to answer, and which only begin like one.

Answers may be thoughts in the first person, and a refusal is final: whoever is refused is not asked again. So "I can't help" is none
where it goes on "but notice", and "I can't view" only where what is not viewed belongs to the conversation (a picture, a request)
and not to the one who thinks. Behind an apology or "as an AI" any object will do: thoughts do not begin so.
"""

from __future__ import annotations

import re

_SORRY = r"(?:(?:i['’]m|i am) (?:very |really )?sorry|sorry|i apologi[sz]e|my apologies)[\s,.;:!-]*(?:but )?"
_AI = r"as an ai(?: language model| assistant)?,? "
_UNFORTUNATELY = r"unfortunately[\s,.;:!-]*"
_CANNOT = r"i(?: can['’]?t| can ?not| won['’]?t|(?: am|['’]m) (?:not able|unable) to)(?: be able to)? "
_END = r"\s*(?:[.,;!\n–—]|$)"
_MAKING = r"(?:provide|fulfill?|answer|generate|create|write|produce|continue|complete|support|describe|identify|view|access)"
_THING = (
    r"(?:requests?|tasks?|prompts?|questions?|quer(?:y|ies)|answers?|responses?|instructions?|how to|contents?|information|"
    r"advice|guidance|assistance|recommendations?|opinions?|descriptions?|captions?|texts?|paragraphs?|stor(?:y|ies)|code|"
    r"images?|pictures?|photos?|videos?|files?|links?|urls?|websites?|internet|conversation|users?)"
)
# Whose picture it is, or how it is seen, tells a thought from a refusal.
_OWN = r"(?:my|mine|me|i|as|but|why|without)"
_OBJECT = rf"(?:(?: (?!{_OWN}\b)[\w'’-]+){{0,5}}? {_THING}\b(?! as\b)| (?:that|this|these|it|so)(?= for you|{_END})|{_END})"
_BARE = (
    rf"(?:(?:assist|comply|(?:fulfill?|generate|provide)(?! {_OWN}\b))\b"
    rf"|help(?: you\b| with\b| (?:to )?{_MAKING}\b|{_END})"
    rf"|engage(?: in\b| with\b|{_END})|do (?:that|this|so){_END}"
    rf"|{_MAKING}{_OBJECT})"
)
_EXCUSED = rf"(?:help\b(?! (?:but|it|\w+ing)\b)|(?:assist|comply|do that|engage|{_MAKING})\b)"
_DECLINE = rf"i must decline(?:{_OBJECT}| to (?:help|assist|comply|engage|{_MAKING})\b)"
_REFUSAL = re.compile(
    rf"(?:{_SORRY}(?:{_AI})?|{_AI}){_CANNOT}{_EXCUSED}"
    rf"|(?:{_SORRY}|{_UNFORTUNATELY})?(?:{_AI})?(?:{_CANNOT}{_BARE}|{_DECLINE})"
    r"|(?:很?抱歉|对不起).{0,8}(?:无法|不能)|我(?:无法|不能)(?:提供|回答|协助|帮助|满足(?!于))",
    re.IGNORECASE,
)


def is_refusal(text: str) -> bool:
    """Whether a text is a refusal: its first words say so.

    >>> is_refusal("I can't help with that."), is_refusal("I can't help but notice how often brass comes back.")
    (True, False)
    """
    return _REFUSAL.match(text.strip()) is not None
