from pathlib import Path

import platformdirs

from attnforge.settings import Settings


def test_the_default_is_the_users_cache_folder():
    assert Settings.from_environment({}).cache_dir == platformdirs.user_cache_path("attnforge")


def test_an_empty_variable_is_as_good_as_none():
    assert Settings.from_environment({"ATTNFORGE_CACHE_DIR": ""}) == Settings.from_environment({})


def test_the_variable_moves_every_file_of_the_user():
    settings = Settings.from_environment({"ATTNFORGE_CACHE_DIR": "/data/forge"})
    assert settings.tuned_dir == Path("/data/forge/tuned")
    assert settings.kernels_dir == Path("/data/forge/kernels")
    assert settings.studies_dir == Path("/data/forge/studies")


def test_home_and_relative_paths_become_absolute(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.chdir(tmp_path)
    assert Settings.from_environment({"ATTNFORGE_CACHE_DIR": "~/forge"}).cache_dir == Path("/home/somebody/forge")
    assert Settings.from_environment({"ATTNFORGE_CACHE_DIR": "forge"}).cache_dir == tmp_path / "forge"
