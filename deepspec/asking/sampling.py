"""How the target samples: what every request says, and what changes the answers."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from deepspec.specs import Spec

Probability = Annotated[float, Field(ge=0, le=1)]


class Sampling(Spec):
    """How the target samples, in the terms that vLLM and SGLang use.

    Everything is sent with every request, so that an engine's own defaults never apply; a field that is None is not
    sent, for an engine that refuses it.
    """

    temperature: float = Field(default=1.0, ge=0)
    """0 is greedy."""
    top_p: float | None = Field(default=1.0, gt=0, le=1)
    top_k: int | None = Field(default=0, ge=0)
    """Choose among the k likeliest tokens; 0 is no limit."""
    min_p: float | None = Field(default=0.0, ge=0, le=1)
    repetition_penalty: float | None = Field(default=1.0, gt=0)
    """Divides the logits of tokens seen before; 1 is off. Not the same as `presence_penalty`."""
    presence_penalty: float | None = Field(default=0.0, ge=-2, le=2)
    """Subtracted from the logits of tokens generated before; 0 is off."""
    max_tokens: int = Field(default=2048, gt=0)
    """Longest answer of one turn; longer ones are cut, kept, marked and counted."""
    thinking: Literal["off", "on"] | Probability = "off"
    """Whether the target thinks before it answers, where its template knows a switch; a number is the share of rows
    that do."""
    chat_template_kwargs: dict[str, Any] | None = None
    """More switches of the target's chat template (`{"reasoning_effort": "low"}`, say), recorded in every row so that
    it is trained on as it was asked."""
    seed: int = 0
    """Every turn of every sample gets a seed of its own, derived from this one."""

    @field_validator("chat_template_kwargs")
    @classmethod
    def _leave_thinking(cls, switches: dict[str, Any] | None) -> dict[str, Any] | None:
        if switches and "enable_thinking" in switches:
            raise ValueError("enable_thinking differs from row to row; set sampling.thinking instead")
        return switches or None

    def plain(self) -> "Sampling":
        """Return how the target draws from all of its distribution, at this temperature.

        What is not sent is not sent then either.
        """
        off = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0}
        return self.but(**{name: value for name, value in off.items() if getattr(self, name) is not None})

    def greedy(self) -> "Sampling":
        """Return how the target answers greedily, in all else as here: nothing moves the likeliest token."""
        return self.plain().but(temperature=0.0)

    @property
    def says_all(self) -> bool:
        """Return whether everything that moves the distribution is sent, so that no engine's own default does."""
        return None not in (self.top_p, self.top_k, self.min_p, self.repetition_penalty, self.presence_penalty)

    @property
    def thinking_share(self) -> float:
        """Return the share of rows answered in thinking mode."""
        return {"off": 0.0, "on": 1.0}[self.thinking] if isinstance(self.thinking, str) else self.thinking
