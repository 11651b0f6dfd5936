"""A key is used, and is nowhere to be found afterwards."""

import traceback

import pytest
from pydantic import SecretStr

from deepspec.errors import EngineError
from deepspec.lines.rows import read_rows
from deepspec.placement import Endpoint, Placement
from tests.given.engines.answering import Simulated, serve
from tests.given.engines.prompts import Bench, prompts

KEY = "sk-very-secret-4711"
WRONG = "sk-wrong-secret-4712"


def with_key(bench: Bench, url: str, key: str) -> Placement:
    endpoint = Endpoint(url=url, model="tiny", api_key_env="TINY_KEY", api_key=SecretStr(key))
    return bench.placement().model_copy(update={"endpoints": (endpoint,)})


def leaks(bench: Bench, *texts: str) -> list[str]:
    """Return the places that hold a key: files, what was reported, and the given texts."""
    files = [path for path in bench.folder.rglob("*") if path.is_file()]
    places = {str(path): path.read_bytes().decode(errors="replace") for path in files}
    places |= {f"rows of {path}": repr(list(read_rows(path))) for path in files if path.suffix == ".zst"}
    places |= {"report": repr(bench.heard), **{f"text {number}": text for number, text in enumerate(texts)}}
    return [name for name, text in places.items() if KEY in text or WRONG in text]


def test_a_key_opens_the_endpoint_and_leaves_no_trace(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    with serve(Simulated(key=KEY, fault=lambda number, text: "500" if number == 3 else None)) as (engine,):
        placement = with_key(bench, engine.engine.url, KEY)
        artifact = bench.regenerate(bench.publish(prompts(12)), placement)
    assert artifact.counts["success"] == 12
    assert not leaks(bench, caplog.text, placement.model_dump_json(), repr(placement))


def test_a_refused_key_is_an_error_that_does_not_tell_it(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The server puts the key that it got into its message, as some do."""
    caplog.set_level("DEBUG")
    refused = pytest.raises(EngineError, match=r"401 - bad key: Bearer \*\*\*")
    with serve(Simulated(key=KEY)) as (engine,), refused as caught:
        bench.regenerate(bench.publish(prompts(3)), with_key(bench, engine.engine.url, WRONG))
    told = "".join(traceback.format_exception(caught.value))
    assert not leaks(bench, caplog.text, told)
