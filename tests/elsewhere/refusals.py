"""The device that stands for a GPU computes as the CPU does, and refuses what a GPU refuses."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.elsewhere.device import DEVICE, Elsewhere, MixedDevicesError, there


def test_it_computes_and_says_where() -> None:
    with there():
        x = torch.arange(6.0, device=DEVICE).view(2, 3)
        product = x @ torch.ones(2, 3).to(DEVICE).T
        assert isinstance(product, Elsewhere)
        assert product.device == DEVICE
        assert product.cpu().tolist() == [[3.0, 3.0], [12.0, 12.0]]


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.ones(2, 3) @ x.T,
        lambda x: torch.cat([x, torch.ones(1, 3)]),
        lambda x: x[torch.tensor([0])],
        lambda x: x.__setitem__(0, torch.ones(3)),
        lambda x: torch.where(torch.ones(3, dtype=torch.bool), x, 0.0),
        lambda x: torch.nn.Linear(3, 2)(x),
    ],
)
def test_it_refuses_to_mix(mix: Callable[[Tensor], object]) -> None:
    with there(), pytest.raises(MixedDevicesError):
        mix(torch.ones(2, 3, device=DEVICE))


def test_numbers_go_with_either_and_reading_is_counted() -> None:
    with there() as seen:
        x = torch.ones(2, device=DEVICE) * torch.tensor(2.0)
        x[0] = 5
        assert (x.tolist(), bool(x.sum() > 6), int(x[1])) == ([5.0, 2.0], True, 2)
    assert seen.reads == ["tolist", "__bool__", "__int__"]
