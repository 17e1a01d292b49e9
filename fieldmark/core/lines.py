"""Warnings, which are finished English lines in logs and JSON files -> lines of another language for its pages.

The values in a line are found by patterns: `{n} photo[s] in {folder} left out` has a number, an optional s and any
text. What no pattern fits stays English, and so do names and what other libraries say.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

NUMBER = r"[\d,.]+"
_NUMBERS = ("n", "n_more", "n_all")
_PART = re.compile(r"\{(\w+)\}|\[s\]")
READ_ON = "; fieldmark check PHOTOS --out DIR shows all"
"""Ends a line whose list was cut."""


class LinePattern(NamedTuple):
    """An English line with values, and its translation with the same names in braces."""

    regex: re.Pattern[str]
    translation: str


def compile_patterns(texts: Mapping[str, str]) -> tuple[LinePattern, ...]:
    """The patterns of a file of translations; `n`, `n_more` and `n_all` are numbers."""
    return tuple(
        LinePattern(re.compile(_to_regex(text), re.DOTALL), translation) for text, translation in texts.items()
    )


def translate_line(line: str, patterns: Sequence[LinePattern]) -> str:
    """The line in another language; as it is if no pattern fits.

    >>> patterns = compile_patterns({"{n} photo[s] of {name}": "{name}: {n}", "{names} and {n} more": "{names}, +{n}"})
    >>> translate_line("2,000 photos of a, b and 5 more", patterns)
    'a, b, +5: 2,000'
    >>> translate_line("table.csv: 1 photo of a", patterns), translate_line("disk full", patterns)
    ('table.csv: a: 1', 'disk full')
    """
    if line.endswith(READ_ON) and line != READ_ON:
        return translate_line(line.removesuffix(READ_ON), patterns) + translate_line(READ_ON, patterns)
    for pattern in patterns:
        if match := pattern.regex.fullmatch(line):
            values = {name: translate_line(value, patterns) for name, value in match.groupdict().items()}
            return pattern.translation.format(**values)
    file, colon, rest = line.partition(": ")  # as notes on a table begin
    if colon and (translated := translate_line(rest, patterns)) != rest:
        return f"{file}: {translated}"
    return line


def _to_regex(text: str) -> str:
    parts, end = list[str](), 0
    for match in _PART.finditer(text):
        parts.append(re.escape(text[end : match.start()]))
        value = NUMBER if match[1] in _NUMBERS else ".+?"
        parts.append(f"(?P<{match[1]}>{value})" if match[1] else "s?")
        end = match.end()
    return "".join([*parts, re.escape(text[end:])])
