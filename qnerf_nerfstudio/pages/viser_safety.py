"""Protects viser's pages from text that strangers wrote, and from failures."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import viser


def plain(text: str) -> str:
    """Markdown that shows `text` as it is, on one line.

    viser's pages evaluate markdown as MDX, in which braces, tags, and lines that begin with `export` are code: names
    and paths out of a stranger's edit.json would run in the browser.
    """
    return re.sub(r"([\\`*_{}\[\]()<>#+\-.!|&~$])", r"\\\1", " ".join(text.split()))


@contextmanager
def atomic(owner: viser.ViserServer | viser.ClientHandle) -> Iterator[None]:
    """`owner.atomic()`, from which an exception may leave.

    viser would never release its lock then; a server that is being stopped raises exceptions.
    """
    failure: Exception | None = None
    with owner.atomic():
        try:
            yield
        except Exception as error:  # raised again as soon as the lock is free
            failure = error
    if failure is not None:
        raise failure
