"""The stage: forms in an artifact, an index that finds them, and folders laid out again."""

from pathlib import Path

import pytest

from deepspec.artifacts import open_artifact
from deepspec.checkpoint.draft import load_draft
from deepspec.decoding.pair import draft_folder
from deepspec.errors import SpecError, TargetError, UnknownNameError
from deepspec.export.parity_gate import Gate
from deepspec.export.proof import draft_with
from deepspec.export.run import read_source, run
from deepspec.export.spec import ExportSpec
from deepspec.formats.exports import read_index, write_form
from deepspec.publish import Out
from tests.given.heard import Heard
from tests.given.published.evaluated import given
from tests.given.published.exports import publish_exports


def test_every_form_is_written_or_refused_and_counted(tmp_path: Path) -> None:
    exports, counts, report = publish_exports(tmp_path, "dspark_rnn")
    assert counts["forms"] == ["deepspec", "sglang", "huggingface", "speculators"]
    assert counts["refused"].keys() == {"vllm", "llama.cpp"}
    assert "rnn Markov head" in counts["refused"]["vllm"]
    assert max(counts["difference"].values()) < 2e-6
    assert [row["form"] for row in report.tables["exports"]] == list(read_index(exports).forms)


@pytest.mark.parametrize("algorithm", ["dspark", "dflash", "eagle3"])
def test_every_form_written_passes_the_parity_gate_where_the_target_is_here(tmp_path: Path, algorithm: str) -> None:
    case = given(tmp_path, algorithm=algorithm)
    out = Out(case.store, "exports", "e" * 32, {"draft": case.draft.ref}, tmp_path / "scratch")
    report = Heard()
    counts = run(ExportSpec(), {"draft": case.draft}, out, case.placement, report)
    exports = open_artifact(case.store, out.publish(ExportSpec(), 1, counts), tmp_path / "scratch")
    parity = read_index(exports).parity
    assert parity is not None
    assert [each.name for each in parity[:2]] == ["stepwise states", "decoding form"]
    assert {each.name.removeprefix("exported form ") for each in parity[2:]} == set(counts["forms"])
    assert counts["parity"] is True, report.tables["parity"]


@pytest.mark.parametrize("there", [{}, {"4bits": "/elsewhere/served.gguf"}])
def test_a_gguf_file_that_is_on_another_machine_is_named(there: dict[str, str], tmp_path: Path) -> None:
    case = given(tmp_path, algorithm="dspark")
    out = Out(case.store, "exports", "e" * 32, {"draft": case.draft.ref}, tmp_path / "scratch")
    place = case.placement.model_copy(update={"locations": {**case.placement.locations, **there}})
    told = "GGUF file 4bits is not on this machine" + "".join(f" at {file}" for file in there.values()) + "; put it"
    with pytest.raises(TargetError, match=told):
        run(ExportSpec(gguf="4bits"), {"draft": case.draft}, out, place, Heard())


def test_a_form_of_another_draft_does_not_pass_the_gate(tmp_path: Path) -> None:
    case = given(tmp_path)
    source = read_source(draft_folder(case.draft, tmp_path / "scratch"), "t", None)
    folder = Path(case.placement.locations[case.target.digest])
    gate = Gate(case.draft, draft_with(source.draft, source.tensors), folder, tmp_path / "scratch")
    other = {**source.tensors, "fc.weight": source.tensors["fc.weight"].roll(1, 0)}
    gate.check("other", draft_with(source.draft, other))
    assert not gate.comparisons[-1].passed
    assert gate.comparisons[-1].position is not None


def test_forms_are_laid_out_as_folders_and_shared_files_lie_there_once(tmp_path: Path) -> None:
    exports, counts, _ = publish_exports(tmp_path, "dspark")
    assert counts["refused"] == {}
    index = read_index(exports).forms
    assert index["vllm"].files["model.safetensors"] == "deepspec__model.safetensors"
    for form in counts["forms"]:
        names = {path.name for path in write_form(exports, form, tmp_path / "out" / form)}
        assert names == index[form].files.keys()
    assert load_draft(tmp_path / "out" / "vllm").config.algorithm == "dspark"
    write_form(exports, "vllm", tmp_path / "out" / "vllm")  # laid out again over what is there


def test_who_edits_a_folder_that_was_laid_out_leaves_the_store_as_it_is(tmp_path: Path) -> None:
    exports, _, _ = publish_exports(tmp_path, "dspark", forms=("deepspec", "vllm"))
    before = {name: exports.path(name).read_bytes() for name in exports.names()}
    for path in write_form(exports, "vllm", tmp_path / "out"):
        with path.open("r+b") as file:
            file.write(b"edited")
    assert {name: exports.path(name).read_bytes() for name in exports.names()} == before


def test_a_refused_or_unknown_form_cannot_be_laid_out(tmp_path: Path) -> None:
    exports, _, _ = publish_exports(tmp_path, "dspark_gated", forms=("deepspec", "vllm"))
    with pytest.raises(SpecError, match="not exported for vllm: a gated Markov head"):
        write_form(exports, "vllm", tmp_path / "out")
    with pytest.raises(UnknownNameError, match="known: deepspec, vllm"):
        write_form(exports, "sglang", tmp_path / "out")


def test_the_same_draft_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (publish_exports(tmp_path / name, "dspark")[0] for name in ("a", "b"))
    assert first.manifest.content == second.manifest.content
