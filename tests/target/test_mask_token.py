"""The mask token is one that text never gives."""

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from deepspec.errors import TargetError
from deepspec.target.mask_token import choose_mask_token
from tests.given.targets.tiny import MASK, VOCAB, tokenizer


def with_tokens(*tokens: str) -> PreTrainedTokenizerFast:
    """Return the tiny tokenizer with its mask token renamed away and others added."""
    fast = tokenizer()
    text = fast.backend_tokenizer.to_str().replace("<|mask|>", "<|other|>")
    renamed = PreTrainedTokenizerFast(tokenizer_object=fast.backend_tokenizer.from_str(text), eos_token="<|im_end|>")
    renamed.chat_template = fast.chat_template
    renamed.add_tokens([AddedToken(token, special=True) for token in tokens])
    return renamed


def test_first_id_beyond_the_vocabulary_wins() -> None:
    assert choose_mask_token(tokenizer(), VOCAB) == 260


def test_then_a_token_called_mask() -> None:
    assert choose_mask_token(tokenizer(), 260) == MASK


def test_then_the_first_reserved_one() -> None:
    fast = with_tokens("<|tool|>", "<unused0>", "<unused1>")
    assert choose_mask_token(fast, len(fast)) == fast.convert_tokens_to_ids("<unused0>")


def test_a_chosen_one_is_taken_as_it_is() -> None:
    assert choose_mask_token(tokenizer(), VOCAB, 7) == 7


def test_a_chosen_one_must_have_an_embedding() -> None:
    with pytest.raises(TargetError, match="mask token 264 is outside the embedding, which has ids 0 to 263"):
        choose_mask_token(tokenizer(), VOCAB, 264)


def test_none_is_an_error_that_says_how_to_choose_one() -> None:
    fast = with_tokens()
    with pytest.raises(
        TargetError, match=r"--set train.mask_token_id=ID; its chat template does not use .*<\|other\|>"
    ):
        choose_mask_token(fast, len(fast))
