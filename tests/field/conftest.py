"""The model that tests of the field share."""

import pytest
from helpers.fields import build

from qnerf_nerfstudio.field.model import QNerfModel


@pytest.fixture
def model() -> QNerfModel:
    return build()
