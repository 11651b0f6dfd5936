"""vLLM's own code for GPUs, where there is none: a card that does its work late, and our connector on it."""
