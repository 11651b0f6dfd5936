"""The stand-in for a GPU, in processes of its own: once torch knows a device of ours, it is that process's accelerator,
and what looks for one (autograd, autocast, transformers) finds it."""

import pytest
import torch

from tests.given.apart import run_apart


@pytest.mark.timeout(900)  # for all of a file; inside, each test has its own
@pytest.mark.parametrize("name", ["refusals", "stages"])
def test_tensors_are_where_they_are_needed(name: str) -> None:
    run_apart(f"tests/elsewhere/{name}.py")


def test_no_other_test_meets_the_device() -> None:
    """All tests are collected by now: none of their modules makes the device."""
    assert torch._C._get_privateuse1_backend_name() == "privateuseone"
