"""What a form of an engine is: whether it can express a draft, how it is written, and how it is read back."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from deepspec.checkpoint.draft import CONFIG, WEIGHTS
from deepspec.checkpoint.files import write_weights
from deepspec.errors import CheckpointError
from deepspec.families.rope import rope, rope_keys
from deepspec.families.shape import Rope
from deepspec.formats.recipe import TRAITS
from deepspec.models.config import DraftConfig

Json = dict[str, Any]
Tensors = dict[str, Tensor]

ZERO_RANK = 16
"""Rank of the Markov head of zeros that lets engines without DeepSpec's DFlash serve one as DSpark."""

AS_DSPARK = (
    "a DFlash draft of DeepSpec predicts from its first slot on, which this engine's own DFlash does not: "
    "it is written as DSpark with a Markov head of zeros; serve it as DSpark"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class FormSource:
    """The draft that is exported."""

    draft: DraftConfig
    config: Json
    """Its config.json in the public DeepSpec form."""
    tensors: Mapping[str, Tensor]
    target: str
    """Name of the target as engines load it."""
    target_folder: Path | None
    """The target on this machine, where it is known."""
    gguf: Path | None = None
    """GGUF file from which llama.cpp serves it; None: the one in its folder, where there is one."""


def _no_options(_: FormSource) -> tuple[str, ...]:
    """Return the options of a form whose files say all that its engine needs."""
    return ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """One engine's form."""

    refuse: Callable[[FormSource], str | None]
    """What of the draft it cannot express; None: nothing."""
    write: Callable[[FormSource, Path], list[str]]
    """Writes the folder; returns what its user must know."""
    read: Callable[[Path], tuple[Json, Tensors]]
    """Reads the folder by the form's own rules, as config and tensors in the public DeepSpec form. What the form
    leaves to the target (`BORROWED`, `num_target_layers`) may be missing."""
    options: Callable[[FormSource], tuple[str, ...]] = _no_options
    """Of the engine's command, by which it is told what it reads from none of the files."""


Encode = Callable[[FormSource], tuple[Json, Tensors, list[str]]]
Decode = Callable[[Json, Tensors], tuple[Json, Tensors]]


def safetensors_form(
    refuse: Callable[[FormSource], str | None],
    encode: Encode,
    decode: Decode,
    options: Callable[[FormSource], tuple[str, ...]] = _no_options,
) -> Form:
    """Return a form that is config.json and model.safetensors, from its two translations."""

    def write(source: FormSource, folder: Path) -> list[str]:
        config, tensors, notes = encode(source)
        write_config(config, folder)
        write_weights({name: tensor.contiguous() for name, tensor in tensors.items()}, folder)
        return notes

    def read(folder: Path) -> tuple[Json, Tensors]:
        return decode(json.loads((folder / CONFIG).read_text(encoding="utf-8")), load_file(folder / WEIGHTS))

    return Form(refuse=refuse, write=write, read=read, options=options)


def write_config(config: Mapping[str, Any], folder: Path) -> None:
    """Write config.json."""
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def with_zero_markov(source: FormSource) -> tuple[Json, Tensors, list[str]]:
    """Return a draft's config and tensors, with a Markov head of zeros where it has none."""
    if source.draft.markov_rank:
        return dict(source.config), dict(source.tensors), []
    config = {**source.config, "markov_rank": ZERO_RANK, "markov_head_type": "vanilla"}
    sizes = {"markov_w1": source.draft.vocab_size, "markov_w2": source.draft.draft_vocab_size}
    dtype = source.tensors["fc.weight"].dtype
    heads = {f"markov_head.{name}.weight": torch.zeros(size, ZERO_RANK, dtype=dtype) for name, size in sizes.items()}
    return config, {**source.tensors, **heads}, [AS_DSPARK]


def with_rope(config: Json, draft: DraftConfig) -> Json:
    """Return a block's config with the draft's rope in every name that its readers may look for."""
    return config if draft.style == "gemma4" else {**config, **rope_keys(draft.block.rope)}


def check_rope(config: Json) -> None:
    """Check that old and new readers of a block's config see one rope.

    Raises:
        CheckpointError: they see two, or one of them sees none.
    """
    nested = any(isinstance(value, dict) for value in (config.get("rope_parameters") or {}).values())
    if nested:  # by type of layer: a Gemma 4 block, which no old reader knows
        return
    missing = [key for key in ("rope_parameters", "rope_theta", "rope_scaling") if key not in config]
    if missing:
        raise CheckpointError(f"the config lacks {', '.join(missing)}: some readers would see another rope")
    told = config["rope_parameters"]
    engines = {key: value for key, value in told.items() if key != "attention_factor"}
    seen = {
        "rope_parameters": rope({**config, "rope_scaling": None}),
        "rope_theta and rope_scaling": rope({**config, "rope_parameters": None}),
        "attn_factor": rope({**config, "rope_scaling": None, "rope_parameters": engines}),
    }
    first, *others = seen.items()
    for name, found in others:
        if _apart(found, first[1]):
            raise CheckpointError(f"readers of {first[0]} see {first[1]}, those of {name} {found}")


def _apart(one: Rope, other: Rope) -> bool:
    """Return whether two ropes differ by more than the rounding of their factors."""
    close = math.isclose(one.attention_factor, other.attention_factor, rel_tol=1e-6)
    return replace(one, attention_factor=1.0) != replace(other, attention_factor=1.0) or not close


def turns_whole_heads(draft: DraftConfig) -> str | None:
    """Refuse a rope that turns a part of each head where the engine turns all of it."""
    share = draft.block.rope.rotary_share
    return None if share == 1.0 else f"a rope that turns {share:.0%} of each head; its class turns all"


def without(tensors: Mapping[str, Tensor], *names: str) -> Tensors:
    """Return the tensors but those named."""
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def unlike_its_block(draft: DraftConfig) -> str | None:
    """Refuse a block of one family with the embedding scale or softcap of another: engines' classes lack them."""
    if biased(draft) is not None:
        return biased(draft)
    if draft.style == "gemma4" or (draft.embedding_scale == 1.0 and draft.logit_softcap is None):
        return None
    what = "an embedding scale" if draft.embedding_scale != 1.0 else "a logit softcap"
    return f"a {draft.style} block with {what}, which its class for {draft.style} has not"


def not_normed(draft: DraftConfig) -> str | None:
    """Refuse heads that a target ships and that read its state before the final norm: engines hand them the other."""
    if draft.reads_normed:
        return None
    return (
        "mtp heads that read the state before the target's final norm; it hands them the one behind it, which "
        "training takes unless cache.layers says otherwise"
    )


def biased(draft: DraftConfig) -> str | None:
    """Refuse a head with a bias: engines' drafts multiply by the target's head, and add nothing."""
    return "a head with a bias; its drafts have the head's product alone" if draft.head_bias else None


def not_filled_in(draft: DraftConfig) -> str | None:
    """Refuse DFlash 2 and XPress in the layout in which no engine serves them."""
    traits = TRAITS[draft.algorithm]
    if (traits.convolved or traits.refined) and draft.layout != "fill_in":
        return f"the layout {draft.layout} for {draft.algorithm}; it has fill_in"
    return None


def has_norms(draft: DraftConfig, *known: str) -> str | None:
    """Refuse norms of an Eagle3 or P-EAGLE draft beside those that are known."""
    own = [name for name, set_ in asdict(draft.norms).items() if set_ and name not in known]
    kind = "a peagle" if TRAITS[draft.algorithm].parallel else "an eagle3"
    return f"{kind} draft with {' and '.join(own)}" if own else None


def not_parallel(draft: DraftConfig) -> str | None:
    """Refuse mask tokens behind the last one, where an engine drafts token by token."""
    if TRAITS[draft.algorithm].parallel:
        return f"{draft.algorithm}, which drafts all tokens in a pass; it has eagle3, token by token"
    return None


def not_vanilla(draft: DraftConfig) -> str | None:
    """Refuse Markov heads that only DeepSpec and speculators know."""
    if draft.markov_rank and draft.markov_head != "vanilla":
        return f"a {draft.markov_head} Markov head; it knows the vanilla one only"
    return None


def not_whole(draft: DraftConfig) -> str | None:
    """Refuse a reduced vocabulary where the engine maps draft ids for Eagle3 only."""
    if TRAITS[draft.algorithm].blocks and draft.reduced_vocabulary:
        return f"a reduced vocabulary for {draft.algorithm}; it knows the target's whole one only"
    return None


def not_refined(draft: DraftConfig) -> str | None:
    """Refuse a refiner, where an engine has none."""
    return f"the refiner of {draft.algorithm}; it has no class for it" if TRAITS[draft.algorithm].refined else None


def not_by_slot(draft: DraftConfig) -> str | None:
    """Refuse a window of another form than engines have."""
    if draft.window_form == "slot":
        return None
    return f"a window of {draft.window} positions before a block's anchor; its layers count from each slot"


def has_window(draft: DraftConfig, why: str) -> str | None:
    """Refuse layers with a window, and say why the engine cannot have them."""
    return None if draft.window is None else f"a window of {draft.window} positions; {why}"


def not_style(draft: DraftConfig, *styles: str) -> str | None:
    """Refuse decoder blocks of other styles."""
    return None if draft.style in styles else f"a {draft.style} block for {draft.algorithm}; it has {', '.join(styles)}"
