"""Where a block draft starts: at the best linear guess from the states just before a slot.

What the target says after a token follows, for the most part, from that token and from the target's state one position
earlier. The Markov head starts with the first (bigrams.py); the second must come through attention, and to learn to
look one position back takes a draft thousands of samples. So the first block begins with heads that do: all keys point
one way and the queries of head j another, turned so that rope brings them together j positions back, whatever is
written there. What these heads carry (V) and make of it (O) is a ridge regression, of as high a rank as they allow, on
what the Markov head leaves to be said. All other branches start at zero. Measured in docs/log.md.

Legend: N positions, D hidden size, d head size, R directions that the heads carry.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from deepspec.models.block import Block
from deepspec.models.draft import BlockDraft, EagleDraft
from deepspec.records.batch import Record, supervises
from deepspec.records.stream import Samples, read_record
from deepspec.start.beginning import FITTED_POSITIONS
from deepspec.start.bigrams import Bigrams

ENOUGH = 4
"""Least positions for each size of a state."""
RIDGE = 0.03
"""Share by which the variance of each input is overstated."""
SHARPNESS = 40.0
"""Largest score of a head before softmax, at the position that it looks at."""
PAIRS = 6
"""Pairs of a head's sizes, the fastest that rope turns, by which positions are told apart."""
LOUDNESS = 30.0
"""Size of the guess against the embedding, which lies beside it in the residual stream."""
STEADINESS = 2.0
"""Size of a constant against the guess: beside it the final norm leaves the guess its length, how sure it is."""

STEADY = 0.95
"""Share of tokens and of states that must have a direction in common, for heads that look whatever is written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedAnchors:
    """Anchors of some samples, what lies before them and what is to be said behind them."""

    tokens: Tensor
    """All tokens of the samples, each once, and the mask token."""
    before: tuple[Tensor, ...]
    """`(N, D)` the context 1, 2, … positions before the anchor."""
    left: tuple[Tensor, ...]
    """`(N, D)` the target's last states at slot 0, 1, …, less what the Markov head says of them."""


