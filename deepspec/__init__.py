"""DeepSpec: draft models for speculative decoding, from prompts to a release."""
