"""States of many samples from engines, asked beside the caller: in a thread with an event loop, under the dispatcher.

Where states came with the answers, these are taken, and engines are asked, and proven, only for what is missing.

What is asked for, and not in a part yet, is limited in bytes; who asks first is served first, so that parts take their
samples in order and nothing waits for what cannot come.
"""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import xxhash
from torch import Tensor
from torch.nn.functional import pad

from deepspec.engines.concurrency import LARGEST
from deepspec.engines.patience import longest_wait
from deepspec.errors import EngineError
from deepspec.gathering.asking import PROBE_TOKENS, Asking, Gives
from deepspec.gathering.kept_answers import KeptAnswers
from deepspec.passes.samples import Item
from deepspec.placement import Placement
from deepspec.report import Report
from deepspec.states.client import SampleStates, StatesClient
from deepspec.states.proof import Proof
from deepspec.states.staging import Staging

PROVEN_OF = 16
"""One of so many samples is proven against the engine's own next tokens, chosen by its id."""
_ENCODERS = 8

Made = TypeVar("Made")
Make = Callable[[Item, Tensor, Tensor], Made]
"""`make(item, hidden, last)`: of a sample, `(T, A·D)` and `(T, D)`, as a capture gives them."""


class EngineStates:
    """Engines that are asked for states. Use as a context manager.

    Args:
        proof: what is wanted, and how it is proven.
        placement: endpoints, and the bytes that may wait.
        probes: token ids by which each engine is proven before the first sample.
        report: hears which engines there are.
    """

    def __init__(self, proof: Proof, placement: Placement, probes: Sequence[Sequence[int]], report: Report) -> None:
        """Ask nothing yet."""
        self._proof, self._wanted, self._endpoints = proof, proof.wanted, placement.endpoints
        self._patience = longest_wait(placement.endpoints, placement.patience)
        self._scratch = placement.scratch
        self._probes = [list(ids)[:PROBE_TOKENS] for ids in probes]
        self._report = report
        self._staging = Staging(placement.staging_limit)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine states", daemon=True)
        self._pool = ThreadPoolExecutor(min(_ENCODERS, max(1, (os.cpu_count() or 1) - 2)), "engine states")
        self._turn = threading.Lock()
        """A capture records what passes through the target in memory: one at a time."""
        self._asking: Asking[Sequence[int], SampleStates] | None = None
        self._refused: EngineError | None = None
        self._beginning = asyncio.Lock()
        self._kept: KeptAnswers | None = None
        self._from_kept: dict[str, str] = {}
        """Sample whose states came with its row's answers -> that row."""
        self.asked = self.taken = 0
        """Samples that engines were asked for, and those whose states came with the answers."""

    def look_first(self, answers: str) -> None:
        """Take what came with the answers of an address, and ask engines for what did not.

        Of each sample's last token there are no states then: zeros stand for them, wherever the others are from.
        """
        self._kept = KeptAnswers(self._scratch, answers, self._wanted)

    @property
    def depth(self) -> int:
        """Return how many samples may be asked for ahead: as many as all engines could take, and some."""
        return 2 * LARGEST * max(1, len(self._endpoints))

    def take(self, item: Item, make: Make[Made], *, against_target: bool = False) -> Future[Made]:
        """Return what is made of a sample's states, once an engine has given them.

        Args:
            item: the sample.
            make: called in a thread.
            against_target: whether they are held against the target in memory, too.
        """
        self._staging.check_fits(self._wanted.bytes_of(item.length), f"sample {item.sample.sample_id}")
        return asyncio.run_coroutine_threadsafe(self._taken(item, make, against_target), self._loop)

    def written(self, item: Item) -> None:
        """Note that a sample is in its part: there is room for others."""
        self._loop.call_soon_threadsafe(self._staging.free, self._wanted.bytes_of(item.length))

    def committed(self, items: Sequence[Item]) -> None:
        """Note that the part of samples is committed: what was kept of them is deleted."""
        for item in items:
            row = self._from_kept.pop(item.sample.sample_id, None)
            if row is not None and self._kept is not None:
                self._kept.drop(row)

    def told(self) -> str:
        """Return where the states came from, where some may have come with the answers; else nothing."""
        if self._kept is None:
            return ""
        damaged = f", {self._kept.damaged} kept files were damaged" if self._kept.damaged else ""
        return f"states of {self.taken} samples came with the answers, {self.asked} were asked for{damaged}"

    def __enter__(self) -> Self:
        """Prove every engine that answers, and return self; where states came with the answers, when one is needed.

        Raises:
            EngineError: there are no endpoints, none answers, or one gives what is not wanted.
        """
        self._thread.start()
        try:
            if self._kept is None:
                self._run(self._begin())
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give up what was asked and not taken; delete what engines wrote of it."""
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._pool.shutdown()
        self._loop.close()
        self._staging.leave()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _proven(self) -> Asking[Sequence[int], SampleStates]:
        """Return the engines, proven before the first question."""
        async with self._beginning:
            if self._refused is not None:
                raise self._refused
            if self._asking is None:
                try:
                    await self._begin()
                except EngineError as error:
                    self._refused = error
                    raise
            return cast(Asking[Sequence[int], SampleStates], self._asking)

    async def _begin(self) -> None:
        if not self._endpoints:
            raise EngineError(
                "states are wanted of an engine and there is no engine to ask; give --endpoint URL of one that was "
                "started with what `deepspec engine-args` prints, or let the run start one (cache.states=vllm)"
            )
        engines = [StatesClient(endpoint, self._wanted, self._staging) for endpoint in self._endpoints]
        self._asking = Asking(engines, self._check, self._staging, patience=self._patience)
        down = await self._asking.begin()
        if down:
            told = "; ".join(f"{label}: {error}" for label, error in down)
            self._report.log(f"engines that give no states ({told}); they are asked as soon as they do")
        by = "itself and transformers" if self._proof.target else "itself; the target does not fit into memory here"
        self._report.log(
            f"states from {len(engines) - len(down)} engines: vllm {self._wanted.engine_version}, "
            f"{self._wanted.dtype}; proven against {by}"
        )

    async def _check(self, engine: Gives[Sequence[int], SampleStates]) -> None:
        """Prove an engine by a few prompts.

        Raises:
            AskError: it gives no states.
            EngineError: they are not what is wanted.
        """
        for ids in self._probes:
            given = await engine.ask(ids)
            await self._loop.run_in_executor(self._pool, self._prove, given, ids, True)

    def _prove(self, given: SampleStates, ids: Sequence[int], against_target: bool) -> None:
        if given.tops:  # with answers no engine is asked for them
            self._proof.of_engine(given)
        if against_target:
            with self._turn:
                self._proof.of_target(given, ids[: given.tokens])

    async def _taken(self, item: Item, make: Make[Made], against_target: bool) -> Made:
        given = await self._given(item)
        return await self._loop.run_in_executor(self._pool, self._made, item, given, make, against_target)

    async def _given(self, item: Item) -> SampleStates:
        size, ids = self._wanted.bytes_of(item.length), item.sample.input_ids
        what = f"sample {item.sample.sample_id} ({item.length} tokens)"
        if self._kept is None:
            return await (await self._proven()).given(ids, what, size)
        await self._staging.take(size)
        kept = await self._loop.run_in_executor(self._pool, self._kept.get, item.row, ids[:-1])
        if kept is not None:
            self._from_kept[item.sample.sample_id] = item.row
            self.taken += 1
            return SampleStates(states=kept, tops={}, label=f"with the answers of row {item.row}")
        proven = await self._proven()
        self.asked += 1
        return await proven.given(ids, what)

    def _made(self, item: Item, given: SampleStates, make: Make[Made], against_target: bool) -> Made:
        if against_target or xxhash.xxh3_64_intdigest(item.sample.sample_id.encode()) % PROVEN_OF == 0:
            self._prove(given, item.sample.input_ids, against_target)
        hidden, last = self._proof.as_captured(given.states)
        if self._kept is not None:
            hidden, last = (pad(each[: item.length - 1], (0, 0, 0, 1)) for each in (hidden, last))
        return make(item, hidden, last)

    async def _end(self) -> None:
        if self._asking is not None:
            await self._asking.end()
        own = asyncio.all_tasks() - {asyncio.current_task()}
        for task in own:
            task.cancel()
        await asyncio.gather(*own, return_exceptions=True)
