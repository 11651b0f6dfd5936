"""The limit of an endpoint, against engines whose best concurrency is known."""

import heapq

from deepspec.engines.concurrency import HOLD_WINDOWS, START, WINDOW_ANSWERS, Concurrency


def serve(limit: Concurrency, slots: int, seconds: float, until: float, start: float = 0.0) -> int:
    """Keep an engine of `slots` as busy as the limit allows; return how many requests it answered."""
    now, answered = start, 0
    free = [start] * slots  # when each slot is free
    under_way: list[tuple[float, float]] = []
    while now < until:
        while len(under_way) < limit.limit:
            begin = max(now, heapq.heappop(free))
            heapq.heappush(free, begin + seconds)
            heapq.heappush(under_way, (begin + seconds, now))
        now, asked = heapq.heappop(under_way)
        answered += 1
        limit.answered(now, asked, 10, full=True)
    return answered


def test_the_limit_grows_to_what_the_engine_can_use_and_not_far_beyond() -> None:
    limit = Concurrency(0.0)
    serve(limit, slots=64, seconds=0.5, until=60.0)
    assert 64 <= limit.limit <= 64 * 2 * 1.1
    assert serve(limit, slots=64, seconds=0.5, until=90.0, start=60.0) >= 0.95 * 64 / 0.5 * 30


def test_an_engine_with_one_slot_keeps_a_small_queue() -> None:
    limit = Concurrency(0.0)
    serve(limit, slots=1, seconds=0.1, until=60.0)
    assert limit.limit <= START * 2


def test_a_limit_that_is_far_too_high_comes_down() -> None:
    limit = Concurrency(0.0, start=512)
    serve(limit, slots=16, seconds=0.1, until=3000.0)
    assert 16 <= limit.limit <= 128


def test_a_refusal_halves_the_limit_once_for_all_requests_under_way() -> None:
    limit = Concurrency(0.0, start=32)
    limit.overloaded(now=10.0, asked=9.0)
    limit.overloaded(now=10.1, asked=9.5)  # was under way when the first was refused
    assert limit.limit == 16
    limit.overloaded(now=12.0, asked=11.0)
    assert limit.limit == 8


def test_the_limit_never_falls_below_one() -> None:
    limit = Concurrency(0.0, start=1)
    limit.overloaded(now=1.0, asked=0.5)
    assert limit.limit == 1


def test_after_a_refusal_it_waits_before_it_grows() -> None:
    limit = Concurrency(0.0, start=8)
    limit.overloaded(now=0.0, asked=-1.0)
    answers = 0
    while limit.limit == 4:
        answers += 1
        limit.answered(now=answers, asked=answers - 0.5, tokens=10, full=True)
    assert answers == HOLD_WINDOWS * (4 + WINDOW_ANSWERS)  # four settle it, sixteen are measured


def test_an_endpoint_that_was_not_full_keeps_its_limit() -> None:
    limit = Concurrency(0.0)
    for number in range(100):
        limit.answered(number / 10, number / 10, 10, full=False)
    assert limit.limit == START


def test_an_endpoint_that_came_back_begins_with_one_request() -> None:
    limit = Concurrency(0.0, start=64)
    limit.restart(5.0)
    assert limit.limit == 1
    serve(limit, slots=16, seconds=0.1, until=30.0, start=5.0)
    assert limit.limit >= 16
