"""A plugin of SGLang: what it refuses on a CPU, though torch and Triton's interpreter can do it, is let through.

SGLang loads it by the entry point `sglang.srt.plugins`, which the soak writes. Nothing that computes is replaced, but
for embedded tokens: SGLang rounds them to bf16 on its path without graphs, and here they keep the model's dtype.
"""

import importlib
from typing import Any

import torch


class _OnCard:
    """A view of SGLang's settings in which the device is a card."""

    def __init__(self, view: Any) -> None:
        self._view = view

    def __getattr__(self, name: str) -> Any:
        return "cuda" if name == "device" else getattr(self._view, name)


def _unrefused(original: Any, *args: Any, **more: Any) -> Any:
    """Go through SGLang's checks of DFLASH and DSPARK as on a card."""
    hook = importlib.import_module("sglang.srt.arg_groups.speculative_hook")
    real = hook.resolving_view
    vars(hook)["resolving_view"] = lambda *given, **told: _OnCard(real(*given, **told))
    try:
        return original(*args, **more)
    finally:
        vars(hook)["resolving_view"] = real


def _unrounded(original: Any, runner: Any, batch: Any, *args: Any, **more: Any) -> Any:
    """Leave embedded tokens in the dtype of the model that reads them."""
    given = original(runner, batch, *args, **more)
    if batch.input_embeds is not None:
        given["input_embeds"] = batch.input_embeds.to(next(runner.model.parameters()).dtype)
    return given


def hooks() -> None:
    """Register what is changed; SGLang calls this in each of its processes."""
    registry = importlib.import_module("sglang.srt.plugins.hook_registry")
    verified = importlib.import_module("sglang.srt.speculative.dflash_info").DFlashVerifyInput
    verified.tree_topk = 1  # its attention for CPUs asks whether drafts are a chain
    setattr(torch.Tensor, "record_stream", lambda _, __: None)  # noqa: B010  a CPU's memory has no streams
    for name, how in (
        ("arg_groups.speculative_hook._handle_dflash", _unrefused),
        ("arg_groups.speculative_hook._handle_dspark", _unrefused),
        ("model_executor.model_runner.ModelRunner._extend_forward_kwargs", _unrounded),
    ):
        registry.HookRegistry.register(f"sglang.srt.{name}", how, registry.HookType.AROUND)
