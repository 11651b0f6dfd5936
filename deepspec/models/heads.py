"""Heads on top of the backbone: Markov correction of a slot's logits, selection of a candidate, refinement of a block,
and confidence.

Legend: N rows, K slots, D hidden size, r rank, V vocabulary. DSpark, arXiv 2607.05147.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, silu


class MarkovHead(nn.Module):
    """Vanilla head: bias W2·W1[x] from the previous token x.

    It is used in two ways: `sequence` where the tokens are known and the loss takes the product with W2 in chunks, and
    `step` where one slot after another is sampled.
    """

    def __init__(self, vocab_size: int, draft_vocab_size: int, rank: int) -> None:
        """Make W1, of every token that may come before, and W2, of those that may be drafted."""
        super().__init__()
        self.markov_w1 = nn.Embedding(vocab_size, rank)
        self.markov_w2 = nn.Linear(rank, draft_vocab_size, bias=False)

    def embed(self, previous: Tensor) -> Tensor:
        """Return W1[x], `(…, r)`."""
        embedded: Tensor = self.markov_w1(previous)
        return embedded

    def start(self, hidden_ND: Tensor) -> Tensor:
        """Return the state before the first slot, `(N, r)`; only the rnn head looks at it."""
        return hidden_ND.new_zeros(len(hidden_ND), self.markov_w1.embedding_dim)

    def step(self, previous_N: Tensor, hidden_ND: Tensor, state_Nr: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bias on one slot's logits, `(N, V)`, and the next state.

        Args:
            previous_N: token before the slot.
            hidden_ND: the slot's hidden state after the final norm.
            state_Nr: from `start`, or from the slot before.
        """
        features_Nr, state_Nr = self.mix(self.embed(previous_N), hidden_ND, state_Nr)
        return self.markov_w2(features_Nr), state_Nr

    def sequence(self, embedded_NKr: Tensor, hidden_NKD: Tensor) -> Tensor:
        """Return what W2 multiplies for all slots of blocks whose tokens are known, `(N, K, r)`."""
        state_Nr = self.start(hidden_NKD)
        features = []
        for embedded_Nr, hidden_ND in zip(embedded_NKr.unbind(1), hidden_NKD.unbind(1), strict=True):
            features_Nr, state_Nr = self.mix(embedded_Nr, hidden_ND, state_Nr)
            features.append(features_Nr)
        return torch.stack(features, dim=1)

    def mix(self, embedded_Nr: Tensor, hidden_ND: Tensor, state_Nr: Tensor) -> tuple[Tensor, Tensor]:
        """Return what W2 multiplies for one slot, `(N, r)`, and the next state."""
        del hidden_ND
        return embedded_Nr, state_Nr


