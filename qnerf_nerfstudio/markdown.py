"""What users wrote, in the markdown of viser's pages."""

import re


def plain(text: str) -> str:
    """Markdown that shows `text` as it is, on one line.

    viser's pages evaluate markdown as MDX, in which braces, tags, and lines that begin with `export` are code: names
    and paths out of a stranger's edit.json would run in the browser.
    """
    return re.sub(r"([\\`*_{}\[\]()<>#+\-.!|&~$])", r"\\\1", " ".join(text.split()))
