"""RUN + photos -> why it answers so: overlays as files, and a page that says which of them to believe."""

import copy
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fieldmark.core import runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.i18n import ENGLISH, Language
from fieldmark.core.progress import Reporter
from fieldmark.core.text import summarize_names
from fieldmark.data.image import UnreadableImageError, preprocess
from fieldmark.data.locate import find_images
from fieldmark.data.thumbnails import thumbnail_uri
from fieldmark.explanation import attribution, faithfulness, overlay
from fieldmark.explanation.class_sheet import write_class_sheet
from fieldmark.explanation.neighbours import load_reference_set
from fieldmark.inference import bundle
from fieldmark.inference.classifier import Classifier
from fieldmark.inference.run_folder import resolve_language
from fieldmark.report import html

ExplanationDict = dict[str, Any]

N_RANDOM_MAPS = 4
"""Random maps to compare with; the negative of one has its areas the other way round, so that they count twice."""
MAX_ON_PAGE = 40
"""Photos on a page; the files and --json hold all."""
NEGLIGIBLE_PROBABILITY = 0.05
"""A class less probable than this with random parts of the photo blurred is no match for the answer."""
TIE_TOLERANCE = 0.02
"""Maps whose insertion less deletion differ by no more are as good: the one that was asked for first is named."""
PAGE_IMAGE_SIDE = 320
"""A side of a picture on the page."""


@runtime.torch_settings()
def explain(
    run: str | Path,
    photos: Sequence[str | Path],
    out: str | Path,
    reporter: Reporter,
    *,
    methods: Sequence[str] = ("evidence",),
    target: str | None = None,
    nearest: int = 4,
    lang: str | None = None,
) -> ExplanationDict:
    """Write a picture per photo and method, and explain.html, into the new folder `out`; without photos, sheet.html.

    Args:
        run: a finished run, or its bundle.
        photos: files, folders and globs; none for a sheet of the run's test photos.
        out: must not exist; nothing is written elsewhere.
        reporter: hears of the progress.
        methods: names in `saliency.METHODS`, or "all".
        target: the class to explain; without it, each photo's answer.
        nearest: so many training photos that look alike.
        lang: the language of the page; without it, that of the run's recipe.

    Returns:
        "files" and "photos": for each photo `path, label, confidence, known, target, logit, evidence, bias, chance,
        maps[{method, file, deletion, insertion, beats_random}], attention[{module, file}], nearest[{path, label,
        similarity}]` or `path, error`. evidence + bias = logit; `chance` is what deletion and insertion are of random
        maps on average, and a map beats them where its insertion exceeds its deletion by more than any of theirs.

    Raises:
        FieldmarkError: the folder is there, a name is unknown, or no photo can be read.
    """
    out = Path(out)
    if out.exists():
        raise FieldmarkError(f"{out} exists: give the explanations another --out")
    _ = resolve_language(Path(run), lang)
    if not photos:
        return write_class_sheet(run, out, reporter, _)
    explainer = Explainer(run, _parse_methods(methods), target, nearest)
    results, page_entries = list[ExplanationDict](), list[ExplanationDict]()
    sources, used_names = list(find_images(photos)), dict[str, int]()
    with reporter.progress_bar("explaining", "photos") as advance:
        for path, source in sources:
            try:
                photo = preprocess(source, explainer.preprocessing)
            except UnreadableImageError as error:
                results.append({"path": path, "error": str(error)})
            else:
                explanation = explainer.explain(path, photo)
                _save_overlays(explanation, out, overlay.unique_stem(path, used_names))
                results.append(explanation.summary)
                if len(page_entries) < MAX_ON_PAGE:
                    page_entries.append(_page_entry(explanation, explainer, _))
            advance(len(results), len(sources))
    if not page_entries:
        reason = (
            f"{results[0]['path']}: {results[0]['error']}"
            if results
            else f"no photo in {summarize_names([*map(str, photos)])}"
        )
        raise FieldmarkError(f"nothing to explain: {reason}")
    facts = {"run": Path(run).resolve().name, "photos": page_entries, "colours": overlay.CSS_COLOURS}
    facts |= {"failed": [one for one in results if "error" in one]}
    facts["more"] = len(results) - len(page_entries) - len(facts["failed"])
    page = html.render("explain.html.j2", facts, _)
    (out / "explain.html").write_text(page, encoding="utf-8", errors="replace")
    files = [one["file"] for photo in results for one in (*photo.get("maps", ()), *photo.get("attention", ()))]
    return {"files": [str(out / "explain.html"), *files], "photos": results}


