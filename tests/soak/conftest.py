"""What soaks of a real vLLM share."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the vLLM that DEEPSPEC_VLLM names found by its name, and serve on a CPU without the hub."""
    monkeypatch.setenv("PATH", f"{Path(os.environ['DEEPSPEC_VLLM']).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
