"""Targets that no table names, through the whole pipeline: latent attention, and linear beside full attention."""

import json

import pytest

from deepspec.artifacts import Artifact
from deepspec.families import is_general
from deepspec.formats.scores import SCORES, read_scores
from tests.given.published.chain import run_chain
from tests.given.targets import tiny, zoo


def run(model_type: str, folder, monkeypatch) -> dict[str, Artifact]:
    def write(place):
        zoo.build(model_type).save_pretrained(place)
        tiny.tokenizer().save_pretrained(place)
        (place / "generation_config.json").write_text(json.dumps({"eos_token_id": [tiny.IM_END, tiny.END_OF_TEXT]}))

    monkeypatch.setattr(tiny, "write_target", write)
    return run_chain(folder)


@pytest.mark.soak
@pytest.mark.parametrize("model_type", ["qwen3_next", "deepseek_v3"])
def test_prompts_become_a_release(model_type, tmp_path, monkeypatch):
    made = run(model_type, tmp_path, monkeypatch)
    config = json.loads((tmp_path / "target" / "config.json").read_text())
    assert is_general(config)
    assert made["cache"].counts["target"]["proof"] == "general 1"
    assert made["cache"].counts["embedding_scale"] == 1.0
    losses = [json.loads(line)["loss"] for line in made["train"].read_bytes("metrics.jsonl").decode().splitlines()]
    assert losses[-1] < losses[0]
    assert made["export"].counts["parity"]
    assert read_scores(made["evaluate"].path(SCORES)).is_lossless
    assert "speed.json" in made["benchmark"].names()
