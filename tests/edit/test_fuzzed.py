"""Fuzzed documents: whatever edit.json holds, it is refused with one sentence or projected."""

import json
import random
from pathlib import Path
from typing import Any

from helpers import fuzzing
from helpers.documents import SKELETON_EDIT
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

TEXT = json.dumps(SKELETON_EDIT)

PLAIN = ("depth", "normal", "", "..", "a\0", "\ud800", "ball.ply", "neck")


def test_what_the_fuzzing_starts_from_is_projected(folder: Path) -> None:
    for document in fuzzing.VALID:
        assert fuzzing.outcome(json.dumps(document), folder) == "projected"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(PLAIN),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(PLAIN) | st.text(), inner, max_size=4),
    max_leaves=8,
)

quickly = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quickly
@given(st.data())
def test_any_value_in_any_place_is_refused_or_projected(folder: Path, data: st.DataObject) -> None:
    document = json.loads(json.dumps(data.draw(st.sampled_from(fuzzing.VALID))))
    place: Any = document
    key: Any = data.draw(st.sampled_from(sorted(document)))
    while isinstance(place[key], dict | list) and data.draw(st.booleans()):
        place = place[key]
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    place[key] = data.draw(JSON)
    fuzzing.fuzz_one(json.dumps(document), folder)


@quickly
@given(st.integers(0, 2**32))
def test_mutated_documents_are_refused_or_projected(folder: Path, seed: int) -> None:
    fuzzing.fuzz_one(fuzzing.make_document(random.Random(seed)), folder)


@quickly
@given(st.binary(max_size=60), st.integers(0, len(TEXT)), st.integers(0, 60))
@example(b"[" * 100_000, 0, 0)
def test_any_bytes_in_a_document_are_refused_or_projected(folder: Path, data: bytes, at: int, removed: int) -> None:
    text = TEXT.encode()
    fuzzing.fuzz_one(data, folder)
    fuzzing.fuzz_one(text[:at] + data + text[at + removed :], folder)
