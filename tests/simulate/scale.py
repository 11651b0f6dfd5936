"""What training takes on 1, 8 and 64 cards, by where its states come from: the tables of docs/scale.md.

`python -m tests.simulate.scale` prints those that are computed, with `--simulated` that of two days (minutes);
`tests/simulate/test_scale.py` holds the page against both.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from deepspec.plan import presets
from deepspec.plan.budget import workload
from deepspec.plan.cost.estimate import estimate  # fmt: skip
from deepspec.plan.cost.flops import draft_parameters, read_flops, train_flops  # fmt: skip
from deepspec.plan.cost.given import Hardware, Sizes, Workload  # fmt: skip
from deepspec.plan.cost.table import duration, size  # fmt: skip
from deepspec.plan.plan import Plan
from deepspec.ranges import Range
from deepspec.simulate.planned import Simulated, scenario_of, simulated

CARD = "h200"
READ = 46_387
"""Tokens a second that one card reads and captures, of Qwen3-4B's shape in bf16: measured, docs/log.md."""
STEP = 0.0515
"""Seconds of a DSpark step for a sample of 4096 tokens, 4 rows a pass: measured, docs/log.md."""
STEP_TOKENS = 4096
EXPERTS = 0.5
"""Share of a dense target's operations a second that an engine reaches where experts are chosen: assumed."""
NODE = 8
"""Cards of one host; an engine of the large target takes them all."""

MOE = {
    "target": {
        "name": "moe-400b",
        "model": "a mixture of experts",
        "sizes": {
            "layers": 48, "hidden": 5120, "intermediate": 16384, "heads": 40, "kv_heads": 8, "head_dim": 128,
            "vocabulary": 202_048, "parameters": 400_000_000_000, "working": 17_000_000_000,
        },
    },
    "cache": {"layers": [1, 12, 23, 34, 45]},
    "train": {"mask_token_id": 0},
}  # fmt: skip


def plan_of(target: dict[str, Any]) -> Plan:
    return presets.build_plan([target, presets.load("datasets", "open-perfectblend")])