@dataclass(frozen=True)
class Explanation:
    """Why a photo, uint8 (H, W, 3), got its answer. `found` is what --json says of it.

    `maps` are those of the methods, `masks` those of the gates, by name, each (h, w); `rival` is the likeliest other
    class: its `label`, `logit`, `evidence`, `bias`, `map`, and the `scale` of the target's evidence.
    """

    image: np.ndarray
    summary: ExplanationDict
    maps: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]
    runner_up: ExplanationDict | None


class Explainer:
    """A run's network, its answers and its gallery; explains prepared photos one by one."""

    def __init__(self, run: str | Path, methods: Sequence[str], target: str | None, nearest: int) -> None:
        self.classifier = Classifier(run)
        self.classes, self.preprocessing = self.classifier.classes, self.classifier.info["preprocessing"]
        self.methods, self.n_neighbours = methods, nearest
        self.target = None if target is None else _class_index(target, self.classes)
        self.network = attribution.hookable_copy(bundle.load_network(run))
        # In 64 bits evidence and bias sum to the logit in all digits that are shown.
        self.head = copy.deepcopy(self.network.head).double()
        self.reference_set = load_reference_set(Path(run), [*self.network.backbone.stages.values()][-1])

    def explain(self, path: str, photo: np.ndarray) -> Explanation:
        """Why the photo, uint8 (H, W, 3) from `prepare`, gets its answer."""
        outputs = self.classifier.infer(photo)
        prediction = self.classifier.to_prediction(path, outputs, 1)
        target = int(outputs["probabilities"].argmax()) if self.target is None else self.target
        x = attribution.to_network_input(photo, self.preprocessing)
        with torch.inference_mode():
            features = self.network.features(x)
        first, *runners_up = self._class_evidence(features, target)
        maps = {name: attribution.METHODS[name](self.network, x, target) for name in self.methods}
        masks = attribution.attention_maps(self.network, x)
        auc = self._faithfulness(photo, x, list(maps.values()), target, features.shape[2:])
        random_margin = np.ptp(auc[len(maps) :], axis=1).max()
        summary = prediction.to_dict()
        del summary["top"]
        summary |= {"target": first["label"]} | {name: first[name] for name in ("logit", "evidence", "bias")}
        summary |= {
            "chance": float(auc[len(maps) :].mean()),
            "maps": [
                {
                    "method": name,
                    "deletion": float(d),
                    "insertion": float(i),
                    "beats_random": bool(i - d > random_margin),
                }
                for name, (d, i) in zip(maps, auc, strict=False)
            ],
            "attention": [{"module": name} for name in masks],
            "nearest": [],
        }
        if self.reference_set:
            summary["nearest"] = self.reference_set.nearest(features.mean((2, 3))[0].numpy(), self.n_neighbours)
        rival = runners_up[0] | {"scale": overlay.robust_maximum(first["map"])} if runners_up else None
        return Explanation(photo, summary, maps, masks, rival)

    def _faithfulness(
        self, photo: np.ndarray, x: Tensor, maps: list[np.ndarray], target: int, shape: Sequence[int]
    ) -> np.ndarray:
        """Deletion and insertion of the maps and, behind them, of random ones, (maps + RANDOM, 2)."""
        baseline = attribution.to_network_input(faithfulness.blur_image(photo), self.preprocessing)
        random_maps = [faithfulness.random_map(shape, k) for k in range(N_RANDOM_MAPS)]
        t = self.classifier.info["temperature"]
        return faithfulness.deletion_insertion(self.network, x, baseline, [*maps, *random_maps], target, t)

    @torch.inference_mode()
    def _class_evidence(self, features: Tensor, target: int) -> list[ExplanationDict]:
        """Of the target and its likeliest rival: `label`, `logit`, the sum of the `evidence`, `bias`, and the `map`."""
        features = features.double()
        logits = self.head(features)[0]
        rivals = [k for k in logits.argsort(descending=True).tolist() if k != target]
        classes = torch.tensor([target, *rivals[:1]])
        features = features.expand(len(classes), -1, -1, -1)
        maps, biases = self.head.evidence(features, classes), self.head.bias(features, classes)
        rows = zip(classes.tolist(), maps.numpy(), biases.tolist(), strict=True)
        return [
            {"label": self.classes[k], "logit": float(logits[k]), "evidence": float(m.sum()), "bias": b, "map": m}
            for k, m, b in rows
        ]


# ---- words and pictures


