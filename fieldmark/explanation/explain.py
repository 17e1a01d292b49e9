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
from fieldmark.data.catalog import listing
from fieldmark.data.image import Unreadable, prepare
from fieldmark.data.locate import each
from fieldmark.data.thumbnails import tile
from fieldmark.explanation import attribution, faithfulness, overlay
from fieldmark.explanation.class_sheet import sheet
from fieldmark.explanation.neighbours import read_gallery
from fieldmark.inference import bundle
from fieldmark.inference.classifier import Classifier, ahead
from fieldmark.inference.run_folder import language_of
from fieldmark.report import html

Found = dict[str, Any]

RANDOM = 4
"""Random maps to compare with; the negative of one has its areas the other way round, so that they count twice."""
SHOWN = 40
"""Photos on a page; the files and --json hold all."""
FEW = 0.05
"""A class less probable than this with random parts of the photo blurred is no match for the answer."""
ALIKE = 0.02
"""Maps whose insertion less deletion differ by no more are as good: the one that was asked for first is named."""
PIXELS = 320
"""A side of a picture on the page."""


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
) -> Found:
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
    _ = language_of(Path(run), lang)
    if not photos:
        return sheet(run, out, reporter, _)
    runtime.prepare()
    explainer = Explainer(run, _methods(methods), target, nearest)
    found, shown = list[Found](), list[Found]()
    sources, taken = list(each(photos)), dict[str, int]()
    with reporter.bar("explaining", "photos") as advance:
        for path, photo in ahead(sources, partial(prepare, preprocessing=explainer.look)):
            if isinstance(photo, Unreadable):
                found.append({"path": path, "error": str(photo)})
            else:
                explanation = explainer.explain(path, photo)
                _draw(explanation, out, overlay.file_name(path, taken))
                found.append(explanation.found)
                if len(shown) < SHOWN:
                    shown.append(_on_page(explanation, explainer, _))
            advance(len(found), len(sources))
    if not shown:
        reason = f"{found[0]['path']}: {found[0]['error']}" if found else f"no photo in {listing([*map(str, photos)])}"
        raise FieldmarkError(f"nothing to explain: {reason}")
    facts = {"run": Path(run).resolve().name, "photos": shown, "colours": overlay.COLOURS}
    facts |= {"failed": [one for one in found if "error" in one]}
    facts["more"] = len(found) - len(shown) - len(facts["failed"])
    page = html.render("explain.html.j2", facts, _)
    (out / "explain.html").write_text(page, encoding="utf-8", errors="replace")
    files = [one["file"] for photo in found for one in (*photo.get("maps", ()), *photo.get("attention", ()))]
    return {"files": [str(out / "explain.html"), *files], "photos": found}


@dataclass(frozen=True)
class Explanation:
    """Why a photo, uint8 (H, W, 3), got its answer. `found` is what --json says of it.

    `maps` are those of the methods, `masks` those of the gates, by name, each (h, w); `rival` is the likeliest other
    class: its `label`, `logit`, `evidence`, `bias`, `map`, and the `scale` of the target's evidence.
    """

    photo: np.ndarray
    found: Found
    maps: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]
    rival: Found | None


class Explainer:
    """A run's network, its answers and its gallery; explains prepared photos one by one."""

    def __init__(self, run: str | Path, methods: Sequence[str], target: str | None, nearest: int) -> None:
        self.classifier = Classifier(run)
        self.classes, self.look = self.classifier.classes, self.classifier.info["preprocessing"]
        self.methods, self.most = methods, nearest
        self.target = None if target is None else _number(target, self.classes)
        self.network = attribution.ready(bundle.network(run))
        # In 64 bits evidence and bias sum to the logit in all digits that are shown.
        self.head = copy.deepcopy(self.network.head).double()
        self.gallery = read_gallery(Path(run), [*self.network.backbone.stages.values()][-1])

    def explain(self, path: str, photo: np.ndarray) -> Explanation:
        """Why the photo, uint8 (H, W, 3) from `prepare`, gets its answer."""
        answer = self.classifier.told(path, self.classifier.judge(photo), 1)
        target = self.classes.index(answer["label"]) if self.target is None else self.target
        x = attribution.seen(photo, self.look)
        with torch.inference_mode():
            features = self.network.features(x)
        first, *rivals = self._classes(features, target)
        maps = {name: attribution.METHODS[name](self.network, x, target) for name in self.methods}
        masks = attribution.attention(self.network, x)
        areas = self._areas(photo, x, list(maps.values()), target, features.shape[2:])
        luck = np.ptp(areas[len(maps) :], axis=1).max()
        found = {name: answer[name] for name in ("path", "label", "confidence", "known")}
        found |= {"target": first["label"]} | {name: first[name] for name in ("logit", "evidence", "bias")}
        found |= {
            "chance": float(areas[len(maps) :].mean()),
            "maps": [
                {"method": name, "deletion": float(d), "insertion": float(i), "beats_random": bool(i - d > luck)}
                for name, (d, i) in zip(maps, areas, strict=False)
            ],
            "attention": [{"module": name} for name in masks],
            "nearest": [],
        }
        if self.gallery:
            found["nearest"] = self.gallery.nearest(features.mean((2, 3))[0].numpy(), self.most)
        rival = rivals[0] | {"scale": overlay.strongest(first["map"])} if rivals else None
        return Explanation(photo, found, maps, masks, rival)

    def _areas(
        self, photo: np.ndarray, x: Tensor, maps: list[np.ndarray], target: int, shape: Sequence[int]
    ) -> np.ndarray:
        """Deletion and insertion of the maps and, behind them, of random ones, (maps + RANDOM, 2)."""
        hidden = attribution.seen(faithfulness.blurred(photo), self.look)
        unknowing = [faithfulness.random_map(shape, k) for k in range(RANDOM)]
        t = self.classifier.info["temperature"]
        return faithfulness.areas(self.network, x, hidden, [*maps, *unknowing], target, t)

    @torch.inference_mode()
    def _classes(self, features: Tensor, target: int) -> list[Found]:
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


