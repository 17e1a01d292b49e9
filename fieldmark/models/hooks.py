"""Forward hooks that are removed when the block ends, also by an exception."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def forward_hooks(
    modules: Iterable[nn.Module],
    *,
    before: Callable[[nn.Module, Any], Any] | None = None,
    after: Callable[[nn.Module, Any, Any], Any] | None = None,
) -> Iterator[None]:
    """Register hooks on each module for the duration of the block.

    Args:
        modules: where to register.
        before: forward pre-hook, called with the module and its inputs.
        after: forward hook, called with the module, its inputs and its output.
    """
    handles = []
    try:
        for module in modules:
            if before is not None:
                handles.append(module.register_forward_pre_hook(before))
            if after is not None:
                handles.append(module.register_forward_hook(after))
        yield
    finally:
        for handle in handles:
            handle.remove()
