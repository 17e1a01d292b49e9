"""figures -> words: the sentences and rows of the report, as people read them, in the language of the page."""

from collections import Counter
from typing import Any

from markupsafe import Markup

from fieldmark.core.i18n import ENGLISH, Language, finite_float

Metrics = dict[str, Any]
MIN_TRAIN_IMAGES, MIN_TEST_IMAGES = 50, 20  # photos of a class below which we say that there were few
SIGNIFICANT_SE = 2  # standard errors beyond which a class is said to have gained by more photos


def headline_metrics(run_metrics: Metrics) -> Metrics:
    """The figures that count: those of the test, where photos were kept for one."""
    return run_metrics.get("test") or run_metrics.get("validation") or {}


def summarize(run_metrics: Metrics, language: Language = ENGLISH) -> str:
    """What the run is worth in one plain sentence or two, hedged where few photos or none were kept for the test.

    >>> summary({"test": {"accuracy": 0.921, "n": 379, "ci95": [0.89, 0.944]}, "classes": list("abcdef")})[:46]
    'On 379 photos it had never seen, the classifie'
    """
    split_metrics, classes = headline_metrics(run_metrics), len(run_metrics.get("classes") or [])
    accuracy, n = finite_float(split_metrics.get("accuracy")), split_metrics.get("n") or 0
    if accuracy is None or not n:
        return language(
            "The classifier was trained, but no labelled photo was left to test it on: nobody knows yet how good it is."
        )
    between = split_metrics.get("ci95") or (None, None)
    values = {
        "where": _describe_eval_set(run_metrics, n, language),
        "classes": classes,
        "share": language.percent(accuracy),
    }
    if n < 100:
        text = language(
            "{where} the classifier names the right one of {classes} classes {times} times ({share})."
            " So few photos prove little: with 95 % confidence the true rate lies within {range}.",
            **values,
            times=round(accuracy * n),
            range=language.interval(between, 0),
        )
    else:
        text = language(
            "{where} the classifier names the right one of {classes} classes {share} of the time"
            " (95 % interval {range}).",
            **values,
            range=language.interval(between),
        )
    guess, low = majority_baseline(split_metrics), finite_float(between[0])
    if guess and (accuracy if low is None else low) <= guess["share"]:
        doubt = language(
            "That is not shown to be better than always answering “{name}” ({share}).",
            name=guess["name"],
            share=language.percent(guess["share"]),
        )
        return language.join_sentences([text, doubt])
    return text


def _describe_eval_set(run_metrics: Metrics, n: int, language: Language) -> str:
    if not run_metrics.get("test"):
        return language(
            "No photo was kept for a test. On {n:,} validation photos, which also chose the weights and so flatter,",
            n=n,
        )
    if folds := run_metrics.get("folds"):
        return language(
            "On {n:,} photos, each judged by the one of {folds} classifiers that had not seen it,",
            n=n,
            folds=len(folds),
        )
    return language("On {n:,} photos it had never seen,", n=n)


def page_title(classes: list[str], language: Language = ENGLISH) -> str:
    """What the classifier decides, as a question."""
    if 2 <= len(classes) <= 6 and len("".join(classes)) < 70:
        return language("{names} or {last}?", names=language.join_names(classes[:-1]), last=classes[-1])
    return language("Which of {n:,} classes?", n=len(classes))


def majority_baseline(split_metrics: Metrics) -> Metrics | None:
    """The share that always answering the commonest class would get right."""
    counts = {name: row.get("n") or 0 for name, row in (split_metrics.get("per_class") or {}).items()}
    if not sum(counts.values()):
        return None
    name = max(counts, key=lambda name: counts[name])
    return {"name": name, "share": counts[name] / sum(counts.values())}


def per_class_rows(split_metrics: Metrics) -> list[Metrics]:
    """Rows of the table of classes, the lowest recall first, the untested last."""
    rows = [
        {**row, "name": name, "n": row.get("n") or 0, "recall": finite_float(row.get("recall"))}
        for name, row in (split_metrics.get("per_class") or {}).items()
    ]
    return sorted(rows, key=lambda row: (not row["n"], row["recall"] if row["recall"] is not None else 1.0))


def describe_training(history: list[dict[str, str]], best: Any, language: Language = ENGLISH) -> str:
    """How long it learnt, and what was kept of it."""
    frozen = sum(row.get("phase") == "1" for row in history)
    if frozen:
        text = language("Epochs: {n}, of which {frozen} with the backbone frozen.", n=len(history), frozen=frozen)
    else:
        text = language("Epochs: {n}.", n=len(history))
    if finite_float(best) is None:
        return text
    kept = language("The weights of epoch {best}, chosen by the validation photos, were kept.", best=best)
    return language.join_sentences([text, kept])


def operating_points(split_metrics: Metrics, language: Language = ENGLISH) -> list[Metrics]:
    """Of two classes: what is found and left alone if the likelier class is the answer, and from the threshold on."""
    if not split_metrics.get("positive"):
        return []
    name, at_threshold = split_metrics["positive"], split_metrics.get("at_threshold") or {}
    likelier = {**split_metrics, "where": "", "told": language("the likelier class")}
    text = language("“{name}” from {share} on", name=name, share=language.percent(at_threshold.get("threshold")))
    return [likelier] + ([{**at_threshold, "where": "at_threshold.", "told": text}] if at_threshold else [])


