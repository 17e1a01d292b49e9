"""`fieldmark teach`: open a session on images, keep its files up to date, and train on its labels."""

import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fieldmark.core import io
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.progress import Reporter
from fieldmark.core.text import one_line, pluralize, printable
from fieldmark.inference.bundle import resolve_run
from fieldmark.pipeline.teaching.export import QUARANTINE_FILE, write_decisions, write_labels, write_unreadable
from fieldmark.pipeline.teaching.reader import FIRST_IMAGES, BackgroundReader
from fieldmark.pipeline.teaching.session import TeachingSession
from fieldmark.pipeline.teaching.sources import SETTINGS_FILE, SessionSettings, is_run, open_session_images
from fieldmark.pipeline.teaching.store import GROUPS_FILE, WAITING, FeatureStore

STOP_SECONDS = 20.0
"""In which a training that is stopped has to end by itself."""
EXPORT_SECONDS = 2.0
"""Least time between two updates of labels.csv while people answer."""


def default_folder(data: Path) -> Path:
    """`runs/teach-NAME`: the same for the same images, so that a session is continued."""
    return Path("runs") / f"teach-{data.resolve().stem}"


class Teaching(TeachingSession):
    """A session in a folder, as `fieldmark.teach` returns it; usable in a `with` block.

    `next(n)` gives questions, `answer(path, label)` takes answers, `metrics` says where it stands, `export()` writes
    the labels for `train`. It goes on where an earlier session in the same folder has ended.
    """

    def __init__(self, folder: Path, reporter: Reporter) -> None:
        opened = open_session_images(folder)
        self.settings, self._reader, self._reporter = opened.settings, None, reporter
        rows = opened.order
        if (opened.store.status == WAITING).any() or not opened.store.is_grouped:
            self._reader = BackgroundReader(folder)
            try:
                _wait_for_first(self._reader, opened.store, rows, reporter)
            except BaseException:
                self._reader.close()
                raise
        super().__init__(folder, opened.images, FeatureStore(folder / "features"), opened.settings.seed)
        self._exported, self._export_lock = -1, threading.Lock()

    @property
    def name(self) -> str:
        """What the page calls the images."""
        return Path(self.settings.data).name

    def export(self, *, extracts: bool = True) -> Path:
        """Write labels.csv, and for a labelled dataset decisions.csv, into the session's folder.

        Returns:
            labels.csv, which `train` takes in place of a folder.
        """
        with self._export_lock:
            self._exported = len(self.journal.answers)
            write_decisions(self)
            return write_labels(self, extracts=extracts)

    def export_if_changed(self) -> None:
        """`export`, without copies of images in archives, if there are answers that it does not have."""
        if self._exported != len(self.journal.answers):
            self.export(extracts=False)

    def close(self) -> None:
        """Write the labels, and end what runs in the background."""
        super().close()
        if self._exported != len(self.journal.answers):
            self.export()
        if n_unreadable := write_unreadable(self):
            self._reporter.warning(
                f"{pluralize(n_unreadable, 'image')} cannot be read: {printable(str(self.folder / QUARANTINE_FILE))}"
            )
        if self._reader is not None:
            self._reader.close()

    def __enter__(self) -> "Teaching":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        metrics = self.metrics
        share = metrics.accuracy.share
        accuracy = "" if share is None else f", accuracy {share:.1%} on {metrics.accuracy.n} test images"
        return f"Teaching({str(self.folder)!r}, {metrics.labelled:,} labelled, {metrics.unlabelled:,} not{accuracy})"


def open_session(
    data: str | Path,
    more: str | Path | None = None,
    *,
    out: str | Path | None = None,
    ignore_labels: bool = False,
    reporter: Reporter | None = None,
) -> Teaching:
    """Begin a session, or continue the one in the folder `out`.

    Args:
        data: a labelled dataset, a folder or an archive of images without labels, or a finished run or search, whose
            network then makes the features.
        more: a folder or an archive of further images without labels.
        out: the session's folder; by default `runs/teach-NAME`.
        ignore_labels: whether the names of folders are no classes.

    Raises:
        FieldmarkError: the images cannot be read, or the folder belongs to other images.
    """
    folder = default_folder(Path(data)) if out is None else Path(out)
    best = resolve_run(data)
    data = best if is_run(best) else data  # a folder of images may have one that is called best-...
    settings = SessionSettings(os.path.abspath(data), None if more is None else os.path.abspath(more), ignore_labels)
    if (folder / SETTINGS_FILE).exists():
        known = SessionSettings.load(folder)
        if known != settings:
            others = f"other images, those of {printable(known.data)}"
            if known.data == settings.data:
                others = "these images with another MORE or --ignore-labels"
            raise FieldmarkError(f"{printable(str(folder))} is a session on {others}: give another --out")
    elif folder.exists() and any(folder.iterdir()):
        raise FieldmarkError(f"{printable(str(folder))} exists and is no session: give another --out")
    else:
        if not Path(settings.data).exists():
            raise FieldmarkError(f"{printable(settings.data)} is missing: give the folder that holds the images")
        folder.mkdir(parents=True, exist_ok=True)
        settings.save(folder)
        try:
            return Teaching(folder, reporter or Reporter())
        except FieldmarkError:
            if not (folder / "features").exists():  # no images: the folder is free for another try
                (folder / SETTINGS_FILE).unlink(missing_ok=True)
            raise
    return Teaching(folder, reporter or Reporter())


