"""Proof that an engine's states are the target's: against the engine's own next tokens, and against transformers.

    engine        the target's norm and head over the last state give the log-probabilities that the engine told:
                  catches another norm, other weights, states of other positions
    transformers  every layer is nearest to the same layer of the target in memory, and within a tolerance: catches
                  layers shifted by one, another scale, a layer of another model
    itself        where states come with answers: those made token by token are those of the same tokens read at once,
                  and the tokens are drawn from the distribution that they give (`drawn.py`)

The second is made where the target fits into memory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepspec.errors import EngineError
from deepspec.states.client import SampleStates
from deepspec.states.drawn import DEVIATIONS, Drawn, below_likeliest, drawn, together
from deepspec.states.target_end import TargetEnd
from deepspec.states.wanted import Wanted
from deepspec.target.load import Target

NATS: Mapping[str, float] = {"float32": 0.01, "bfloat16": 0.5, "float16": 0.1}
"""Dtype -> largest distance of a log-probability: logits of 32 to 64 are rounded by 0.25 in bf16."""
MEAN: Mapping[str, float] = {"float32": 1e-3, "bfloat16": 0.04, "float16": 0.01}
"""Dtype -> largest relative distance of a layer's states from transformers', as the mean over positions."""


_APART = "take answers and states in two requests (cache.while_answering=false)"


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Holds what engines give against the target.

    Args:
        wanted: what the states are to be.
        end: norm and head of the target.
        target: in memory; None: it does not fit.
    """

    wanted: Wanted
    end: TargetEnd
    target: Target | None

    def as_captured(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return what a capture has of an engine's states, `(T, layers, D)`.

        Returns:
            The wanted layers side by side, `(T, layers · D)`, and the states before the head, `(T, D)`.
        """
        normed = self.end.normed(states[:, -1])
        places = [self.wanted.place_of(layer) for layer in self.wanted.layers]
        hidden = torch.cat([normed if place is None else states[:, place] for place in places], dim=-1)
        return hidden, self.end.scaled(normed)

    def of_engine(self, given: SampleStates) -> None:
        """Hold the last state against what the engine said comes next.

        Raises:
            EngineError: they differ.
        """
        last = self.end.last(given.states[-1:, -1])[0]
        ours = self.end.log_probabilities(last)
        if max(given.tops) >= len(ours):
            raise EngineError(f"engine {given.label} tells of token {max(given.tops)}, the target has {len(ours)}")
        apart = max(abs(float(ours[token]) - told) for token, told in given.tops.items())
        most = NATS[self.wanted.dtype]
        if not apart <= most:
            raise EngineError(
                f"engine {given.label}: the target's norm and head over its last state give next tokens that are off "
                f"by {apart:.2g} nats from those that it tells itself, wanted {most:g} at most: its states are of "
                "other weights, or of another place; set cache.states=transformers, and report it"
            )

    def of_target(self, given: SampleStates, ids: Sequence[int]) -> None:
        """Hold every layer against the target in memory, where it is.

        Raises:
            EngineError: a layer is nearer to another one, or too far off.
        """
        if self.target is None:
            return
        layers = self.wanted.layers
        beside = sorted({near for layer in layers for near in (layer - 1, layer, layer + 1)} & self._there())
        hidden, last = self.target.capture(torch.tensor(ids)[None], beside)
        own = dict(zip(beside, hidden[0].cpu().chunk(len(beside), dim=1), strict=True))
        for layer in layers:
            self._near(given, layer, own)
        apart = _distance(self.end.last(given.states[:, -1]), last[0].cpu())
        self._check(apart, given.label, "the last state, normed,")

    def of_decoding(self, answered: SampleStates, read: Tensor) -> None:
        """Hold states that were made token by token against those of the same positions read at once.

        Args:
            answered: of the generated tokens, as they came with the answer.
            read: `(T, layers and the last, D)`, of the same engine.

        Raises:
            EngineError: they differ.
        """
        names = [*(f"layer {number - 1}" for number in self.wanted.ids[:-1]), "the state before the norm"]
        for place, name in enumerate(names):
            apart, most = _distance(answered.states[:, place], read[:, place]), MEAN[self.wanted.dtype]
            if not apart <= most:
                raise EngineError(
                    f"engine {answered.label}: {name}, as it makes it while it answers, is off by {apart:.2g} from "
                    f"what it makes of the same tokens read at once, wanted {most:g} at most; {_APART}"
                )

    def of_drawing(self, read: SampleStates, tokens: Sequence[int], temperature: float) -> Drawn:
        """Return what an answer's tokens tell of how they were drawn; greedy ones are held against the likeliest.

        Args:
            read: the states that each of them was drawn from, in order.
            tokens: of the answer, drawn from all of the distribution.
            temperature: at which.

        Raises:
            EngineError: temperature is 0, and one is not the likeliest.
        """
        last, chosen = self.end.last(read.states[: len(tokens), -1]), torch.tensor(tokens)
        chances = torch.stack([self.end.log_probabilities(each) for each in last])
        if temperature > 0:
            return drawn(chances, chosen, temperature)
        below, most = below_likeliest(chances, chosen), NATS[self.wanted.dtype]
        if not below <= most:
            raise EngineError(
                f"engine {read.label} answers at temperature 0 with a token {below:.2g} nats below the likeliest by "
                f"its own states, wanted {most:g} at most; {_APART}"
            )
        return Drawn(0.0, 0.0, len(tokens))

    def of_all_drawn(self, found: Sequence[Drawn], label: str) -> None:
        """Hold drawn answers together against chance.

        Raises:
            EngineError: chance does not explain them.
        """
        all_of_them = together(found)
        if abs(all_of_them.deviations) > DEVIATIONS:
            what = "unlikelier" if all_of_them.off > 0 else "likelier"
            raise EngineError(
                f"engine {label} does not draw answers from its own distribution while it gives states: its "
                f"{all_of_them.count} tokens are {what} than chance explains, by {abs(all_of_them.deviations):.0f} "
                f"standard deviations, wanted {DEVIATIONS:g} at most; set regenerate.sampling.temperature=0, or take "
                "answers from an engine that gives no states (cache.while_answering=false)"
            )

    def _there(self) -> set[int]:
        return set(range(-1, self.wanted.num_layers))

    def _near(self, given: SampleStates, layer: int, own: Mapping[int, Tensor]) -> None:
        place = self.wanted.place_of(layer)
        if place is None:  # made of the last state, which is held by itself
            return
        near = {other: _distance(given.states[:, place], own[other]) for other in own if abs(other - layer) <= 1}
        nearest = min(near, key=lambda other: near[other])
        if nearest != layer and near[nearest] < near[layer]:
            raise EngineError(
                f"engine {given.label}: what it gives as layer {layer} is nearer to layer {nearest} of the target "
                f"({near[nearest]:.2g} against {near[layer]:.2g}): it counts layers in another way than version "
                "0.32 of vLLM; set cache.states=transformers, and report it"
            )
        self._check(near[layer], given.label, f"layer {layer}")

    def _check(self, apart: float, label: str, what: str) -> None:
        most = MEAN[self.wanted.dtype]
        if not apart <= most:
            raise EngineError(
                f"engine {label}: {what} is off by {apart:.2g} from what transformers computes in {self.wanted.dtype}, "
                f"wanted {most:g} at most; set cache.states=transformers, and report it"
            )


def _distance(one: Tensor, other: Tensor) -> float:
    """Return the mean over positions of the relative distance, `(T, D)` both."""
    first, second = one.float(), other.float()
    return float(((first - second).norm(dim=-1) / second.norm(dim=-1).clamp_min(1e-12)).mean())
