"""The forms by name, and what is known of one before a draft is there. No torch, so that specs can hold it."""

from typing import Literal

FormName = Literal["deepspec", "vllm", "sglang", "huggingface", "speculators", "llama.cpp"]

EAGLE_LAYERS = 3
"""Captured layers that an Eagle3 draft has in the forms of `OF_EAGLE_LAYERS`."""
OF_EAGLE_LAYERS: tuple[FormName, ...] = ("sglang", "llama.cpp")
