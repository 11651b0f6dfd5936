"""The forms by name, and what is known of one before a draft is there. No torch, so that specs can hold it."""

from typing import Literal

FormName = Literal["deepspec", "vllm", "sglang", "huggingface", "speculators", "llama.cpp"]

EAGLE_LAYERS = 3
"""Captured layers that an Eagle3 draft has in the forms of `COUNTED_FORMS`."""
COUNTED_FORMS: tuple[FormName, ...] = ("llama.cpp",)
EAGLE_STYLE = "llama"
"""Style of the block that it has in the forms of `EAGLE_FORMS`."""
EAGLE_FORMS: tuple[FormName, ...] = ("sglang", "llama.cpp")
NO_EMBEDDING_FORMS: tuple[FormName, ...] = ("sglang",)
"""Forms whose drafts of blocks read decoder layers alone, and not the embedding."""
HEAD_FORMS: tuple[FormName, ...] = ("vllm", "sglang", "llama.cpp")
"""Forms of engines that hand a target's own heads the state behind its final norm."""
