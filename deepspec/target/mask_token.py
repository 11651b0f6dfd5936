"""The token that stands for "not drafted yet" in a block."""

import re
from typing import Any

from deepspec.errors import TargetError

_MASK = re.compile(r"^\W*mask\W*$", re.IGNORECASE)
_RESERVED = re.compile(r"reserved|unused|extra_?\d|placeholder", re.IGNORECASE)


def choose_mask_token(tokenizer: Any, vocab_size: int, chosen: int | None = None) -> int:
    """Return a token id that no text of the target's gives.

    In this order: the one chosen; the first id beyond the tokenizer's vocabulary that the embedding still has; an
    added token called mask; the first added token that is called reserved or unused.

    Args:
        tokenizer: the target's.
        vocab_size: rows of its embedding.
        chosen: an id that the user or the preset names.

    Raises:
        TargetError: the chosen id has no embedding, or there is no such token.
    """
    if chosen is not None:
        if not 0 <= chosen < vocab_size:
            raise TargetError(f"mask token {chosen} is outside the embedding, which has ids 0 to {vocab_size - 1}")
        return chosen
    known = max(tokenizer.get_vocab().values()) + 1
    if known < vocab_size:
        return int(known)
    added = {int(token_id): str(token) for token_id, token in tokenizer.added_tokens_decoder.items()}
    for pattern in (_MASK, _RESERVED):
        found = [token_id for token_id, token in sorted(added.items()) if pattern.search(token)]
        if found:
            return found[0]
    raise TargetError(_advice(tokenizer, added))


def mask_token_facts(tokenizer: Any, vocab_size: int) -> dict[str, Any]:
    """Return `mask_token_id`, or None and the advice beside it: only some algorithms need the token."""
    try:
        return {"mask_token_id": choose_mask_token(tokenizer, vocab_size), "mask_token_advice": ""}
    except TargetError as error:
        return {"mask_token_id": None, "mask_token_advice": str(error)}


def _advice(tokenizer: Any, added: dict[int, str]) -> str:
    """Return which tokens could serve: added ones that the chat template does not use."""
    template = str(tokenizer.chat_template or "")
    used = {tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token, tokenizer.unk_token}
    free = [f"{i} {token}" for i, token in sorted(added.items()) if token not in used and token not in template]
    choice = f"; its chat template does not use {', '.join(free[:8])}" if free else ""
    return (
        "the tokenizer has no id that text never gives (reserved, or beyond its vocabulary); choose one with "
        f"--set train.mask_token_id=ID{choice}"
    )
