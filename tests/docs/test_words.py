"""The documentation uses the field's words, in short sentences."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = [page for page in (DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))) if ".zh-CN" not in page.name]
WRITTEN = [page for page in PAGES if "lab" not in page.parts and "packages" not in page.parts and page.stem != "cli"]
OTHER_WORDS = {
    r"strangers?": "out-of-distribution image",
    r"look-alikes?": "near-duplicate",
    r"judged?|judges": "evaluate, predict",
    r"tempered": "temperature-scaled",
    r"held against": "verified against",
    r"photos to choose by|sides? of (?:a|the) split|on one side": "split, validation set",
    r"8 bits": "INT8",
    r"\+-": "±",
}
"""Words of Fieldmark's past, and the terms that a practitioner would search for."""


def prose(page: Path) -> str:
    """A page without code, tables, pictures, headings and the targets of links."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"^(```|:::).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<!--.*?-->|<picture>.*?</picture>", "", text, flags=re.DOTALL)
    text = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith(("|", "#", "![")))
    return re.sub(r"\]\([^)]*\)", "]", text)


def sentences(text: str) -> list[list[str]]:
    """The words of each sentence; a line of a list and a paragraph end one too."""
    blocks = re.split(r"\n\s*\n|\n\s*(?=[-*] |\d+\. )", text)
    ended = [part for block in blocks for part in re.split(r"(?<=[.?!])\s+", " ".join(block.split()))]
    return [words for part in ended if (words := re.findall(r"[\w`][^\s]*", part))]


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(DOCS.parent)))
def test_sentences_have_twenty_words_at_most_on_average(page: Path):
    lengths = [len(words) for words in sentences(prose(page))]
    assert sum(lengths) <= 20 * len(lengths), f"{sum(lengths) / len(lengths):.1f} words a sentence"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS.parent)))
def test_terms_are_those_of_the_field(page: Path):
    text = re.sub(r"`[^`]*`", "", page.read_text(encoding="utf-8"))
    found = {word: term for word, term in OTHER_WORDS.items() if re.search(rf"(?<!\w)(?:{word})(?!\w)", text)}
    assert not found
