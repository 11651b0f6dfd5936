"""Answers with their states, from one request: what is asked for, what comes with it, and the proof of an engine.

An engine gives the states of the prompt and of all that it generated but the last token, which it never read. They are
kept for the cache (`kept_answers`); an answer whose states do not come is an answer all the same.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

from deepspec.engines.client import Client
from deepspec.engines.failures import AskError
from deepspec.errors import EngineError
from deepspec.gathering.asked import proof_of
from deepspec.gathering.kept_answers import KeptAnswers, drop_kept
from deepspec.placement import Placement
from deepspec.report import Report
from deepspec.specs import TargetId
from deepspec.states.client import SampleStates, states_of, whole
from deepspec.states.drawn import Drawn
from deepspec.states.place import StatesPlace, place_in
from deepspec.states.staging import Staging
from deepspec.states.wanted import WhileAnswering
from deepspec.target.layers import check_layers, default_layers
from deepspec.target.load import load_fitting


class Answering:
    """States of answers, as far as they come with them. Use as a context manager.

    Args:
        spec: what is wanted of them.
        target: whose answers they are.
        placement: where it lies; scratch; bytes that may wait.
        answers: address of the answers.
        report: hears what came of it.
    """

    def __init__(
        self, spec: WhileAnswering, target: TargetId, placement: Placement, answers: str, report: Report
    ) -> None:
        """Read the target, by which engines are proven.

        Raises:
            TargetError: it is not where the placement says, or has no such layers.
        """
        loaded = load_fitting(target, placement, spec.dtype)
        layers = spec.layers or default_layers(loaded.num_layers)
        check_layers(layers, loaded.num_layers, last=True)
        self.proof = proof_of(spec, loaded, layers)
        self.wanted = self.proof.wanted
        drop_kept(placement.scratch, answers, but=self.wanted)
        self.kept = KeptAnswers(placement.scratch, answers, self.wanted, spec.keep_states)
        self.staging = Staging(placement.staging_limit)
        self.missed = Counter[str]()
        """Why answers have no states -> how many."""
        self._splits, self._report = spec.splits, report

    def keeps(self, split: str) -> bool:
        """Return whether the cache wants the states of a split."""
        return split in self._splits

    def request(self, label: str, *, whole: bool) -> "WithStates":
        """Return a request to an engine, for the states of all that it reads or of the prompt alone."""
        return WithStates(self, label, whole=whole)

    def told(self) -> str:
        """Return how many answers have states."""
        missed = ", ".join(f"{count} {why}" for why, count in sorted(self.missed.items()))
        again = f"; of {self.missed.total()} they are asked for again: {missed}" if missed else ""
        return f"states of {len(self.kept)} answers are kept for the cache{again}"

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Delete what engines wrote and nobody took."""
        self.staging.leave()
        self._report.log(self.told())


class WithStates:
    """One request for an answer with its states. Use as an async context manager: nothing is left of it after.

    Args:
        answering: what is wanted, and where it goes.
        label: of the engine.
        whole: whether states of generated tokens are wanted, too.
    """

    def __init__(self, answering: Answering, label: str, *, whole: bool) -> None:
        """Name the request."""
        self._answering, self._label = answering, label
        self._name = answering.staging.name()
        self._place: StatesPlace | None = None
        self._none = AskError("the engine has named no file", "engine")
        """Why there is no place."""
        self.fields: Mapping[str, Any] = {"request_id": self._name}
        """Of the request."""
        if whole:
            self.fields = {**self.fields, "kv_transfer_params": {"include_output_tokens": True}}

    def heard(self, reply: Mapping[str, Any]) -> None:
        """Note where the states are, by the reply.

        Raises:
            EngineError: it names no file, or none of this request.
        """
        try:
            self._place = place_in(reply, self._name, self._label)
        except AskError as error:  # the answer is there all the same
            self._none = error

    async def keep(self, row: str, ids: Sequence[int] | None) -> None:
        """Keep the states of a row's answers.

        Args:
            row: its id.
            ids: prompt and answer without its last token; None: nobody can tell them.

        Raises:
            EngineError: the states are of another model, or cannot be reached.
        """
        try:
            why = "without token ids" if ids is None else await self._kept(row, ids)
        except AskError as error:
            why = "of other tokens than the answer's" if error.fault == "odd" else "without a whole file"
        if why:
            self._answering.missed[why] += 1

    async def prove(self, client: Client, ids: Sequence[int], prompt: int, temperature: float) -> Drawn:
        """Hold the states that came against those of the same tokens read at once, and these against the target.

        Args:
            client: of the endpoint that answered.
            ids: prompt and answer without its last token.
            prompt: tokens of the prompt.
            temperature: at which the answer was drawn.

        Returns:
            What the answer tells of how it was drawn, if it was from all of the distribution.

        Raises:
            AskError: there are none.
            EngineError: they differ, or an answer at temperature 0 is not the likeliest.
        """
        if len(ids) == prompt:
            raise AskError("the engine ended an answer at its first token, though it was told to go on", "odd")
        wanted = self._answering.wanted
        states = await asyncio.to_thread((await self._whole()).states, ids, wanted, self._label)
        given = await states_of(client, ids, wanted, self._answering.staging, anew=True)
        answered = SampleStates(states=states[prompt:], tops={}, label=self._label)
        await asyncio.to_thread(self._answering.proof.of_decoding, answered, given.states[prompt:])
        await asyncio.to_thread(self._answering.proof.of_engine, given)
        await asyncio.to_thread(self._answering.proof.of_target, given, ids)
        before = SampleStates(states=given.states[prompt - 1 :], tops={}, label=self._label)
        return await asyncio.to_thread(self._answering.proof.of_drawing, before, ids[prompt:], temperature)

    async def __aenter__(self) -> Self:
        """Return self."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Delete the states; what may still come is left to the end of the run, or to the next one's sweep."""
        if error is not None and not isinstance(error, AskError | EngineError):
            return
        if self._place is None and isinstance(error, AskError) and error.fault == "late":
            return
        if self._place is not None:
            try:
                await self._place.whole(self._label)
            except AskError as late:
                if late.fault == "late":
                    return
            await asyncio.to_thread(self._place.delete, self._label)
        self._answering.staging.done(self._name)

    async def _whole(self) -> StatesPlace:
        """Return where the states lie, once all of them are there."""
        if self._place is None:
            raise self._none
        await whole(self._place, self._answering.staging, self._label)
        return self._place

    async def _kept(self, row: str, ids: Sequence[int]) -> str:
        """Keep the file; return why it is not, or nothing."""
        place, of = await self._whole(), (ids, self._answering.wanted, self._label)
        size = await asyncio.to_thread(place.check, *of)
        put = partial(self._answering.kept.put, row, size, lambda to: place.bring(to, *of))
        return "" if await asyncio.to_thread(put) else "without room"
