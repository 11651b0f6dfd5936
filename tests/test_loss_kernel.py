"""The kernel of the loss without a GPU: its numbers by Triton's interpreter, that it compiles and waits for nothing."""

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from deepspec.algorithms import ALGORITHMS
from deepspec.formats.recipe import TRAITS, AlgorithmName, Objective
from deepspec.kernels import kernel_of
from deepspec.records.batch import collate, on_device
from tests.given.apart import ROOT, run_apart
from tests.given.drafts.learning import REDUCIBLE, four_records, seen_by, tiny

triton = pytest.importorskip("triton", reason="Triton is not installed; `make install` brings it on Linux")

HOPPER = 90


@pytest.mark.parametrize("which", ["not soak", pytest.param("soak", marks=pytest.mark.soak)])
def test_numbers_by_the_interpreter(which: str) -> None:
    """In a process of its own: Triton decides when a kernel is decorated whether it is interpreted."""
    run_apart("tests/interpreted/loss_kernel.py", which, TRITON_INTERPRET="1")


def compiled(kernel: Any, constants: dict[str, Any], **types: str) -> dict[str, Any]:
    """Return PTX and kernel of a launch as `chunks.py` makes it, for a GPU that need not be there."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from deepspec.losses.triton_loss import NOT_SPECIALIZED, OPTIONS

    signature = {name: "constexpr" if name in constants else types.get(name, "*fp32") for name in kernel.arg_names}
    even = [n for n, name in enumerate(kernel.arg_names) if signature[name][0] == "*" or name == "vocab"]
    assert not {kernel.arg_names[n] for n in even} & set(NOT_SPECIALIZED)
    source = ASTSource(kernel, signature, constants, {(n,): [["tt.divisibility", 16]] for n in even})
    asm: dict[str, Any] = triton.compile(source, target=GPUTarget("cuda", HOPPER, 32), options=OPTIONS).asm
    return asm


NUMBERS = dict.fromkeys(("first_row", "first_position", "num_rows", "vocab"), "i32") | dict.fromkeys(
    ("softcap", "cross_entropy", "variation", "soft", "forward", "reverse", "shannon", "keep", "hybrid", "sharpness",
     "least"), "fp32"
)  # fmt: skip


@pytest.mark.parametrize(
    ("algorithm", "flags", "gradient"),
    [
        ("dspark", {}, "*bf16"),
        ("dspark with a softcap", {"CAPPED": True, "BIASED": True}, "*bf16"),
        ("dflash, not measured", {"HELD": False, "SLOPED": False}, "*bf16"),
        ("eagle3", {"SLOPED": False}, "*fp32"),
        ("validation", {"GRADIENT": False}, "*bf16"),
        ("every term", {"DIVERGENT": True}, "*bf16"),
        ("labels of the target", {"LABELLED": False, "SLOPED": False}, "*bf16"),
    ],
)
def test_it_compiles_for_a_gpu_and_reads_four_logits_at_a_time(
    algorithm: str, flags: dict[str, bool], gradient: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from deepspec.losses.triton_loss import TILE, measure_rows

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    off = {
        "CAPPED": False, "BIASED": False, "HELD": True, "SLOPED": True, "DIVERGENT": False, "LABELLED": True,
        "GRADIENT": True, "TILE": TILE,
    }  # fmt: skip
    types = NUMBERS | {
        "labels": "*i64", "best": "*i32", "index": "*i32", "draft_gradient": gradient, "bias_gradient": gradient,
    }  # fmt: skip
    made = compiled(measure_rows, off | flags, **types)
    assert made["cubin"]
    assert "ld.global.v4" in made["ptx"]
    assert ("st.global.v4" in made["ptx"]) == (off | flags)["GRADIENT"]


def test_the_targets_normalizer_compiles_for_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from deepspec.losses.triton_loss import TILE, normalize_target

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    made = compiled(normalize_target, {"CAPPED": True, "TILE": TILE}, best="*i32", vocab="i32", softcap="fp32")
    assert "ld.global.v4" in made["ptx"]


IN_TORCH = {"xpress"}
"""Algorithms whose loss is no one pass over rows, but several readings of them: torch's functions compute it."""


class Launch:
    """Stands where a kernel is: takes its grid and its arguments, and does nothing."""

    count = 0

    def __getitem__(self, grid: tuple[int, ...]) -> "Launch":
        assert grid[0] > 0
        return self

    def __call__(self, *arguments: object, **options: object) -> None:
        Launch.count += 1


class NothingIsCopied(TorchFunctionMode):
    """Refuses to make a tensor of numbers on a device."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        assert getattr(func, "__name__", "") not in ("tensor", "new_tensor", "from_numpy"), args
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("recipe", [{}, {"draft_vocab_size": 20}, {"target": "gemma4"}], ids=str)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_training_step_reads_nothing_from_the_device(
    algorithm: AlgorithmName, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the `meta` device there is nothing to read: bool(), item(), nonzero and tolist() of its tensors are errors.

    So is a tensor of numbers that the host has: to copy them to a card waits for all that it was given before.
    """
    if "draft_vocab_size" in recipe and algorithm not in REDUCIBLE:
        pytest.skip(f"{algorithm} knows whole vocabularies only")
    if recipe.get("target") == "gemma4" and TRAITS[algorithm].shipped:
        pytest.skip("heads of such targets are not read")
    monkeypatch.setattr("deepspec.losses.chunked.kernel_of", lambda device: "triton")
    monkeypatch.setattr("deepspec.losses.triton_chunks.measure_rows", Launch())
    monkeypatch.setattr("deepspec.losses.triton_chunks.normalize_target", Launch())
    monkeypatch.setattr("deepspec.losses.chunked.CHUNK_ROWS", 8)
    launched = Launch.count
    model = tiny(algorithm, **recipe).to("meta")
    batch = collate(seen_by(model, four_records()))
    made = ALGORITHMS[algorithm].supervise(model.config, Objective(num_anchors=4), batch, range(4))
    there = on_device(made, "meta")
    with NothingIsCopied():
        result = ALGORITHMS[algorithm].loss(model, batch.to("meta", torch.float32), there, there.denominators)
        result.loss.backward()
    assert all(value.device.type == "meta" for value in result.sums.values())
    assert (Launch.count > launched + 4) == (algorithm not in IN_TORCH)


def test_cuda_takes_the_kernel_and_a_cpu_does_not() -> None:
    assert kernel_of(torch.device("cuda", 1)) == "triton"
    assert kernel_of(torch.device("cpu")) == "torch"


def test_the_library_does_without_triton() -> None:
    """Its own modules import it, and nothing imports these until a GPU asks: torch for CPUs comes without."""
    for path in sorted((ROOT / "deepspec").rglob("*.py")):
        if not path.name.startswith("triton_"):
            lines = map(ast.unparse, ast.parse(path.read_text()).body)
            late = ("import triton", "from triton", "from deepspec.losses.triton", "from deepspec.losses import triton")
            assert not [line for line in lines if line.startswith(late)]
