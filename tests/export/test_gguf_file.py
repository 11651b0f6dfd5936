"""GGUF files are read whole or refused."""

from pathlib import Path

import gguf
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepspec.errors import CheckpointError
from deepspec.forms.gguf_file import read_gguf
from tests.given.drafts.written import write_target


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_target(tmp_path_factory.mktemp("target")) / "target.gguf"


def test_fields_are_those_that_the_library_reads(whole: Path) -> None:
    found, wanted = read_gguf(whole, tensors=True), gguf.GGUFReader(whole)
    names = {name for name in wanted.fields if not name.startswith("GGUF.")}
    assert {name: field.value for name, field in found.fields.items()} == {
        name: wanted.fields[name].contents() for name in names
    }
    assert found.tensors == {}


def test_tensors_are_those_that_were_written(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", arch="x")
    matrix, ids = torch.randn(3, 5), torch.arange(7)
    writer.add_tensor("m", matrix.numpy())
    writer.add_tensor("i", ids.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_gguf(tmp_path / "a.gguf", tensors=True).tensors
    assert torch.equal(found["m"], matrix)
    assert torch.equal(found["i"], ids)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_cut_or_changed_file_is_a_named_error_or_still_a_file(
    whole: Path, tmp_path: Path, data: st.DataObject
) -> None:
    content = bytearray(whole.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, 200))] = data.draw(st.integers(0, 255))
    path = tmp_path / "changed.gguf"
    path.write_bytes(content)
    try:
        read_gguf(path, tensors=True)
    except CheckpointError as error:
        assert "changed.gguf" in str(error)  # noqa: PT017  either outcome is right
