"""The process between real parts, as the acceptance tests have it."""

from tests.acceptance.conftest import app, direct, folder, mirror, rest, source, start, target

__all__ = ["app", "direct", "folder", "mirror", "rest", "source", "start", "target"]
