"""What an edit's fields may hold."""

import math

import pytest

from qnerf_nerfstudio.edit.schema import SphereRegion


def test_regions_refuse_sizes_that_are_none() -> None:
    for value in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="radius"):
            SphereRegion(type="sphere", position=(0, 0, 0), radius=value)
