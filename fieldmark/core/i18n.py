"""Translations, and numbers as a language writes them.

The English text is the key, as with gettext: `language("{n} photos", n=3)`. What translations/CODE.yaml does not have
stays English; `tests/core/test_i18n.py` names what is missing.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from fieldmark.core.lines import LinePattern, compile_patterns, translate_line

LANGUAGES = {"en": "en", "zh": "zh-CN"}
"""What `--lang` takes -> the tag by which browsers know it (BCP 47)."""
MISSING = "–"
"""Stands for a missing number."""


@dataclass(frozen=True)
class Language:
    """Translates texts and formats numbers.

    >>> ENGLISH("{n} photos, {share} right", n=2, share=ENGLISH.percent(0.5, 0)).replace(chr(160), " ")
    '2 photos, 50 % right'
    """

    tag: str
    texts: Mapping[str, str] = field(default_factory=dict)
    line_patterns: tuple[LinePattern, ...] = ()

    def __call__(self, text: str, /, **values: Any) -> str:
        return self.translate(text).format(**values)

    def translate(self, text: str) -> str:
        """The translated text with its placeholders; the spaces before percent signs are unbreakable."""
        return self.texts.get(text, text).replace(" %", "\N{NO-BREAK SPACE}%")

    def line(self, text: str) -> str:
        """The translation of a finished line, as a warning is (`lines.translate_line`)."""
        return translate_line(text, self.line_patterns)

    def percent(self, share: Any, digits: int = 1) -> str:
        """A share as people write it: 0.9213 -> "92.1 %", with an unbreakable space; a dash if it is missing."""
        value = finite_float(share)
        return MISSING if value is None else self("{number} %", number=f"{100 * value:.{digits}f}")

    def interval(self, bounds: Any, digits: int = 1) -> str:
        """Two shares as a range: (0.89, 0.944) -> "89.0–94.4 %"; a dash if one is missing."""
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
        """The sentences in one text; empty ones are left out."""
        return self.sentence_separator.join(sentence for sentence in sentences if sentence)

    @property
    def sentence_separator(self) -> str:
        """The separator of two sentences."""
        return self("{first} {second}", first="", second="")

    def join_names(self, names: Iterable[str]) -> str:
        """The names as a list in a sentence."""
        return self(", ").join(names)


ENGLISH = Language("en")


@cache
def get_language(code: str) -> Language:
    """The language with a code, `en` or `zh`."""
    if code == "en":
        return ENGLISH
    import yaml

    folder = Path(__file__).parent / "translations"
    texts, lines = (
        yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8")) for name in (code, f"{code}_lines")
    )
    return Language(LANGUAGES[code], texts, compile_patterns(lines))


def gettext_noop(text: str) -> str:
    """Mark a text in a table for translation; it is translated where it is shown."""
    return text


def finite_float(value: Any) -> float | None:
    """The finite number in a cell of a CSV or JSON file, or None."""
    try:
        return float(value) if math.isfinite(float(value)) else None
    except (TypeError, ValueError):
        return None


def format_number(value: Any, digits: int = 3) -> str:
    """A number with `digits` decimals, or a dash if it is missing."""
    finite = finite_float(value)
    return MISSING if finite is None else f"{finite:,.{digits}f}"
