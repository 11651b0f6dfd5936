"""A tiny random target with a byte-level tokenizer and a ChatML template, made in a second."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% if loop.index0 > ns.last %}{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
IM_START, IM_END, END_OF_TEXT, MASK = 256, 257, 258, 259
VOCAB = 264
LAYERS = 6
HIDDEN = 32


def tokenizer(template: str = CHATML) -> PreTrainedTokenizerFast:
    """One token a byte, in the byte-level alphabet's sorted order, and four special tokens."""
    alphabet = {sign: token for token, sign in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    raw = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(
        [AddedToken(t, special=True) for t in ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|mask|>")]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = template
    return fast


def write_target(folder: Path, template: str = CHATML, seed: int = 0, heads: int = 4) -> Path:
    """Write a random Llama of 6 layers as a target folder; a card's attention wants heads of 16, so two of them."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=512,
        initializer_range=0.15,
        eos_token_id=IM_END,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer(template).save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [IM_END, END_OF_TEXT]}))
    return folder


def answered(row_id: str, *turns: str, split: str = "train", **changes: Any) -> dict[str, Any]:
    """Return a row of answers: user and assistant turns in alternation, every assistant turn generated."""
    roles = ("user", "assistant")
    generated = list(range(1, len(turns), 2))
    row: dict[str, object] = {
        "id": row_id,
        "split": split,
        "source": "test",
        "messages": [{"role": roles[n % 2], "content": text} for n, text in enumerate(turns)],
        "status": "success",
        "finish_reasons": ["stop"] * len(generated),
        "thinking": False,
        "generated": generated,
        "usage": {},
        "endpoint": "test",
    }
    return {**row, **changes}


def edit(path: Path, **changes: Any) -> None:
    told = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**told, **changes}))


def with_tokens(folder: Path, *tokens: str, **named: str) -> Path:
    """Add tokens to the tokenizer of a target and leave its embedding as it is."""
    fast = tokenizer()
    fast.add_tokens(list(tokens), special_tokens=True)
    fast.save_pretrained(folder)
    edit(folder / "tokenizer_config.json", **named)
    return folder
