"""Is speculative decoding at temperature 0 what the target would have said alone?"""

from collections.abc import Iterable, Sequence

import torch

from deepspec.decoding.results import Decoded
from deepspec.formats.scores import Divergence, LosslessCheck
from deepspec.target.load import Target

NEAR_TIE = 1e-3
"""Two best logits closer than this may change places when matrices have other shapes."""


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
            margin = _margin(target, [*prompt, *alone[:place]])
            divergences.append(
                Divergence(sample_id=decoded.sample_id, position=place, margin=margin, tie=margin < NEAR_TIE)
            )
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


def _margin(target: Target, ids: Sequence[int]) -> float:
    """Return the distance of the target's two best logits after some tokens."""
    with torch.inference_mode():
        logits = target.model(torch.tensor([list(ids)], device=target.device)).logits[0, -1].float()
    best = logits.topk(2).values
    return float(best[0] - best[1])
