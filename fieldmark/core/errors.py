"""The one error that people are meant to read."""


class FieldmarkError(Exception):
    """Something the user can mend: one line that says what is wrong and what to do about it (exit code 2)."""


class UntrainableRecipeError(FieldmarkError):
    """Settings with which nothing can be learnt, on these photos or any: a search goes on without them."""
