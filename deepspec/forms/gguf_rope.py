"""A rope in a GGUF file: llama.cpp reads it by keys of its own, and computes of them what we do."""

from typing import Any

import gguf

from deepspec.families.rope import rope_keys
from deepspec.families.shape import Rope
from deepspec.forms.form import Json
from deepspec.forms.gguf_file import GgufFile

_ROPES = {
    "default": gguf.RopeScalingType.NONE,
    "linear": gguf.RopeScalingType.LINEAR,
    "yarn": gguf.RopeScalingType.YARN,
}
"""Kinds of rope that it computes as we do."""


def refuse_rope(rope: Rope) -> str | None:
    """Return what of a rope the form has not; None: nothing."""
    if rope.kind not in _ROPES:
        return f"rope of kind {rope.kind}; it has {', '.join(_ROPES)}"
    return None if rope.truncate else "rope of kind yarn whose ramp does not begin and end at whole sizes"


def write_rope(writer: Any, rope: Rope) -> None:
    """Write a rope that is not refused."""
    writer.add_rope_freq_base(rope.theta)
    if rope.kind == "default":
        return
    writer.add_rope_scaling_type(_ROPES[rope.kind])
    writer.add_rope_scaling_factor(rope.factor)
    if rope.kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope.original_positions)
        writer.add_rope_scaling_yarn_beta_fast(rope.beta_fast)
        writer.add_rope_scaling_yarn_beta_slow(rope.beta_slow)
        writer.add_rope_scaling_attn_factors(rope_keys(rope)["rope_parameters"].get("attn_factor", 1.0))


def read_rope(found: GgufFile, arch: str) -> Json:
    """Return the rope of a file, as `rope_parameters` of a config.json."""

    def told(key: str) -> Any:
        return found.value(f"{arch}.rope.{key}")

    theta = told("freq_base")
    if f"{arch}.rope.scaling.type" not in found.fields:
        return {"rope_type": "default", "rope_theta": theta}
    kind = told("scaling.type")
    scaled = {"rope_type": kind, "rope_theta": theta, "factor": told("scaling.factor")}
    if kind != "yarn":
        return scaled
    return scaled | {
        "original_max_position_embeddings": told("scaling.original_context_length"),
        "beta_fast": told("scaling.yarn_beta_fast"),
        "beta_slow": told("scaling.yarn_beta_slow"),
        "attn_factor": told("scaling.attn_factor"),
    }
