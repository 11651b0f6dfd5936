"""Batched speculative decoding: propose, verify, commit, until every sample has stopped or is long enough.

Rows are independent: each has its own length, its own random numbers, and accepts what it accepts. A finished row's
place goes to the next prompt. Plain decoding is the same loop with a proposer that proposes nothing.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from deepspec.decoding.clock import Stopwatch
from deepspec.decoding.fitting import USUAL
from deepspec.decoding.graphs import Recorder
from deepspec.decoding.recorded import FixedRounds, RecordedWork
from deepspec.decoding.round import RoundWork, read_told
from deepspec.decoding.running import Running, RunningSequence
from deepspec.decoding.target_rows import Passes, TargetRows
from deepspec.kv.fixed import span_of
from deepspec.proposers.propose import Proposer
from deepspec.proposers.sampling import Noise, pick, probabilities
from deepspec.rounds.decoded import Decoded, Prompt, Settings


class Decoder:
    """Continues prompts with a target and a proposer.

    `clock` counts the seconds of prefill, draft, verify and sample, `passes` the target's forward passes but prefill.
    On CUDA the parts are told apart only by a clock that waits: `time_parts`.

    Args:
        target: captures the layers that the proposer reads.
        proposer: the draft's, or `NoProposer()`.
        settings: how to decode.
        stop_ids: tokens that end a sample.
        batch: samples decoded together, at most; None: as many as memory holds.
        passes: how the passes of rounds are started; None: recorded on a card, where the target can be.
    """

    def __init__(
        self,
        target: TargetRows,
        proposer: Proposer,
        settings: Settings,
        stop_ids: frozenset[int],
        batch: int | None = USUAL,
        passes: Passes | None = None,
    ) -> None:
        """Keep the parts."""
        self._target = target
        self._proposer = proposer
        self._settings = settings
        self._stop_ids = stop_ids
        self._batch = batch
        self._passes = target.passes if passes is None else passes
        self._recorder = Recorder(self._passes == "recorded", target.say, target.device)
        self._fixed: FixedRounds | None = None
        self.clock = Stopwatch(target.device)
        self.passes = 0

    def time_parts(self) -> None:
        """Let the clock wait for the device after each part, at a cost: the parts' seconds are their own then."""
        self.clock = Stopwatch(self._target.device, waits=True)

    def decode(self, prompts: Sequence[Prompt]) -> Iterator[Decoded]:
        """Yield each sample as it finishes: in which order depends on the batch, with what result does not."""
        waiting = deque(prompts)
        if not waiting:
            return
        read = max(len(prompt.ids) for prompt in prompts)
        longest = read + self._settings.max_new_tokens
        batch = self._batch or self._fitting(longest, read)
        running = self._begin(_take(waiting, batch), longest, batch)
        while running.rows:
            ended = list(running.ended())
            yield from [running.rows[place].result() for place in ended]
            self._refill(running, ended, waiting)
            if running.rows and not any(row.finish_reason for row in running.rows):  # a first token may be the last
                self._round(running)

    def _fitting(self, longest: int, read: int) -> int:
        """Return how many rows memory holds: those that it holds by now, where they are long enough."""
        if self._fixed is not None and self._fixed.holds(1, self._positions(longest)):
            return self._fixed.rows
        self._fixed = None  # given back, else what it takes were missing
        return self._target.fitting(self._proposer, longest, read)

    def _positions(self, longest: int) -> int:
        """Return the positions of a row of fixed shape whose sample grows so long."""
        return span_of(longest + 2 * self._proposer.slots + 1)

    @torch.inference_mode()
    def _begin(self, prompts: Sequence[Prompt], longest: int, batch: int) -> Running:
        """Read the first prompts into rows that have room for the longest answer."""
        if self._passes == "growing":
            return self._start(prompts, longest)
        running = self._start(prompts, max(len(prompt.ids) for prompt in prompts))
        most = batch, self._positions(longest)
        if self._fixed is None or not self._fixed.holds(*most):
            self._fixed = None  # first its memory is given back
            self._fixed = FixedRounds(self._target, running.draft, self._settings, most, self._recorder)
        return self._fixed.adopt(running)

    @torch.inference_mode()
    def _start(self, prompts: Sequence[Prompt], length: int) -> Running:
        """Read prompts into rows that have room for a length, and choose each one's first token."""
        capacity = length + self._proposer.slots + 1
        cache = self._target.memory(len(prompts), capacity)
        draft = self._proposer.rows(len(prompts), capacity, self._target.device)
        noise = Noise(self._settings.seed, [prompt.sample_id for prompt in prompts])
        with self.clock.time("prefill"):
            states, logits = self._target.prefill([prompt.ids for prompt in prompts], cache)
            first = self._first(logits, noise)
            own = first.tolist()
            draft.commit(states, _tokens_read(prompts, own).to(first.device), cache.lengths)
        limit = self._settings.max_new_tokens
        rows = [RunningSequence(prompt=prompt, limit=limit, stop_ids=self._stop_ids) for prompt in prompts]
        for row, token in zip(rows, own, strict=True):
            row.extend([token])
        return Running(rows=rows, cache=cache, draft=draft, noise=noise, current=first)

    def _first(self, logits: Tensor, noise: Noise) -> Tensor:
        if self._settings.temperature == 0:
            return logits.argmax(-1)
        return pick(probabilities(logits, self._settings.temperature), noise.draw(1, logits.device)[:, 0])

    @torch.inference_mode()
    def _refill(self, running: Running, ended: Sequence[int], waiting: deque[Prompt]) -> None:
        """Give ended rows to waiting prompts, and drop those for which there is none."""
        prompts = _take(waiting, len(ended))
        if prompts:
            longest = max(len(prompt.ids) for prompt in prompts)
            running.replace(ended[: len(prompts)], self._start(prompts, longest))
        dropped = set(ended[len(prompts) :])
        if dropped:
            running.keep([place for place in range(len(running.rows)) if place not in dropped])

    @torch.inference_mode()
    def _round(self, running: Running) -> None:
        """Propose, verify, and commit what was accepted."""
        slots, count = self._proposer.slots, len(running.rows)
        noise = None if not self._settings.temperature else running.noise.draw(2 * slots + 1, self._target.device)
        work = self._work(running, noise)
        with self.clock.time("draft"):
            work.propose()
        with self.clock.time("verify"):
            work.verify()
        self.passes += 1
        with self.clock.time("sample"):
            work.choose()
        if self._fixed is not None and slots:
            with self.clock.time("draft"):
                work.commit()  # started before the host waits for what the round has told
        with self.clock.time("sample"):
            width = work.proposed
            running.record([read_told(row, width) for row in work.told.tolist()[:count]], work.own[:count])
        if self._fixed is None and any(row.finish_reason is None for row in running.rows):
            with self.clock.time("draft"):
                work.commit()

    def _work(self, running: Running, noise: Tensor | None) -> RoundWork | RecordedWork:
        if self._fixed is not None:
            return self._fixed.begin(running, noise, self._proposer.slots)
        given: dict[str, Any] = {"memory": running.cache, "draft": running.draft, "current": running.current}
        return RoundWork(target=self._target, settings=self._settings, noise=noise, whole=False, **given)


def _take(waiting: deque[Prompt], count: int) -> list[Prompt]:
    return [waiting.popleft() for _ in range(min(count, len(waiting)))]


def _tokens_read(prompts: Sequence[Prompt], first: Sequence[int]) -> Tensor:
    """Return the tokens of the prompts, and the first one behind each, `(B, T + 1)`, in host memory."""
    tokens = torch.zeros(len(prompts), 1 + max(len(prompt.ids) for prompt in prompts), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt.ids)] = torch.tensor(prompt.ids)
        tokens[row, len(prompt.ids)] = first[row]
    return tokens
