"""Numbers that are not known exactly: an estimate with its interval."""

from typing import Self

from deepspec.specs import Spec


class Range(Spec):
    """An estimate with its interval; the three agree where it is exact. No end is below zero."""

    low: float
    mid: float
    high: float

    @classmethod
    def around(cls, value: float, spread: float = 0.0) -> Self:
        """Return a value with an interval of so large a share of it on both sides."""
        return cls(low=value * (1 - spread), mid=value, high=value * (1 + spread))

    def scaled(self, factor: float) -> "Range":
        """Return all three times a factor."""
        return Range(low=self.low * factor, mid=self.mid * factor, high=self.high * factor)

    def times(self, other: "Range") -> "Range":
        """Return the product, ends times ends."""
        return Range(low=self.low * other.low, mid=self.mid * other.mid, high=self.high * other.high)

    def plus(self, other: "Range") -> "Range":
        """Return the sum, ends added to ends."""
        return Range(low=self.low + other.low, mid=self.mid + other.mid, high=self.high + other.high)

    def longer(self, other: "Range") -> "Range":
        """Return the larger of both at each end."""
        return Range(low=max(self.low, other.low), mid=max(self.mid, other.mid), high=max(self.high, other.high))

    def capped(self, limit: float) -> "Range":
        """Return all three, none above a limit."""
        return Range(low=min(self.low, limit), mid=min(self.mid, limit), high=min(self.high, limit))


NOTHING = Range.around(0)
