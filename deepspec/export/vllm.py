"""vLLM's native form: the public DeepSpec form for DSpark, an own class name and layer count for Eagle3."""

from deepspec.export.form import (
    Form,
    Json,
    Source,
    Tensors,
    not_style,
    not_vanilla,
    not_whole,
    safetensors_form,
    unlike_its_block,
    with_zero_markov,
)

_EAGLE = {"qwen3": "Eagle3Qwen3ForCausalLM", "llama": "Eagle3LlamaForCausalLM"}

_EAGLE_FLAGS = {"norm_before_residual": False, "norm_output": False}
"""Written because vLLM takes a missing norm_before_residual for true."""


def _refuse(source: Source) -> str | None:
    draft = source.draft
    if draft.algorithm == "eagle3":
        return not_style(draft, *_EAGLE) or unlike_its_block(draft)
    unmapped = not_whole(draft) if draft.style == "gemma4" else None
    return not_style(draft, "qwen3", "gemma4") or unlike_its_block(draft) or not_vanilla(draft) or unmapped


def _encode(source: Source) -> tuple[Json, Tensors, list[str]]:
    if source.draft.algorithm != "eagle3":
        return with_zero_markov(source)
    config = {key: value for key, value in source.config.items() if key != "target_layer_ids"}
    config |= {
        "architectures": [_EAGLE[source.draft.style]],
        "eagle_aux_hidden_state_layer_ids": [layer + 1 for layer in source.draft.target_layer_ids],
        "draft_vocab_size": source.draft.draft_vocab_size,
        **_EAGLE_FLAGS,
    }
    return config, dict(source.tensors), []


def _decode(config: Json, tensors: Tensors) -> tuple[Json, Tensors]:
    if config["architectures"][0] not in _EAGLE.values():
        return config, tensors
    style = next(style for style, name in _EAGLE.items() if name == config["architectures"][0])
    public = {key: value for key, value in config.items() if key not in _EAGLE_FLAGS}
    public["architectures"] = [f"{style.capitalize()}Eagle3Model"]
    public["target_layer_ids"] = [layer - 1 for layer in public.pop("eagle_aux_hidden_state_layer_ids")]
    return public, tensors


VLLM: Form = safetensors_form(_refuse, _encode, _decode)
