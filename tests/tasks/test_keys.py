"""Keys in Prefect's Secret blocks. That a key leaves no trace is held in tests/e2e/test_pipeline.py."""

from typing import Any

import pytest
from prefect.blocks.system import Secret

from deepspec.errors import SpecError
from deepspec.placement import Endpoint, Placement
from infra.site import Site
from tasks.keys import keys_of


def site_of(**key: Any) -> Site:
    endpoints = tuple(Endpoint(url=f"http://127.0.0.1:{port}/v1", model="m", **key) for port in (1, 2))
    return Site(root="here", placement=Placement(endpoints=endpoints))


def no_such_block(name: Any) -> None:
    raise ValueError(f"Unable to find block document named {name} for block type secret")


def test_a_block_is_read_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Secret, "load", lambda name: Secret(value=f"key of {name}"))
    assert keys_of(site_of(api_key_block="our-engines")) == {"DEEPSPEC_KEY_OUR_ENGINES": "key of our-engines"}


def test_a_key_in_the_environment_is_left_to_the_child_and_missed_before_it_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(SpecError, match="OUR_KEY, named as an endpoint's key, is not set"):
        keys_of(site_of(api_key_env="OUR_KEY"))
    monkeypatch.setenv("OUR_KEY", "key-4711")
    assert keys_of(site_of(api_key_env="OUR_KEY")) == {}


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (no_such_block, "no Secret block 'our-engines' on this Prefect server"),
        (lambda name: Secret(value={"a": "key-4711"}), "'our-engines' holds no text"),
    ],
)
def test_a_block_without_a_key_is_named_and_its_value_is_not(
    monkeypatch: pytest.MonkeyPatch, load: Any, message: str
) -> None:
    monkeypatch.setattr(Secret, "load", load)
    with pytest.raises(SpecError, match=message) as caught:
        keys_of(site_of(api_key_block="our-engines"))
    assert "4711" not in str(caught.value)
