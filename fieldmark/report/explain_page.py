"""The pages of `explain`: explain.html for single images, sheet.html for the test split."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fieldmark.core import io, runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.i18n import ENGLISH, Language
from fieldmark.core.progress import Reporter
from fieldmark.core.text import summarize_names
from fieldmark.data.thumbnails import thumbnail_uri, to_data_uri
from fieldmark.explanation import attribution, overlay
from fieldmark.explanation.class_sheet import ClassSheet, ExplainedExample
from fieldmark.explanation.explain import (
    ExplainedImage,
    Explainer,
    Explanation,
    Unexplained,
    explain_images,
    save_overlays,
)
from fieldmark.explanation.neighbours import ReferenceSet
from fieldmark.inference.run_folder import resolve_language
from fieldmark.report import html

TemplateContext = dict[str, Any]

MAX_ON_PAGE = 40
"""Images on the page; the files and --json hold all."""
PAGE_IMAGE_SIDE = 320
"""Longer side of an image on the page, in pixels."""
SHEET_IMAGE_SIDES = ((60, 200), (180, 150), (np.inf, 110))
"""Up to so many images on the sheet -> longer side of each in pixels."""
MAX_SHEET_CHARACTERS = 4_500_000
"""Characters of images on the sheet, which keeps it below 5 MB; the classes with the most errors come first."""
CSS_COLOURS = {"for": f"rgb{overlay.POSITIVE_COLOUR}", "against": f"rgb{overlay.NEGATIVE_COLOUR}"}


@dataclass(frozen=True)
class ExplainReport:
    """What `explain` has written."""

    files: tuple[str, ...]
    """The page first."""
    images: tuple[Explanation | Unexplained | ExplainedExample, ...]

    @property
    def errors(self) -> list[tuple[str, str]]:
        """Path of each unreadable image, and why it is."""
        rows = [image.to_dict() for image in self.images]
        return [(row["path"], row["error"]) for row in rows if "error" in row]

    def to_dict(self) -> dict[str, Any]:
        return {"files": list(self.files), "photos": [image.to_dict() for image in self.images]}


@runtime.torch_settings()
def write_explanations(
    run: str | Path,
    photos: Sequence[str | Path],
    out: str | Path,
    reporter: Reporter,
    *,
    methods: Sequence[str] = ("evidence",),
    target: str | None = None,
    nearest: int = 4,
    lang: str | None = None,
    allow_private_hosts: bool | None = None,
) -> ExplainReport:
    """Write an overlay for each image and method, and explain.html, into the new folder `out`.

    Args:
        run: a finished run, or its bundle.
        photos: files, folders, globs and addresses.
        out: must not exist; nothing is written elsewhere.
        reporter: shows the progress.
        methods: names in `attribution.METHODS`, or "all".
        target: the class to explain; by default the predicted one.
        nearest: nearest training images to show.
        lang: language of the page; by default that of the run's recipe.
        allow_private_hosts: as for `Classifier`.

    Raises:
        FieldmarkError: `out` exists, a name is unknown, or no image can be read.
    """
    out = Path(out)
    io.require_new(out)
    language = resolve_language(Path(run), lang)
    explainer = Explainer(run, methods, target, nearest, allow_private_hosts=allow_private_hosts)
    results, entries, stems = list[Explanation | Unexplained](), list[TemplateContext](), dict[str, int]()
    for result in explain_images(explainer, photos, reporter):
        if isinstance(result, Unexplained):
            results.append(result)
            continue
        stem = overlay.unique_stem(result.explanation.path, stems)
        results.append(save_overlays(result, out, stem))
        if len(entries) < MAX_ON_PAGE:
            entries.append(_page_entry(result, explainer.reference_set, language))
    failed = [result for result in results if isinstance(result, Unexplained)]
    if not entries:
        names = summarize_names([*map(str, photos)])
        reason = f"{failed[0].path}: {failed[0].error}" if failed else f"no image in {names}"
        raise FieldmarkError(f"nothing to explain: {reason}")
    more = len(results) - len(entries) - len(failed)
    facts = {"run": Path(run).resolve().name, "photos": entries, "failed": failed, "more": more}
    page = _write_page(out / "explain.html", "explain.html.j2", facts, language)
    explained = [result for result in results if isinstance(result, Explanation)]
    overlays = [entry.file for result in explained for entry in (*result.maps, *result.attention) if entry.file]
    return ExplainReport((page, *overlays), tuple(results))


def write_class_sheet(
    run: str | Path,
    out: Path,
    reporter: Reporter,
    language: Language = ENGLISH,
    photos: str | Path | None = None,
) -> ExplainReport:
    """Write sheet.html, examples of each class of the run's test split, into the new folder `out`.

    Raises:
        FieldmarkError: `out` exists, the run has no test images, or none of them can be read.
    """
    io.require_new(out)
    sheet = ClassSheet(run, photos)
    n_images = sum(len(of_class.examples) for of_class in sheet.classes)
    side = next(side for limit, side in SHEET_IMAGE_SIDES if n_images <= limit)
    sections, results, characters_left = list[TemplateContext](), list[ExplainedExample](), MAX_SHEET_CHARACTERS
    with reporter.progress_bar("explaining", "photos") as advance:
        for of_class in sheet.classes:
            explained = [sheet.explain(kind, example) for kind, example in of_class.examples]
            entries = [
                result.to_dict() | {"picture": None if pair is None else to_data_uri(Image.fromarray(pair), 2 * side)}
                for result, pair in explained
            ]
            characters_left -= sum(len(entry["picture"] or "") for entry in entries)
            if characters_left < 0:
                break
            sections.append({"label": of_class.label, "photos": entries})
            results += [result for result, _ in explained]
            advance(len(results), n_images)
    if all(result.prediction.error for result in results):
        error = results[0].prediction.error
        raise FieldmarkError(f"no test image of {run} can be read in {sheet.catalog.root}: {error}")
    shares = {of_class.label: (of_class.n_correct, of_class.n) for of_class in sheet.classes}
    facts = {"run": Path(run).resolve().name, "sections": sections, "shares": shares, "tested": sheet.n_tested}
    out.mkdir(parents=True)
    return ExplainReport((_write_page(out / "sheet.html", "sheet.html.j2", facts, language),), tuple(results))


def _write_page(file: Path, template: str, facts: TemplateContext, language: Language) -> str:
    page = html.render(template, facts | {"colours": CSS_COLOURS}, language)
    file.write_text(page, encoding="utf-8", errors="replace")
    return str(file)


def _page_entry(explained: ExplainedImage, reference_set: ReferenceSet | None, language: Language) -> TemplateContext:
    """What the template shows of an image."""
    explanation, image, runner_up = explained.explanation, explained.image, explained.runner_up
    entry = explanation.to_dict()
    for score in entry["maps"]:
        method = attribution.METHODS[score["method"]]
        score |= _overlay_entry(image, explained.maps[score["method"]])
        score |= {"title": language.translate(method.title), "text": language.translate(method.description)}
        score["unit"] = method.unit
    for gate in entry["attention"]:
        values = explained.attention[gate["module"]]
        gate |= _overlay_entry(image, values - values.mean())
        gate |= {"minimum": float(values.min()), "maximum": float(values.max())}
    entry["runner_up"] = None
    if runner_up:
        scale = overlay.robust_maximum(explained.target.values)
        entry["runner_up"] = vars(runner_up) | _overlay_entry(image, runner_up.values, scale)
    entry["neighbours"] = reference_set and [
        vars(neighbour) | {"picture": thumbnail_uri(reference_set.files, neighbour.path)}
        for neighbour in explanation.nearest
    ]
    entry["picture"] = _overlay_entry(image, np.zeros((1, 1)))["picture"]
    return entry | {"faithfulness": describe_faithfulness(explanation, language)}


def _overlay_entry(image: np.ndarray, values: np.ndarray, scale: float | None = None) -> TemplateContext:
    scale = overlay.robust_maximum(values) if scale is None else scale
    return {"picture": overlay.overlay_data_uri(image, values, scale, PAGE_IMAGE_SIDE), "scale": scale}


def describe_faithfulness(explanation: Explanation, language: Language = ENGLISH) -> str:
    """Which map is the most faithful, in a sentence or two."""
    percent = partial(language.percent, digits=0)
    best, chance = explanation.most_faithful(), percent(explanation.chance)
    if best is None and explanation.is_target_negligible:
        return language(
            "“{target}” is improbable whatever is blurred ({chance} on average), so the maps cannot be compared.",
            target=explanation.target,
            chance=chance,
        )
    if best is None:
        return language("No map is more faithful than random maps on this image.")
    names = {name: language.translate(method.title) for name, method in attribution.METHODS.items()}
    others = [names[score.method] for score in explanation.maps if not score.beats_random]
    text = language(
        "Most faithful: {map}. Deletion {deletion}, insertion {insertion}; random maps {chance}.",
        map=names[best.method],
        deletion=percent(best.deletion),
        insertion=percent(best.insertion),
        chance=chance,
    )
    others_text = language("Not better than random: {maps}.", maps=language.join_names(others)) if others else ""
    return language.join_sentences([text, others_text])
