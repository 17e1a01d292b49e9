"""What `make test` leaves out and `make test-all` runs."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def mark_slow_except(fast: Collection[Any], values: Iterable[Any]) -> list[Any]:
    """Parameters of a test, of which only those in `fast` are run by `make test`."""
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]
