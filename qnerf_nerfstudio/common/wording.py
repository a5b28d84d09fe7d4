"""Words for messages about what a user wrote, which may be long, misspelt, or hold anything at all."""

import difflib
import json
from collections.abc import Iterable
from typing import Any

LONGEST = 100
"""Characters of a user's text that a message shows."""


def quoted(value: Any) -> str:
    """A value as JSON has it, on one line of printable characters, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    if not text.isprintable():
        text = json.dumps(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def error_text(error: Exception) -> str:
    """What a library says of an error, on one line; the name of the error where it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    if not text.isprintable():
        text = ascii(text)
    return text.rstrip(".") if len(text) <= 2 * LONGEST else f"{text[: 2 * LONGEST]}…"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The known name that a misspelt one is most like, as a question in brackets; empty where none is like it."""
    close = difflib.get_close_matches(name[:LONGEST], list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def format_duration(seconds: float) -> str:
    """A duration as a person says it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
