"""What engines count of drafts since they began, in the text form of Prometheus."""

import re
from dataclasses import dataclass

_SAMPLE = r"^{}(?:_total)?(\{{.*\}})? ([0-9.eE+-]+|NaN)$"
_POSITION = re.compile(r'position="(\d+)"')
_VLLM = "vllm:spec_decode_num_"


@dataclass(frozen=True, kw_only=True, slots=True)
class Counters:
    """Counted since the engine began, or between two looks."""

    rounds: int
    """0 where the engine does not count them."""
    drafted: int
    accepted: int
    by_position: tuple[int, ...] = ()
    """Rounds that accepted the tokens through each position."""

    def since(self, before: "Counters") -> "Counters | None":
        """Return what was counted since an earlier look; None where they have begun anew in between."""
        pairs = list(zip(self._all(), before._all(), strict=False))
        if any(now < then for now, then in pairs) or len(self.by_position) < len(before.by_position):
            return None
        then = (*before.by_position, *[0] * (len(self.by_position) - len(before.by_position)))
        return Counters(
            rounds=self.rounds - before.rounds,
            drafted=self.drafted - before.drafted,
            accepted=self.accepted - before.accepted,
            by_position=tuple(now - old for now, old in zip(self.by_position, then, strict=True)),
        )

    def _all(self) -> tuple[int, ...]:
        return (self.rounds, self.drafted, self.accepted, *self.by_position)


def read_counters(metrics: str) -> Counters | None:
    """Return vLLM's counters of drafts, all engines of a server together; None where there are none."""
    drafted = _samples(metrics, f"{_VLLM}draft_tokens")
    if not drafted:
        return None
    positions: dict[int, float] = {}
    for labels, value in _samples(metrics, f"{_VLLM}accepted_tokens_per_pos"):
        if place := _POSITION.search(labels):
            positions[int(place[1])] = positions.get(int(place[1]), 0) + value
    return Counters(
        rounds=_sum(_samples(metrics, f"{_VLLM}drafts")),
        drafted=_sum(drafted),
        accepted=_sum(_samples(metrics, f"{_VLLM}accepted_tokens")),
        by_position=tuple(int(positions[place]) for place in sorted(positions)),
    )


def gauge(metrics: str, name: str) -> float | None:
    """Return the mean of a gauge over its labels; None where there is none."""
    values = [value for _, value in _samples(metrics, name)]
    return sum(values) / len(values) if values else None


def _samples(metrics: str, name: str) -> list[tuple[str, float]]:
    found = re.findall(_SAMPLE.format(re.escape(name)), metrics, re.MULTILINE)
    return [(labels, float(value)) for labels, value in found]


def _sum(samples: list[tuple[str, float]]) -> int:
    return int(sum(value for _, value in samples))
