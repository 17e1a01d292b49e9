"""A RUN as a training leaves it, made in a moment, and a page taken apart: for the tests of what people read."""

import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from fieldmark.audit.report import AuditReport, LabelQuality, RunAudit
from fieldmark.data.catalog import UnreadableFile
from fieldmark.evaluation.metrics import Predictions, compute_metrics

CURVE = {
    "points": [
        {"photos": 160 << k, "accuracy": 0.7 + 0.06 * k, "ci95": [0.67 + 0.06 * k, 0.73 + 0.06 * k]} for k in range(4)
    ],
    "doubled": 0.91,
    "rises": True,
}


def make_run(run: Path, classes: list[str], per_class: int = 40, wrong: int = 3, epochs: int = 6) -> dict[str, Any]:
    """A RUN as train leaves it: of each class's photos, `wrong` are taken for the next class. Returns its metrics."""
    run.mkdir(parents=True, exist_ok=True)
    size = len(classes)
    answers = made(size, per_class, wrong)
    told, validation = (
        compute_metrics(predictions, classes, 0.6, classes[1] if size == 2 else None, 0.4).to_dict()
        for predictions in (answers, made(size, per_class, wrong + 2))
    )
    gains = [{"name": name, "n": 90, "half": 0.8, "recall": 0.9, "se": 0.02 + k} for k, name in enumerate(classes)]
    metrics = {
        "test": told,
        "validation": validation,
        "learning_curve": {**CURVE, "classes": gains},
        "seconds": {"decode": 9.1, "features": 31.4, "phase1": 12.2, "phase2": 221.3, "evaluate": 8.2},
        "bundle": "RUN/bundle",
        "warnings": ["class <b>trash</b> has 137 photos"],
        "classes": classes,
        "network": {"backbone": "efficientnet_lite0", "attention": None, "after": None, "head": None},
        "parameters": 3_378_694,
        "best_epoch": epochs,
        "temperature": 1.18,
        "fingerprint": "9f3c51a2",
        "seed": 7,
        "environment": {"fieldmark": "0.1.0", "python": "3.11.2", "threads": 2},
        "command": "fieldmark train PHOTOS --out RUN --seed 7",
        "export": {"max_difference": 3.1e-7, "label_agreement": 1.0, "photos": 64},
    }
    predicted, sure = answers.probabilities.argmax(1), answers.probabilities.max(1)
    predictions = [
        (f"{classes[true]}/{k % per_class}.jpg", classes[true], classes[predicted[k]], sure[k], sure[k] > 0.6, k)
        for k, true in enumerate(answers.labels.tolist())
    ]
    history = [
        (e, 1 if e < 3 else 2, 1e-3, "" if e == 1 else 1 / e, "", 1 / e, 1 - 0.3 / e, 9) for e in range(1, epochs + 1)
    ]
    split = [
        (f"{name}/{part}{k}.jpg", name, part) for name in classes for part in ("train", "val", "test") for k in range(9)
    ]
    write_csv(run / "predictions.csv", "path,label,predicted,confidence,known,group", predictions)
    write_csv(run / "history.csv", "epoch,phase,lr,train_loss,train_accuracy,val_loss,val_accuracy,seconds", history)
    write_csv(run / "split.csv", "path,label,split", split)
    write_csv(run / "quarantine.csv", "path,reason", [("<i>bad</i>.jpg", "truncated")])
    issues = {
        "duplicates": (("a/1.jpg", "b/<u>.jpg"),),
        "unreadable": (UnreadableFile("x.jpg", "empty file"),),
        "label_errors": (LabelQuality("a/2.jpg", classes[0], classes[1], 0.1),),
    }
    report = AuditReport(dict.fromkeys(classes, 27), 0, (), (), (), (), (), (), (), (), ())
    RunAudit(replace(report, **issues), "PHOTOS", "9f3c51a2", tuple(classes)).save(run)
    (run / "recipe.yaml").write_text("epochs: 6 # <em>\n")
    (run / "metrics.json").write_text(json.dumps(metrics))
    return metrics


def made(size: int, per_class: int, wrong: int) -> Predictions:
    """Answers to so many photos of each class; the first ones are those of which it is least sure."""
    labels = np.repeat(np.arange(size), per_class)
    k = np.tile(np.arange(per_class), size)
    predicted = (labels + (k < wrong)) % size
    sure = 0.52 + 0.45 * (k + 1) / per_class
    probabilities = np.repeat(((1 - sure) / max(1, size - 1))[:, None], size, 1)
    probabilities[np.arange(len(labels)), predicted] = sure
    logits = 0.7 * np.log(probabilities)
    return Predictions(logits, probabilities, sure.astype(np.float32), labels, np.arange(len(labels)))


def write_csv(path: Path, header: str, rows: list[tuple]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header.split(","), *rows])


class Page(HTMLParser):
    """The tags, attributes and visible text of a page; its tables by class, rows of cells; figures by their place."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.figures: dict[str, list[str]] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self.feed(path.read_text(encoding="utf-8"))
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "br", "wbr"):
            self.open.append((tag, dict(attrs)))
        if tag == "tr":
            self.tables.setdefault(self._table(), []).append([])
        elif tag in ("td", "th"):
            self.tables[self._table()][-1].append("")

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        tags = [tag for tag, _ in self.open]
        if "style" in tags:
            return
        self.words.append(data)
        place = self.open[-1][1].get("data-figure") if self.open else None
        if place:
            self.figures.setdefault(place, []).append(data)
        if "td" in tags or "th" in tags:
            self.tables[self._table()][-1][-1] += f" {data}"

    def _table(self) -> str:
        return next((attributes.get("class") or "" for tag, attributes in self.open if tag == "table"), "")


NAMES = {"Fieldmark", "ROC", "AUC", "F", "Top", "PPV", "NPV", "ECE", "OOD", "PyTorch", "logit"}
"""Words that the Chinese of this field writes in Latin letters."""


class Words(HTMLParser):
    """What a person sees or hears of a page, without code and what is a name."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        told = dict(attrs)
        if tag not in ("meta", "link", "img", "br", "wbr"):
            self.open.append("code" if told.get("class") in ("name", "warnings", "note") and tag != "p" else tag)
        self.words += [told[name] or "" for name in ("alt", "aria-label", "title") if name in told]

    def handle_endtag(self, tag):
        if self.open:
            self.open.pop()

    def handle_data(self, data):
        if not {"style", "code"} & set(self.open):
            self.words.append(data)


def english(text: str, names: list[str]) -> set[str]:
    """The Latin words of a text that are none of these names."""
    for name in sorted(names, key=len, reverse=True):
        text = text.replace(name, " ")
    return set(re.findall(r"[A-Za-z]+", text)) - NAMES
