"""Is speculative decoding at temperature 0 what the target would have said alone?"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from deepspec.formats.scores import Divergence, LosslessCheck
from deepspec.rounds.decoded import Decoded
from deepspec.target.load import Target
from deepspec.target.reading import memory_name

NEAR_TIE = 1e-3
"""Two best logits closer than this may change places when matrices have other shapes; in half precision, even farther
ones: as far as a logit moves there from one shape to another."""


def check_lossless(target: Target, samples: Iterable[tuple[Sequence[int], Decoded]]) -> LosslessCheck:
    """Compare samples with the target's own greedy generation, token for token.

    Args:
        target: the target.
        samples: prompt ids, and what speculative decoding at temperature 0 made of them.
    """
    count, divergences = 0, []
    for prompt, decoded in samples:
        count += 1
        alone = _generated(target, prompt, len(decoded.tokens))
        place = _first_difference(alone, decoded.tokens)
        if place is not None:
            divergences.append(_divergence(target, [*prompt, *alone[:place]], alone[place:], decoded, place))
    return LosslessCheck(
        samples=count,
        equal=count - len(divergences),
        ties=sum(each.tie for each in divergences),
        divergences=tuple(divergences),
    )


def _generated(target: Target, prompt: Sequence[int], count: int) -> list[int]:
    ids = torch.tensor([list(prompt)], device=target.device)
    with torch.inference_mode():
        out = target.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=count,
            eos_token_id=sorted(target.stop_ids),
            pad_token_id=min(target.stop_ids),
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=None,
        )
    generated: list[int] = out[0, len(prompt) :].tolist()
    return generated


def _first_difference(first: Sequence[int], second: Sequence[int]) -> int | None:
    for place, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return place
    return None if len(first) == len(second) else min(len(first), len(second))


def _divergence(
    target: Target, before: Sequence[int], alone: Sequence[int], decoded: Decoded, place: int
) -> Divergence:
    """Return whether rounding explains that a sample parts from the target's own at a place.

    Args:
        target: the target.
        before: tokens that both have read.
        alone: tokens of the target from the place on; none where it had stopped.
        decoded: the sample.
        place: where they part.
    """
    chosen = [*alone[:1], *decoded.tokens[place : place + 1]]
    margin, rounding, tie = rounded(*_logits(target, before), chosen)
    return Divergence(sample_id=decoded.sample_id, position=place, margin=margin, rounding=rounding, tie=tie)


def rounded(whole: Tensor, stepped: Tensor, chosen: Sequence[int]) -> tuple[float, float, bool]:
    """Return how far the less likely of two tokens is below the best, how far rounding moves one, and if that is all.

    Args:
        whole: `(V,)` logits of one pass.
        stepped: `(V,)`, the same where the last token is read by itself.
        chosen: the target's token and the sample's; one alone where the target had stopped: that is never rounding.
    """
    margin, rounding = float(whole.max() - whole[list(chosen)].min()), float((whole - stepped).abs().max())
    return margin, rounding, len(chosen) == 2 and margin <= max(NEAR_TIE, rounding)


@torch.inference_mode()
def _logits(target: Target, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the target's logits behind some tokens, `(V,)` each: read in one pass, and the last token by itself.

    The second are the first where it has no memory to read behind.
    """
    read = torch.tensor([list(ids)], device=target.device)
    whole, past = target.model(read).logits[0, -1].float(), memory_name(target.model)
    if not past:
        return whole, whole
    before = target.model(read[:, :-1], use_cache=True)
    stepped = target.model(read[:, -1:], **{past: before[past]})
    return whole, stepped.logits[0, -1].float()