class GatedMarkovHead(MarkovHead):
    """Bias W2·(σ(G[h; W1[x]]) ⊙ W1[x])."""

    def __init__(self, vocab_size: int, draft_vocab_size: int, rank: int, hidden_size: int) -> None:
        """Make W1, W2 and the gate."""
        super().__init__(vocab_size, draft_vocab_size, rank)
        self.gate_proj = nn.Linear(hidden_size + rank, rank)

    def mix(self, embedded_Nr: Tensor, hidden_ND: Tensor, state_Nr: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gated embedding of the previous token, and the state as it was."""
        gate = self.gate_proj(torch.cat((hidden_ND, embedded_Nr), dim=-1)).sigmoid()
        return gate * embedded_Nr, state_Nr


class RecurrentMarkovHead(MarkovHead):
    """(g, c, o) = J[s; W1[x]; h]; s' = σ(g)⊙s + (1 − σ(g))⊙tanh(c); bias W2·tanh(o)."""

    def __init__(self, vocab_size: int, draft_vocab_size: int, rank: int, hidden_size: int) -> None:
        """Make W1, W2 and the joint projection."""
        super().__init__(vocab_size, draft_vocab_size, rank)
        self.joint_proj = nn.Linear(2 * rank + hidden_size, 3 * rank)

    def mix(self, embedded_Nr: Tensor, hidden_ND: Tensor, state_Nr: Tensor) -> tuple[Tensor, Tensor]:
        """Return tanh(o) and the next state."""
        joint = self.joint_proj(torch.cat((state_Nr, embedded_Nr, hidden_ND), dim=-1))
        gate, candidate, out = joint.chunk(3, dim=-1)
        keep = gate.sigmoid()
        return out.tanh(), keep * state_Nr + (1 - keep) * candidate.tanh()


class CandidateSelector(nn.Module):
    """DFlash 2's correction of a slot's k most likely tokens v by the token u before: Σ_r P[u]_r · (H h)_r · S[v]_r."""

    def __init__(self, vocab_size: int, rank: int, hidden_size: int) -> None:
        """Make P, S and H."""
        super().__init__()
        self.predecessor_codebook = nn.Parameter(torch.zeros(vocab_size, rank))
        self.successor_codebook = nn.Parameter(torch.zeros(vocab_size, rank))
        self.hidden_projection = nn.Linear(hidden_size, rank, bias=False)

    def forward(self, hidden_ND: Tensor, previous_N: Tensor, candidates_Nk: Tensor) -> Tensor:
        """Return the correction of the candidates' logits, `(N, k)`.

        Args:
            hidden_ND: states after the final norm.
            previous_N: token before each slot.
            candidates_Nk: tokens to choose from.
        """
        query_Nr = embedding(previous_N, self.predecessor_codebook) * self.hidden_projection(hidden_ND)
        return torch.einsum("nr,nkr->nk", query_Nr, embedding(candidates_Nk, self.successor_codebook))


class RefinerHead(nn.Module):
    """XPress' correction of a block's logits by the tokens before its slots, W·x: of all slots at once, or one by one.

    With g the mean of the block's states, every slot k gets

        a_k = I·[H h_k; G g; E[token before k]]     b_k = a_k + Σ_{j ≤ k} L[:, k, j] ⊙ a_j
        x_k = b_k + D·(silu(F b_k) ⊙ U b_k)

    so that it depends on no token behind it: a pass over the whole block with guessed tokens makes one slot more right,
    and as many passes as there are drafts give what one slot after another gives.
    """

    def __init__(self, vocabularies: tuple[int, int], rank: int, hidden_size: int, slots: int, mlp_ratio: int) -> None:
        """Make E, of every token that may come before, W, of those that may be drafted, and what lies between."""
        super().__init__()
        vocab_size, draft_vocab_size = vocabularies
        self.token_embed = nn.Embedding(vocab_size, rank)
        self.down_h = nn.Linear(hidden_size, rank, bias=False)
        self.down_g = nn.Linear(hidden_size, rank, bias=False)
        self.in_proj = nn.Linear(3 * rank, rank, bias=False)
        self.mix_l = nn.Parameter(torch.zeros(rank, slots, slots))
        self.mlp_gate = nn.Linear(rank, mlp_ratio * rank, bias=False)
        self.mlp_up = nn.Linear(rank, mlp_ratio * rank, bias=False)
        self.mlp_down = nn.Linear(mlp_ratio * rank, rank, bias=False)
        self.readout = nn.Linear(rank, draft_vocab_size, bias=False)

    def seen(self, hidden_NKD: Tensor) -> Tensor:
        """Return what does not depend on tokens, [H h_k; G g]: `(N, K, 2r)`, once for all passes."""
        mean_N1r: Tensor = self.down_g(hidden_NKD.mean(1, keepdim=True))
        own_NKr: Tensor = self.down_h(hidden_NKD)
        return torch.cat((own_NKr, mean_N1r.expand_as(own_NKr)), dim=-1)

    def enter(self, seen: Tensor, previous: Tensor) -> Tensor:
        """Return a_k of slots, `(…, r)`, the tokens before them given, `(…)`."""
        entered: Tensor = self.in_proj(torch.cat((seen, self.token_embed(previous)), dim=-1))
        return entered

    def features(self, seen_NK2r: Tensor, previous_NK: Tensor) -> Tensor:
        """Return what W multiplies for all slots of blocks, `(N, K, r)`."""
        entered_NKr, slots = self.enter(seen_NK2r, previous_NK), previous_NK.shape[1]
        mix_rKK = self.mix_l[:, :slots, :slots].tril()
        return self._finish(entered_NKr + torch.einsum("rkj,njr->nkr", mix_rKK, entered_NKr))

    def last(self, entered_NKr: Tensor) -> Tensor:
        """Return what W multiplies for the last of some first slots of blocks, `(N, r)`."""
        slots = entered_NKr.shape[1]
        mix_rK = self.mix_l[:, slots - 1, :slots]
        return self._finish(entered_NKr[:, -1] + torch.einsum("rj,njr->nr", mix_rK, entered_NKr))

    def _finish(self, mixed: Tensor) -> Tensor:
        finished: Tensor = mixed + self.mlp_down(silu(self.mlp_gate(mixed)) * self.mlp_up(mixed))
        return finished


class ConfidenceHead(nn.Module):
    """The logit of the chance that a slot is accepted given that all before it were."""

    def __init__(self, input_size: int) -> None:
        """Make the projection from [h; W1[x]], or from h alone."""
        super().__init__()
        self.proj = nn.Linear(input_size, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits, without the last axis."""
        out: Tensor = self.proj(features).squeeze(-1)
        return out
