"""Which loads an engine is measured under."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from deepspec.specs import Spec


class ServeOptions(Spec):
    """Which loads an engine is measured under, with the draft and without it. No loads and no rates: none."""

    loads: tuple[Annotated[int, Field(gt=0)], ...] = ()
    """Requests at once: each is followed by the next as soon as it is answered (closed loop)."""
    rates: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Requests per second, arriving by chance (Poisson), whether earlier ones are answered or not (open loop)."""
    requests: int = Field(default=16, gt=1)
    """Measured requests of a level, at least; a load of n has at least 2 n."""
    max_tokens: int = Field(default=64, gt=1)
    """Of an answer."""
    ends: Literal["fixed", "natural"] = "fixed"
    """Whether every answer goes on to `max_tokens`, or ends where the target ends it."""
    contexts: tuple[Annotated[int, Field(gt=31)], ...] = ()
    """Tokens of the prompts, levels of one length each; none: prompts as they are."""
    checked: int = Field(default=16, ge=0)
    """Prompts of the evaluation that are asked one after another, before any load; 0: what is accepted is not checked.
    """
    prompts: str = ""
    """Checksum of the file that prompts come from; empty: the questions of the evaluation's benchmarks."""
    seed: int = Field(default=0, ge=0)
    """Of arrivals, fillings and intervals."""
    as_of: str | None = None
    """Moment of a measurement that is to be made anew."""

    @property
    def wanted(self) -> bool:
        """Return whether anything is measured."""
        return bool(self.loads or self.rates)

    @property
    def widest(self) -> int:
        """Return how many requests an engine should take at once."""
        return max(self.loads, default=8)

    @property
    def room(self) -> int:
        """Return the tokens that an answer takes beside the longest prompt that is asked for."""
        return self.max_tokens + max(self.contexts, default=0)

    @model_validator(mode="after")
    def _ascend(self) -> Self:
        for name in ("loads", "rates", "contexts"):
            told = getattr(self, name)
            if list(told) != sorted(set(told)):
                raise ValueError(f"{name} {told} do not ascend; give each once, the smallest first")
        return self
