"""DFlash 2's parts: the convolution over slots and the selector, by hand."""

import pytest
import torch

from deepspec.attention.attention import KeyValue
from deepspec.families import read
from deepspec.models.block import Block
from deepspec.models.convolution import ConvolvedBlock, SlotConvolution
from deepspec.models.heads import CandidateSelector
from deepspec.start.initial import initialize
from tests.given.drafts.learning import TARGETS, tiny
from tests.given.some import some


def test_a_convolution_by_hand() -> None:
    """Two channels, one of each group; two taps, three slots; the projection adds x's own two channels to tap 1."""
    convolution = SlotConvolution(size=2, taps=2, group=1, slots=3)
    with torch.no_grad():
        convolution.base_kernel[0] = torch.tensor([[1.0, 1.0], [0.5, 2.0]])
        convolution.kernel_projection.weight.zero_()
        convolution.kernel_projection.weight[2:4] = torch.eye(2)  # of side 0, tap 1
    x = torch.tensor([[[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]]])
    out = convolution(x, convolution.kernels(x), 0)
    wanted = [[1, 10], [2 + (0.5 + 2) * 1, 20 + (2 + 20) * 10], [3 + (0.5 + 3) * 2, 30 + (2 + 30) * 20]]
    assert out[0].tolist() == wanted


def test_channels_of_a_group_share_what_is_dynamic_and_blocks_do_not_meet() -> None:
    convolution = SlotConvolution(size=4, taps=2, group=2, slots=2)
    with torch.no_grad():
        convolution.kernel_projection.weight.fill_(1.0)
    x = torch.ones(1, 4, 4)  # two blocks of two slots
    kernels = convolution.kernels(x)
    assert kernels.shape == (1, 4, 2, 2, 2)  # of two groups
    assert torch.equal(kernels, torch.full_like(kernels, 4.0))
    assert convolution(x, kernels, 1)[0, :, 0].tolist() == [4.0, 8.0, 4.0, 8.0]  # each block's first slot reads itself


def test_fewer_slots_than_a_block_are_one_block() -> None:
    convolution = SlotConvolution(size=2, taps=3, group=1, slots=5)
    torch.nn.init.normal_(convolution.base_kernel)
    x = torch.randn(2, 5, 2)
    whole = convolution(x, convolution.kernels(x), 0)
    torch.testing.assert_close(convolution(x[:, :2], convolution.kernels(x[:, :2]), 0), whole[:, :2])


def test_a_fresh_convolved_block_is_one_without() -> None:
    draft = tiny("dflash2")
    initialize(draft, seed=3)
    plain = Block(read(TARGETS["qwen3"]).block)
    convolved = draft.layers[0]
    assert isinstance(convolved, ConvolvedBlock)
    plain.load_state_dict({name: value for name, value in convolved.state_dict().items() if "_conv." not in name})
    x, rotation = torch.randn(1, 8, 16), draft.rotary(torch.arange(8)[None], torch.float32)
    none = KeyValue(torch.zeros(1, 2, 0, 8), torch.zeros(1, 2, 0, 8))
    torch.testing.assert_close(convolved(x, rotation, none, None), plain(x, rotation, none, None))


def test_a_selector_by_hand() -> None:
    """Rank 2, h = (1, 2), H the identity: P[u] = (3, 4) makes (3, 8), of which S = (1, 1) and (0, 2) make 11 and 16."""
    selector = CandidateSelector(vocab_size=3, rank=2, hidden_size=2)
    with torch.no_grad():
        selector.hidden_projection.weight.copy_(torch.eye(2))
        selector.predecessor_codebook[1] = torch.tensor([3.0, 4.0])
        selector.successor_codebook[0], selector.successor_codebook[2] = torch.tensor([1.0, 1]), torch.tensor([0.0, 2])
    found = selector(torch.tensor([[1.0, 2.0]]), torch.tensor([1]), torch.tensor([[0, 2]]))
    assert found.tolist() == [[11.0, 16.0]]


def test_a_fresh_selector_leaves_the_drafts_own_order() -> None:
    draft = tiny("dflash2")
    initialize(draft, seed=3)
    selector = some(draft.candidate_selector)
    found = selector(torch.randn(4, 16), torch.arange(4), torch.arange(20).view(4, 5))
    assert not found.any()
    assert selector.predecessor_codebook.std().item() == pytest.approx(3**-0.5, rel=0.3)
