"""Metrics of a run -> sentences and table rows of the report, in the language of the page."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from fieldmark.core.i18n import ENGLISH, Language, finite_float, format_number
from fieldmark.core.text import summarize_names

Metrics = dict[str, Any]
MIN_TRAIN_IMAGES, MIN_TEST_IMAGES = 50, 20
"""Images of a class below which the report lists it as a limitation."""
LOW_RECALL, FREQUENT_CONFUSION = 0.8, 0.05
"""Recall below which, and share of a class from which a confusion is a limitation."""
MIN_IMAGES_FOR_DECIMALS = 100
"""With fewer images the interval is written in whole percents."""
MIN_CURVE_IMAGES = 20
"""Training images a class below which a learning curve cannot say that more would not help."""
SIGNIFICANT_SE = 2
"""Standard errors by which the recall of a class must rise to be significant."""
MAX_LISTED_CLASSES = 8


def headline_metrics(run_metrics: Metrics) -> Metrics:
    """The metrics of the test set; without one, those of the validation set."""
    return run_metrics.get("test") or run_metrics.get("validation") or {}


def summarize(run_metrics: Metrics, language: Language = ENGLISH) -> str:
    """One or two sentences on the accuracy of a run, with its uncertainty.

    >>> summarize({"test": {"accuracy": 0.921, "n": 379, "ci95": [0.89, 0.944]}, "classes": list("abcdef")})[:56]
    'On a test set of 379 images, the accuracy over 6 classes'
    """
    split_metrics, classes = headline_metrics(run_metrics), len(run_metrics.get("classes") or [])
    accuracy, n = finite_float(split_metrics.get("accuracy")), split_metrics.get("n") or 0
    if accuracy is None or not n:
        return language(
            "The classifier was trained, but no labelled images were left for a test set, so its accuracy is unknown."
        )
    bounds = split_metrics.get("ci95") or (None, None)
    values = {
        "where": _describe_eval_set(run_metrics, n, language),
        "classes": classes,
        "share": language.percent(accuracy),
    }
    if absent := absent_classes(split_metrics):
        return language(
            "{where} the accuracy is {share} (95 % CI {range}) over {present} of {classes} classes; that of {names} is"
            " unknown, since there are no images of them.",
            **values,
            range=language.interval(bounds),
            present=classes - len(absent),
            names=summarize_names(absent),
        )
    if n < MIN_IMAGES_FOR_DECIMALS:
        text = language(
            "{where} the accuracy over {classes} classes is {share} ({times} images correct)."
            " So small a set leaves a wide 95 % CI: {range}.",
            **values,
            times=round(accuracy * n),
            range=language.interval(bounds, 0),
        )
    else:
        text = language(
            "{where} the accuracy over {classes} classes is {share} (95 % CI {range}).",
            **values,
            range=language.interval(bounds),
        )
    return language.join_sentences([text, _compare_with_baseline(split_metrics, bounds[0], accuracy, language)])


def absent_classes(split_metrics: Metrics) -> list[str]:
    """The classes of which there are no images, so that macro averages are undefined."""
    return [name for name, row in (split_metrics.get("per_class") or {}).items() if not row.get("n")]


def _compare_with_baseline(split_metrics: Metrics, low: Any, accuracy: float, language: Language) -> str:
    """A sentence if the interval of the accuracy, from `low`, includes the majority-class baseline; else empty."""
    baseline, lower_bound = majority_baseline(split_metrics), finite_float(low)
    if not baseline or (accuracy if lower_bound is None else lower_bound) > baseline["share"]:
        return ""
    return language(
        "This is not significantly better than the majority-class baseline, which always predicts “{name}” ({share}).",
        name=baseline["name"],
        share=language.percent(baseline["share"]),
    )


def _describe_eval_set(run_metrics: Metrics, n: int, language: Language) -> str:
    if not run_metrics.get("test"):
        return language(
            "There is no test set. On {n:,} validation images, which also selected the weights and so give optimistic"
            " metrics,",
            n=n,
        )
    if folds := run_metrics.get("folds"):
        return language("In {folds}-fold cross-validation on {n:,} images,", n=n, folds=len(folds))
    return language("On a test set of {n:,} images,", n=n)


def page_title(classes: list[str], language: Language = ENGLISH) -> str:
    """The task of the classifier as a question."""
    if 2 <= len(classes) <= 6 and len("".join(classes)) < 70:
        return language("{names} or {last}?", names=language.join_names(classes[:-1]), last=classes[-1])
    return language("Which of {n:,} classes?", n=len(classes))


def majority_baseline(split_metrics: Metrics) -> Metrics | None:
    """The most frequent class and its share: the accuracy of always predicting it."""
    counts = {name: row.get("n") or 0 for name, row in (split_metrics.get("per_class") or {}).items()}
    if not sum(counts.values()):
        return None
    name = max(counts, key=lambda name: counts[name])
    return {"name": name, "share": counts[name] / sum(counts.values())}


def per_class_rows(split_metrics: Metrics) -> list[Metrics]:
    """Rows of the per-class table: lowest recall first, classes without test images last."""
    rows = [
        {**row, "name": name, "n": row.get("n") or 0, "recall": finite_float(row.get("recall"))}
        for name, row in (split_metrics.get("per_class") or {}).items()
    ]
    return sorted(rows, key=lambda row: (not row["n"], row["recall"] if row["recall"] is not None else 1.0))


def describe_training(history: list[dict[str, str]], best: Any, language: Language = ENGLISH) -> str:
    """Number of epochs, and which epoch's weights were kept where there was a choice."""
    probe_epochs = sum(row.get("phase") == "1" for row in history)
    if probe_epochs:
        text = language(
            "Epochs: {n} ({frozen} linear probe, {tuned} fine-tuning).",
            n=len(history),
            frozen=probe_epochs,
            tuned=sum(row.get("phase") in ("2", "3") for row in history),
        )
    else:
        text = language("Epochs: {n}.", n=len(history))
    if any(row.get("phase") == "4" for row in history):
        refit = language("After fine-tuning, the head was fitted once more (head refit).")
        note = language("The epochs before it have another head: compare the linear probe with the head refit.")
        text = language.join_sentences([text, refit, note])
    if finite_float(best) is None or len(history) < 2:
        return text
    kept = language("The weights of epoch {best}, selected on the validation set, were kept.", best=best)
    return language.join_sentences([text, kept])


