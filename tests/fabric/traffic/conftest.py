"""Fixtures: `netns`, a fresh network namespace that the test itself is in."""

from tests.routes.conftest import netns

__all__ = ["netns"]
