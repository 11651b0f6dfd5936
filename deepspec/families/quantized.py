"""How a target's weights are quantised, and with which package they are loaded. No torch."""

import re
from collections.abc import Iterator, Mapping
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from deepspec.errors import TargetError
from deepspec.formats.tensor_heads import TensorHead

_PACKAGES = {
    "awq": "gptqmodel",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "gptq": "gptqmodel",
    "hqq": "hqq",
    "quanto": "optimum-quanto",
    "torchao": "torchao",
}
"""Kind -> the package that transformers loads it with; the others it loads by itself."""

_DETAILS: Mapping[str, str] = {
    "bits": "{} bits",
    "num_bits": "{} bits",
    "nbits": "{} bits",
    "load_in_8bit": "8 bits",
    "load_in_4bit": "4 bits",
    "bnb_4bit_quant_type": "{}",
    "weights": "{}",
    "quant_type": "{}",
    "_type": "{}",
    "format": "{}",
    "group_size": "groups of {}",
    "weight_block_size": "blocks of {}",
    "activation_scheme": "{} activations",
}
"""Field of a quantisation's config -> what is said of it, where it says something."""

_PLAIN = (str, int, list)
_IN_A_NAME = re.compile(r"(?:fp|int|float)(\d+)", re.IGNORECASE)
"""Bits, in the name of a kind that has one width only, or of a type."""
_INTEGERS = ("U8", "I8", "U32", "I32")
_WEIGHT = re.compile(r"(?:weight|weight_packed|W_q|weight\._data|_blocks)$")
"""How the names of packed weights end; scales, zero points and maps beside them have other ones."""


def check_package(config: Mapping[str, Any], target: str) -> None:
    """Refuse a checkpoint that is quantised in a way whose package is not installed here.

    Args:
        config: its config.json.
        target: for messages.

    Raises:
        TargetError: the package is missing.
    """
    stored = config.get("quantization_config")
    package = None if stored is None else _PACKAGES.get(_kind(stored))
    if package is not None and _version(package) is None:
        told = f"its weights are quantised as {quantization_told(stored, None)}"
        raise TargetError(
            f"target {target}: {told}, which is not installed; install {package}, or choose plain weights"
        )


def computes_quantised(config: Any) -> bool:
    """Return whether the model of a loaded config has quantised weights, and did not get plain ones of them."""
    return vars(config).get("quantization_config") is not None


def quantization_told(used: Any, stored: Mapping[str, Any] | None) -> str | None:
    """Return how weights are quantised; None where they are not.

    Args:
        used: the `quantization_config` of the loaded model, an object or its JSON; None: it has plain weights.
        stored: that of the checkpoint's config.json. Where transformers loads a kind only as plain weights, as it does
            FP8 and MXFP4 without a card for them, states are those of the rounded weights, computed in another
            precision: "dequantised" is said.
    """
    if used is None and stored is None:
        return None
    config = _plain(used) if used is not None else dict(stored or {})
    kind, details = _kind(config), ", ".join(dict.fromkeys(_details(config)))
    words = f"{kind} ({details})" if details else kind
    if used is None:
        return f"{words} dequantised"
    package = _PACKAGES.get(kind)
    return words if package is None else " ".join(filter(None, (words, "by", package, _version(package))))


def packed_bits(stored: Mapping[str, Any]) -> int | None:
    """Return the bits of one quantised weight; None where a quantisation's config does not say.

    Args:
        stored: the `quantization_config` of a checkpoint's config.json.
    """
    for name in ("bits", "num_bits", "nbits"):
        for value in _found(stored, name):
            if isinstance(value, int) and value > 0:
                return value
    loaded = {f"load_in_{bits}bit": bits for bits in (4, 8)}
    told = next((bits for name, bits in loaded.items() if stored.get(name) is True), None)
    named = [
        _kind(stored),
        *(str(each) for name in ("weights", "quant_type", "_type") for each in _found(stored, name)),
    ]
    digits = next((int(match[1]) for each in named if (match := _IN_A_NAME.search(each))), None)
    return told or digits


def counted_weights(heads: Mapping[str, TensorHead], stored: Mapping[str, Any] | None) -> dict[str, int]:
    """Return how many weights each tensor of a checkpoint holds: of packed ones several lie in one number.

    Args:
        heads: every tensor of it.
        stored: the `quantization_config` of its config.json; None: it has plain weights.
    """
    bits = None if stored is None else packed_bits(stored)
    return {name: head.values * _packed(name, head, bits) for name, head in heads.items()}


def _packed(name: str, head: TensorHead, bits: int | None) -> int:
    """Return how many weights lie in one number of a tensor."""
    is_packed = bits is not None and head.dtype in _INTEGERS and _WEIGHT.search(name) is not None
    return max(1, head.bits // bits) if is_packed and bits else 1


def _kind(config: Mapping[str, Any]) -> str:
    method = config.get("quant_method")
    return str(method.value if isinstance(method, Enum) else method)


def _plain(config: Any) -> dict[str, Any]:
    return dict(config) if isinstance(config, Mapping) else dict(config.to_dict())


def _details(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is said of bits and groups, of all parts of a config, in a fixed order."""
    for name, words in _DETAILS.items():
        if name == "bnb_4bit_quant_type" and not config.get("load_in_4bit"):
            continue  # it is there, and of no meaning, for 8 bits
        for value in _found(config, name):
            other = name == "_type" and not str(value).endswith("Config")
            if not other and (value is True or (isinstance(value, _PLAIN) and not isinstance(value, bool))):
                yield words.format(" × ".join(map(str, value)) if isinstance(value, list) else value)


def _found(config: Mapping[str, Any], name: str) -> Iterator[Any]:
    """Yield the values of a name, outer ones first."""
    if config.get(name) is not None and not isinstance(config[name], Mapping):
        yield config[name]
    for value in config.values():
        if isinstance(value, Mapping):
            yield from _found(value, name)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
