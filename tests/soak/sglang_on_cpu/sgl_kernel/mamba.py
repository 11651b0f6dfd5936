"""Convolutions and rules of linear attention: imported by classes that may have none, not stood in for."""

from typing import Any, NoReturn


def causal_conv1d_fn_cpu(*_: Any, **__: Any) -> NoReturn:
    raise NotImplementedError("linear attention has no stand-in")


causal_conv1d_update_cpu = chunk_gated_delta_rule_cpu = causal_conv1d_fn_cpu
