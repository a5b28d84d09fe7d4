"""Errors that a user can mend, reported in one sentence."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape


class UserError(ValueError):
    """Something the user gave cannot be used. The message is one sentence: what, where, expected, and the remedy.

    Characters in it that cannot be printed, as names in files may have, are written as escapes.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(each if each.isprintable() else ascii(each)[1:-1] for each in message))


def print_error(name: str, error: Exception, console: Console | None = None) -> None:
    """Print an error as one sentence after the name of the program; what the user wrote is no markup."""
    sentence = f"[bold red]{name}:[/bold red] {escape(str(error))}"
    (console or Console()).print(sentence, soft_wrap=True, highlight=False)


@contextmanager
def exit_on_user_error(code: int = 2) -> Iterator[None]:
    """End the program on a UserError with its sentence; code is 2 for what was wrong from the beginning, else 1."""
    try:
        yield
    except UserError as error:
        print_error("qnerf-edit", error)
        sys.exit(code)
