"""The site that tests of training share."""

from tests.given.published.site import site  # noqa: F401 - a fixture
