"""Real captures, which not every checkout has."""

from pathlib import Path

import pytest

SCENES = Path(__file__).resolve().parents[3] / "shared/scenes"
needs_scenes = pytest.mark.skipif(not SCENES.exists(), reason=f"the real captures are not at {SCENES}")
