"""What flex_attention would do in silence is an error: going dense when it is compiled too often, and small heads."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from deepspec.attention import flex
from deepspec.errors import TrainingError


class Beside(NamedTuple):
    lse: Tensor


def attention(query: Tensor, key: Tensor, value: Tensor, **_: object) -> tuple[Tensor, Beside]:
    """Stand in for flex_attention, whose compilation takes a minute on a CPU."""
    return query * 2, Beside(query.sum(-1))


def test_a_shape_beyond_those_that_are_compiled_is_an_error_and_never_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every length is a kind of its own here; torch's own answer to the ninth is to go on uncompiled."""
    monkeypatch.setattr(flex, "COMPILATIONS", 8)
    flex._compiled.cache_clear()
    torch._dynamo.reset()
    mask: Any = None
    monkeypatch.setattr(flex, "flex_attention", attention)
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, dynamic: compiled(call, backend="eager", dynamic=not dynamic))
    with torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=False):
        for length in range(2, 10):
            flex.flex(*(torch.ones(1, 1, length, 16),) * 3, mask, 1.0)
        with pytest.raises(
            TrainingError, match=r"compiled for 8 kinds of shapes and met another, queries \(1, 1, 10, 16\)"
        ):
            flex.flex(*(torch.ones(1, 1, 10, 16),) * 3, mask, 1.0)
    flex._compiled.cache_clear()
    torch._dynamo.reset()


def test_heads_that_the_kernel_does_not_take_are_refused_by_their_size() -> None:
    flex.check_heads(16)
    with pytest.raises(TrainingError, match=r"heads of 8, .* takes none below 16: train it with --device cpu"):
        flex.check_heads(8)