@dataclass(frozen=True)
class Case:
    """One target, with the rates of one card."""

    name: str
    plan: Plan
    cards: int
    """Of an engine."""

    @property
    def sizes(self) -> Sizes:
        assert self.plan.target.sizes is not None
        return self.plan.target.sizes

    @property
    def work(self) -> Workload:
        return workload(self.plan, self.sizes)

    @property
    def engine_rate(self) -> float:
        """Tokens a second of one engine."""
        dense = READ * read_flops(FOUR.sizes) / read_flops(self.sizes)
        return self.cards * dense * (1 if self.sizes.working is None else EXPERTS)

    @property
    def trainer_rate(self) -> float:
        """Tokens a second of one rank, of the data's mean length."""
        return trained_flops() * self.work.captured.tokens.mid / train_flops(self.sizes, self.work).mid

    @property
    def token_bytes(self) -> int:
        return (self.work.captured.layers + 1) * self.sizes.hidden * 2

    def hardware(self, cards: int) -> Hardware:
        """The card with the rates that were measured, so many of them."""
        return presets.hardware(CARD).but(devices=cards, train_tflops=trained_flops() / 1e12)

    def split(self, cards: int) -> tuple[int, int]:
        """Engines and ranks on so many cards that train fastest; nothing where an engine leaves none."""
        found = [(n, cards - n * self.cards) for n in range(1, cards // self.cards + 1) if cards > n * self.cards]
        return max(found, key=lambda each: self.together(*each), default=(0, 0))

    def together(self, engines: int, ranks: int) -> float:
        """Tokens a second that are trained on."""
        return min(engines * self.engine_rate, ranks * self.trainer_rate)


def trained_flops() -> float:
    """Operations a second of the step that was measured."""
    work = FOUR.work
    one = Range.around(STEP_TOKENS)
    captured = work.captured.but(samples=1, tokens=one, supervised=one, last_rows=one)
    return train_flops(FOUR.sizes, work.but(captured=captured)).mid / STEP


FOUR = Case("Qwen3-4B", plan_of(presets.target("qwen3-4b")), 1)
LARGE = Case("400 B, 17 B a token", plan_of(MOE), NODE)


def rates() -> Iterator[str]:
    yield "| | Qwen3-4B | 400 B, 17 B a token | |"
    yield "|---|---|---|---|"
    figures: tuple[tuple[str, Callable[[Case], str], str], ...] = (
        ("an engine is", lambda case: f"{case.cards} card{'s' if case.cards > 1 else ''}", "weights in bf16"),
        ("an engine reads, tokens/s", lambda case: f"{case.engine_rate:,.0f}", "measured for the 4B as a capture "
         "(46,387), assumed of an engine; the large one: by operations, half the rate: assumed"),
        ("a card trains on, tokens/s", lambda case: f"{case.trainer_rate:,.0f}", "by operations, from a measured step "
         "of 51.5 ms for 4096 tokens"),
        ("cards that train for each engine", lambda case: f"{case.engine_rate / case.trainer_rate:.1f}", "computed"),
        ("states of a token", lambda case: size(case.token_bytes), "computed"),
        ("an engine gives states, a second", lambda case: size(case.engine_rate * case.token_bytes), "computed"),
        ("states of all samples, raw", lambda case: size(case.work.captured.tokens.mid * case.token_bytes),
         "computed, lengths ± 30 %"),
        ("the draft's own weights, bf16", lambda case: size(2 * draft_parameters(case.sizes, case.work)), "computed"),
    )  # fmt: skip
    for what, value, how in figures:
        yield f"| {what} | {value(FOUR)} | {value(LARGE)} | {how} |"


def ways(case: Case) -> Iterator[str]:
    yield f"| {case.name}: cards | source | states cross | time | USD |"
    yield "|---|---|---|---|---|"
    for cards in (1, 8, 64):
        found = estimate(case.sizes, case.work, case.hardware(cards))
        for source in ("cache", "online", "rolling"):
            cost, reason = found.sources[source], why_not(case, cards, source)
            told = (
                reason
                or f"{crosses(case, source)} | {took(cost.cache_hours.mid + cost.train_hours.mid, cost.money.mid)}"
            )
            yield f"| {cards} | {source} | {told} |"
        engines, ranks = case.split(cards)
        if not engines:
            yield f"| {cards} | engine | — | no card is left to train on | |"
            continue
        hours = case.work.passes * case.work.captured.tokens.mid / case.together(engines, ranks) / 3600
        wire = "/dev/shm" if cards <= NODE else "a shared mount"
        told = f"{size(case.together(engines, ranks) * case.token_bytes)}/s through {wire}"
        money = hours * cards * presets.hardware(CARD).device_hour
        yield f"| {cards} | engine: {engines} beside {ranks} ranks | {told} | {took(hours, money)} |"


def why_not(case: Case, cards: int, source: str) -> str:
    if cards < case.cards:
        return "— | the target does not fit | "
    if case.cards > 1 and source in ("online", "rolling"):
        return "— | target and draft do not fit beside each other | "
    return ""


def crosses(case: Case, source: str) -> str:
    stored = estimate(case.sizes, case.work, case.hardware(1)).sources["cache"].stored.mid
    passes = case.work.passes
    return {
        "cache": f"{size(stored)} to the store, {size(stored * passes)} from it",
        "online": "nothing",
        "rolling": f"{size(case.work.captured.tokens.mid * case.token_bytes * passes)} over the host's disk",
    }[source]


def took(hours: float, money: float) -> str:
    return f"{duration(hours)} | {money:,.0f}"


def computed() -> str:
    return "\n".join([*rates(), "", *ways(FOUR), "", *ways(LARGE)])


def two_days(case: Case, engines: int, ranks: int) -> Simulated:
    told = [
        f"engines={engines}", f"ranks={ranks}", f"engine_rate={case.engine_rate}",
        f"trainer_rate={case.trainer_rate}", "checkpoint_every=10", *(["engine_start=600"] if case.cards > 1 else []),
    ]  # fmt: skip
    return simulated(scenario_of(case.plan, case.sizes, case.work, case.hardware(1), told))


def days() -> str:
    lines = [
        "| target | engines, ranks | failures of engines, of the trainer | ranks compute | wait for states "
        "| engines read | steps, done again | read for each token trained on | rows lost | engines for 95 % |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case, engines, ranks in ((FOUR, 1, 1), (FOUR, 1, 2), (LARGE, 1, 6)):
        found = two_days(case, engines, ranks)
        out = found.outcome
        lines.append(
            f"| {case.name} | {engines}, {ranks} | {out.engine_failures}, {out.trainer_failures} "
            f"| {out.trainers_busy:.1%} | {out.trainers_waited:.1%} | {out.engines_busy:.1%} "
            f"| {out.steps:,}, {out.steps_again:,} | {out.read_per_trained:.3f} | {out.rows_lost} "
            f"| {found.needed or '—'} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(days() if "--simulated" in sys.argv else computed())
