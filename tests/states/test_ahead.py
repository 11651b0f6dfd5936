"""What is read ahead comes in the reader's order, within its bytes, and both sides' waiting is counted."""

import random
from concurrent.futures import Future
from threading import Thread

import pytest

from deepspec.gathering.ahead import Ahead


class Makers:
    """Makes what it is told to, when it is told to."""

    def __init__(self, limit: int, size: int = 10) -> None:
        self.open: dict[int, Future[str]] = {}
        self.asked: list[int] = []
        self.now = 0.0
        self.queue: Ahead[str] = Ahead(self.ask, lambda number: size, limit, lambda: self.now)

    def ask(self, number: int) -> Future[str]:
        self.asked.append(number)
        self.open[number] = Future()
        return self.open[number]

    def make(self, number: int) -> None:
        self.open.pop(number).set_result(f"thing {number}")


def test_requests_run_ahead_in_the_readers_order_as_far_as_bytes_allow() -> None:
    makers = Makers(limit=35)
    makers.queue.expect([5, 3, 8, 1, 9])
    assert makers.asked == [5, 3, 8]
    makers.make(3)
    assert makers.asked == [5, 3, 8]  # made and not read: it still takes room
    makers.make(5)
    assert makers.queue.take(5) == "thing 5"
    assert makers.asked == [5, 3, 8, 1]
    assert makers.queue.level.ready == 10
    assert makers.queue.take(3) == "thing 3"
    assert makers.asked == [5, 3, 8, 1, 9]


def test_what_is_larger_than_the_room_is_asked_for_alone() -> None:
    makers = Makers(limit=35, size=100)
    makers.queue.expect([1, 2])
    assert makers.asked == [1]
    makers.make(1)
    makers.queue.take(1)
    assert makers.asked == [1, 2]


def test_what_is_read_before_its_turn_is_asked_for_at_once_and_only_once() -> None:
    makers = Makers(limit=10)
    makers.queue.expect([1, 2, 3])
    reader = Thread(target=makers.queue.take, args=(3,))
    reader.start()
    while 3 not in makers.open:
        pass
    makers.make(3)
    reader.join()
    for number in (1, 2):
        makers.make(number)
        makers.queue.take(number)
    assert makers.asked == [1, 3, 2]


def test_a_number_that_is_expected_twice_is_made_twice() -> None:
    makers = Makers(limit=100)
    makers.queue.expect([7, 7])
    assert makers.asked == [7, 7]


def test_the_time_in_which_makers_have_no_room_is_counted_and_none_besides() -> None:
    makers = Makers(limit=10)
    makers.queue.expect([1, 2])
    makers.now = 5.0
    assert makers.queue.level.makers_waited == 0.0  # one is being made
    makers.make(1)
    makers.now = 7.5
    assert makers.queue.level.makers_waited == 2.5
    makers.queue.take(1)
    makers.now = 100.0
    assert makers.queue.level.makers_waited == 2.5
    makers.make(2)
    makers.now = 200.0
    assert makers.queue.level.makers_waited == 2.5  # nothing is expected: nobody waits for room


def test_an_error_reaches_who_reads_that_number_and_gives_its_room_back() -> None:
    makers = Makers(limit=10)
    makers.queue.expect([1, 2])
    makers.open.pop(1).set_exception(ValueError("lost"))
    with pytest.raises(ValueError, match="lost"):
        makers.queue.take(1)
    assert makers.asked == [1, 2]


@pytest.mark.parametrize("seed", range(5))
def test_whatever_the_makers_do_the_reader_reads_its_own_order(seed: int) -> None:
    rng, makers = random.Random(seed), Makers(limit=70)
    order = [rng.randrange(1000) for _ in range(200)]
    order = list(dict.fromkeys(order))
    makers.queue.expect(order)
    read = []
    for number in order:
        while number in makers.open:
            makers.make(rng.choice(list(makers.open)))
        read.append(makers.queue.take(number))
    assert read == [f"thing {number}" for number in order]
    assert makers.asked == order
