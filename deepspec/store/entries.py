"""What a store tells of what lies in it."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreEntry:
    """What lies under a key."""

    size: int
    modified: float
    """Seconds since 1970."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """A multipart upload that was never finished: storage that costs, and that no list of keys shows."""

    key: str
    """In the bucket."""
    id: str
    started: float
    """Seconds since 1970."""
