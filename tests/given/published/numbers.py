"""Scores, levels of load and rows of sweeps, put together by hand."""

from pathlib import Path
from typing import Any

from deepspec.artifacts import Artifact, open_artifact
from deepspec.formats.levels import Accepted, Level, Percentiles, Side
from deepspec.formats.numbers import Interval
from deepspec.formats.scores import SCORES, Scores, trace_row
from deepspec.formats.serve_options import ServeOptions
from deepspec.formats.served import BreakEven, UnderLoad
from deepspec.lines.rows import write_rows
from deepspec.publish import Out
from deepspec.rounds.decoded import Decoded, Round
from deepspec.serving.proposals import best_for_all, proposals
from deepspec.specs import Spec
from deepspec.store import Store
from deepspec.sweep.board import Cost, Entrant, Trial


def scores(root: Path, address: str, lengths: dict[str, int]) -> Artifact:
    """Publish scores of samples that accept the given number of tokens in each of three rounds."""
    out = Out(Store(root / "store"), "scores", address * 32, {}, root / "scratch")
    told = Scores(
        algorithm="dspark",
        draft=address,
        target="t",
        slots=4,
        overall={},
        benchmarks=(),
        slices=(),
        untrained=None,
        lossless=None,
        calibration=(),
    )
    out.file(SCORES).write_text(told.model_dump_json())
    rows = [
        trace_row(
            Decoded(
                sample_id=name,
                prompt_tokens=1,
                tokens=(1,) * 9,
                finish_reason="length",
                rounds=(Round(room=50, proposed=4, accepted=length, stopped=False),) * 3,
            ),
            role="benchmark",
            benchmark=name.split("/")[0],
            temperature=0.0,
        )
        for name, length in lengths.items()
    ]
    write_rows(out.file("traces-00000.jsonl.zst"), rows)
    return open_artifact(out.store, out.publish(Spec(), 1, {}), root / "scratch")


def entrant(
    name: str, *lengths: float, cost: float | None = None, spread: float = 1.0, pace: float | None = 0.5
) -> Entrant:
    """Return a row that was trained from the seeds 0, 1, …, with these accepted lengths."""
    trials = tuple(
        Trial(seed=seed, draft=f"{name}{seed}", steps=100, step_cpu_seconds=pace, accepted_length=length)
        for seed, length in enumerate(lengths)
    )
    timed = None if cost is None else Cost(value=cost, spread=spread)
    return Entrant(name=name, trials=trials, cost=timed)


def exact(value: float) -> Interval:
    return Interval(value=value, low=value, high=value)


def side(speed: float) -> Side:
    none = Percentiles(p50=0, p95=0, p99=0)
    return Side(
        requests=1, tokens=1, tokens_per_second=exact(speed), first_token=none, between_tokens=none, latency=none,
        cached_tokens=0, client_share=0.0,
    )  # fmt: skip


def level(
    load: int, drafting: float, plain: float, per_round: float = 1.5, positions: tuple[float, ...] = (0.5,)
) -> Level:
    accepted = Accepted(rounds=9, drafted=9, accepted=9, tokens_per_round=exact(per_round), by_position=positions)
    gain = exact(drafting / plain)
    return Level(kind="closed", load=load, drafting=side(drafting), plain=side(plain), accepted=accepted, speedup=gain)


def loaded(**changes: Any) -> UnderLoad:
    levels = (level(1, drafting=15, plain=10), level(8, drafting=7.5, plain=10))
    told = {"engine": "llama.cpp b1", "plain_engine": "llama.cpp b1", "hardware": "two cores", "started": True}
    return UnderLoad(
        **{
            **told, "slots": 1, "options": ServeOptions(loads=(1, 8)), "levels": levels,
            "break_even": (BreakEven(value=4.0, low=3.0, high=None),), "proposals": proposals(levels, (), 1),
            "best": best_for_all(levels, (), 1), **changes,
        }
    )  # fmt: skip


def interval(value: float) -> Interval:
    return Interval(value=value, low=value - 0.1, high=value + 0.1)
