"""Names and numbers in sentences, on terminals and as file names."""

import contextlib
import re
import unicodedata
from collections.abc import Collection
from itertools import islice


def printable(name: str) -> str:
    """A file or class name that any UTF-8 stream takes: undecodable bytes become U+FFFD."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def sanitize_for_terminal(text: str) -> str:
    """The text with line breaks and other control characters, and bytes that are no UTF-8, replaced by U+FFFD."""
    with contextlib.suppress(UnicodeEncodeError):
        text = printable(text)  # which is whole again where the locale knows ASCII alone
    # Python takes none of the spaces but " " as printable; a no-break space stands in "95 %".
    return "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else "\ufffd" for c in text)


def escape_surrogates(text: str) -> str:
    """The text with lone surrogates (undecodable bytes of a file name) written as `\\udcXX`, so that UTF-8 takes it."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def safe_file_name(text: str, max_length: int, fallback: str = "image") -> str:
    """One path component that every file system takes: letters and digits of any script, and `_`, joined by `-`."""
    return re.sub(r"\W+", "-", unicodedata.normalize("NFC", text))[:max_length].strip("-_") or fallback


def ascii_file_name(text: str, max_length: int, separator: str = "-", keep: str = "A-Za-z0-9_.") -> str:
    """One path component of the ASCII characters in the class `keep`; each run of others becomes `separator`."""
    return re.sub(f"[^{keep}]+", separator, text).strip(separator)[:max_length]


def pluralize(n: int, noun: str) -> str:
    """1 photo, 2 photos, 2,527 photos."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def summarize_names(names: Collection[str], max_names: int = 5) -> str:
    """Names for a sentence: the first few, then how many more."""
    summary = ", ".join(printable(name) for name in islice(names, max_names))
    return f"{summary} and {len(names) - max_names:,} more" if len(names) > max_names else summary


def shorten(text: str, max_length: int) -> str:
    """The text, or its beginning and its end around an ellipsis, in at most so many characters."""
    if len(text) <= max_length:
        return text
    n_end = (max_length - 1) // 2
    return f"{text[: max_length - 1 - n_end]}\u2026{text[len(text) - n_end :]}"


def summarize_within(names: Collection[str], max_length: int, max_names: int = 3) -> tuple[str, int]:
    """As many names as so many characters hold, but one at least, with how many more; and the number of these."""
    shown = list[str]()
    for name in islice(names, max_names):
        name = shorten(printable(name), max_length)
        if shown and len(", ".join([*shown, name])) > max_length:
            break
        shown.append(name)
    n_more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {n_more:,} more" if n_more else ""), n_more


def one_line(error: object, max_length: int = 200) -> str:
    """The text of an error, often one of another library, in one line of at most so many characters."""
    return " ".join(str(error).split())[:max_length]
