"""Names and numbers in sentences, on terminals and as file names."""

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
    assert text.sanitize_for_terminal(name).isprintable()


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
