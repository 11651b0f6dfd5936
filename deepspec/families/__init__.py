"""How Hugging Face configs of models are read into plain data. No torch.

The only room that reads such configs. Families whose blocks drafts can have are rows of `FAMILIES`; every other
decoder is read by the general rule (general.py), whose claims are proven on the loaded model.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepspec.errors import InputError, TargetError, UnknownNameError
from deepspec.families import gemma, general, llama
from deepspec.families.rope import Config, is_dynamic
from deepspec.families.shape import BlockShape, TargetShape
from deepspec.formats.tensor_heads import read_object

__all__ = [
    "FAMILIES",
    "BlockShape",
    "Family",
    "TargetShape",
    "family_named",
    "is_general",
    "qwen3_block",
    "read",
    "read_folder",
]


_DYNAMIC = "its rope is dynamic, plain up to the positions of its config: the draft has the plain one"


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """One row of the table."""

    name: str
    block: Callable[[Config], BlockShape]
    """Reads the full-attention decoder block."""
    defaults: Config
    """Values of keys that its configs leave out."""
    scaled_embedding: bool = False
    """Whether token embeddings are multiplied by √D."""
    draft_style: str | None = None
    """Style in which a draft of the family's own shape is stored (checkpoint/config.py); None: none has it."""


_LLAMA = Family(name="llama", block=llama.block, defaults=llama.DEFAULTS, draft_style="llama")
_QWEN3 = Family(name="qwen3", block=llama.with_qk_norm, defaults=llama.DEFAULTS, draft_style="qwen3")
_GEMMA3 = Family(name="gemma3", block=gemma.block3, defaults=gemma.DEFAULTS3, scaled_embedding=True)
_GEMMA4 = Family(
    name="gemma4", block=gemma.block4, defaults=gemma.DEFAULTS4, scaled_embedding=True, draft_style="gemma4"
)

FAMILIES: Mapping[str, Family] = {
    "llama": _LLAMA,
    "qwen3": _QWEN3,
    "gemma3": _GEMMA3,
    "gemma3_text": _GEMMA3,
    "gemma4": _GEMMA4,
    "gemma4_text": _GEMMA4,
    "gemma4_unified": _GEMMA4,
    "gemma4_unified_text": _GEMMA4,
}
"""`model_type` -> family: those whose blocks drafts can have, and Gemma 3 (docs/adr/0027). "gemma3" and the like nest
the language model in `text_config`."""


def family_named(model_type: str) -> Family:
    """Return the family of a `model_type`.

    Raises:
        UnknownNameError: no family reads it.
    """
    if model_type not in FAMILIES:
        raise UnknownNameError("model_type", model_type, FAMILIES)
    return FAMILIES[model_type]


def read(config: Config) -> TargetShape:
    """Return what a draft must know of a model, from its config.json.

    Args:
        config: the parsed JSON; a multimodal config's `text_config` is found.

    Raises:
        UnknownNameError: unknown model_type or rope type.
        TargetError: a key is missing, or has a value of a wrong type.
    """
    try:
        shape = _read(config)
    except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError) as error:
        if isinstance(error, InputError):
            raise
        raise TargetError(f"config.json holds a value of a wrong type: {error}; is it complete?") from error
    _check_sizes(shape)
    return shape


def is_general(config: Config) -> bool:
    """Return whether a model's config is read by the general rule: the model, or its text part, is of no family."""
    nested = config.get("text_config")
    top = config.get("model_type")
    text = nested.get("model_type", f"{top}_text") if isinstance(nested, Mapping) else top
    return not {top, text} <= FAMILIES.keys()


def _read(config: Config) -> TargetShape:
    if not isinstance(config, Mapping):
        raise TargetError(f"config.json holds {type(config).__name__}, wanted a JSON object")
    top = str(llama.need(config, "model_type"))
    text = _text_config(config, top)
    return _read_general(config, text, top) if is_general(config) else _read_family(text, top)


def _read_general(config: Config, text: dict[str, Any], top: str) -> TargetShape:
    general.check_type(top, config)
    found = general.read_general(text, str(text["model_type"]))
    return TargetShape(
        family=general.NAME,
        model_type=str(text["model_type"]),
        num_layers=found.num_layers,
        vocab_size=found.vocab_size,
        max_positions=found.max_positions,
        embedding_scale=1.0,
        logit_softcap=found.logit_softcap,
        block=found.block,
        text_config=text,
        top_model_type=top,
        general=True,
        rope_inherited=found.rope_inherited,
        told=tuple(f"{top}: {line}" for line in found.told),
        reads_again=found.reads_again,
    )


def _read_family(text: dict[str, Any], top: str) -> TargetShape:
    model_type = str(text["model_type"])
    family = family_named(model_type)
    known = {**family.defaults, **{key: value for key, value in text.items() if value is not None}}
    block = family.block(known)
    return TargetShape(
        family=family.name,
        model_type=model_type,
        num_layers=int(llama.need(known, "num_hidden_layers")),
        vocab_size=int(llama.need(known, "vocab_size")),
        max_positions=int(llama.need(known, "max_position_embeddings")),
        embedding_scale=_embedding_scale(family, known, block.hidden_size),
        logit_softcap=None if (cap := known.get("final_logit_softcapping")) is None else float(cap),
        block=block,
        text_config=text,
        top_model_type=top,
        told=(_DYNAMIC,) if is_dynamic(known) else (),
    )


def read_folder(folder: Path) -> TargetShape:
    """Return what a draft must know of the model in a folder; errors as in `read`, and for a config.json not there."""
    config = read_object(folder / "config.json")
    try:
        general.check_head(config)
        return read(config)
    except TargetError as error:
        raise TargetError(f"target {folder}: {error}") from error


def _check_sizes(shape: TargetShape) -> None:
    block = shape.block
    sizes = {
        "num_hidden_layers": shape.num_layers,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.max_positions,
        "hidden_size": block.hidden_size,
        "intermediate_size": block.intermediate_size,
        "num_attention_heads": block.num_heads,
        "num_key_value_heads": block.num_kv_heads,
        "head_dim": block.head_dim,
    }
    wrong = [f"{name} is {size}" for name, size in sizes.items() if size < 1]
    if wrong:
        raise TargetError(f"config.json makes no sense: {', '.join(wrong)}, wanted 1 or more")


def qwen3_block(block: BlockShape) -> BlockShape:
    """Return the Qwen3-style block with the sizes and rope of another: the default shape of a draft."""
    return BlockShape(
        hidden_size=block.hidden_size,
        intermediate_size=block.intermediate_size,
        num_heads=block.num_heads,
        num_kv_heads=block.num_kv_heads,
        head_dim=block.head_dim,
        norm_eps=block.norm_eps,
        rope=block.rope,
        attention_scale=block.head_dim**-0.5,
        qk_norm=True,
    )


def _text_config(config: Config, top: str) -> dict[str, Any]:
    nested = config.get("text_config")
    if nested is None:
        return dict(config)
    if not isinstance(nested, Mapping):
        raise TargetError(f"text_config of model_type {top!r} is {type(nested).__name__}, wanted an object")
    return {"model_type": f"{top}_text", **nested}


def _embedding_scale(family: Family, known: Config, hidden_size: int) -> float:
    """Return the family's factor; a draft of another style tells its own as `embedding_scale`."""
    if known.get("embedding_scale") is not None:
        return float(known["embedding_scale"])
    return math.sqrt(hidden_size) if family.scaled_embedding else 1.0
