"""The editor's settings."""

import pytest

from qnerf_nerfstudio.diffusion.config import EditorConfig


@pytest.mark.parametrize(("field", "value"), [("num_steps", 0), ("guidance_scale", 0.5), ("blend_weight", 2.0)])
def test_settings_out_of_range_are_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        EditorConfig(**{field: value}).validate()
