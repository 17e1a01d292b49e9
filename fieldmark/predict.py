"""Photo -> answer, without torch: decode, run `model.onnx`, name the class and say whether it is one of ours."""

import csv
import glob
import json
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fieldmark import bundle, machine
from fieldmark.errors import FieldmarkError
from fieldmark.photos.catalog import EXTENSIONS
from fieldmark.photos.decode import Unreadable, prepare

Answer = dict[str, Any]


class Classifier:
    """A trained classifier, from a run, a bundle or an exported file.

    Photos go through one at a time: on a CPU a batch is no faster, and so a photo's answer never depends on its
    neighbours.

    >>> fieldmark.load("RUN").predict("photo.jpg")[0]["label"]  # doctest: +SKIP
    'glass'
    """

    def __init__(self, model: str | Path) -> None:
        import onnxruntime as ort

        self.file = bundle.find(model)
        options = ort.SessionOptions()
        options.intra_op_num_threads = machine.cores()
        options.log_severity_level = 3
        try:
            self.session = ort.InferenceSession(str(self.file), options, providers=["CPUExecutionProvider"])
            info = json.loads(self.session.get_modelmeta().custom_metadata_map["fieldmark"])
        except KeyError:
            raise FieldmarkError(f"{self.file} was not exported by Fieldmark: it names no classes") from None
        except Exception as error:  # onnxruntime's own errors share no base but this
            raise FieldmarkError(f"{self.file} is damaged: {' '.join(str(error).split())[:200]}") from None
        self.info = bundle.check(info, self.file)
        self.classes: list[str] = self.info["classes"]

    def judge(self, photo: np.ndarray) -> dict[str, np.ndarray]:
        """uint8 (h, w, 3) from `prepare` -> probabilities and logits (classes,), evidence (h', w'), known_score ()."""
        names = [output.name for output in self.session.get_outputs()]
        values = self.session.run(names, {"photos": photo[None]})
        return {name: np.asarray(value)[0] for name, value in zip(names, values, strict=True)}

    def answer(self, path: str, photo: np.ndarray, top: int = 5) -> Answer:
        """What the prepared photo shows."""
        return self.told(path, self.judge(photo), top)

    def told(self, path: str, found: dict[str, np.ndarray], top: int = 5) -> Answer:
        """What `judge` found, as an answer."""
        probabilities = found["probabilities"]
        best = np.argsort(-probabilities, kind="stable")[:top]
        names = [{"label": self.classes[k], "confidence": float(probabilities[k])} for k in best]
        known = bool(found["known_score"] >= self.info["threshold"])
        return {"path": path, **names[0], "known": known, "top": names}

    def predict(self, photos: str | Path | bytes | Iterable[str | Path | bytes], top: int = 5) -> list[Answer]:
        """Answers for files, folders, globs or a photo's bytes, in order; a bad photo is an answer with `error`."""
        return list(self.stream([photos] if isinstance(photos, str | Path | bytes) else photos, top))

    def stream(self, photos: Iterable[str | Path | bytes], top: int = 5) -> Iterator[Answer]:
        """The same one by one, decoding ahead while the network works."""
        for path, photo in ahead(each(photos), partial(prepare, preprocessing=self.info["preprocessing"])):
            if isinstance(photo, Unreadable):
                yield {"path": path, "error": str(photo)}
            else:
                yield self.answer(path, photo, top)


def write_csv(answers: Iterable[Answer], file: Path) -> Iterator[Answer]:
    """Hands the answers on, writing each as a row `path,label,confidence,known,error` of a new file."""
    columns = ["path", "label", "confidence", "known", "error"]
    if os.path.lexists(file):  # a slip in the order of words must not cost a photo
        raise FieldmarkError(f"{file} exists: give the CSV another name")
    with file.open("x", encoding="utf-8", errors="surrogateescape", newline="") as opened:
        writer = csv.DictWriter(opened, columns, extrasaction="ignore")
        writer.writeheader()
        for answer in answers:
            writer.writerow(answer)
            yield answer


def each(photos: Iterable[str | Path | bytes]) -> Iterator[tuple[str, str | bytes]]:
    """Files, folders, globs, `-` (a list on stdin) or bytes -> (what to call it, what to open)."""
    for source in photos:
        if isinstance(source, bytes):
            yield "", source
        elif str(source) == "-":
            yield from each(_listed())
        elif os.path.isdir(source):
            yield from ((file, file) for file in _walk(str(source)))
        elif not os.path.lexists(source) and glob.has_magic(str(source)):
            matches = sorted(glob.glob(str(source), recursive=True))
            if "**" in str(source):  # stands for the folders and for all that is in them
                matches = [match for match in matches if not os.path.isdir(match)]
            yield from each(matches) if matches else [(str(source), str(source))]
        else:
            yield str(source), str(source)


def _listed() -> Iterator[str]:
    """The lines of stdin, whatever bytes the names hold."""
    for line in sys.stdin.buffer:
        if name := line.rstrip(b"\r\n"):
            yield os.fsdecode(name)


def _walk(folder: str) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        shown = (name for name in sorted(files) if not name.startswith("."))
        yield from (os.path.join(parent, name) for name in shown if Path(name).suffix.lower() in EXTENSIONS)


def ahead(sources: Iterable[tuple[str, Any]], prepare_one, most: int = 4) -> Iterator[tuple[str, Any]]:
    """Prepares a few photos ahead in a thread. -> (path, photo or Unreadable) in order."""

    def attempt(source: Any) -> Any:
        try:
            return prepare_one(source)
        except Unreadable as problem:
            return problem

    with ThreadPoolExecutor(1) as pool:
        waiting: deque = deque()
        for path, source in sources:
            waiting.append((path, pool.submit(attempt, source)))
            if len(waiting) > most:
                path, photo = waiting.popleft()
                yield path, photo.result()
        while waiting:
            path, photo = waiting.popleft()
            yield path, photo.result()