def operating_points(split_metrics: Metrics, language: Language = ENGLISH) -> list[Metrics]:
    """For two classes: metrics at the threshold 0.5 and at the fitted one, each with its `description`."""
    if not split_metrics.get("positive"):
        return []
    at_threshold = split_metrics.get("at_threshold") or {}
    points = [{**split_metrics, "where": "", "description": language("threshold {threshold}", threshold=0.5)}]
    if at_threshold:
        description = language("threshold {threshold}", threshold=format_number(at_threshold.get("threshold")))
        points.append({**at_threshold, "where": "at_threshold.", "description": description})
    return points


# ---- limitations, and the learning curve


def describe_limitations(
    run_metrics: Metrics, counts: Counter[tuple[str, str]], language: Language = ENGLISH, *, rejects: bool = True
) -> list[str]:
    """The limitations of the classifier, as sentences.

    Args:
        counts: images by (class, split).
        rejects: whether there is a threshold below which images are rejected as unknown.
    """
    classes, split_metrics = run_metrics.get("classes") or [], headline_metrics(run_metrics)
    per_class = split_metrics.get("per_class") or {}
    sentences = [
        language("The model predicts one of {n} classes, also for an image of something else.", n=len(classes))
        if not rejects
        else language(
            "The model predicts one of {n} classes. An out-of-distribution image gets one of them too, unless its OOD"
            " score is below the threshold.",
            n=len(classes),
        ),
        language(
            "The metrics hold for images like these; with another camera, place or season (distribution shift) they may"
            " differ."
        ),
        _list_small_classes(classes, counts, language),
        _list_untested_classes(per_class, language),
        _list_low_recall(per_class, language),
        *(describe_confusion(pair, split_metrics, language) for pair in frequent_confusions(split_metrics)[:3]),
    ]
    return [sentence for sentence in sentences if sentence]


def _list_small_classes(classes: list[str], counts: Counter[tuple[str, str]], language: Language) -> str:
    few = {name: counts[name, "train"] for name in classes if counts and counts[name, "train"] < MIN_TRAIN_IMAGES}
    if not few:
        return ""
    return language(
        "Fewer than {n} training images: {classes}.", n=MIN_TRAIN_IMAGES, classes=_list_classes(few, language)
    )


def _list_untested_classes(per_class: Mapping[str, Metrics], language: Language) -> str:
    few = {name: row.get("n") or 0 for name, row in per_class.items() if (row.get("n") or 0) < MIN_TEST_IMAGES}
    if not few:
        return ""
    return language(
        "Fewer than {n} test images, so that the metrics of the class are uncertain: {classes}.",
        n=MIN_TEST_IMAGES,
        classes=_list_classes(few, language),
    )