def _wait_for_first(reader: BackgroundReader, store: FeatureStore, order: np.ndarray, reporter: Reporter) -> None:
    first = order[: min(FIRST_IMAGES, len(order))]
    with reporter.progress_bar("reading", "images") as advance:
        while reader.is_running():
            n_waiting = int((store.status[first] == WAITING).sum())
            advance(len(first) - n_waiting, len(first))
            if not n_waiting and (store.folder / GROUPS_FILE).exists():  # those like test images are known by then
                break
            time.sleep(0.1)
    reader.check()


# ---- training


@dataclass(frozen=True)
class TrainingState:
    """Where the training stands that the page has started.

    Attributes:
        line: its last message.
        seconds: since its start.
        folder: the run.
        report: the page with its results, once it is done.
        accuracy: on the test images, once it is done.
    """

    state: Literal["none", "running", "done", "failed"] = "none"
    line: str = ""
    seconds: float = 0.0
    folder: str | None = None
    report: str | None = None
    accuracy: float | None = None


class TrainingJob:
    """`fieldmark train` on the labels of a session, in a process of its own."""

    def __init__(self, session: Teaching) -> None:
        self.session, self.process, self.lock = session, None, threading.Lock()
        self.folder: Path | None = None
        self.line, self.started, self.ended = "", 0.0, 0.0

    def start(self, budget: str) -> TrainingState:
        """Start a training within this time.

        Raises:
            FieldmarkError: one is running, the budget is not a time, or there are too few labels.
        """
        if not re.fullmatch(r"[1-9]\d{0,3}[smh]", budget):
            raise FieldmarkError(f"{budget!r} is no budget as 5m")
        with self.lock:
            if self.process is not None and self.process.poll() is None:
                raise FieldmarkError("a training is running")
            if len({label for label, purpose in self.session.labels.values() if purpose == "train"}) < 2:
                raise FieldmarkError("a training needs labels of two classes")
            manifest = self.session.export()
            self.folder = _free_folder(self.session.folder)
            words = [str(manifest), "--out", str(self.folder), "--budget", budget]
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fieldmark.cli", "train", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
            self.line, self.started, self.ended = "", time.monotonic(), 0.0
            threading.Thread(target=self._follow, args=(self.process,), daemon=True).start()
        return self.state()

    def _follow(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr
        with process.stderr:
            for line in process.stderr:
                if line.strip():
                    self.line = one_line(line)
        process.wait()
        self.ended = time.monotonic()

    def stop(self) -> TrainingState:
        """End the training; `fieldmark train ... --resume` continues it."""
        with self.lock:
            if self.process is not None and self.process.poll() is None:
                self.process.terminate()
                try:
                    self.process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    self.process.kill()
                    self.process.wait()
                self.process = None
        return self.state()

    def state(self) -> TrainingState:
        """Where it stands."""
        process, folder = self.process, self.folder
        if process is None or folder is None:
            return TrainingState()
        code = process.poll()
        seconds = (self.ended or time.monotonic()) - self.started
        common: dict[str, Any] = {"line": self.line, "seconds": seconds, "folder": str(folder)}
        if code is None:
            return TrainingState("running", **{**common, "line": _last_logged(folder) or self.line})
        if code != 0:
            return TrainingState("failed", **common)
        metrics = folder / "metrics.json"
        test = (io.read_json(metrics).get("test") or {}) if metrics.exists() else {}
        return TrainingState("done", **common, report=str(folder / "report.html"), accuracy=test.get("accuracy"))


def _last_logged(folder: Path) -> str:
    """The last line of the log of a run: of an epoch it names the values, which the table on stderr does not."""
    try:
        lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return one_line(re.sub(r"^\d{4}-\S+ \S+ ", "", lines[-1])) if lines else ""


def _free_folder(folder: Path) -> Path:
    number = 1
    while (folder / f"run-{number}").exists():
        number += 1
    return folder / f"run-{number}"
