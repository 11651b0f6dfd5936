"""DFlash 2's selector reads the draft's own logits of its candidates: all that makes them."""

from dataclasses import replace

import pytest
import torch

from deepspec.algorithms.selector import unary
from tests.given.drafts.learning import SIZE, VOCAB, tiny


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("biased", [True, False])
def test_logits_of_candidates_are_those_of_the_whole_head(softcap: float | None, biased: bool) -> None:
    torch.manual_seed(0)
    model = tiny("dflash2")
    model.config = replace(model.config, logit_softcap=softcap)
    model.lm_head.register_parameter("bias", torch.nn.Parameter(torch.randn(VOCAB)) if biased else None)
    hidden, candidates = torch.randn(5, SIZE), torch.randint(VOCAB, (5, 3))
    torch.testing.assert_close(unary(model, hidden, candidates), model.head(hidden).gather(1, candidates))
