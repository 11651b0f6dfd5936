"""MTP heads in llama.cpp, beside the tiny hybrid that ships them: it accepts what is counted by hand.

The heads know nothing but which token came after which in one answer: their block adds nothing, and their projection
makes of a token's embedding the head's row of the next one.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from deepspec.checkpoint.draft import save_draft
from deepspec.export.run import FORMS, read_source
from tests.export.test_heads import draft_of
from tests.export.test_serving import engine, post
from tests.given.targets import shipped
from tests.given.targets.gguf_qwen35 import write_gguf

pytestmark = pytest.mark.slow

PROMPT = [256, 84, 82, 68, 81, 198]
TOKENS, DRAFTED = 24, 2


def answer(url: str) -> tuple[list[int], dict[str, Any]]:
    """Return the tokens of the greedy answer, and what the engine says of its draft."""
    told = {"temperature": 0, "n_predict": TOKENS, "ignore_eos": True, "return_tokens": True, "cache_prompt": False}
    reply = post(f"{url}/completion", {"prompt": PROMPT, **told})
    return reply["tokens"], reply["timings"]


@torch.no_grad()
def write_heads(target: Path, after: dict[int, int], folder: Path) -> Path:
    """Write heads that say after each token the one that came after it, in llama.cpp's form, and return the file."""
    model = draft_of(target)
    size = model.config.block.hidden_size
    own = dict(model.trainable())
    for name in ("layers.0.self_attn.o_proj.weight", "layers.0.mlp.down_proj.weight", "fc.weight"):
        own[name].zero_()
    for name in ("norm.weight", "pre_fc_norm_embedding.weight"):
        own[name].copy_(torch.linspace(-2.5, 1.7, size))  # the weight of the norm is 1 more
    seen = torch.nn.functional.rms_norm(model.embed_tokens.weight[list(after)], (size,), eps=1e-6)
    seen = seen * (1 + own["pre_fc_norm_embedding.weight"])
    wanted = model.lm_head.weight[list(after.values())] / (1 + own["norm.weight"])
    own["fc.weight"][:, :size] = (torch.linalg.pinv(seen) @ wanted).T
    save_draft(model, folder / "draft")
    source = read_source(folder / "draft", "tiny", target)
    (folder / "form").mkdir()
    FORMS["llama.cpp"].write(source, folder / "form")
    return folder / "form" / "draft.gguf"


def accepted(tokens: list[int], after: dict[int, int]) -> int:
    """Return how many proposals are right in the rounds that such an answer takes."""
    at = count = 0
    while at + 1 < len(tokens):
        right, token = 0, tokens[at]
        while right < DRAFTED and at + right + 2 < len(tokens) and after.get(token) == tokens[at + right + 1]:
            token, right = tokens[at + right + 1], right + 1
        at, count = at + right + 1, count + right
    return count


def test_llama_cpp_accepts_what_heads_were_made_to_say(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    target = shipped.write_target(tmp_path / "target", "qwen3_5")
    write_gguf(target)
    with engine(target) as url:
        plain, _ = answer(url)
    after = dict(pairwise(plain))
    file = write_heads(target, after, tmp_path)
    with engine(target, "--draft", str(file), "--draft-type", "mtp", "--draft-tokens", str(DRAFTED)) as url:
        tokens, told = answer(url)
    assert tokens == plain
    assert told["draft_n_accepted"] == accepted(plain, after) >= TOKENS / 3
