"""The pages state what the files of results hold."""

import subprocess
import sys

import pytest
from figures import FIGURES, MARK, PAGES, ROOT, differing, filled


def test_pages_are_up_to_date() -> None:
    words = [sys.executable, str(ROOT / "benchmarks/figures.py"), "--check"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_figure_is_on_one_page() -> None:
    marks = [mark[2] for page in PAGES for mark in MARK.finditer(page.read_text(encoding="utf-8"))]
    assert sorted(marks) == sorted(FIGURES)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.parent.name)
def test_a_figure_that_no_file_holds_is_found_and_mended(path) -> None:
    page = path.read_text(encoding="utf-8")
    wrong = MARK.sub(r"\g<1>1.23\g<4>", page, count=1)
    assert differing(wrong) == [MARK.findall(page)[0][1]]
    assert filled(wrong) == page
    # A comment at the start of a line would end the paragraph it is in.
    assert all(mark[3].startswith("\n") or page[mark.start() - 1] != "\n" for mark in MARK.finditer(page))
