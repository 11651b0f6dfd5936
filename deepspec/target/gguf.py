"""What transformers leaves out when it reads a GGUF file: how the tokenizer splits text before it merges.

A wrong split gives other tokens than the engine's for the same text: contexts that the target never saw.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers

from deepspec.families.gguf_header import gguf_header

_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)

SPLITS: Mapping[str, Any] = {
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _GPT2]),
}
"""`tokenizer.ggml.pre` -> the split that llama.cpp makes, where transformers makes another."""


def mend_split(tokenizer: Any, gguf: Path) -> None:
    """Let a tokenizer that transformers read from a GGUF file split text as the file says."""
    name = str(gguf_header(gguf).get("tokenizer.ggml.pre"))
    if name in SPLITS:
        tokenizer.backend_tokenizer.pre_tokenizer = SPLITS[name]
