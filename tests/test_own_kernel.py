"""The kernel of a block's own slots, without a GPU: its numbers by the interpreter, and that it compiles for one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.given.apart import run_apart

triton = pytest.importorskip("triton", reason="Triton is not installed; `make install` brings it on Linux")

HOPPER = 90
LEAST_SHARED = 99 * 1024
"""Bytes of shared memory that a program may have on the cards that have least (compute capability 8.6, 8.9, 12.0)."""
TENSORS = {
    "query", "key", "value", "read", "grad_read", "grad_query", "grad_key", "grad_value", "normalizers", "grad_lse",
}  # fmt: skip
WIDE = {"normalizers", "grad_lse"}
SIZES = {"CAUSAL": False, "HEADS": 4, "SLOTS": 7, "SIZE": 128, "ROWS": 32, "COLUMNS": 16, "WIDTH": 128}
"""Of Qwen3-4B's drafts."""


def test_numbers_by_the_interpreter() -> None:
    """In a process of its own: Triton decides when a kernel is decorated whether it is interpreted."""
    run_apart("tests/interpreted/own_kernel.py", TRITON_INTERPRET="1")


def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, dtype: str, sizes: dict[str, Any]) -> Any:
    """Return a kernel as it is launched, for a GPU that need not be there."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from deepspec.attention import triton_own

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(triton_own, name)

    def kind(name: str) -> str:
        if name in TENSORS:
            return "*fp32" if name in WIDE else f"*{dtype}"
        return "fp32" if name == "scale" else "i32"

    types = {each: "constexpr" if each in sizes else kind(each) for each in kernel.arg_names}
    even = [n for n, each in enumerate(kernel.arg_names) if types[each] != "constexpr" and each != "scale"]
    source = ASTSource(kernel, types, sizes, {(n,): [["tt.divisibility", 16]] for n in even})
    return triton.compile(source, target=GPUTarget("cuda", HOPPER, 32), options=triton_own.OPTIONS)


@pytest.mark.parametrize("name", ["read_block", "trace_block"])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_it_compiles_for_a_gpu_without_spilling(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, dtype: str
) -> None:
    code = compiled(monkeypatch, tmp_path, name, dtype, SIZES).asm["ptx"]
    assert "mma.sync" in code or "wgmma" in code or dtype == "fp32"
    assert "ld.global.v4.b32" in code
    assert "ld.local" not in code


FP32, BF16 = torch.float32, torch.bfloat16
LARGE = [
    *((*shape, BF16) for shape in ((4, 7, 128), (1, 16, 256), (1, 8, 512), (8, 8, 64), (5, 7, 65), (1, 90, 33))),
    *((*shape, FP32) for shape in ((2, 7, 128), (1, 8, 256), (1, 31, 65), (8, 15, 16))),
]


@pytest.mark.parametrize(("heads", "slots", "size", "dtype"), LARGE)
def test_what_it_is_asked_for_fits_into_the_shared_memory_of_any_card(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, heads: int, slots: int, size: int, dtype: torch.dtype
) -> None:
    from deepspec.attention import triton_own
    from deepspec.attention.split import MOST_BYTES, _is_small

    query, key = torch.empty(1, heads, slots, size, dtype=dtype), torch.empty(1, 1, slots, size)
    assert MOST_BYTES / 2 < heads * slots * size * dtype.itemsize <= MOST_BYTES
    assert _is_small(query, key, slots)
    assert not _is_small(query, key, 2 * slots)
    sizes = {"CAUSAL": True, **triton_own._sizes(query, key, slots)}
    name = "bf16" if dtype is BF16 else "fp32"
    assert compiled(monkeypatch, tmp_path, "trace_block", name, sizes).metadata.shared <= LEAST_SHARED


@pytest.mark.parametrize(("heads", "slots", "size", "dtype"), [(1, 4, 512, FP32), (1, 255, 16, BF16)])
def test_small_blocks_that_would_not_fit_are_not_asked_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, heads: int, slots: int, size: int, dtype: torch.dtype
) -> None:
    """Few bytes, but 16 rows at least of wide heads, or many slots that are held against each other."""
    from deepspec.attention import triton_own
    from deepspec.attention.split import MOST_BYTES, _is_small

    query, key = torch.empty(1, heads, slots, size, dtype=dtype), torch.empty(1, 1, slots, size)
    assert heads * slots * size * dtype.itemsize <= MOST_BYTES
    sizes = {"CAUSAL": True, **triton_own._sizes(query, key, slots)}
    name = "bf16" if dtype is BF16 else "fp32"
    assert compiled(monkeypatch, tmp_path, "trace_block", name, sizes).metadata.shared > LEAST_SHARED
    assert not _is_small(query, key, slots)
