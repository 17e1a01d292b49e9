"""Errors that are shown to people as one line."""


class FieldmarkError(Exception):
    """An error that the user can correct: one line that says what is wrong and what to do (exit code 2)."""


class UntrainableRecipeError(FieldmarkError):
    """The recipe cannot be trained, for example because the loss became NaN. A search continues without it."""
