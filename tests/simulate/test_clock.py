"""Time that is made up passes at once, in the right order, and a standstill is an error."""

import asyncio
import time

import pytest

from deepspec.errors import SimulationError
from deepspec.simulate.clock import run


def test_a_day_passes_at_once_and_timers_fire_in_their_order() -> None:
    fired: list[tuple[float, str]] = []

    async def sleeper(seconds: float, name: str) -> None:
        await asyncio.sleep(seconds)
        fired.append((asyncio.get_running_loop().time(), name))

    async def day() -> float:
        await asyncio.gather(sleeper(86_400, "day"), sleeper(1.5, "first"), sleeper(3_600, "hour"))
        return asyncio.get_running_loop().time()

    begin = time.monotonic()
    assert run(day()) == 86_400
    assert time.monotonic() - begin < 3_600
    assert fired == [(1.5, "first"), (3_600, "hour"), (86_400, "day")]


def test_what_waits_for_what_cannot_come_is_an_error_and_no_endless_wait() -> None:
    async def stuck() -> None:
        await asyncio.sleep(7)
        await asyncio.get_running_loop().create_future()

    with pytest.raises(SimulationError, match=r"after 7\.0 simulated seconds nothing can happen"):
        run(stuck())
