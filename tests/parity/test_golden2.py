"""Which golden numbers of speculators are held, and which still wait for something."""

import pytest

from tests.given import golden2


def unread() -> list[object]:
    folder = golden2.root()
    if folder is None:
        return [pytest.param(None, marks=pytest.mark.skip(reason=golden2.MISSING))]
    kinds = sorted(path.name for path in folder.iterdir() if any(path.glob("*/expected.json")))
    return [pytest.param(kind, id=kind) for kind in kinds]


@pytest.mark.parametrize("kind", unread())
def test_every_kind_of_case_is_read(kind: str) -> None:
    if kind in golden2.WAITING:
        pytest.skip(f"cases of {kind} are not read: {golden2.WAITING[kind]}")
    assert kind in golden2.KINDS, f"no test reads cases of {kind}; write one, and name it in tests/given/golden2.py"


def test_nothing_waits_that_is_read() -> None:
    assert not set(golden2.KINDS) & set(golden2.WAITING)
