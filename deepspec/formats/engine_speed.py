"""What an engine that serves a draft accepts, held against what was decoded here: a typed part of speed.json."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from deepspec.formats.numbers import Frozen, Interval, with_interval


class EngineSpeed(Frozen):
    """What an engine that served target and draft told, against what decoding here made of the same prompts."""

    engine: Annotated[str, AfterValidator(lambda with_interval: engine_name(with_interval))]
    samples: int
    tokens_per_round: Interval
    """The engine's."""
    ours: Interval
    difference: Interval | None = Field(default=None, exclude_if=lambda found: found is None)
    """How many more tokens a round makes there than here, on the same prompts; None: earlier versions did not tell."""
    same_answers: int = Field(default=0, exclude_if=lambda found: not found)
    """Answers that are, token for token, those that were decoded here; 0 of earlier versions."""
    otherwise: Interval | None = Field(default=None, exclude_if=lambda found: found is None)
    """Share of the rounds over those answers that are others than here, at least; None: there is no such answer."""
    agrees: bool
    """Whether the two intervals overlap, that of the difference reaches what rounding can do, and the rounds over the
    same answers are the same ones."""
    accept_rate: float
    """Accepted over drafted tokens."""
    tokens_per_second: float
    plain_tokens_per_second: float | None

    @property
    def warning(self) -> str:
        """Return what to say where the engine does not accept what we do; else nothing."""
        if self.agrees:
            return ""
        parts = (
            [] if self.difference is None else [f"prompt by prompt a difference of {with_interval(self.difference)}"]
        )
        if self.otherwise is not None:
            share = f"{with_interval(self.otherwise)} of the rounds are others"
            parts.append(f"where it gives the very answers, of {self.same_answers} prompts, {share}, at least")
        paired = f" ({'; '.join(parts)})" if parts else ""
        return (
            f"{self.engine} makes {with_interval(self.tokens_per_round)} tokens per round of prompts on which "
            f"{with_interval(self.ours)} were measured here{paired}: what it serves is not what was evaluated."
        )

    @property
    def speedup(self) -> float | None:
        """Return how much faster the engine is with the draft."""
        plain = self.plain_tokens_per_second
        return None if plain is None else self.tokens_per_second / plain

    def row(self) -> dict[str, Any]:
        """Return one row of the table that people read."""
        return {
            "engine": self.engine,
            "samples": self.samples,
            "tokens per round": with_interval(self.tokens_per_round),
            "here": with_interval(self.ours),
            **({} if self.difference is None else {"difference": with_interval(self.difference)}),
            **(
                {}
                if self.otherwise is None
                else {"other rounds": f"{with_interval(self.otherwise)}, {self.same_answers} answers"}
            ),
            "accepted of drafted": f"{self.accept_rate:.1%}",
            "tokens/s": f"{self.tokens_per_second:.1f}",
            "speed-up": "not measured" if self.speedup is None else f"{self.speedup:.2f}",
            "verdict": "agree" if self.agrees else "DISAGREE",
        }


def engine_name(told: str) -> str:
    """Return what an engine calls itself, without a build that is not known: llama.cpp b0-unknown is llama.cpp."""
    return told.removesuffix(" b0-unknown")
