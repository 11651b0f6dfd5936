"""The forms by name, and what is known of one before a draft is there. No torch, so that specs can hold it."""

from typing import Literal

FormName = Literal["deepspec", "vllm", "sglang", "huggingface", "speculators", "llama.cpp"]

EAGLE_LAYERS = 3
"""Captured layers that an Eagle3 draft has in the forms of `EAGLE_FORMS`."""
EAGLE_STYLE = "llama"
"""Style of the block that it has there."""
EAGLE_FORMS: tuple[FormName, ...] = ("sglang", "llama.cpp")
HEAD_FORMS: tuple[FormName, ...] = ("vllm", "sglang")
"""Forms of engines that hand a target's own heads the state behind its final norm."""
