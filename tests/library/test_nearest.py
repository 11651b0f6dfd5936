"""What is made although its like is published says which artifact comes near, and in what it differs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from deepspec import publish as room
from deepspec.artifacts import ArtifactRef
from deepspec.publish import Out, nearest
from deepspec.specs import NOT_ADDRESSED, Spec, address_of
from deepspec.store import Store


class Shape(Spec):
    layers: int = 2


class Training(Spec):
    steps: int
    rate: float = 0.1
    shape: Shape = Shape()
    every: int = Field(default=50, json_schema_extra=NOT_ADDRESSED)


class Other(Spec):
    source: str


CACHE = ArtifactRef(kind="target_cache", address="c" * 32, content="1" * 32, uri="somewhere")
ANOTHER = CACHE.model_copy(update={"address": "d" * 32})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def publish(store: Store, scratch: Path, spec: Spec, version: int = 3, cache: ArtifactRef = CACHE) -> str:
    where = address_of("draft", version, spec, {"target_cache": cache.address})
    out = Out(store, "draft", where, {"target_cache": cache}, scratch)
    out.publish(spec, version, {})
    return where[:12]


@pytest.mark.parametrize(
    ("wanted", "version", "cache", "told"),
    [
        ({"steps": 10}, 4, CACHE, "version 3 of the stage (now 4)"),
        ({"steps": 20}, 3, CACHE, "steps 10 (now 20)"),
        ({"steps": 10, "shape": {"layers": 5}}, 3, CACHE, "shape.layers as by default (now 5)"),
        ({"steps": 10}, 3, ANOTHER, "another target_cache"),
        ({"steps": 11, "rate": 0.2, "every": 7}, 3, CACHE, "rate as by default (now 0.2), steps 10 (now 11)"),
    ],
)
def test_what_differs_is_said(
    store: Store, tmp_path: Path, wanted: Mapping[str, Any], version: int, cache: ArtifactRef, told: str
) -> None:
    name = publish(store, tmp_path, Training(steps=10))
    found = nearest(store, "draft", version, Training.model_validate(wanted), {"target_cache": cache})
    assert found == f"draft/{name} was made with {told}"


def test_the_nearest_of_several_is_named(store: Store, tmp_path: Path) -> None:
    publish(store, tmp_path, Training(steps=10, rate=0.3))
    name = publish(store, tmp_path, Training(steps=20, rate=0.5))
    found = nearest(store, "draft", 3, Training(steps=20, rate=0.6), {"target_cache": CACHE})
    assert found == f"draft/{name} was made with rate 0.5 (now 0.6)"


def test_what_has_little_in_common_is_not_named(store: Store, tmp_path: Path) -> None:
    assert nearest(store, "draft", 3, Training(steps=10), {"target_cache": CACHE}) is None
    publish(store, tmp_path, Other(source="a public draft"))
    publish(store, tmp_path, Training(steps=1, rate=0.5, shape=Shape(layers=9)), version=2)
    assert nearest(store, "draft", 3, Training(steps=10), {"target_cache": CACHE}) is None


def test_among_very_many_none_is_looked_for(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MOST_READ", 1)
    for steps in (1, 2):
        publish(store, tmp_path, Training(steps=steps))
    assert nearest(store, "draft", 3, Training(steps=3), {"target_cache": CACHE}) is None


def test_a_damaged_neighbour_is_passed_over(store: Store, tmp_path: Path) -> None:
    name = publish(store, tmp_path, Training(steps=10))
    store.write_bytes("draft/damaged/manifest.json", b"{")
    told = nearest(store, "draft", 3, Training(steps=20), {"target_cache": CACHE})
    assert told == f"draft/{name} was made with steps 10 (now 20)"
