"""The kernel that steps weights, without a GPU: its numbers by Triton's interpreter, and that it compiles for one."""

from pathlib import Path

import pytest

from tests.given.apart import run_apart

triton = pytest.importorskip("triton", reason="Triton is not installed; `make install` brings it on Linux")

HOPPER = 90
POINTERS = {"master": "*fp32", "exp_avg": "*fp32", "exp_avg_sq": "*fp32", "gradient": "*bf16", "working": "*bf16",
            "numbers": "*fp32"}  # fmt: skip


def test_numbers_by_the_interpreter() -> None:
    """In a process of its own: Triton decides when a kernel is decorated whether it is interpreted."""
    run_apart("tests/interpreted/adam_kernel.py", TRITON_INTERPRET="1")


def test_it_compiles_for_a_gpu_and_moves_16_bytes_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from deepspec.optimizers.triton_adam import OPTIONS, TILE, step_weights

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = {"GIVEN": True, "NARROW": True, "TILE": TILE}
    types = {name: POINTERS.get(name, "i32" if name == "size" else "fp32") for name in step_weights.arg_names}
    signature = types | dict.fromkeys(constants, "constexpr")
    even = [n for n, name in enumerate(step_weights.arg_names) if name in POINTERS or name == "size"]
    source = ASTSource(step_weights, signature, constants, {(n,): [["tt.divisibility", 16]] for n in even})
    code = triton.compile(source, target=GPUTarget("cuda", HOPPER, 32), options=OPTIONS).asm["ptx"]
    assert code.count("ld.global.v4.b32") >= 3 * 2 + 1, code.count("ld.global")  # 8 weights a thread, three in fp32
    assert code.count("st.global.v4.b32") == 3 * 2 + 1
