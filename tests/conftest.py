"""Fixtures that several rooms use."""

from collections.abc import Iterator
from pathlib import Path
from shutil import which

import pytest
from helpers import fuzzing
from helpers.browser import PATIENCE
from helpers.captures import small_capture
from playwright.sync_api import Page, sync_playwright

CHROMIUM = next(filter(None, map(which, ("chromium", "chromium-browser", "google-chrome"))), None)
PAGE_SIZE = (900, 700)
"""Width and height of the page."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files with long tests first: of several processes, none should be left with one when the others end."""
    long = ("test_commands.py", "test_real_scenes.py", "test_distributed.py", "test_evaluate.py")
    order = {name: number for number, name in enumerate(long)}
    items.sort(key=lambda item: (order.get(item.path.name, len(long)), "studio" not in item.path.parts))


@pytest.fixture(scope="session")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A capture of 10 views of 64 pixels, with its truth. Nothing may be written to it."""
    return small_capture(tmp_path_factory.mktemp("capture"), num_novel_views=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that hostile documents name, see `helpers.fuzzing`."""
    made = tmp_path_factory.mktemp("hostile")
    fuzzing.prepare(made)
    return made


@pytest.fixture
def page() -> Iterator[Page]:
    """A page in a browser of its own: one that stays open goes on drawing, and slows what follows it."""
    if CHROMIUM is None:
        pytest.skip("no Chromium (Debian: apt-get install chromium)")
    arguments = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        made = browser.new_page(viewport={"width": PAGE_SIZE[0], "height": PAGE_SIZE[1]})
        made.set_default_timeout(1000 * PATIENCE)
        yield made
        browser.close()
