"""Opening a source by its kind."""

import sys

import pytest

from clip_jax.config.schema import SplitConfig
from clip_jax.data.record import Example
from clip_jax.data.sources import SOURCES, open_source
from clip_jax.errors import UserError


def _folder(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/1.jpg").write_bytes(b"C")
    return str(tmp_path)


def test_opens_by_kind(tmp_path):
    source = open_source(SplitConfig(kind="folder", paths=(_folder(tmp_path),)), index_dir="")
    assert len(source) == 1 and isinstance(source[0], Example)


@pytest.mark.parametrize("kind", SOURCES)
def test_no_paths(kind):
    with pytest.raises(UserError, match=f"none given for kind '{kind}'"):
        open_source(SplitConfig(kind=kind), index_dir="")


def test_unknown_kind():
    with pytest.raises(UserError, match=r"data kind: .*'foldr'.*did you mean 'folder'\?"):
        open_source(SplitConfig(kind="foldr", paths=("x",)), index_dir="")


def test_empty_sources_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("image,text\n")
    with pytest.raises(UserError, match=f"{tmp_path}: holds no examples"):
        open_source(SplitConfig(kind="folder", paths=(str(tmp_path),)), index_dir="")


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_source.py").write_text(
        "class S(list):\n"
        "    fingerprint = 'f'\n"
        "def build(cfg, index_dir):\n"
        "    return S([cfg.split, index_dir])\n"
    )
    (tmp_path / "own_broken.py").write_text("import no_such_thing_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_source", None)


def test_own_functions(own):
    source = open_source(SplitConfig(kind="own_source:build", split="s"), index_dir="i")
    assert [source[i] for i in range(2)] == ["s", "i"]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("own_sauce:build", "no module 'own_sauce'"),
        ("own_source.deeper:build", "no module 'own_source.deeper'"),
        ("own_source:built", "no function 'built'"),
        ("own_source:", "no function ''"),
        (":build", "no function 'build' in ''"),
    ],
)
def test_own_functions_that_are_not_there(own, kind, message):
    with pytest.raises(UserError, match=message):
        open_source(SplitConfig(kind=kind), index_dir="")


def test_what_an_own_module_lacks_is_its_own_error(own):
    with pytest.raises(ModuleNotFoundError, match="no_such_thing_at_all"):
        open_source(SplitConfig(kind="own_broken:build"), index_dir="")
