"""The multi-token prediction (MTP) heads that targets ship beside their layers: how their decoder block reads.

A target may be read by the general rule and still have heads with a plain block of its own: that is all that a draft
made of them needs to know.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from deepspec.errors import TargetError
from deepspec.families import general, llama
from deepspec.families.rope import Config
from deepspec.families.shape import BlockShape, TargetShape

PREFIX = "mtp."
"""How the names of their tensors begin, in the target's files."""


def _qwen3_5(config: Config) -> BlockShape:
    """Return the full-attention block of a Qwen3.5 config: gated, norms of 1 + weight, a part of each head rotated."""
    return replace(llama.with_qk_norm(config), offset_norms=True, gated_attention=True)


_LATER = re.compile(r"mtp\.layers\.[1-9]")
_ELSEWHERE = re.compile(r"(^|\.)(mtp|nextn|eh_proj)")
"""In the names of heads of other layouts: `model.mtp_layers.0.…`, `model.layers.61.eh_proj.…`."""

STYLES: Mapping[str, str] = {"qwen3": "qwen3", "qwen3_5_text": "qwen3_5"}
"""`model_type` of a target whose heads are read -> style of their block."""
_BLOCKS: Mapping[str, Callable[[Config], BlockShape]] = {"qwen3": llama.with_qk_norm, "qwen3_5": _qwen3_5}


def head_style(model_type: str) -> str:
    """Return the style of the block of a target's heads.

    Raises:
        TargetError: heads of such targets are not read.
    """
    if model_type not in STYLES:
        raise TargetError(f"MTP heads of model_type {model_type!r} are not read; read are {', '.join(sorted(STYLES))}")
    return STYLES[model_type]


def _head_block(text_config: Mapping[str, Any]) -> BlockShape:
    """Return the decoder block of the heads that a target of this text config ships; errors as in `head_style`."""
    model_type = str(text_config.get("model_type"))
    style = head_style(model_type)
    return _BLOCKS[style](general.with_defaults(text_config, model_type))


def with_heads(target: TargetShape) -> TargetShape:
    """Return what a draft must know of a target, with the block of its heads; errors as in `head_style`."""
    return replace(target, block=_head_block(target.text_config))


def check_names(names: Collection[str], target: str) -> None:
    """Check that a target ships heads that a draft can be made of.

    Args:
        names: of all its tensors.
        target: for messages.

    Raises:
        TargetError: it ships none, or heads of a layout, a depth or a kind that is not read.
    """
    own = sorted(name for name in names if name.startswith(PREFIX))
    if not own:
        others = sorted(name for name in names if _ELSEWHERE.search(name))
        told = f"; {others[0]} is of a layout that is not read" if others else ""
        raise TargetError(
            f"target {target} ships no MTP heads: none of its tensors is named {PREFIX}…{told}; train another algorithm"
        )
    unread = {"several layers of heads": _LATER.match, "heads with experts": re.compile(r".*\.experts?\.").match}
    for what, matches in unread.items():
        found = next((name for name in own if matches(name)), None)
        if found is not None:
            raise TargetError(f"target {target} ships {what} ({found}), which are not read; train another algorithm")
