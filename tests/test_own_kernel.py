"""The kernel of a block's own slots, without a GPU: its numbers by the interpreter, and that it compiles for one."""

import pytest

from tests.given.apart import run_apart

triton = pytest.importorskip("triton", reason="Triton is not installed; `make install` brings it on Linux")

HOPPER = 90
TENSORS = {
    "query", "key", "value", "read", "grad_read", "grad_query", "grad_key", "grad_value", "normalizers", "grad_lse",
}  # fmt: skip
WIDE = {"normalizers", "grad_lse"}
SIZES = {"CAUSAL": False, "HEADS": 4, "SLOTS": 7, "SIZE": 128, "ROWS": 32, "COLUMNS": 16, "WIDTH": 128}
"""Of Qwen3-4B's drafts."""


def test_numbers_by_the_interpreter():
    """In a process of its own: Triton decides when a kernel is decorated whether it is interpreted."""
    run_apart("tests/interpreted/own_kernel.py", TRITON_INTERPRET="1")


@pytest.mark.parametrize("name", ["read_block", "trace_block"])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_it_compiles_for_a_gpu_without_spilling(monkeypatch, tmp_path, name, dtype):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from deepspec.attention import triton_own

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(triton_own, name)

    def kind(name):
        if name in TENSORS:
            return "*fp32" if name in WIDE else f"*{dtype}"
        return "fp32" if name == "scale" else "i32"

    types = {each: "constexpr" if each in SIZES else kind(each) for each in kernel.arg_names}
    even = [n for n, each in enumerate(kernel.arg_names) if types[each] != "constexpr" and each != "scale"]
    source = ASTSource(kernel, types, SIZES, {(n,): [["tt.divisibility", 16]] for n in even})
    found = triton.compile(source, target=GPUTarget("cuda", HOPPER, 32), options=triton_own.OPTIONS)
    code = found.asm["ptx"]
    assert "mma.sync" in code or "wgmma" in code or dtype == "fp32"
    assert "ld.global.v4.b32" in code
    assert "ld.local" not in code
