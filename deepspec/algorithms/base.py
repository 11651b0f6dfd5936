"""The interface of a draft algorithm in training: what it supervises, and its loss."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

from torch import Tensor

from deepspec.errors import TrainingError
from deepspec.formats.recipe import Objective
from deepspec.losses.rows import Head, Rows
from deepspec.models.config import DraftConfig
from deepspec.records.batch import Batch, Tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class LossResult:
    """What one micro-batch adds to a step."""

    loss: Tensor
    """Scalar, already divided by the global denominators: call `.backward()` on it and sum gradients over ranks."""
    sums: dict[str, Tensor]
    """Detached sums, numerators and denominators alike: add them up over micro-batches and ranks."""
    held: bool = True
    """Whether the target's logits were computed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PassWork:
    """How much a forward pass computes; padding does not count."""

    context: int
    """Positions whose captured states are fused."""
    slots: int
    """Positions that pass through the draft's blocks."""
    pairs: int
    """Queries and keys that are held together."""
    rows: int
    """Supervised positions."""
    targets: int
    """Distinct target positions that they are held against."""

    def __add__(self, other: "PassWork") -> "PassWork":
        """Return the work of both."""
        return PassWork(
            **{each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(PassWork)}
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Drafted:
    """What a draft says in the slots of some rounds, where every slot before was kept: its rows, not yet logits."""

    rows: Rows
    """R slots, ordered by target position; their weights mean nothing."""
    head: Head
    tokens: Tensor
    """`(R,)` the true token of each slot, as the target numbers it."""
    labels: Tensor
    """`(R,)` the same, as the draft's head numbers it; where it is not known, any."""
    known: Tensor
    """`(R,)` bool: whether the draft can say that token."""
    places: Tensor
    """`(R,)` flat index into `(B, T, K)`: row, where its round begins, slot."""
    targets: Tensor
    """`(P,)` flat index into `(B, T)` of the distinct target positions."""
    choose: Callable[[Tensor, Tensor], Tensor] | None = None
    """Logits `(M, V)` of chosen rows `(M,)` -> those that the draft draws from; None: the same."""


class Algorithm(Protocol):
    """One draft algorithm; stateless."""

    def supervise(self, config: DraftConfig, objective: Objective, batch: Tokens, keys: Sequence[int]) -> Any:
        """Return what is supervised in rows of samples, in host memory.

        It is made of tensors that move to a device together (`records.on_device`), and of what the host is asked. Its
        `.denominators` (name -> tensor) sum over micro-batches and ranks; its `.work` is a `PassWork`.

        Args:
            config: the draft.
            objective: what is trained for.
            batch: the samples, in host memory.
            keys: one integer per sample, a function of (seed, epoch, sample id): seeds the choice of anchors.
        """

    def loss(
        self, model: Any, batch: Batch, supervision: Any, denominators: Mapping[str, Tensor], *, measure: bool = True
    ) -> LossResult:
        """Return the loss of a micro-batch, and sums for metrics.

        Args:
            model: the draft.
            batch: samples on the model's device, states in the model's dtype.
            supervision: of the same batch, on the model's device.
            denominators: `supervision.denominators`, summed over the *global* batch, on the model's device.
            measure: whether acceptance is wanted where the loss does not need the target's probabilities (dflash: they
                cost a tenth of a step; a draft of reduced vocabulary: more, counted against all that the target says).
        """

    def slots(self, config: DraftConfig) -> int:
        """Return K, the tokens that decoding proposes in a round."""

    def drafted(self, model: Any, batch: Batch, begins: Tensor, most: int) -> Iterator[Drafted]:
        """Yield what the draft says in the rounds that begin at chosen positions, some rounds at a time.

        Args:
            model: the draft.
            batch: samples on the model's device, states in the model's dtype.
            begins: `(B, T)` bool, there, too: positions of tokens, each with one before it in its sample.
            most: rounds of a row that are computed at once.
        """

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Return ratios from summed `LossResult.sums`: loss terms, acceptance rates, tau."""


def mean_pairs(seen: Tensor, windows: Sequence[int | None]) -> int:
    """Return the queries and keys that a layer holds together, a mean over layers.

    Args:
        seen: positions up to each query, its own among them.
        windows: of each layer; None: it sees all of them.
    """
    each = [int((seen if window is None else seen.clamp(max=window)).sum()) for window in windows]
    return sum(each) // len(each)


def check_tokens(config: DraftConfig, batch: Tokens) -> None:
    """Check that a draft can read the tokens: on a device an id out of range ends the process.

    Raises:
        TrainingError: one is beyond the vocabulary, or the mask token.
    """
    highest = int(batch.input_ids.max())
    if highest >= config.vocab_size or int(batch.input_ids.min()) < 0:
        raise TrainingError(
            f"a sample of {batch.sample_ids} contains the token {highest}, beyond a vocabulary of "
            f"{config.vocab_size}; see deepspec cache verify, and build the cache anew"
        )
    if config.mask_token_id is not None and bool(batch.input_ids.eq(config.mask_token_id).any()):
        raise TrainingError(
            f"a sample of {batch.sample_ids} contains the mask token {config.mask_token_id}; "
            "choose one that text never holds: train.mask_token_id"
        )
