"""The general reading: what a draft must know of any decoder, from its config, with no list of families.

Names and defaults of a type come from its config class as installed. Sizes of the draft:

    heads          the target's where they are plain ones: a whole number of heads of one even size, whose key-value
                   heads divide them. Where heads mean something else (latent attention, state space, lists by layer)
                   or there are none: heads of 128 sizes, of 64 where the hidden size is no multiple of 128, one
                   key-value head for four
    intermediate   the target's where it is as wide as the hidden size or wider; else (narrow experts, a list, none)
                   three times the hidden size, as in Qwen3
    rope           theta and scaling of the target over the whole head; a kind that drafts do not have, or no rope at
                   all, becomes a plain one, and `told` says so

What this reads is a claim: `deepspec.target.proof` holds it against the loaded model.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from deepspec.errors import InputError, TargetError
from deepspec.families.installed import causal_types, defaults_of, image_types, names_of, theta_of
from deepspec.families.remembers import own_limits, states
from deepspec.families.rope import Config, rope
from deepspec.families.shape import BlockShape, Rope

NAME = "general"
PROOF = "general 1"
"""What a target that is read so has to pass wherever it is loaded; raised when the reading or its proof changes."""

UNLIMITED = 32768
"""Positions of a target whose config names no limit."""

_POSITIONS = ("max_position_embeddings", "max_sequence_length", "max_seq_len", "seq_length", "context_length", "n_ctx")
_EPSILONS = ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps", "layernorm_epsilon")
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
_LAYER_LISTS = ("layer_types", "layers_block_type", "hybrid_override_pattern")
_IN_PAIRS = frozenset({"dory"})
"""Types whose files count attention and MLP of a block as two layers."""
_LATENT = ("kv_lora_rank", "qk_rope_head_dim")
_ROPE = ("rope_parameters", "rope_scaling", "rope_theta", "rotary_emb_base", "default_theta")
_HEADLESS = re.compile(
    r"(?:Model|MaskedLM|(?:Sequence|Token|Image|Audio)Classification|QuestionAnswering|MultipleChoice|PreTraining)$"
)
"""Ends of names of classes that are no language models; those that are nevertheless stand in transformers' tables."""

_LEAST, _MOST = 8, 256
"""Sizes of a head that a draft takes over."""


@dataclass(frozen=True, kw_only=True, slots=True)
class General:
    """What the general reading finds."""

    num_layers: int
    vocab_size: int
    max_positions: int
    logit_softcap: float | None
    block: BlockShape
    rope_inherited: bool
    """Whether the block's rope is the target's, which the loaded model then has to have."""
    told: tuple[str, ...]
    """What the draft does not inherit, and what it gets instead."""
    reads_again: tuple[str, ...] = ()
    """Fields that tell of a memory from which setting a length takes no tokens back."""


def check_type(model_type: str, config: Config) -> None:
    """Refuse what is no decoder that the installed transformers loads.

    Raises:
        TargetError: it is an encoder-decoder, needs code of its own, or is not known.
    """
    told = f"target of model_type {model_type!r}"
    if config.get("is_encoder_decoder", defaults_of(model_type).get("is_encoder_decoder")):
        raise TargetError(f"{told} is an encoder-decoder; wanted a decoder-only language model")
    base = model_type.removesuffix("_text")
    if not {model_type, base} & (causal_types().keys() | image_types().keys()):
        if config.get("auto_map"):
            raise TargetError(f"{told} needs code of its own (trust_remote_code), which is never run; {_advice()}")
        raise TargetError(f"{told} is no causal language model of the installed transformers; {_advice()}")


def check_head(config: Config) -> None:
    """Refuse a model that was saved as something else than a language model: without a head over the vocabulary.

    Raises:
        TargetError: all classes that its config names are of another kind.
    """
    named = config.get("architectures") or ()
    known = {*causal_types().values(), *image_types().values()}
    if named and all(str(each) not in known and _HEADLESS.search(str(each)) for each in named):
        told = f"target of model_type {config.get('model_type')!r} was saved as {', '.join(map(str, named))}"
        raise TargetError(f"{told}: it has no head over the vocabulary; wanted a causal language model")


