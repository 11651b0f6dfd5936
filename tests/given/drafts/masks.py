"""Training with another form of masks than the device would choose."""

import pytest
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from deepspec.algorithms.masks import MaskForm


def use_form(monkeypatch: pytest.MonkeyPatch, form: MaskForm) -> None:
    """Let all kinds of drafts train with a form of masks; flex_attention as it is, uncompiled."""
    for room in ("slots", "eagle3", "chains"):
        monkeypatch.setattr(f"deepspec.algorithms.{room}.form_for", lambda _device: form)
    monkeypatch.setattr("deepspec.attention.flex._compiled", lambda: flex_attention)


def dense(mask: object) -> Tensor:
    """Return a mask that is one tensor."""
    assert isinstance(mask, Tensor)
    return mask
