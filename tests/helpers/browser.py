"""What tests of pages in a browser share."""

import socket
from collections.abc import Callable

from playwright.sync_api import Page


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


PATIENCE = 300
"""Seconds after which something never comes, however busy the machine is."""


def wait_for(condition: Callable[[], object], page: Page) -> None:
    """Wait while the page goes on, until a condition holds."""
    for _ in range(10 * PATIENCE):
        if condition():
            return
        page.wait_for_timeout(100)
    raise TimeoutError


def choose(page: Page, label: str, option: str) -> None:
    """Choose an option of one of viser's dropdowns, which stand to the right of their labels."""
    page.get_by_role("textbox", name=label, exact=True).click()
    page.get_by_role("option", name=option, exact=True).click()
