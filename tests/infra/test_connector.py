"""The connector without vLLM: modules stand in for those that it imports. On vLLM's own: tests/soak."""

import importlib.util
import stat
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from infra.engines.states import CONNECTOR

V1 = "vllm.distributed.kv_transfer.kv_connector.v1"


class Stock:
    """Stands for vLLM's connector: it says which requests it was told of."""

    def __init__(self, config: Any, *_: Any) -> None:
        self._storage_path = config.staging
        self._request_filenames = {"a": "a.safetensors", "b": "b.safetensors"}

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any]]:
        return True, {"blocks": block_ids}


@pytest.fixture
def connector(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the connector's module."""
    stock, request = ModuleType("stock"), ModuleType("vllm.v1.request")
    stock.ExampleHiddenStatesConnector = Stock  # type: ignore[attr-defined]
    request.RequestStatus = SimpleNamespace(FINISHED_ABORTED=3)  # type: ignore[attr-defined]
    v1 = ModuleType(V1)
    v1.example_hidden_states_connector = stock  # type: ignore[attr-defined]
    vllm = ModuleType("vllm")
    vllm.__version__ = "0"  # type: ignore[attr-defined]
    for name, module in {"vllm": vllm, V1: v1, request.__name__: request}.items():
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("connector", CONNECTOR / "deepspec_states.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made(connector: ModuleType, tmp_path: Path) -> Any:
    model = tmp_path / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text("{}")
    ids = SimpleNamespace(eagle_aux_hidden_state_layer_ids=[0, 2])
    config = SimpleNamespace(
        staging=str(tmp_path / "new" / "staging"),
        model_config=SimpleNamespace(dtype="torch.bfloat16", quantization=None, model=str(model), revision=None),
        speculative_config=SimpleNamespace(draft_model_config=SimpleNamespace(hf_config=ids)),
    )
    return connector.StatesConnector(config, None, None)


def test_ranks_that_make_the_folder_at_the_same_time(
    connector: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, turns = Path.mkdir, list[Path]()

    def another_was_first(path: Path, *args: Any, **options: Any) -> None:
        if path.name == "staging" and not turns:
            turns.append(path)
            real(path, *args, **options)
            path.chmod(0o2770)
        real(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", another_was_first)
    made(connector, tmp_path)
    assert turns
    assert stat.S_IMODE(turns[0].stat().st_mode) == 0o2770  # a folder that is there keeps its mode


def test_a_file_in_the_place_of_the_folder_ends_the_engine_when_it_starts(
    connector: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "staging").write_text("")
    with pytest.raises(FileExistsError):
        made(connector, tmp_path)


def test_of_a_request_that_is_given_up_no_blocks_wait_and_no_file_is_told(
    connector: ModuleType, tmp_path: Path
) -> None:
    it = made(connector, tmp_path)
    assert it.request_finished(SimpleNamespace(request_id="a", status=3), [1]) == (False, None)
    assert it.request_finished(SimpleNamespace(request_id="never begun", status=3), []) == (False, None)
    assert it.request_finished(SimpleNamespace(request_id="b", status=2), [1]) == (True, {"blocks": [1]})
    assert it._request_filenames == {"b": "b.safetensors"}