def _methods(words: Iterable[str]) -> list[str]:
    """The methods that are meant, each once."""
    names = [name for word in words for name in (attribution.METHODS if word == "all" else [word])]
    if unknown := [name for name in names if name not in attribution.METHODS]:
        close = get_close_matches(unknown[0], attribution.METHODS, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise FieldmarkError(f"no method {unknown[0]!r}: {hint}there are {', '.join(attribution.METHODS)}, or all")
    return list(dict.fromkeys(names))


def _number(name: str, classes: list[str]) -> int:
    if name not in classes:
        close = get_close_matches(name, classes, 3) or classes
        raise FieldmarkError(f"no class {name!r}: the classifier knows {listing(close)}")
    return classes.index(name)


def _draw(explanation: Explanation, out: Path, name: str) -> None:
    """A file for every map and mask, named in what was found."""
    out.mkdir(parents=True, exist_ok=True)
    photo, found = explanation.photo, explanation.found
    for one, (method, values) in zip(found["maps"], explanation.maps.items(), strict=True):
        one["file"] = str(out / f"{name}.{method}.png")
        overlay.drawn(photo, values, _unit(method)).save(one["file"])
    for one, (module, values) in zip(found["attention"], explanation.masks.items(), strict=True):
        one["file"] = str(out / f"{name}.attention.{re.sub('[^A-Za-z0-9_.]', '-', module)[:100]}.png")
        overlay.drawn(photo, values - values.mean(), "").save(one["file"])


def _on_page(explanation: Explanation, explainer: Explainer, _: Language) -> Found:
    """What the template shows of it: what was found, with pictures."""
    photo, found, rival, gallery = explanation.photo, explanation.found, explanation.rival, explainer.gallery
    maps = [
        one | _shown(photo, values) | _words(one["method"], _)
        for one, values in zip(found["maps"], explanation.maps.values(), strict=True)
    ]
    masks = [
        one | _shown(photo, values - values.mean()) | {"least": float(values.min()), "most": float(values.max())}
        for one, values in zip(found["attention"], explanation.masks.values(), strict=True)
    ]
    alike = gallery and [one | {"picture": tile(gallery.files, one["path"])} for one in found["nearest"]]
    nothing = np.zeros((1, 1))
    return found | {
        "picture": _shown(photo, nothing)["picture"],
        "maps": maps,
        "attention": masks,
        "rival": rival and rival | _shown(photo, rival["map"], rival["scale"]),
        "alike": alike,
        "believe": _believe(found, _),
    }


def _shown(photo: np.ndarray, values: np.ndarray, scale: float | None = None) -> Found:
    scale = overlay.strongest(values) if scale is None else scale
    return {"picture": overlay.tile(photo, values, scale, PIXELS), "scale": scale}


def _unit(method: str) -> str:
    return "logits" if method in attribution.IN_LOGITS else ""


def _title(method: str) -> str:
    return method.replace("_", " ").replace("grad cam", "Grad-CAM")


def _words(method: str, _: Language) -> Found:
    """What the page says of a method: beside title and unit the first line of its documentation."""
    text = (attribution.METHODS[method].__doc__ or "").strip().partition("\n")[0]
    return {"title": _.translated(_title(method)), "unit": _unit(method), "text": _.translated(text)}


def _believe(found: Found, _: Language = ENGLISH) -> str:
    """Which map points at what counts, in a sentence or two."""
    chance, percent = found["chance"], partial(_.percent, digits=0)
    good = [one for one in found["maps"] if one["beats_random"]]
    others = [_.translated(_title(one["method"])) for one in found["maps"] if one not in good]
    if not good and found["label"] != found["target"] and chance < FEW:
        return _(
            "“{target}” is as good as out of the question here, whatever is blurred ({chance} on average): so nothing "
            "tells which map to believe.",
            target=found["target"],
            chance=percent(chance),
        )
    if not good:
        return _("No map here points at what counts better than random maps do: believe none of them on this photo.")
    gains = [one["insertion"] - one["deletion"] for one in good]
    best = next(one for one, gain in zip(good, gains, strict=True) if gain >= max(gains) - ALIKE)
    believed = _(
        "Believe the {map} map: where what it marks is blurred first, “{target}” keeps {deletion} on average, and "
        "where that is shown first it has {insertion}; with random maps it is {chance} both ways.",
        **{name: percent(best[name]) for name in ("deletion", "insertion")},
        map=_.translated(_title(best["method"])),
        target=found["target"],
        chance=percent(chance),
    )
    return _.flow([believed, _("No better than random: {maps}.", maps=_.listed(others)) if others else ""])