# ---- what it cannot do, and what more photos would bring


def describe_limitations(
    run_metrics: Metrics, counts: Counter[tuple[str, str]], language: Language = ENGLISH
) -> list[str]:
    """What the classifier cannot do or has not shown, as sentences."""
    classes, split_metrics = run_metrics.get("classes") or [], headline_metrics(run_metrics)
    rows = split_metrics.get("per_class") or {}
    sentences = [
        language(
            "It knows {n} classes and nothing else; a photo of something else gets one of these names unless its score"
            " falls below the threshold.",
            n=len(classes),
        ),
        language("The figures hold for photos like these; another camera, place or season may bring others."),
    ]
    few_train = {name: counts[name, "train"] for name in classes if counts and counts[name, "train"] < MIN_TRAIN_IMAGES}
    few_test = {name: row.get("n") or 0 for name, row in rows.items() if (row.get("n") or 0) < MIN_TEST_IMAGES}
    recalls = {name: finite_float(row.get("recall")) for name, row in rows.items() if row.get("n")}
    low_recall = {name: recall for name, recall in recalls.items() if recall is not None and recall < 0.8}
    if few_train:
        sentences.append(
            language(
                "It learnt from fewer than {n} photos of {classes}.",
                n=MIN_TRAIN_IMAGES,
                classes=_list_classes(few_train, language),
            )
        )
    if few_test:
        sentences.append(
            language(
                "Tested on fewer than {n} photos, so that their own figures may be far off: {classes}.",
                n=MIN_TEST_IMAGES,
                classes=_list_classes(few_test, language),
            )
        )
    if low_recall:
        sentences.append(
            language(
                "It finds less than {share} of {classes}.",
                share=language.percent(0.8, 0),
                classes=_list_classes(low_recall, language, True),
            )
        )
    sentences += [describe_confusion(pair, split_metrics, language) for pair in frequent_confusions(split_metrics)[:3]]
    return sentences


def frequent_confusions(split_metrics: Metrics) -> list[Metrics]:
    """The pairs that are confused so often that it is no accident."""
    return [pair for pair in split_metrics.get("confused") or [] if pair["share"] >= 0.05 and pair["n"] > 2]


def describe_confusion(pair: Metrics, split_metrics: Metrics, language: Language = ENGLISH) -> str:
    return language(
        "It takes {n} of {all} photos of “{label}” for “{predicted}” ({share}, 95 % interval {range}).",
        **{key: pair[key] for key in ("n", "label", "predicted")},
        all=(split_metrics.get("per_class") or {}).get(pair["label"], {}).get("n"),
        share=language.percent(pair["share"]),
        range=language.interval(pair.get("ci95")),
    )


def _list_classes(values: dict[str, Any], language: Language, shares: bool = False, most: int = 8) -> str:
    """Classes with a number each, the lowest first, cut off where a reader would stop."""
    names = sorted(values, key=lambda name: values[name])
    parts = [
        language("{name} ({value})", name=name, value=language.percent(values[name], 0) if shares else values[name])
        for name in names[:most]
    ]
    if len(names) > most:
        return language("{names} and {n} more classes", names=language.join_names(parts), n=len(names) - most)
    return language.join_names(parts)


def describe_data_scaling(curve: Metrics, language: Language = ENGLISH) -> str:
    """What the learning curve says about twice as many photos."""
    accuracy, accuracy_doubled = curve["points"][-1]["accuracy"], curve["doubled"]
    values = {"now": language.percent(accuracy), "then": language.percent(accuracy_doubled)}
    if not curve.get("rises", True):
        return language(
            "Not shown: the last doubling of the photos brought no more than chance; {now} are right.", **values
        )
    if accuracy_doubled - accuracy < 0.005:
        return language(
            "Hardly: with twice as many photos {then} instead of {now} would be right, if errors go on to fall as they"
            " did when the photos last doubled.",
            **values,
        )
    return language(
        "Yes: with twice as many photos {then} instead of {now} would be right, if errors go on to fall as they did"
        " when the photos last doubled.",
        **values,
    )


def describe_class_gains(curve: Metrics, language: Language = ENGLISH) -> str:
    """Which classes gained by the last doubling, beyond chance."""
    clear = [row for row in curve["classes"] if row["recall"] - row["half"] > SIGNIFICANT_SE * row["se"] > 0]
    if not clear:
        return language("No single class gained by the last doubling beyond chance (2 standard errors).")
    named = [
        language(
            "{name} ({half} to {full})",
            name=row["name"],
            half=language.percent(row["half"], 0),
            full=language.percent(row["recall"], 0),
        )
        for row in clear[:8]
    ]
    return language(
        "By the last doubling these classes were found more often, beyond chance (2 standard errors): {classes}.",
        classes=language.join_names(named),
    )


def escape_markdown(text: Any) -> Markup:
    """Text that stands in Markdown, tables included, for exactly itself."""
    escaped = "".join(f"\\{mark}" if mark in "\\`*_[]|" else mark for mark in " ".join(str(text).split()))
    return Markup(escaped.replace("&", "&amp;").replace("<", "&lt;"))
