"""Words -> what a search varies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldmark.core.errors import FieldmarkError
from fieldmark.pipeline.search_space import FULL_SPACE, HEAD_SPACE, NOT_SEARCHABLE, Choices, Range, parse_search_space
from fieldmark.recipes.recipe import Recipe


def test_what_is_varied_by_itself_are_recipes():
    for words in (HEAD_SPACE, FULL_SPACE):
        for name, of in parse_search_space(words).items():
            ends = of.values if isinstance(of, Choices) else (of.low, of.high)
            for end in ends:
                value = int(end) if isinstance(of, Range) and of.is_integer else end
                assert getattr(Recipe().replace(**{name: value}), name) == value


def test_kinds_follow_the_recipe():
    found = parse_search_space(
        ["lr=1e-3..1e-1", "epochs=2..20", "ema=0..0.9", "head=linear,gem", "exact=true,false", "batch=16,32"]
    )
    assert found == {
        "lr": Range(1e-3, 1e-1, is_integer=False, log=True),
        "epochs": Range(2, 20, is_integer=True, log=True),
        "ema": Range(0, 0.9, is_integer=False, log=False),
        "head": Choices(("linear", "gem")),
        "exact": Choices((True, False)),
        "batch": Choices((16, 32)),
    }
    assert parse_search_space(["--frozen-lr=1e-4..2e-4"])["frozen_lr"] == Range(1e-4, 2e-4, is_integer=False, log=False)
    words = parse_search_space(["attention=default,se(ratio=8),mask(a=1,b=2)"])["attention"]
    assert words == Choices((None, "se(ratio=8)", "mask(a=1,b=2)"))


@given(low=st.floats(1e-6, 1), times=st.floats(1.01, 1e4))
def test_a_wide_range_is_searched_in_proportions(low: float, times: float):
    found = parse_search_space([f"lr={low}..{low * times}"])["lr"]
    assert isinstance(found, Range) and found.log == (found.high / found.low >= 10)


@pytest.mark.parametrize(
    "word",
    ["lr", "lr=", "lr=a..b", "lr=2..1", "epochs=1.5..3", "head=1..2", "exact=perhaps", "batch=x", "rate=1..2"]
    + [f"{name}=1,2" for name in NOT_SEARCHABLE],
)
def test_what_cannot_be_varied(word: str):
    with pytest.raises(FieldmarkError, match="--vary"):
        parse_search_space([word])
