"""Names of splits as people write them: train, Training Set, val2017, seg_test, 训练集."""

import re
import unicodedata
from collections.abc import Collection
from functools import lru_cache
from typing import NamedTuple

_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trainval", "训练"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "验证"), "val"),
    **dict.fromkeys(("test", "testing", "holdout", "测试"), "test"),
    **dict.fromkeys(("eval", "evaluation", "评估"), "eval"),
}
"""`eval` is the test set unless there is another one, as Hugging Face `datasets` has it."""
_UNLABELLED_WORDS = frozenset(("unlabeled", "unlabelled", "unsup", "pred", "predict", "prediction", "未标注", "无标签"))
_FILLER_WORDS = frozenset(
    (
        *("set", "data", "dataset", "subset", "split", "folder", "samples", "sample"),
        *("image", "images", "img", "imgs", "photo", "photos", "pic", "pics", "picture", "pictures"),
        *("集", "数据", "图片", "图像", "照片", "样本"),
    )
)
_CHINESE_WORDS = re.compile(
    "(" + "|".join(w for w in (*_SPLIT_WORDS, *_FILLER_WORDS, *_UNLABELLED_WORDS) if not w.isascii()) + ")"
)
_PART_WORDS = frozenset(("fold", "part", "batch", "chunk", "shard", "折"))


class SplitName(NamedTuple):
    """A name that has the word of one split in it.

    Attributes:
        split: train, val, test or eval.
        rest: the other words; empty if the name says nothing else ("Training Set 2").
    """

    split: str
    rest: str


def resolve_split(name: str, others: Collection[str] = ()) -> str | None:
    """The split (train, val or test) that a name stands for, or None if it says something else too.

    Args:
        others: the names beside it: `eval` is the validation set where a test set is among them.

    >>> resolve_split("Training_Set"), resolve_split("val2017"), resolve_split("train station")
    ('train', 'val', None)
    >>> resolve_split("eval"), resolve_split("eval", ["train", "test"])
    ('test', 'val')
    """
    parsed = parse_split_name(name)
    if parsed is None or parsed.rest:
        return None
    return disambiguate(parsed.split, {p.split for other in others if (p := parse_split_name(other))})


def splits_of_files(names: Collection[str]) -> dict[str, str | None]:
    """The split that the name of each file or folder has in it, whatever else it says; such are never classes."""
    parsed = {name: parse_split_name(name) for name in names}
    kinds = {p.split for p in parsed.values() if p}
    return {name: disambiguate(p.split, kinds) if p else None for name, p in parsed.items()}


def disambiguate(split: str, splits: Collection[str]) -> str:
    """Which split `eval` is among these."""
    return split if split != "eval" else "val" if "test" in splits and "val" not in splits else "test"


@lru_cache(4096)
def parse_split_name(name: str) -> SplitName | None:
    """The split in a name and its other words; None if it names none, or two.

    >>> parse_split_name("seg_train")
    SplitName(split='train', rest='seg')
    >>> parse_split_name("train_test_split") is None, parse_split_name("retrain") is None
    (True, True)
    """
    words = _words(name)
    splits = {_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS}
    if len(splits) != 1:
        return None
    rest = [word for word in words if word not in _SPLIT_WORDS and word not in _FILLER_WORDS]
    return SplitName(splits.pop(), " ".join(rest))


def names_unlabelled(name: str) -> bool:
    """Whether a folder of this name holds photos without labels."""
    return not _UNLABELLED_WORDS.isdisjoint(_words(name))


def names_part(name: str) -> bool:
    """Whether it is the name of a numbered part of a dataset: fold_3, Part2."""
    words = {*_words(name)}
    return bool(words and re.search(r"\d", name)) and words <= _PART_WORDS | _FILLER_WORDS


def class_key(label: str) -> str:
    """What two spellings of one class have in common: equal but for case, white space and Unicode form."""
    return "".join(unicodedata.normalize("NFKC", label).split()).casefold()


def _words(name: str) -> list[str]:
    """The words of a name in lower case, without numbers; "trainset" is two."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", name))
    text = _CHINESE_WORDS.sub(r" \1 ", text).casefold()
    words = re.findall(r"[^\W\d_]+", text)
    return [part for word in words for part in _without_filler(word)]


def _without_filler(word: str) -> list[str]:
    """`trainset` as train and set; any other word as it is."""
    for filler in ("dataset", "data", "set", "imgs", "images"):
        if word.removesuffix(filler) in _SPLIT_WORDS:
            return [word.removesuffix(filler), filler] if word.endswith(filler) else [word]
    return [word]