class Anchors:
    """Gathers what a first block is fitted to, until it has enough; whoever reads samples may give them.

    Args:
        model: the fresh draft.
    """

    def __init__(self, model: BlockDraft) -> None:
        """Have nothing yet."""
        shape = model.config.block
        self._model, self._reach = model, min(shape.num_heads // shape.num_kv_heads, model.config.drafts)
        none_ND, none_N = torch.empty(0, shape.hidden_size), torch.empty(0, dtype=torch.int64)
        self._before, self._said, self._ids = (
            [[none] for _ in range(self._reach)] for none in (none_ND, none_ND, none_N)
        )
        self._tokens, self._count, self._given = [torch.tensor([model.config.mask_token_id or 0])], 0, 0

    @property
    def reach(self) -> int:
        """Return how many positions back the heads look, one each."""
        return self._reach

    @torch.no_grad()
    def add(self, record: Record) -> None:
        """Take what a sample has; nothing once there is enough."""
        self._given += 1
        anchors_N = self._places(record.input_ids, record.loss_mask)
        if self._count >= FITTED_POSITIONS or len(record.input_ids) <= self._reach:
            return
        context_TD, rows = self._model.context(record.hidden.float()), supervises(record.loss_mask).cumsum(0) - 1
        for place in range(self._reach):
            self._before[place].append(context_TD[anchors_N - 1 - place])
            self._said[place].append(record.last_hidden[rows[anchors_N + place]].float())
            self._ids[place].append(record.input_ids[anchors_N + place])
        self._tokens.append(record.input_ids)
        self._count += len(anchors_N)

    def read(self, samples: Samples) -> None:
        """Read on behind the samples that were given, until there is enough; no more are asked for."""
        wanted, count = list[int](), self._count
        for number in list(samples.order(0))[self._given :]:
            if count >= FITTED_POSITIONS:
                break
            wanted.append(number)
            count += len(self._places(*samples.tokens(number)))
        samples.ahead(wanted)
        for number in wanted:
            self.add(read_record(samples, number))

    def less(self, bigrams: Bigrams | None) -> FittedAnchors:
        """Return them all, less what the Markov head says; None: it says nothing yet."""
        means_VD = torch.zeros(self._model.config.vocab_size, self._model.config.block.hidden_size)
        if bigrams is not None:
            means_VD += bigrams.mean_D
            means_VD[bigrams.tokens] = bigrams.means_SD
        said = zip(self._said, self._ids, strict=True)
        return FittedAnchors(
            tokens=torch.unique(torch.cat(self._tokens)),
            before=tuple(map(torch.cat, self._before)),
            left=tuple(torch.cat(states).sub_(means_VD[torch.cat(ids)]) for states, ids in said),
        )

    def _places(self, input_ids: Tensor, loss_mask: Tensor) -> Tensor:
        """Return the anchors that are said with all slots behind them, and have a position for each head before."""
        if len(input_ids) <= self._reach:
            return input_ids[:0]
        said = loss_mask.unfold(0, self._reach + 1, 1).all(1).nonzero()[:, 0]
        return said[said >= self._reach]


def anchors_for(model: BlockDraft | EagleDraft) -> Anchors | None:
    """Return what gathers anchors for a draft; None where its blocks have a form that cannot be fitted."""
    shape = model.config.block
    if shape.tied_kv or shape.v_norm or shape.sandwich_norms or not isinstance(model, BlockDraft):
        return None
    return Anchors(model) if isinstance(model.layers[0], Block) else None


def fit_first_block(
    model: BlockDraft | EagleDraft, samples: Samples, bigrams: Bigrams | None, anchors: Anchors | None = None
) -> str | None:
    """Let a fresh block draft start from the linear guess, and return why it cannot: it stays as it is then.

    Args:
        model: fresh, in fp32, on the CPU, with the target's head.
        samples: of the training split.
        bigrams: what the Markov head starts from; None: it says nothing yet.
        anchors: of the model, given the first samples of the first epoch; None: nothing was read yet.
    """
    first, shape, anchors = model.layers[0], model.config.block, anchors or anchors_for(model)
    if anchors is None or not isinstance(model, BlockDraft) or not isinstance(first, Block):
        return "its blocks have another form"
    with torch.no_grad():
        anchors.read(samples)
        seen = anchors.less(bigrams)
        if len(seen.left[0]) < ENOUGH * shape.hidden_size:
            return f"{len(seen.left[0])} positions to learn from, wanted {ENOUGH * shape.hidden_size}"
        embedded_ND = first.input_layernorm(model.embed(seen.tokens))
        readable_ND = torch.cat([seen.before[0], embedded_ND])
        query_D, key_D = _constant(embedded_ND), _constant(readable_ND)
        steady = min(
            float((rows @ to > 0).float().mean()) for rows, to in ((embedded_ND, query_D), (readable_ND, key_D))
        )
        if steady < STEADY:
            return f"only {steady:.0%} of the states have a direction in common"
        _look_back(model, first, query_D, key_D, anchors.reach)
        carried_RD = _carried(seen, shape.num_kv_heads * shape.head_dim, key_D)
        _quieten(model)
        _say(model, first, seen, carried_RD)
    return None


def _constant(rows_ND: Tensor) -> Tensor:
    """Return w with w·x near 1 for every row x: by it a projection says the same whatever it reads."""
    return _ridge(rows_ND, torch.ones(len(rows_ND), 1))[:, 0]


def _ridge(inputs_ND: Tensor, wanted_NM: Tensor) -> Tensor:
    """Return the `(D, M)` by which inputs come closest to what is wanted."""
    gram_DD = inputs_ND.T @ inputs_ND
    gram_DD.diagonal().mul_(1 + RIDGE)
    solved: Tensor = torch.linalg.solve(gram_DD, inputs_ND.T @ wanted_NM)
    return solved


def _look_back(model: BlockDraft, block: Block, query_D: Tensor, key_D: Tensor, reach: int) -> None:
    """Let head j of every group look j + 1 positions back, whatever is written there; of blocks that are filled in, one
    more, since a slot stands where the token that it proposes will.
    """
    attention, shape = block.self_attn, model.config.block
    frequencies = model.rotary.frequencies
    gain = (SHARPNESS / (shape.attention_scale * shape.head_dim)) ** 0.5
    back = 1 + model.config.first_slot
    heads = torch.arange(shape.num_heads) % (shape.num_heads // shape.num_kv_heads) % reach
    turned_Hd = torch.stack([_direction(-(place + back) * frequencies, shape.head_dim) for place in heads])
    straight_Gd = _direction(0 * frequencies, shape.head_dim).expand(shape.num_kv_heads, -1)
    length = gain * shape.head_dim**0.5  # where queries and keys are normed, their weight says it
    attention.q_proj.weight.copy_(length * turned_Hd.flatten()[:, None] * query_D)
    attention.k_proj.weight.copy_(length * straight_Gd.flatten()[:, None] * key_D)
    if shape.qk_norm:
        for norm in (attention.q_norm, attention.k_norm):
            norm.get_parameter("weight").fill_(gain)


def _direction(angles: Tensor, size: int) -> Tensor:
    """Return a unit vector whose fastest pairs stand at angles; rope pairs sizes p and p + r/2."""
    pairs = min(PAIRS, len(angles))
    found = torch.zeros(size)
    found[:pairs] = angles[:pairs].cos()
    found[len(angles) : len(angles) + pairs] = angles[:pairs].sin()
    unit: Tensor = found / pairs**0.5
    return unit


def _carried(seen: FittedAnchors, rank: int, key_D: Tensor) -> Tensor:
    """Return what the heads carry of a state, `(R, D)`: what says most about the first slot, and a constant."""
    context_ND, wanted_ND = seen.before[0], seen.left[0]
    weight_DD = _ridge(context_ND, wanted_ND - wanted_ND.mean(0))
    said_ND = context_ND @ weight_DD
    _, directions_DD = torch.linalg.eigh((said_ND.T @ said_ND).double())  # ascending
    carried_RD = (weight_DD @ directions_DD.flip(1)[:, : rank - 1].float()).T
    carried_RD /= carried_RD.norm(dim=1).mean()
    return torch.cat([carried_RD, key_D[None] / key_D.norm()])


def _quieten(model: BlockDraft) -> None:
    """Let all branches begin at nothing."""
    for name, parameter in model.layers.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.zero_()


def _say(model: BlockDraft, block: Block, seen: FittedAnchors, carried_RD: Tensor) -> None:
    """Let the heads' outputs be the guess, beside a constant of steady size, and the final norm its length."""
    outputs = _readings(seen, carried_RD)
    guess = (seen.before[0] @ carried_RD.T @ outputs[0].T).pow(2).mean().sqrt()
    embedding = model.embed(seen.tokens).pow(2).mean().sqrt()
    scale = LOUDNESS * embedding / guess
    shape, steady = model.config.block, STEADINESS * LOUDNESS * embedding
    size, each = shape.head_dim, shape.num_heads // shape.num_kv_heads
    block.self_attn.v_proj.weight.copy_(carried_RD)
    weight = block.self_attn.o_proj.weight
    for place, output_DR in enumerate(outputs):
        for group, piece_Dd in enumerate(torch.split(output_DR, size, dim=1)):
            start = (group * each + place) * size
            weight[:, start : start + size] = scale * piece_Dd
    quiet = int(model.lm_head.weight.norm(dim=0).argmin())  # the size of a state that the head hears least of
    last = (shape.num_heads - each + 1) * size - 1  # where the first head of the last group carries the constant
    weight[quiet] = 0
    weight[quiet, last] = steady * shape.hidden_size**0.5 / (seen.before[0] @ carried_RD[-1]).mean()
    length = (steady.square() + (scale * guess).square() + embedding.square()).sqrt()
    model.norm.weight.fill_(float(length / scale))
    model.norm.weight[quiet] = 0


def _readings(seen: FittedAnchors, carried_RD: Tensor) -> list[Tensor]:
    """Return what is made of the carried at 1, 2, … positions back, `(D, R)` each.

    The farthest slot is fitted first: a nearer one reads farther back what the farther ones read, and makes up for it.
    """
    carried = [context_ND @ carried_RD.T for context_ND in seen.before]
    found: dict[int, Tensor] = {}
    for slot in reversed(range(len(seen.left))):
        known_ND = sum((carried[place - slot] @ output.T for place, output in found.items()), torch.zeros(()))
        found[slot] = _ridge(carried[0], seen.left[slot] - known_ND).T
    return [found[slot] for slot in range(len(seen.left))]