def read_general(config: Config, model_type: str) -> General:
    """Return the general reading of a text config.

    Raises:
        TargetError: it names no hidden size, layers or vocabulary.
    """
    values = with_defaults(config, model_type)
    told: list[str] = []
    hidden = _size(values, "hidden_size", model_type)
    heads, kv_heads, head_dim = _heads(values, hidden, told)
    own_rope, inherited = _rope(values, told)
    block = BlockShape(
        hidden_size=hidden,
        intermediate_size=_intermediate(values, hidden, told),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=float(_first(values, _EPSILONS) or 1e-6),
        rope=own_rope,
        attention_scale=head_dim**-0.5,
    )
    cap = _first(values, _SOFTCAPS)
    return General(
        num_layers=_layers(values, model_type),
        vocab_size=_size(values, "vocab_size", model_type),
        max_positions=_positions(values, told),
        logit_softcap=None if cap is None else float(cap),
        block=block,
        rope_inherited=inherited,
        told=tuple(told),
        reads_again=(*states(values), *own_limits(values)),
    )


def with_defaults(config: Config, model_type: str) -> dict[str, Any]:
    """Return the config with its class's defaults, and its own names beside the common ones."""
    own = {key: value for key, value in config.items() if value is not None}
    found: dict[str, Any] = {"default_theta": theta_of(model_type)}
    found |= {key: value for key, value in defaults_of(model_type).items() if value is not None} | own
    for common, name in names_of(model_type).items():
        if name in found and common not in own:
            found[common] = found[name]
    return found


def _size(known: Config, key: str, model_type: str) -> int:
    value = known.get(key)
    if not _whole(value):
        raise TargetError(f"config.json of model_type {model_type!r} has no whole {key!r} ({value!r}); is it complete?")
    return int(known[key])


def _layers(known: Config, model_type: str) -> int:
    """Return the number of blocks: told, or counted where a config lists them one by one."""
    listed = _first(known, _LAYER_LISTS)
    if known.get("num_hidden_layers") is None and listed is not None:
        return len(listed)
    count = _size(known, "num_hidden_layers" if known.get("num_hidden_layers") else "num_layers", model_type)
    return count // 2 if model_type in _IN_PAIRS else count


def _heads(known: Config, hidden: int, told: list[str]) -> tuple[int, int, int]:
    """Return query heads, key-value heads and their size."""
    heads: Any = known.get("num_attention_heads")
    kv_heads: Any = known.get("num_key_value_heads", heads)
    if not any(key in known for key in _LATENT) and _whole(heads) and _whole(kv_heads):
        size = known.get("head_dim") or hidden // heads
        if _whole(size) and _LEAST <= size <= _MOST and size % 2 == 0 and heads % kv_heads == 0:
            return int(heads), int(kv_heads), int(size)
    size = next((size for size in (128, 64, 32, 16) if hidden % size == 0), 64)
    count = max(hidden // size, 1)
    told.append(f"its heads are of another kind: the draft has {count} of {size} sizes")
    return count, count // 4 if count % 4 == 0 else count, size


def _intermediate(known: Config, hidden: int, told: list[str]) -> int:
    for key in ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"):
        value: Any = known.get(key)
        if _whole(value) and value >= hidden:
            return int(value)
    told.append(f"it names no dense MLP: the draft's is {3 * hidden} wide")
    return 3 * hidden


def _rope(known: Config, told: list[str]) -> tuple[Rope, bool]:
    """Return the draft's rope, theta and scaling of the target over whole heads, and whether it is the target's."""
    if not any(known.get(key) for key in _ROPE):
        told.append("its config names no rope: the draft has a plain one of theta 10,000")
        return Rope(), False
    values = _one_kind(known)
    try:
        found = rope(values)
        return (found if found.kind == "proportional" else replace(found, rotary_share=1.0)), True
    except InputError as error:
        theta = values["rope_parameters"].get("rope_theta") or values.get("rope_theta") or 10000.0
        told.append(f"{error}: the draft has a plain rope of theta {float(theta):g}")
        return Rope(theta=float(theta)), False


def _one_kind(known: Config) -> dict[str, Any]:
    """Return a config with the rope of one kind of layer: that of full attention, else the first named."""
    given = known.get("rope_parameters") or known.get("rope_scaling") or {}
    inner = [value for value in given.values() if isinstance(value, Mapping)]
    chosen = given.get("full_attention") or (inner[0] if inner else given)
    theta = known.get("rope_theta") or known.get("rotary_emb_base") or known.get("default_theta")
    return {**known, "rope_parameters": chosen, "rope_theta": theta}


def _positions(known: Config, told: list[str]) -> int:
    found = _first(known, _POSITIONS)
    if _whole(found):
        return int(known[next(key for key in _POSITIONS if known.get(key) is not None)])
    told.append(f"its config names no limit of positions: {UNLIMITED:,} are taken")
    return UNLIMITED


def _first(known: Config, keys: Iterable[str]) -> Any:
    return next((known[key] for key in keys if known.get(key) is not None), None)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _advice() -> str:
    return "see docs/targets.md for the types that are"
