"""Measurements under load, put together by hand."""

from collections.abc import Callable

import pytest

from deepspec.formats.levels import Level
from deepspec.formats.serve_options import ServeOptions
from deepspec.formats.served import UnderLoad


@pytest.fixture
def under_load() -> Callable[..., UnderLoad]:
    """Return what puts levels together to a measurement."""

    def made(*levels: Level) -> UnderLoad:
        return UnderLoad(
            engine="fake 7", plain_engine="fake 7", hardware="two cores", started=False, slots=4,
            options=ServeOptions(loads=(1, 2)), levels=levels,
        )  # fmt: skip

    return made
