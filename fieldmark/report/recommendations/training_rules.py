"""Recommendations about the training: whether a longer one would help."""

import math
from collections.abc import Iterator, Sequence

from fieldmark.core.i18n import Language
from fieldmark.recipes.recipe import parse_duration
from fieldmark.report.recommendations.findings import Findings
from fieldmark.report.recommendations.recommendation import Recommendation, independent_share, is_perfect
from fieldmark.training.history import LINEAR_PROBE, EpochRecord

MIN_EPOCHS = 3
"""Epochs of fine-tuning from which on it has had its chance against the linear probe."""
LEARNED_BY_HEART = 0.98
"""Training accuracy from which on more epochs teach nothing new."""
MAX_GAP = 0.05
"""Difference of training and validation accuracy up to which there is no sign of overfitting."""
USED_BUDGET = 0.7
"""Part of a budget; if a run needed less, a longer one is of no use."""


def longer_training(findings: Findings, language: Language) -> Iterator[Recommendation]:
    """Whether fine-tuning is missing, or ended while the validation accuracy still rose."""
    if not findings.history or is_perfect(findings.test):
        return
    if not findings.finetuning:
        yield _missing_finetuning(findings, language)
    elif is_still_rising(findings):
        yield _rising(findings, language)


def _missing_finetuning(findings: Findings, language: Language) -> Recommendation:
    if findings.recipe.budget:
        needed = 2 * max(parse_duration(findings.recipe.budget), sum(findings.metrics.seconds.values()))
        budget = findings.needed_budget or f"{math.ceil(needed / 30) * 30}s"
        text = language("Give the training more time.")
        reason = language(
            "In {budget} there was time only for the linear probe (a simple classifier on fixed features), not for"
            " fine-tuning.",
            budget=language.duration(parse_duration(findings.recipe.budget)),
        )
        return Recommendation("budget", text, reason, (findings.train_command(budget=budget),), "training")
    text = language("Fine-tune the network; this takes longer and is usually more accurate.")
    reason = language("Only the linear probe (a simple classifier on fixed features) was trained.")
    command = findings.train_command(epochs=None)
    return Recommendation("finetune", text, reason, (command,), "training")


def is_still_rising(findings: Findings) -> bool:
    """Whether the second half of fine-tuning brought a significant gain, without a sign of overfitting."""
    tuned = findings.finetuning
    middle, last = tuned[(len(tuned) - 1) // 2], tuned[-1]
    if not last.has_validation or not middle.has_validation:
        return False
    rises = is_significant(last.val_accuracy - middle.val_accuracy, last.val_accuracy, findings)
    return rises and last.val_loss < middle.val_loss and last.train_accuracy - last.val_accuracy <= MAX_GAP


def is_significant(gain: float, accuracy: float, findings: Findings) -> bool:
    """Whether a gain of validation accuracy exceeds two standard errors.

    The standard error is that of two independent samples; as both epochs saw the same images, it is a safe bound.
    """
    validation = findings.metrics.validation
    if validation is None:
        return False
    error = math.sqrt(2 * accuracy * (1 - accuracy) / (validation.n * independent_share(validation)))
    return gain > 2 * error


def _rising(findings: Findings, language: Language) -> Recommendation:
    tuned, recipe = findings.finetuning, findings.recipe
    middle, last = tuned[(len(tuned) - 1) // 2], tuned[-1]
    longer = {"budget": f"{2 * parse_duration(recipe.budget):.0f}s"} if recipe.budget else {"epochs": 2 * recipe.epochs}
    reason = language(
        "Validation accuracy still rose in the second half of fine-tuning, from {half} to {full}, without overfitting.",
        half=language.percent(middle.val_accuracy),
        full=language.percent(last.val_accuracy),
    )
    command = findings.train_command(**longer)
    return Recommendation("longer", language("Train longer."), reason, (command,), "training")


def no_longer_training(findings: Findings, language: Language) -> Iterator[Recommendation]:
    """That a longer training would not help, and by what that shows."""
    if findings.finetuning and not is_still_rising(findings) and (reason := _why_long_enough(findings, language)):
        text = language("a longer training")
        yield Recommendation("no_longer_training", text, reason, (), "training", helps=False)


def _why_long_enough(findings: Findings, language: Language) -> str:
    tuned, kept, recipe = findings.finetuning, findings.kept_epoch, findings.recipe
    last, used = tuned[-1], sum(findings.metrics.seconds.values())
    if kept and kept.phase == LINEAR_PROBE and len(tuned) >= MIN_EPOCHS:
        return language(
            "in {n} epochs, fine-tuning did not get better than the linear probe (a simple classifier on fixed"
            " features)",
            n=len(tuned),
        )
    if len(tuned) < recipe.epochs and _epochs_since_best(tuned) >= recipe.patience:
        return language("the last {n} epochs brought no gain on the validation images", n=_epochs_since_best(tuned))
    if last.train_accuracy >= LEARNED_BY_HEART and is_significant(
        last.train_accuracy - last.val_accuracy, last.val_accuracy, findings
    ):
        return language(
            "the network is right in {train} of the training images already, but in {val} of the validation images",
            train=language.percent(last.train_accuracy),
            val=language.percent(last.val_accuracy),
        )
    if recipe.budget and 0 < used < USED_BUDGET * parse_duration(recipe.budget):
        return language(
            "only {used} of the budget of {budget} were needed",
            used=language.duration(used),
            budget=language.duration(parse_duration(recipe.budget)),
        )
    return ""


def _epochs_since_best(tuned: Sequence[EpochRecord]) -> int:
    usable = [record for record in tuned if record.has_validation]
    if not usable:
        return 0
    by_accuracy = max(usable, key=lambda record: record.val_accuracy)
    by_loss = min(usable, key=lambda record: record.val_loss)
    return tuned[-1].epoch - max(by_accuracy.epoch, by_loss.epoch)
