"""Names and numbers in sentences, on terminals and as file names."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldmark.core import text

ANY = st.text(st.characters(exclude_categories=()))


@given(ANY)
def test_a_file_name_is_one_safe_component(name: str):
    for safe in (text.safe_file_name(name, 50), text.ascii_file_name(name, 50) or "x"):
        assert 0 < len(safe) <= 50
        assert not set(safe) & set('/\\:*?"<>|\0\n\r')
        assert safe.strip() == safe


def test_a_file_name_keeps_letters_of_any_script():
    assert text.safe_file_name("纸 板/3", 50) == "纸-板-3"
    assert text.safe_file_name("...", 50) == "image"
    assert (
        text.ascii_file_name("resnet18+after=-1:se(ratio=4)", 120, "_", "A-Za-z0-9.-") == "resnet18_after_-1_se_ratio_4"
    )


@given(ANY)
def test_what_a_terminal_gets_is_one_line(name: str):
    shown = text.sanitize_for_terminal(name)
    assert {unicodedata.category(letter)[0] for letter in shown} <= set("LMNPSZ") and len(shown.splitlines()) <= 1


def test_a_terminal_gets_the_spaces_of_a_sentence():
    assert text.sanitize_for_terminal("88.8\N{NO-BREAK SPACE}%\x1b[1m") == "88.8\N{NO-BREAK SPACE}%\ufffd[1m"


@given(st.binary())
def test_undecodable_bytes_can_be_printed(content: bytes):
    name = content.decode("utf-8", "surrogateescape")
    text.printable(name).encode("utf-8")
    text.escape_surrogates(name).encode("utf-8")


@pytest.mark.parametrize(("n", "words"), [(0, "0 photos"), (1, "1 photo"), (2527, "2,527 photos")])
def test_pluralize(n: int, words: str):
    assert text.pluralize(n, "photo") == words


def test_summarize_names():
    assert text.summarize_names(["a", "b"]) == "a, b"
    assert text.summarize_names([str(k) for k in range(1200)], 2) == "0, 1 and 1,198 more"


@given(ANY, st.integers(3, 50))
def test_a_shortened_text_keeps_both_ends(name: str, length: int):
    short = text.shorten(name, length)
    assert len(short) <= length
    assert short == name or (len(short) == length and short[0] == name[0] and short[-1] == name[-1])


@pytest.mark.parametrize(
    ("names", "length", "expected"),
    [
        ([], 20, ("", 0)),
        (["a", "b"], 20, ("a, b", 0)),
        (["a", "b", "c", "d"], 20, ("a, b, c and 1 more", 1)),
        (["a", "b" * 30, "c"], 20, ("a and 2 more", 2)),
        (["a" * 30], 11, ("aaaaa\u2026aaaaa", 0)),
        (["a"] * 12_345, 20, ("a, a, a and 12,342 more", 12_342)),
    ],
)
def test_names_for_a_line_of_bounded_length(names, length, expected):
    assert text.summarize_within(names, length) == expected
