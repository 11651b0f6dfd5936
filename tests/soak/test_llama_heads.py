"""MTP heads in llama.cpp: tuned and exported here, served beside their target's GGUF file, accepted there as here.

The target is a tiny hybrid of Qwen3.5's kind that was taught its rows: llama.cpp has no such target without linear
attention.
"""

import asyncio
import shlex
from pathlib import Path
from typing import Any

import pytest

from deepspec.formats.exports import write_form
from infra.engines.managed import ManagedEngines, Served, start_engines
from tests.given.published import chain
from tests.given.targets import shipped
from tests.given.targets.gguf_qwen35 import write_gguf
from tests.soak import test_engine_heads
from tests.soak.taught import QUESTIONS, answers_of, check_alike, decoded, teach

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]


def write_target(folder: Path) -> Path:
    target = shipped.write_taught(folder, teach, test_engine_heads.SIZES)
    write_gguf(target)
    return target


def parts(folder: Path) -> dict[str, Any]:
    return {**test_engine_heads.parts(folder), "export": {"forms": ["deepspec", "llama.cpp"]}}


def test_llama_cpp_accepts_tuned_heads_as_often_as_decoding_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xllamacpp")
    monkeypatch.setattr(chain, "QUESTIONS", QUESTIONS)
    made = chain.run_chain(tmp_path, target=write_target, parts=parts)
    asked = decoded(made, tmp_path)
    (draft,) = write_form(made["export"], "llama.cpp", tmp_path / "form")
    served = Served(name="tiny", gguf=tmp_path / "target" / "target.gguf", context=256)
    plain = ManagedEngines(count=1, slots=1)
    drafted = str(test_engine_heads.DRAFTED)
    words = shlex.join(["--draft", str(draft), "--draft-type", "mtp", "--draft-tokens", drafted])
    drafting = plain.model_copy(update={"arguments": words})
    with start_engines(drafting, served, tmp_path / "drafting") as (endpoint,):
        answers = asyncio.run(answers_of(endpoint, asked))
    with start_engines(plain, served, tmp_path / "plain") as (endpoint,):
        plains = asyncio.run(answers_of(endpoint, asked))
    check_alike("llama.cpp", answers, plains, asked, exact=False)
