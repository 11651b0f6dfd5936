"""Bundled prompts for a first run, written for this project: `prompts.jsonl` to train on, `benchmarks/` held out."""

from pathlib import Path

PROMPTS = Path(__file__).parent / "prompts.jsonl"
"""Training prompts; `source` names their kind."""

BENCHMARKS = Path(__file__).parent / "benchmarks"
"""Folder of held-out prompts of the same kinds, one file a kind."""
