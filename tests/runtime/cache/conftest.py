"""A user's folder, a shipped one, and the store over both."""

import pytest

from attnforge.cache.store import TunedCacheStore
from attnforge.settings import Settings


@pytest.fixture
def settings(tmp_path):
    return Settings(cache_dir=tmp_path / "user")


@pytest.fixture
def shipped(tmp_path):
    folder = tmp_path / "package" / "tuned"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def caches(settings, shipped):
    return TunedCacheStore(settings, shipped)
