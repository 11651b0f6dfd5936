"""Rounds of fixed shapes, recorded for each number of rows and of positions that is met, when it is met again.

Prompts are read as ever, into memories that grow; what was read is moved into memories of fixed shapes, which stay for
as long as their decoder does.
"""

from typing import Any

import torch
from torch import Tensor

from deepspec.decoding.graphs import Recorder, Replayed
from deepspec.decoding.round import RoundWork
from deepspec.decoding.running import Running
from deepspec.decoding.target_rows import TargetRows
from deepspec.kv.fixed import rows_for, span_of
from deepspec.kv.rows import RowCache
from deepspec.proposers.propose import ProposerRows
from deepspec.rounds.decoded import Settings


class RecordedWork:
    """A round whose pieces are replayed, each by itself, so that each can be timed."""

    def __init__(self, work: RoundWork, recorder: Recorder) -> None:
        """Record nothing yet."""
        self._work = work
        self.propose = Replayed(work.propose, recorder)
        self.verify = Replayed(work.verify, recorder)
        self.choose = Replayed(work.choose, recorder)
        self.commit = Replayed(work.commit, recorder)

    @property
    def told(self) -> Tensor:
        """Return what the host has to know: see `RoundWork`."""
        return self._work.told

    @property
    def proposed(self) -> int:
        """Return how many slots were verified."""
        return self._work.proposed

    @property
    def own(self) -> Tensor:
        """Return the target's own token of each row, `(B,)`."""
        return self._work.own


class FixedRounds:
    """Rounds over memories of fixed shapes.

    Args:
        target: reads by rows.
        like: rows of the proposer.
        settings: how to decode.
        most: rows, and positions of the longest.
        recorder: of passes.
    """

    def __init__(
        self, target: TargetRows, like: ProposerRows, settings: Settings, most: tuple[int, int], recorder: Recorder
    ) -> None:
        """Take memory for so many rows and positions."""
        self._target, self._settings, self._recorder = target, settings, recorder
        self.rows, self._capacity = most
        self._memory, self._draft = target.fixed(*most), like.fixed(*most)
        self._current = torch.zeros(self.rows, dtype=torch.int64, device=target.device)
        self._noise: Tensor | None = None
        self._works: dict[tuple[int, int], RecordedWork] = {}

    def holds(self, rows: int, positions: int) -> bool:
        """Return whether there is room."""
        return rows <= self.rows and positions <= self._capacity

    def adopt(self, running: Running) -> Running:
        """Return the rows of a beginning, moved here; what was here before is forgotten."""
        if not isinstance(running.cache, RowCache):
            raise RuntimeError("only what a target remembers by rows has a fixed shape; ask TargetRows.passes before")
        self._memory.adopt(running.cache)
        self._draft.adopt(running.draft)
        return Running(
            rows=running.rows, cache=self._memory, draft=self._draft, noise=running.noise, current=running.current
        )

    def begin(self, running: Running, noise: Tensor | None, slots: int) -> RecordedWork:
        """Return the next round's work.

        Args:
            running: the rows.
            noise: `(B, 2·slots + 1)`; None at temperature 0.
            slots: tokens of a proposal.
        """
        count = len(running.rows)
        longest = max(row.length for row in running.rows)
        shape = rows_for(count, self.rows), min(span_of(longest + 2 * slots + 1), self._capacity)
        self._memory.shape(*shape)
        self._draft.shape(*shape)
        self._current[:count] = running.current
        self._take(noise)
        if shape not in self._works:
            self._works[shape] = self._work(shape[0])
        return self._works[shape]

    def _take(self, noise: Tensor | None) -> None:
        if noise is None:
            return
        if self._noise is None:
            self._noise = noise.new_zeros(self.rows, noise.shape[1])
        self._noise[: len(noise)] = noise

    def _work(self, rows: int) -> RecordedWork:
        noise = None if self._noise is None else self._noise[:rows]
        given: dict[str, Any] = {"memory": self._memory, "draft": self._draft, "current": self._current[:rows]}
        work = RoundWork(target=self._target, settings=self._settings, noise=noise, whole=True, **given)
        return RecordedWork(work, self._recorder)
