"""Which tokens a draft of reduced vocabulary knows: those that the target's answers hold most often."""

import torch
from torch import Tensor

from deepspec.checkpoint.draft import choose_vocabulary
from deepspec.models.draft import BlockDraft, EagleDraft
from deepspec.records.stream import Samples


def learn_vocabulary(model: BlockDraft | EagleDraft, samples: Samples, most: int) -> str | None:
    """Let a fresh draft of reduced vocabulary know the most frequent tokens of the answers.

    Args:
        model: fresh; its head is filled in afterwards.
        samples: of the training split.
        most: samples that are read, the first of the first epoch: the same on every rank.

    Returns:
        What was chosen and how much of the answers it covers; None for a draft of full vocabulary.
    """
    if not model.config.reduced_vocabulary:
        return None
    counts = _count_tokens(samples, most, model.config.vocab_size)
    coverage = choose_vocabulary(model, counts)
    return (
        f"the draft knows {model.config.draft_vocab_size} of {model.config.vocab_size} tokens: {coverage:.2%} of the "
        f"{int(counts.sum())} tokens in the answers of {min(most, len(samples))} training samples"
    )


def _count_tokens(samples: Samples, most: int, vocab_size: int) -> Tensor:
    """Return how often the target generated each token in some samples, `(vocab,)` int64."""
    counts = torch.zeros(vocab_size, dtype=torch.int64)
    for number in list(samples.order(0))[:most]:
        input_ids, loss_mask = samples.tokens(number)
        counts += input_ids[loss_mask].bincount(minlength=vocab_size)
    return counts
