"""The draft models: DSpark, DFlash, DFlash 2 and XPress (one class), and Eagle3, P-EAGLE and MTP heads (another).

Legend: B batch, T context positions, Q queries, N rows, D hidden size, A captured layers, V vocabulary of the head.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deepspec.attention.attention import Context, KeyValue, Masks, Past, mask_of
from deepspec.attention.lean import RMSNorm, norm_of
from deepspec.attention.rope import RotaryEmbedding
from deepspec.formats.recipe import TRAITS
from deepspec.models.block import Block
from deepspec.models.config import DraftConfig
from deepspec.models.convolution import ConvolvedBlock
from deepspec.models.heads import (
    CandidateSelector,
    ConfidenceHead,
    GatedMarkovHead,
    MarkovHead,
    RecurrentMarkovHead,
    RefinerHead,
)

SCALED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Dtypes that a draft computes in: the scale of its embedding is rounded to each."""


class Draft(nn.Module):
    """What every draft has: the target's embedding and frozen head, the fusion of captured layers, blocks, a norm."""

    d2t: Tensor
    """`(V,)` int64: target id − draft id."""
    t2d: Tensor
    """`(vocab,)` bool: the target's tokens that the draft knows."""
    _target_head: Tensor | None
    target_head_bias: Tensor | None
    """`(vocab,)` bias of the target's whole head, where that was kept and has one."""

    def __init__(self, config: DraftConfig) -> None:
        """Make the parts; the weights are PyTorch's until they are loaded or initialised."""
        super().__init__()
        size = config.block.hidden_size
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, size)
        self.lm_head = nn.Linear(size, config.draft_vocab_size, bias=config.head_bias)
        self.embed_tokens.weight.requires_grad_(config.train_embedding)
        self.lm_head.requires_grad_(False)
        self.fc = nn.Linear(config.num_fused * size, size, bias=False)
        self.norm = norm_of(config.block, size)
        self.rotary = RotaryEmbedding(config.block.rope, config.block.head_dim)
        if config.reduced_vocabulary:
            self.register_buffer("d2t", torch.zeros(config.draft_vocab_size, dtype=torch.int64))
            self.register_buffer("t2d", torch.zeros(config.vocab_size, dtype=torch.bool))
        self.register_buffer("_target_head", None, persistent=False)
        self.register_buffer("target_head_bias", None, persistent=False)
        self._target_head_is_embedding = False
        self._windows = config.windows
        self._scales = {dtype: _rounded(config.embedding_scale, dtype) for dtype in SCALED}
        """Of the embedding, rounded as the target rounds it."""

    def embed(self, ids: Tensor) -> Tensor:
        """Return the (scaled) embedding of tokens, `(…, D)`."""
        embedded: Tensor = self.embed_tokens(ids)
        return embedded * self._scales[embedded.dtype]

    def head(self, normed: Tensor) -> Tensor:
        """Return logits `(…, V)` of states after the final norm, softcapped where the family does."""
        logits: Tensor = self.lm_head(normed)
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def target_ids(self, draft_ids: Tensor) -> Tensor:
        """Return the target's ids of the draft's ids."""
        return draft_ids + self.d2t[draft_ids] if self.config.reduced_vocabulary else draft_ids

    def draft_ids(self, target_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the draft's ids of the target's ids, and which it knows; of one that it does not know, any id."""
        if not self.config.reduced_vocabulary:
            return target_ids, torch.ones_like(target_ids, dtype=torch.bool)
        return (self.t2d.cumsum(0) - 1).clamp(min=0)[target_ids], self.t2d[target_ids]

    def known_ids(self) -> Tensor | None:
        """Return the target's ids that the head knows, `(V,)` ascending; None: all."""
        if not self.config.reduced_vocabulary:
            return None
        return self.target_ids(torch.arange(self.config.draft_vocab_size, device=self.d2t.device))

    def keep_target_head(self, head: Tensor | None, bias: Tensor | None = None) -> None:
        """Keep the target's whole head for training, beside the rows that the draft knows of it; it is not saved.

        Args:
            head: `(vocab, D)`; None: it is the embedding, which is here anyway.
            bias: `(vocab,)` of the head; None: it has none.
        """
        self._target_head, self._target_head_is_embedding, self.target_head_bias = head, head is None, bias

    def target_head(self) -> Tensor | None:
        """Return the target's whole head, where a draft of reduced vocabulary was given it to train with."""
        return self.embed_tokens.weight if self._target_head_is_embedding else self._target_head

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """Return the parameters that training moves, in a fixed order."""
        return [(name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad]


class BlockDraft(Draft):
    """DSpark; with both heads off, DFlash; with convolved blocks and a selector, DFlash 2; with a refiner, XPress.

    A block of slots a pass.
    """

    def __init__(self, config: DraftConfig) -> None:
        """Make the blocks and heads that the config names."""
        super().__init__(config)
        shape = config.block
        self.hidden_norm = norm_of(shape, shape.hidden_size)
        self.layers = nn.ModuleList(_block(config) for _ in range(config.num_layers))
        self.markov_head = _markov_head(config)
        self.confidence_head = _confidence_head(config)
        self.candidate_selector = _selector(config)
        self.refiner_head = _refiner_head(config)

    def context(self, hidden_BTE: Tensor) -> Tensor:
        """Return the fused context `(B, T, D)` of captured states `(B, T, A·D)`."""
        fused: Tensor = self.hidden_norm(self.fc(hidden_BTE))
        return fused

    def context_keys_values(self, context_BTD: Tensor, positions_BT: Tensor) -> list[KeyValue]:
        """Return each layer's keys and values of context at given positions; grow a cache with `KeyValue.append`."""
        rotation = self.rotary(positions_BT, context_BTD.dtype)
        return [layer.self_attn.keys_values(context_BTD, rotation) for layer in self.blocks()]

    def forward(self, ids_BQ: Tensor, positions_BQ: Tensor, context: Sequence[Context], mask: Masks) -> Tensor:
        """Return the state of each slot after the final norm.

        Args:
            ids_BQ: [anchor token, MASK, …] of one or more blocks.
            positions_BQ: rope positions of the slots.
            context: per layer, keys and values of C context positions.
            mask: `(B, 1, Q, C + Q)` bool: which context positions, then which slots, a slot sees; None: all. Two of
                them where only some layers have a window.

        Returns:
            `(B, Q, D)`; `head` and the Markov head make logits of it.
        """
        x_BQD = self.embed(ids_BQ)
        rotation = self.rotary(positions_BQ, x_BQD.dtype)
        for layer, known, window in zip(self.blocks(), context, self._windows, strict=True):
            x_BQD = layer(x_BQD, rotation, known, mask_of(mask, window))
        normed: Tensor = self.norm(x_BQD)
        return normed

    def confidence(self, hidden: Tensor, embedded: Tensor | None) -> Tensor:
        """Return confidence logits `(…)` of slots.

        Args:
            hidden: `(…, D)` states after the final norm.
            embedded: `(…, r)` `markov_head.embed` of the token before each slot; None without a Markov head.

        Raises:
            RuntimeError: the draft has no confidence head.
        """
        if self.confidence_head is None:
            raise RuntimeError("this draft has no confidence head; ask config.confidence_head before")
        if self.config.confidence_with_markov and embedded is not None:
            hidden = torch.cat((hidden, embedded), dim=-1)
        out: Tensor = self.confidence_head(hidden)
        return out

    def blocks(self) -> list[Block]:
        """Return its blocks in their order."""
        return [layer for layer in self.layers if isinstance(layer, Block)]


class EagleDraft(Draft):
    """Eagle3: one block, one token a pass, fed with its own output. arXiv 2503.01840.

    P-EAGLE: several blocks, and behind the last token mask tokens, whose states are one learned vector: all tokens in
    a pass. arXiv 2602.01469.

    MTP heads that a target ships: what enters their block is one projection of token and state, both normed, and the
    state is the target's last one before its final norm.
    """

    def __init__(self, config: DraftConfig) -> None:
        """Make the blocks."""
        super().__init__(config)
        size, eps, norms = config.block.hidden_size, config.block.norm_eps, config.norms
        traits = TRAITS[config.algorithm]
        self._joins = not traits.shipped
        """Whether the first block reads token and state side by side, instead of their projection."""
        self.layers = nn.ModuleList(
            Block(config.block, with_state=self._joins and layer == 0) for layer in range(config.num_layers)
        )
        if traits.shipped:
            self.pre_fc_norm_embedding = norm_of(config.block, size)
            self.pre_fc_norm_hidden = norm_of(config.block, size)
        if traits.parallel:
            self.mask_hidden = nn.Parameter(torch.zeros(1, 1, config.num_captured * size))
        if norms.norm_before_fc:
            self.input_norm = RMSNorm(config.num_captured * size, eps)
        if norms.fc_norm:
            self.fc_norm = nn.ModuleList(RMSNorm(size, eps) for _ in range(config.num_captured))

    def fuse(self, hidden_BTE: Tensor) -> Tensor:
        """Return the first state `(B, T, D)` of captured states `(B, T, A·D)`; of MTP heads the one state itself."""
        if not self._joins:
            return hidden_BTE
        norms = self.config.norms
        if norms.norm_before_fc:
            hidden_BTE = self.input_norm(hidden_BTE)
        if norms.fc_norm:
            parts = hidden_BTE.chunk(self.config.num_captured, dim=-1)
            hidden_BTE = torch.cat([norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)], dim=-1)
        fused: Tensor = self.fc(hidden_BTE)
        return fused

    def masked(self) -> tuple[Tensor, Tensor]:
        """Return the token and the state, `()` and `(D,)`, of a position whose token is not known yet.

        Raises:
            RuntimeError: the draft reads none.
        """
        if self.config.mask_token_id is None:
            raise RuntimeError("this draft reads no mask token; ask the traits of its algorithm before")
        token = torch.full((), self.config.mask_token_id, device=self.mask_hidden.device)
        return token, self.fuse(self.mask_hidden)[0, 0]

    def handed(self, output: Tensor) -> Tensor:
        """Return the state that a step hands to the next one, of the block's output."""
        state: Tensor = self.norm(output) if self.config.norms.norm_output or not self._joins else output
        return state

    def forward(
        self, ids_BQ: Tensor, state_BQD: Tensor, positions_BQ: Tensor, past: Sequence[Past] | None, mask: Masks
    ) -> tuple[Tensor, list[KeyValue]]:
        """Return the last block's output and the grown cache.

        Args:
            ids_BQ: the token *after* each position.
            state_BQD: `fuse` of the target's states, or `handed` of the output of the step before.
            positions_BQ: rope positions.
            past: per layer, keys and values of earlier chunks.
            mask: `(B, 1, Q, C + Q)` bool over past and own chunk; None: all. Two of them where only some layers have a
                window.

        Returns:
            `(B, Q, D)` before the final norm (`handed` and `logits` read it), and past with this chunk.
        """
        rotation = self._rotation(positions_BQ)
        normed = self.config.norms.norm_before_residual
        x_BQD = state_BQD if self._joins else self._entered(ids_BQ, state_BQD)
        seen: list[KeyValue] = []
        for layer, block in enumerate(self._blocks()):
            joins = self._joins and not layer
            read = self._joined(block, ids_BQ, state_BQD) if joins else block.input_layernorm(x_BQD)
            own = block.self_attn.keys_values(read, rotation)
            seen.append(own if past is None else past[layer].append(own))
            residual = block.hidden_norm(x_BQD) if normed and joins else x_BQD
            x_BQD = block.finish(
                residual, block.self_attn(read, rotation, seen[layer], mask_of(mask, self._windows[layer]))
            )
        return x_BQD, seen

    def logits(self, output: Tensor) -> Tensor:
        """Return logits `(…, V)` of the block's output."""
        return self.head(self.norm(output))

    def _joined(self, block: Block, ids_BQ: Tensor, state_BQD: Tensor) -> Tensor:
        return torch.cat((block.input_layernorm(self.embed(ids_BQ)), block.hidden_norm(state_BQD)), dim=-1)

    def _entered(self, ids_BQ: Tensor, state_BQD: Tensor) -> Tensor:
        normed = (self.pre_fc_norm_embedding(self.embed(ids_BQ)), self.pre_fc_norm_hidden(state_BQD))
        entered: Tensor = self.fc(torch.cat(normed, dim=-1))
        return entered

    def _rotation(self, positions_BQ: Tensor) -> tuple[Tensor, Tensor]:
        rotation: tuple[Tensor, Tensor] = self.rotary(positions_BQ, self.fc.weight.dtype)
        return rotation

    def _blocks(self) -> list[Block]:
        return [layer for layer in self.layers if isinstance(layer, Block)]


def _rounded(value: float, dtype: torch.dtype) -> float:
    """Return a number as a dtype holds it, whatever device is the default."""
    return float(torch.tensor(value, dtype=dtype, device="cpu"))


def _block(config: DraftConfig) -> Block:
    if not config.conv_kernel_size:
        return Block(config.block)
    taps, group = config.conv_kernel_size, config.conv_group_size
    return ConvolvedBlock(config.block, taps=taps, group=group, slots=config.block_size)


def _selector(config: DraftConfig) -> CandidateSelector | None:
    if not config.selector_rank:
        return None
    return CandidateSelector(config.vocab_size, config.selector_rank, config.block.hidden_size)


def _refiner_head(config: DraftConfig) -> RefinerHead | None:
    if not config.xpress_rank:
        return None
    sizes = (config.xpress_rank, config.block.hidden_size, config.block_size, config.xpress_mlp_ratio)
    return RefinerHead((config.vocab_size, config.draft_vocab_size), *sizes)


def _markov_head(config: DraftConfig) -> MarkovHead | None:
    rank, size = config.markov_rank, config.block.hidden_size
    vocabularies = (config.vocab_size, config.draft_vocab_size)
    if not rank:
        return None
    if config.markov_head == "gated":
        return GatedMarkovHead(*vocabularies, rank, size)
    if config.markov_head == "rnn":
        return RecurrentMarkovHead(*vocabularies, rank, size)
    return MarkovHead(*vocabularies, rank)


def _confidence_head(config: DraftConfig) -> ConfidenceHead | None:
    if not config.confidence_head:
        return None
    return ConfidenceHead(config.block.hidden_size + (config.markov_rank if config.confidence_with_markov else 0))


def build_draft(config: DraftConfig) -> BlockDraft | EagleDraft:
    """Return the draft that a config describes, with weights that mean nothing yet."""
    return BlockDraft(config) if TRAITS[config.algorithm].blocks else EagleDraft(config)