def _parse_methods(words: Iterable[str]) -> list[str]:
    """The methods that are meant, each once."""
    names = [name for word in words for name in (attribution.METHODS if word == "all" else [word])]
    if unknown := [name for name in names if name not in attribution.METHODS]:
        close = get_close_matches(unknown[0], attribution.METHODS, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise FieldmarkError(f"no method {unknown[0]!r}: {hint}there are {', '.join(attribution.METHODS)}, or all")
    return list(dict.fromkeys(names))


def _class_index(name: str, classes: list[str]) -> int:
    if name not in classes:
        close = get_close_matches(name, classes, 3) or classes
        raise FieldmarkError(f"no class {name!r}: the classifier knows {summarize_names(close)}")
    return classes.index(name)


def _save_overlays(explanation: Explanation, out: Path, name: str) -> None:
    """A file for every map and mask, named in what was found."""
    out.mkdir(parents=True, exist_ok=True)
    photo, found = explanation.image, explanation.summary
    for entry, (method, values) in zip(found["maps"], explanation.maps.items(), strict=True):
        entry["file"] = str(out / f"{name}.{method}.png")
        overlay.overlay_with_legend(photo, values, _unit(method)).save(entry["file"])
    for entry, (module, values) in zip(found["attention"], explanation.masks.items(), strict=True):
        entry["file"] = str(out / f"{name}.attention.{re.sub('[^A-Za-z0-9_.]', '-', module)[:100]}.png")
        overlay.overlay_with_legend(photo, values - values.mean(), "").save(entry["file"])


def _page_entry(explanation: Explanation, explainer: Explainer, _: Language) -> ExplanationDict:
    """What the template shows of it: what was found, with pictures."""
    photo, found, rival, gallery = (
        explanation.image,
        explanation.summary,
        explanation.runner_up,
        explainer.reference_set,
    )
    maps = [
        one | _overlay_entry(photo, values) | _describe_method(one["method"], _)
        for one, values in zip(found["maps"], explanation.maps.values(), strict=True)
    ]
    masks = [
        one
        | _overlay_entry(photo, values - values.mean())
        | {"least": float(values.min()), "most": float(values.max())}
        for one, values in zip(found["attention"], explanation.masks.values(), strict=True)
    ]
    neighbours = gallery and [one | {"picture": thumbnail_uri(gallery.files, one["path"])} for one in found["nearest"]]
    zero_map = np.zeros((1, 1))
    return found | {
        "picture": _overlay_entry(photo, zero_map)["picture"],
        "maps": maps,
        "attention": masks,
        "rival": rival and rival | _overlay_entry(photo, rival["map"], rival["scale"]),
        "alike": neighbours,
        "believe": _recommend_map(found, _),
    }


def _overlay_entry(photo: np.ndarray, values: np.ndarray, scale: float | None = None) -> ExplanationDict:
    scale = overlay.robust_maximum(values) if scale is None else scale
    return {"picture": overlay.overlay_data_uri(photo, values, scale, PAGE_IMAGE_SIDE), "scale": scale}


def _unit(method: str) -> str:
    return "logits" if method in attribution.LOGIT_METHODS else ""


def _title(method: str) -> str:
    return method.replace("_", " ").replace("grad cam", "Grad-CAM")


def _describe_method(method: str, _: Language) -> ExplanationDict:
    """What the page says of a method: beside title and unit the first line of its documentation."""
    text = (attribution.METHODS[method].__doc__ or "").strip().partition("\n")[0]
    return {"title": _.translate(_title(method)), "unit": _unit(method), "text": _.translate(text)}


def _recommend_map(summary: ExplanationDict, _: Language = ENGLISH) -> str:
    """Which map points at what counts, in a sentence or two."""
    chance, percent = summary["chance"], partial(_.percent, digits=0)
    faithful_maps = [one for one in summary["maps"] if one["beats_random"]]
    others = [_.translate(_title(one["method"])) for one in summary["maps"] if one not in faithful_maps]
    if not faithful_maps and summary["label"] != summary["target"] and chance < NEGLIGIBLE_PROBABILITY:
        return _(
            "“{target}” is as good as out of the question here, whatever is blurred ({chance} on average): so nothing "
            "tells which map to believe.",
            target=summary["target"],
            chance=percent(chance),
        )
    if not faithful_maps:
        return _("No map here points at what counts better than random maps do: believe none of them on this photo.")
    gains = [one["insertion"] - one["deletion"] for one in faithful_maps]
    best = next(one for one, gain in zip(faithful_maps, gains, strict=True) if gain >= max(gains) - TIE_TOLERANCE)
    recommendation = _(
        "Believe the {map} map: where what it marks is blurred first, “{target}” keeps {deletion} on average, and "
        "where that is shown first it has {insertion}; with random maps it is {chance} both ways.",
        **{name: percent(best[name]) for name in ("deletion", "insertion")},
        map=_.translate(_title(best["method"])),
        target=summary["target"],
        chance=percent(chance),
    )
    return _.join_sentences(
        [recommendation, _("No better than random: {maps}.", maps=_.join_names(others)) if others else ""]
    )
