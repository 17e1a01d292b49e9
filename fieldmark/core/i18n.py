"""English sentence, number -> the same as people write it in the language of a page.

The English text is the key, as with gettext: `_("{n} photos", n=3)`. What is missing in templates/LANGUAGE.yaml stays
English; `tests/core/test_i18n.py` holds that nothing is.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

LANGUAGES = {"en": "en", "zh": "zh-CN"}
"""What `--lang` takes -> the tag by which browsers know it (BCP 47)."""
MISSING = "–"
"""Stands where there is no figure."""


@dataclass(frozen=True)
class Language:
    """Says texts and numbers.

    >>> ENGLISH("{n} photos, {share} right", n=2, share=ENGLISH.percent(0.5, 0)).replace(chr(160), " ")
    '2 photos, 50 % right'
    """

    tag: str
    texts: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, text: str, /, **values: Any) -> str:
        return self.translate(text).format(**values)

    def translate(self, text: str) -> str:
        """The text with its placeholders; no line breaks before its percent signs."""
        return self.texts.get(text, text).replace(" %", "\N{NO-BREAK SPACE}%")

    def percent(self, share: Any, digits: int = 1) -> str:
        """A share as people write it: 0.9213 -> "92.1 %", its space unbreakable; a dash where there is no figure."""
        value = finite_float(share)
        return MISSING if value is None else self("{number} %", number=f"{100 * value:.{digits}f}")

    def interval(self, bounds: Any, digits: int = 1) -> str:
        """Two shares as people write a range: (0.89, 0.944) -> "89.0–94.4 %"; a dash where one is missing."""
        low, high = (finite_float(bound) for bound in bounds or (None, None))
        if low is None or high is None:
            return MISSING
        return self("{low}–{high} %", low=f"{100 * low:.{digits}f}", high=f"{100 * high:.{digits}f}")

    def duration(self, seconds: Any) -> str:
        """Seconds as "4 min 52 s", "12.3 s" or a dash."""
        value = finite_float(seconds)
        if value is None:
            return MISSING
        if value < 60:
            return self("{seconds} s", seconds=f"{value:.1f}")
        return self("{minutes} min {seconds} s", minutes=round(value) // 60, seconds=round(value) % 60)

    def join_sentences(self, sentences: Iterable[str]) -> str:
        """Sentences one after the other; what is empty is left out."""
        return self.sentence_separator.join(sentence for sentence in sentences if sentence)

    @property
    def sentence_separator(self) -> str:
        """What stands between two sentences."""
        return self("{first} {second}", first="", second="")

    def join_names(self, names: Iterable[str]) -> str:
        """Names one after the other."""
        return self(", ").join(names)


ENGLISH = Language("en")


@cache
def get_language(code: str) -> Language:
    """`en`, `zh` -> the language."""
    if code == "en":
        return ENGLISH
    import yaml

    file = Path(__file__).parent / "translations" / f"{code}.yaml"
    return Language(LANGUAGES[code], yaml.safe_load(file.read_text(encoding="utf-8")))


def gettext_noop(text: str) -> str:
    """Marks a text that stands in a table here and is translated where it is shown."""
    return text


def finite_float(value: Any) -> float | None:
    """The finite number that a cell of a CSV or JSON file holds, or None."""
    try:
        return float(value) if math.isfinite(float(value)) else None
    except (TypeError, ValueError):
        return None


def format_number(value: Any, digits: int = 3) -> str:
    """A number with so many decimals, or a dash where there is none."""
    finite = finite_float(value)
    return MISSING if finite is None else f"{finite:,.{digits}f}"