def _list_low_recall(per_class: Mapping[str, Metrics], language: Language) -> str:
    recalls = {name: finite_float(row.get("recall")) for name, row in per_class.items() if row.get("n")}
    low = {name: recall for name, recall in recalls.items() if recall is not None and recall < LOW_RECALL}
    if not low:
        return ""
    return language(
        "Recall below {share}: {classes}.",
        share=language.percent(LOW_RECALL, 0),
        classes=_list_classes(low, language, as_percent=True),
    )


def frequent_confusions(split_metrics: Metrics) -> list[Metrics]:
    """The confused pairs that are too frequent to be accidents."""
    pairs = split_metrics.get("confused") or []
    return [pair for pair in pairs if pair["share"] >= FREQUENT_CONFUSION and pair["n"] > 2]


def describe_confusion(pair: Metrics, split_metrics: Metrics, language: Language = ENGLISH) -> str:
    return language(
        "{n} of {all} images of “{label}” are predicted as “{predicted}” ({share}, 95 % CI {range}).",
        **{key: pair[key] for key in ("n", "label", "predicted")},
        all=(split_metrics.get("per_class") or {}).get(pair["label"], {}).get("n"),
        share=language.percent(pair["share"]),
        range=language.interval(pair.get("ci95")),
    )


def _list_classes(values: dict[str, Any], language: Language, *, as_percent: bool = False) -> str:
    """Classes, each with its value, the lowest first, and the number of those that are left out."""
    names = sorted(values, key=lambda name: values[name])
    parts = [
        language("{name} ({value})", name=name, value=language.percent(values[name], 0) if as_percent else values[name])
        for name in names[:MAX_LISTED_CLASSES]
    ]
    if len(names) > MAX_LISTED_CLASSES:
        return language(
            "{names} and {n} more classes", names=language.join_names(parts), n=len(names) - MAX_LISTED_CLASSES
        )
    return language.join_names(parts)


def is_too_short(n_images: int, n_classes: int) -> bool:
    """Whether a learning curve that ends at so many training images cannot say that more would not help."""
    return n_images < MIN_CURVE_IMAGES * n_classes


def describe_learning_curve(curve: Metrics, language: Language = ENGLISH) -> str:
    """A sentence on the accuracy that twice as many images would bring."""
    accuracy, accuracy_doubled = curve["points"][-1]["accuracy"], curve["doubled"]
    values = {"now": language.percent(accuracy), "then": language.percent(accuracy_doubled)}
    rises, helps = curve.get("rises", True), accuracy_doubled - accuracy >= 0.005
    if not (rises and helps) and is_too_short(curve["points"][-1]["photos"], len(curve["classes"])):
        return language(
            "Too few images to say whether more would help; below {n} a class they usually do.", n=MIN_TRAIN_IMAGES
        )
    if not rises:
        return language(
            "The last doubling of the training set brought no significant gain; the accuracy is {now}.", **values
        )
    if not helps:
        return language(
            "More images are unlikely to help much: with twice as many, the extrapolated accuracy is {then} instead of"
            " {now}, if the error falls as it did at the last doubling.",
            **values,
        )
    return language(
        "More images are likely to help: with twice as many, the extrapolated accuracy is {then} instead of {now}, if"
        " the error falls as it did at the last doubling.",
        **values,
    )


def describe_class_gains(curve: Metrics, language: Language = ENGLISH) -> str:
    """A sentence on the classes that gained significantly by the last doubling of the training set."""
    gains = [row for row in curve["classes"] if row["recall"] - row["half"] > SIGNIFICANT_SE * row["se"] > 0]
    if not gains:
        if is_too_short(curve["points"][-1]["photos"], len(curve["classes"])):
            return ""  # so few images show no gain, even if there is one
        return language("No class gained significantly by the last doubling (2 standard errors).")
    classes = [
        language(
            "{name} ({half} to {full})",
            name=row["name"],
            half=language.percent(row["half"], 0),
            full=language.percent(row["recall"], 0),
        )
        for row in gains[:MAX_LISTED_CLASSES]
    ]
    return language(
        "The last doubling significantly raised the recall of these classes (2 standard errors): {classes}.",
        classes=language.join_names(classes),
    )


def escape_markdown(text: Any) -> Markup:
    """The text with all characters escaped that have a meaning in Markdown or its tables."""
    escaped = "".join(f"\\{mark}" if mark in "\\`*_[]|" else mark for mark in " ".join(str(text).split()))
    return Markup(escaped.replace("&", "&amp;").replace("<", "&lt;"))
