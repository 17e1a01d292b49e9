"""However a photo is damaged, the decoder lives: it gives an image or a reason, soon and in little memory."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz import SECONDS, Decoder, mutated, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

CHANGE = st.tuples(st.integers(0, 6), st.integers(0, 1 << 20), st.integers(0, 1 << 16))


@pytest.fixture(scope="module")
def originals(trashnet: Path) -> list[bytes]:
    return seeds(trashnet)


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    child = Decoder()
    yield child
    child.close()


@given(st.integers(0, 1 << 10), st.lists(CHANGE, min_size=1, max_size=8))
@settings(max_examples=1000)
def test_no_damage_kills_or_holds_the_decoder(originals, decoder, which, changes):
    seconds, _ = decoder.decode(mutated(originals[which % len(originals)], changes))
    assert seconds < SECONDS


def test_whole_photos_are_no_damage(originals, decoder):
    assert {decoder.decode(content)[1] for content in originals} == {""}
