"""Acceptance as an engine tells it."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from deepspec.benchmark.engine import Answer, check_engine, overlap, tokens_per_round
from deepspec.errors import EngineError
from deepspec.formats.scores import Interval
from deepspec.placement import Endpoint
from deepspec.rounds.decoded import Decoded, Round


class Engine(BaseHTTPRequestHandler):
    """Answers with 9 tokens, 4 of 8 drafted ones accepted: model `llama` in each answer, `vllm` in counters."""

    answered = 0

    def do_GET(self) -> None:
        vllm = "vllm" in self.server.names
        counters = "".join(
            f'vllm:spec_decode_num_{name}_tokens_total{{model_name="vllm"}} {100 + count * Engine.answered}.0\n'
            for name, count in (("draft", 8), ("accepted", 4))
        )
        told = {"/metrics": counters if vllm else "off", "/version": '{"version": "1.2"}' if vllm else ""}
        props = {} if vllm else {"/props": '{"build_info": "b7"}'}
        self.send((told | props).get(self.path, ""))

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert asked["prompt"] == [5, 6]
        Engine.answered += 1
        drafts = {"draft_n": 8, "draft_n_accepted": 4} if asked["model"] == "llama" else {}
        timings = {} if asked["model"] == "vllm" else {"timings": {"predicted_ms": 100.0, **drafts}}
        self.send(json.dumps({"usage": {"completion_tokens": 9}, **timings}))

    def send(self, text: str) -> None:
        self.send_response(200 if text else 404)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@pytest.fixture(params=["llama", "vllm"])
def endpoint(request: pytest.FixtureRequest) -> Iterator[Endpoint]:
    server = HTTPServer(("127.0.0.1", 0), Engine)
    server.names = request.param
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield Endpoint(url=f"http://127.0.0.1:{server.server_port}/v1", model=request.param)
    server.shutdown()
    server.server_close()


def decoded(name: str, accepted: int) -> Decoded:
    """Return 9 tokens: the first from the prompt, 8 from rounds that accept so many and add one."""
    rounds = (Round(room=99, proposed=3, accepted=accepted, stopped=False),) * (8 // (accepted + 1))
    return Decoded(sample_id=name, prompt_tokens=2, tokens=(1,) * 9, finish_reason="length", rounds=rounds)


def test_what_the_engine_accepts_is_held_against_ours(endpoint: Endpoint):
    asked = [([5, 6], decoded("a", 1)), ([5, 6], decoded("b", 1))]
    found = check_engine(endpoint, None, asked, 9)
    assert found.tokens_per_round.value == pytest.approx(8 / 4)  # 9 − 1 − 4 = 4 rounds made 8 tokens
    assert (found.ours.value, found.agrees, found.warning) == (2.0, True, "")
    assert found.accept_rate == pytest.approx(0.5)
    assert found.engine == {"llama": "llama.cpp b7", "vllm": "vLLM 1.2"}[endpoint.model]
    assert found.speedup is None


def test_an_engine_that_accepts_less_is_warned_of(endpoint: Endpoint):
    found = check_engine(endpoint, None, [([5, 6], decoded("a", 3))], 9)
    assert not found.agrees
    assert "2.000 [2.000, 2.000] tokens per round of prompts on which 4.000 [4.000, 4.000]" in found.warning


def test_the_target_alone_gives_the_speed_up(endpoint: Endpoint):
    if endpoint.model == "vllm":
        pytest.skip("it tells no times of its own")
    plain = endpoint.model_copy(update={"model": "plain"})
    found = check_engine(endpoint, plain, [([5, 6], decoded("a", 1))], 9)
    assert (found.tokens_per_second, found.speedup) == pytest.approx((90, 1.0))


def test_an_engine_without_a_draft_is_refused(endpoint: Endpoint):
    if endpoint.model == "vllm":
        pytest.skip("its counters are there only with a draft")
    with pytest.raises(EngineError, match="drafted nothing"):
        check_engine(endpoint.model_copy(update={"model": "plain"}), None, [([5, 6], decoded("a", 1))], 9)


def test_an_engine_that_is_not_there_is_named():
    nowhere = Endpoint(url="http://127.0.0.1:9/v1", model="pair")
    with pytest.raises(EngineError, match=r"engine http://127\.0\.0\.1:9/v1"):
        check_engine(nowhere, None, [([5, 6], decoded("a", 1))], 9)


def test_agreement_is_an_overlap_of_intervals():
    answers = [Answer(tokens=n + 1, drafted=20, accepted=n - 10, seconds=1.0) for n in (12, 14, 16, 18, 20)]
    found = tokens_per_round(answers)  # 10 rounds each: 1.2 to 2.0
    assert found.value == pytest.approx(1.6)
    assert overlap(found, Interval(value=1.7, low=1.5, high=1.9))
    assert not overlap(found, Interval(value=2.5, low=2.3, high=2.7))
    assert not overlap(found, Interval(value=None, low=None, high=None))
