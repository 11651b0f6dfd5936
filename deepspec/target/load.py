"""The target in memory."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer, GenerationConfig

from deepspec.chat.template import ChatTemplate
from deepspec.errors import CaptureError, TargetError
from deepspec.families import TargetShape, read, read_folder
from deepspec.families.general import check_head
from deepspec.families.quantized import check_package, quantization_told
from deepspec.formats.tensor_heads import DTYPES, listed, read_object
from deepspec.placement import SPREAD, Placement
from deepspec.specs import TargetId
from deepspec.target.capture import capture
from deepspec.target.identity import identify
from deepspec.target.proof import prove, prove_ends
from deepspec.target.reading import Reading, bias_of, read_model
from deepspec.target.tokens import GENERATION, NO_END, check_vocabulary

COMPUTED: Mapping[str, torch.dtype | str] = {"auto": "auto", **{name: getattr(torch, name) for name in DTYPES}}
"""Name in a spec -> dtype of the computation; auto is that of the checkpoint."""

_IMAGE_TEXT: Any = AutoModelForImageTextToText

_BESIDE = 1.25
"""What a target takes in memory, as a multiple of its files: activations and buffers beside it."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A target model with its tokenizer, ready for forward passes; its parameters take no gradients."""

    folder: Path
    model: Any
    """The transformers model with its head."""
    tokenizer: Any
    stop_ids: frozenset[int]
    """Tokens that end an answer."""

    @cached_property
    def shape(self) -> TargetShape:
        """Return what its config says."""
        return read(self.model.config.to_dict())

    @cached_property
    def reading(self) -> Reading:
        """Return where the model has its blocks, embedding and head.

        Raises:
            TargetError: that cannot be told.
        """
        return read_model(self.model)

    @property
    def decoder(self) -> nn.Module:
        """Return the text decoder: embedding, layers, final norm."""
        return self.reading.decoder

    @cached_property
    def template(self) -> ChatTemplate:
        """Return how the target reads a conversation.

        Raises:
            TargetError: it has no chat template.
        """
        return ChatTemplate(self.tokenizer, self.stop_ids, str(self.folder), self.vocab_size)

    @property
    def embed_weight(self) -> Tensor:
        """Return the token embedding, `(V, D)`, as stored: without the scale that some families apply."""
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight

    @property
    def head_weight(self) -> Tensor:
        """Return the weight of the LM head, `(V, D)`."""
        weight: Tensor = self.model.get_output_embeddings().weight
        return weight

    @property
    def head_bias(self) -> Tensor | None:
        """Return the bias of the LM head, `(V,)`; None where it has none, or one of zeros."""
        return bias_of(self.model.get_output_embeddings())

    @property
    def num_layers(self) -> int:
        """Return the number of decoder layers."""
        return len(self.reading.blocks)

    @property
    def hidden_size(self) -> int:
        """Return D."""
        return int(self.embed_weight.shape[1])

    @property
    def vocab_size(self) -> int:
        """Return the rows of the embedding; the tokenizer may know fewer."""
        return int(self.embed_weight.shape[0])

    @property
    def device(self) -> torch.device:
        """Return where token ids go."""
        return self.embed_weight.device

    @property
    def devices(self) -> frozenset[torch.device]:
        """Return where its weights lie: of one that is spread several, among them meta where some are on disk."""
        return frozenset(each.device for each in self.model.parameters())

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the computation."""
        return self.embed_weight.dtype

    @property
    def quantization(self) -> str | None:
        """Return how the weights are quantised, in words; None where they are not: see quantized.py."""
        stored = read_object(self.folder / "config.json").get("quantization_config")
        return quantization_told(vars(self.model.config).get("quantization_config"), stored)

    def capture(self, input_ids: Tensor, layers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return `(B, T, A * D)` outputs of the layers and `(B, T, D)` states after the final norm.

        Rows are padded on the right; see `deepspec.target.capture`.

        Raises:
            CaptureError: a token id is outside the embedding; on a GPU that would end the process.
        """
        least, most = int(input_ids.min()), int(input_ids.max())
        if least < 0 or most >= self.vocab_size:
            told = f"token id {least if least < 0 else most} is outside the embedding of {self.vocab_size} rows"
            raise CaptureError(f"{told}; the tokens are of another target, or of a tokenizer that knows more")
        return capture(self.reading, _sent(input_ids, self.device), layers)


def _sent(ids: Tensor, device: torch.device) -> Tensor:
    """Return tokens on a device; to a card they go while the host goes on, else it would wait for all passes before.

    What is pinned is torch's, which gives its memory to nobody before the copy has read it.
    """
    if device.type == "cuda" and ids.device.type == "cpu":
        return ids.pin_memory().to(device, non_blocking=True)
    return ids.to(device)


