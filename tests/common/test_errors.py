"""Sentences for what a user can mend."""

from hypothesis import given
from hypothesis import strategies as st

from qnerf_nerfstudio.common.errors import UserError


@given(st.text(st.characters()))
def test_sentences_can_be_printed(text: str) -> None:
    message = str(UserError(text))
    assert message.isprintable()
    message.encode()
    assert message == text or not text.isprintable()
