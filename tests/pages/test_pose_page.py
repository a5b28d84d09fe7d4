"""The pose page without a browser."""

import threading
from pathlib import Path

import pytest
from helpers.browser import free_port

from qnerf_nerfstudio.pages.pose_page import PosePage
from qnerf_nerfstudio.pages.pose_start import open_document


def test_a_failure_while_the_page_is_drawn_does_not_freeze_it(capture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = open_document(capture, capture / "edit.json", "skeleton", None)
    served = PosePage(capture, document, "127.0.0.1", free_port())
    monkeypatch.setattr(served.scene, "draw_gizmo", lambda *_, **__: {}["no gizmo"])
    with pytest.raises(KeyError):
        served.refresh()
    # It would wait for its messages for ever.
    stopping = threading.Thread(target=served.server.stop, daemon=True)
    stopping.start()
    stopping.join(20)
    assert not stopping.is_alive()