def load_target(folder: Path | str, dtype: torch.dtype | str = torch.float32, device: str = "cpu") -> Target:
    """Return the target that lies in a folder.

    Args:
        folder: what `resolve_target` gave: config, safetensors, tokenizer, chat template.
        dtype: of the computation, as a dtype or a name in `COMPUTED`; quantised checkpoints keep their own.
        device: torch device, or `SPREAD` to lay the layers over all devices.

    Raises:
        TargetError: it cannot be loaded, its tokenizer knows more tokens than it has embeddings, or the general
            reading of it fails its proof.
    """
    chosen = COMPUTED[dtype] if isinstance(dtype, str) else dtype
    check_package(read_object(Path(folder) / "config.json"), str(folder))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model, told = _loader(folder).from_pretrained(
            folder, dtype=chosen, use_safetensors=True, output_loading_info=True, **_straight_to(device)
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        told = f"transformers cannot load it: {_reason(error)}; check the folder"
        raise TargetError(f"target {folder}: {told}") from error
    _check_whole(told["missing_keys"], folder)
    check_vocabulary(tokenizer, model.get_input_embeddings().weight.shape[0], str(folder))
    model = model.eval().requires_grad_(False)
    if device != SPREAD:
        model = model.to(device)
    target = Target(
        folder=Path(folder), model=model, tokenizer=tokenizer, stop_ids=_stop_ids(model.generation_config, tokenizer)
    )
    if target.shape.general:
        prove(model, target.reading, target.shape)
        prove_ends(model, Path(folder), target.shape)
    return target


def _check_whole(missing: Collection[str], folder: Path | str) -> None:
    """Refuse a checkpoint that lacks weights of its type: transformers would fill them in at random."""
    if missing:
        raise TargetError(
            f"target {folder}: its files lack {listed(sorted(missing))}, which a model of its type has; "
            "does its config belong to them? fetch or save it again"
        )


def _loader(folder: Path | str) -> Any:
    """Return what loads the target: models of text and images that are no causal ones by themselves have another."""
    config = AutoConfig.from_pretrained(folder)
    check_head(config.to_dict())
    if type(config) in AutoModelForCausalLM._model_mapping or type(config) not in _IMAGE_TEXT._model_mapping:
        return AutoModelForCausalLM
    return _IMAGE_TEXT


def _straight_to(device: str) -> dict[str, Any]:
    """Return what lets transformers read weights straight from the disk to a card, past the host's memory."""
    if device == SPREAD:
        return {"device_map": "auto"}
    return {"device_map": {"": device}} if device.startswith("cuda") else {}


def load_placed(target: TargetId, placement: Placement, dtype: str = "auto") -> Target:
    """Return the target of an artifact from where it lies on this machine.

    Args:
        target: which one.
        placement: its location, and the device.
        dtype: of the computation: a name in `COMPUTED`.

    Raises:
        TargetError: the placement does not say where it is, or another one lies there.
    """
    return load_target(located(target, placement), dtype, placement.device)


def located(target: TargetId, placement: Placement) -> Path:
    """Return the folder of an artifact's target on this machine.

    Raises:
        TargetError: the placement does not say where it is, or another one lies there.
    """
    folder = placement.target_folder(target.digest)
    if identify(folder, placement.scratch / "target-hashes.json") != target:
        raise TargetError(f"target {folder} has changed since it was named {target.digest}; run the plan again")
    return folder


def load_fitting(target: TargetId, placement: Placement, dtype: str = "auto") -> Target:
    """Return the target of an artifact in the host's memory; where that does not hold it, without its weights.

    Args:
        target: which one.
        placement: its location.
        dtype: of the computation: a name in `COMPUTED`.

    Raises:
        TargetError: see `load_placed`.
    """
    folder = located(target, placement)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if size * _BESIDE <= psutil.virtual_memory().available:
        return load_target(folder, dtype, "cpu")
    return describe_target(folder, dtype)


def describe_target(folder: Path, dtype: str = "auto") -> Target:
    """Return a target whose weights are on the meta device: its sizes, tokenizer and modules, which compute nothing.

    Raises:
        TargetError: transformers does not know its type.
    """
    try:
        config = AutoConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        chosen = COMPUTED[dtype] if dtype != "auto" else config.get_text_config().dtype or torch.float32
        with torch.device("meta"):
            model = _loader(folder).from_config(config, dtype=chosen)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise TargetError(f"target {folder}: transformers cannot read it: {_reason(error)}") from error
    model = model.eval().requires_grad_(False)
    return Target(folder=folder, model=model, tokenizer=tokenizer, stop_ids=_stop_ids(_generation(folder), tokenizer))


def load_template(folder: Path) -> ChatTemplate:
    """Return how a target reads a conversation, without loading its weights.

    Raises:
        TargetError: it has no chat template, or its tokenizer cannot be read.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        generation = _generation(folder)
    except (OSError, ValueError) as error:
        raise TargetError(f"target {folder}: {_reason(error)}; check the folder") from error
    return ChatTemplate(tokenizer, _stop_ids(generation, tokenizer), str(folder), read_folder(folder).vocab_size)


def _generation(folder: Path) -> GenerationConfig:
    """Return a target's generation config; where it has none what its config says, as for a model that is loaded."""
    if (folder / GENERATION).exists():
        return GenerationConfig.from_pretrained(folder)
    return GenerationConfig.from_model_config(AutoConfig.from_pretrained(folder))


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _stop_ids(generation: Any, tokenizer: Any) -> frozenset[int]:
    """Return the generation config's end tokens, or the tokenizer's where that names none."""
    configured = generation.eos_token_id
    found = configured if configured is not None else tokenizer.eos_token_id
    if found is None:
        raise TargetError(NO_END)
    return frozenset(found if isinstance(found, list) else [found])
