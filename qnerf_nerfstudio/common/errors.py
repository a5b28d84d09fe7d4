"""Errors that a user can mend, told in one sentence."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape


class UserError(ValueError):
    """Something the user gave cannot be used. The message is one sentence: what, where, expected, and the remedy."""


@contextmanager
def one_sentence(code: int = 2) -> Iterator[None]:
    """End the program with a user's error as one sentence in the place of a traceback.

    Args:
        code: Its exit code; 2 for what was wrong from the beginning, as for options, 1 for what went wrong meanwhile.
    """
    try:
        yield
    except UserError as error:
        # What the user wrote may look like markup.
        Console().print(f"[bold red]qnerf-edit:[/bold red] {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(code)
