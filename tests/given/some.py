"""What may be None, where a test knows that it is there."""

from typing import TypeVar

T = TypeVar("T")


def some(value: T | None) -> T:
    """Return a value that is not None."""
    assert value is not None
    return value
