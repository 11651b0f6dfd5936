"""The one decoder block, and the blocks of both kinds of draft made of it.

Legend: B batch, Q queries, D hidden size.
"""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from deepspec.attention.attention import Attention, Context, Mask, Rotation
from deepspec.attention.lean import lean, norm_of
from deepspec.families.shape import BlockShape


def _gelu_tanh(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": functional.silu, "gelu_tanh": _gelu_tanh}


class GatedMLP(nn.Module):
    """down(act(gate(x)) · up(x))."""

    def __init__(self, shape: BlockShape) -> None:
        """Make the three projections."""
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)
        self._activation = ACTIVATIONS[shape.activation]

    def forward(self, x: Tensor) -> Tensor:
        """Return `(…, D)`."""
        out: Tensor = self.down_proj(lean(self._gated, self.gate_proj(x), self.up_proj(x), wide=True))
        return out

    def _gated(self, gate: Tensor, up: Tensor) -> Tensor:
        return self._activation(gate) * up


class Block(nn.Module):
    """One decoder block: pre-norm attention and MLP, with the traits of its family.

    The names of its parts are those of the public checkpoints: `post_attention_layernorm` is the norm before the MLP,
    or, with sandwich norms, the one after attention.
    """

    layer_scalar: Tensor

    def __init__(self, shape: BlockShape, *, with_state: bool = False) -> None:
        """Make the block; `with_state`: attention reads [norm(embedding); norm(state)], the residual is the state."""
        super().__init__()
        size = shape.hidden_size
        self.self_attn = Attention(shape, input_size=2 * size if with_state else size)
        self.mlp = GatedMLP(shape)
        self.input_layernorm = norm_of(shape, size)
        self.post_attention_layernorm = norm_of(shape, size)
        if with_state:
            self.hidden_norm = norm_of(shape, size)
        if shape.sandwich_norms:
            self.pre_feedforward_layernorm = norm_of(shape, size)
            self.post_feedforward_layernorm = norm_of(shape, size)
        if shape.layer_scalar:
            self.register_buffer("layer_scalar", Tensor([1.0]))
        self._join = self._sandwiched if shape.sandwich_norms else self._plain
        self._scaled = shape.layer_scalar

    def finish(self, residual_BQD: Tensor, read_BQD: Tensor) -> Tensor:
        """Return the block's output from its residual and what attention read."""
        out = self._join(residual_BQD, read_BQD)
        return out * self.layer_scalar if self._scaled else out

    def forward(self, x_BQD: Tensor, rotation: Rotation, context: Context, mask: Mask) -> Tensor:
        """Return the output for a chunk of queries that see a cached context and, after it, their own chunk."""
        normed = self.input_layernorm(x_BQD)
        seen = context.append(self.self_attn.keys_values(normed, rotation))
        return self.finish(x_BQD, self.self_attn(normed, rotation, seen, mask))

    def _plain(self, residual: Tensor, read: Tensor) -> Tensor:
        x = residual + read
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out

    def _sandwiched(self, residual: Tensor, read: Tensor) -> Tensor:
        x = residual + self.post_attention_layernorm(read)
        out: Tensor = x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        return out
