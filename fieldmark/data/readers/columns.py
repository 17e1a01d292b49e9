"""Which column of a table is the path, the class and the split, by names as other people write them."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fieldmark.core.text import printable, summarize_names
from fieldmark.data.split_names import SplitName, disambiguate, parse_split_name

Row = dict[str, Any]
OWN_PATH_COLUMNS = ("path", "file_name", "filename", "file")
PATH_COLUMNS = (
    *OWN_PATH_COLUMNS,
    *("file_path", "filepath", "filepaths", "filenames", "paths", "files"),
    *("image_path", "img_path", "image_name", "img_name", "image_file", "image", "img", "images", "photo", "picture"),
    *("image_id", "img_id", "id_code", "id", "fname", "name"),
    *("路径", "文件名", "文件", "图片", "图像"),
)
LABEL_COLUMNS = (
    *(
        "label",
        "class",
        "category",
        "label_name",
        "class_name",
        "category_name",
        "labels",
        "classes",
        "target",
        "species",
    ),
    *("tags", "tag", "y", "标签", "类别", "分类"),
)
_NAME_COLUMNS = ("label_name", "class_name", "category_name")
_WEAK_LABEL_COLUMNS = frozenset(("y", "target"))
"""Names of classes and of measurements alike, and of one of several columns."""
SPLIT_COLUMNS = ("split", "subset", "set", "partition", "usage", "phase", "dataset", "data_set", "划分")
_FLAG_COLUMNS = {
    **dict.fromkeys(("is_valid", "is_val", "is_validation", "valid", "val"), "val"),
    **dict.fromkeys(("is_test", "test"), "test"),
    **dict.fromkeys(("is_train", "is_training", "train"), "train"),
}
_TRUE, _FALSE = frozenset(("true", "1", "1.0", "yes", "t", "y")), frozenset(("false", "0", "0.0", "no", "f", "n", ""))
_FOLD_COLUMNS = frozenset(("fold", "folds", "kfold", "cv_fold", "fold_id"))
_LIST = re.compile(r"\s*[\[\(\{].*[\]\)\}]\s*", re.DOTALL)
KNOWN_COLUMNS = frozenset((*PATH_COLUMNS, *LABEL_COLUMNS, *SPLIT_COLUMNS, *_FLAG_COLUMNS, "group", "box", "decision"))


@dataclass(frozen=True)
class Columns:
    """How to read the rows of a table.

    Attributes:
        path: name of the column of paths.
        label: gives the class of a row; None if it is missing.
        split: gives the split of a row: train, val, test, or None if none is given.
        notes: lines on columns that are not called path, label and split.
    """

    path: str
    label: Callable[[Row], str | None]
    split: Callable[[Row], str | None]
    notes: tuple[str, ...] = ()


def find_columns(rows: Sequence[Row]) -> Columns:
    """The columns of a table by the names of its first row, in lower case, and by its values.

    Raises:
        ValueError: the path or the class is not among them, or a column says something that cannot be read.
    """
    names = list(rows[0])
    path = _find([name for name in names if _text(rows[0][name])], PATH_COLUMNS) or _find(names, PATH_COLUMNS)
    label, one_hot = (None, []) if path is None else _find_label(rows, [name for name in names if name != path])
    if path is None or not (label or one_hot):
        raise ValueError(
            f"has the columns {summarize_names(sorted(map(printable, names)), 8)}; it needs path and label, and may "
            "have split, group and box"
        )
    split_name, split = _find_split(rows, [name for name in names if name not in (path, label, *one_hot)])
    used = {"path": path, "label": label or f"{len(one_hot)} columns of 0 and 1", "split": split_name}
    notes = tuple(_notes(used, names))
    if label is None:
        return Columns(path, lambda row: _one_hot_label(row, one_hot), split, notes)
    return Columns(path, lambda row: _text(row.get(label)), split, notes)


def _notes(used: dict[str, str | None], names: list[str]) -> Iterator[str]:
    """Lines on columns by other names, and on those that a person may think are used."""
    renamed = {kind: column for kind, column in used.items() if column and column != kind}
    if renamed and not (renamed.keys() == {"path"} and used["path"] in OWN_PATH_COLUMNS):
        yield ", ".join(f"{column} is read as {kind}" for kind, column in renamed.items())
    if folds := [name for name in names if name in _FOLD_COLUMNS]:
        yield f"column {folds[0]} is not used (--folds makes a cross-validation)"


def _text(value: Any) -> str | None:
    """The value as text without white space around it; None if there is none. 3.0 is 3."""
    if value is None or value != value or str(value).strip() == "":
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _find(names: Iterable[str], aliases: Sequence[str]) -> str | None:
    """The first of the names that is an alias, in the order of the aliases; blanks and hyphens are underscores."""
    found = {re.sub(r"[\s-]+", "_", name): name for name in names}
    return next((found[alias] for alias in aliases if alias in found), None)


# ---- the class


def _find_label(rows: Sequence[Row], names: list[str]) -> tuple[str | None, list[str]]:
    """The column of the class, or the columns of 0 and 1 that stand for it."""
    label = _find(names, LABEL_COLUMNS)
    one_hot = [] if label and label not in _WEAK_LABEL_COLUMNS else _one_hot(rows, names)
    if one_hot:
        return None, one_hot
    label = label or _only_other_column(rows, names)
    if label:
        values = [row.get(label) for row in rows]
        if all(str(value).strip().isdecimal() for value in values):  # numbers, whose names are perhaps beside them
            label = _find(names, _NAME_COLUMNS) or label
        _refuse_measurements(values, label)
        _refuse_lists(values, label)
    return label, []


def _only_other_column(rows: Sequence[Row], names: Iterable[str]) -> str | None:
    """The only column that may be the class, if its values are no measurements."""
    others = [name for name in names if name not in KNOWN_COLUMNS and name not in _FOLD_COLUMNS]
    if len(others) != 1 or any(_is_fraction(row.get(others[0])) for row in rows):
        return None
    return others[0]


def _is_fraction(value: Any) -> bool:
    try:
        return not float(value).is_integer()
    except (TypeError, ValueError):
        return False


def _one_hot(rows: Sequence[Row], names: list[str]) -> list[str]:
    """Columns of which each row has a single 1; none if there are no two.

    Raises:
        ValueError: a row has several: an image of several classes.
    """
    columns = [name for name in names if all(str(row.get(name)).strip() in ("0", "1", "0.0", "1.0") for row in rows)]
    columns = [name for name in columns if name not in _FLAG_COLUMNS and name not in _FOLD_COLUMNS]
    if len(columns) < 2:
        return []
    if any(sum(float(row[name]) for name in columns) > 1 for row in rows):
        raise ValueError(
            f"has images of several classes ({summarize_names(columns, 3)}): Fieldmark needs one class for an image"
        )
    return columns


def _one_hot_label(row: Row, columns: list[str]) -> str | None:
    return next((name for name in columns if float(row[name])), None)


def _refuse_measurements(values: Sequence[Any], column: str) -> None:
    """Raise ValueError if labels are numbers with fractions, and hardly any is there twice."""
    fractions = [value for value in values if _is_fraction(value)]
    if fractions and (column in _WEAK_LABEL_COLUMNS or len(set(fractions)) > max(20, len(values) // 2)):
        raise ValueError(f"has numbers such as {fractions[0]} in column {column}; it needs path and label, a class")


def _refuse_lists(values: Sequence[Any], column: str) -> None:
    """Raise ValueError if labels are lists of classes: "cat|dog" where cat and dog are classes, or [0, 3]."""
    texts = {text for value in values if (text := _text(value))}
    several = next((str(v) for v in values if isinstance(v, list | tuple | dict)), None)
    several = several or next((text for text in sorted(texts) if _LIST.fullmatch(text) and "," in text), None)
    for text in sorted(texts) if several is None else ():
        parts = [part.strip() for part in re.split(r"[|;,]|\s+", text) if part.strip()]
        if len(parts) > 1 and all(part in texts for part in parts):
            several = text
            break
    if several is not None:
        raise ValueError(
            f"has several classes for an image ({printable(several[:60])} in column {column}): Fieldmark needs one "
            "class for an image"
        )


# ---- the split


def _find_split(rows: Sequence[Row], names: list[str]) -> tuple[str | None, Callable[[Row], str | None]]:
    """The name of the column of splits, and the split of a row."""
    name = _find(names, SPLIT_COLUMNS)
    values = {text for row in rows if name and (text := _text(row.get(name)))}
    parsed = {value: parse_split_name(value) for value in values}
    if name and (name == "split" or (values and all(parsed.values()))):
        return name, _by_name(name, parsed)
    flags = {name: _FLAG_COLUMNS[name] for name in names if name in _FLAG_COLUMNS and _is_flag(rows, name)}
    if flags:
        return " and ".join(flags), _by_flags(flags)
    return None, lambda row: None


def _by_name(column: str, parsed: dict[str, SplitName | None]) -> Callable[[Row], str | None]:
    kinds = {p.split for p in parsed.values() if p}

    def split(row: Row) -> str | None:
        value = _text(row.get(column))
        if value is None:
            return None
        if (name := parsed[value]) is None:
            raise ValueError(f"split is {value!r}, but can be train, val or test")
        return disambiguate(name.split, kinds)

    return split


def _is_flag(rows: Sequence[Row], name: str) -> bool:
    values = {str("" if row.get(name) is None else row.get(name)).strip().lower() for row in rows}
    return values <= _TRUE | _FALSE and bool(values & _TRUE)


def _by_flags(flags: dict[str, str]) -> Callable[[Row], str | None]:
    """The split whose flag is set; without one, what is left of train, val and test."""
    named = set(flags.values())
    unset = "train" if "train" not in named else "test" if "test" not in named else "val"

    def split(row: Row) -> str | None:
        found = {kind for name, kind in flags.items() if str(row.get(name)).strip().lower() in _TRUE}
        if len(found) > 1:
            raise ValueError(f"it is in several splits ({', '.join(sorted(found))})")
        return found.pop() if found else unset

    return split
