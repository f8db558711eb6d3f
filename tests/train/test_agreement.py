"""The code that processes must share is also that of the user's own parts."""

import dataclasses

import tiny
from clip_jax.config.schema import LossConfig
from clip_jax.train import agreement


def test_own_parts_are_found_by_their_package():
    cfg = tiny.config("s3://a:b/c")
    assert agreement.own_packages(cfg) == []
    image = dataclasses.replace(cfg.model.image, kind="parts.deep.towers:build")
    model, train = dataclasses.replace(cfg.model, image=image), cfg.data.train
    data = dataclasses.replace(cfg.data, train=dataclasses.replace(train, kind="pairs:open"))
    loss = LossConfig("parts.losses:make")
    cfg = dataclasses.replace(cfg, model=model, data=data, loss=loss)
    assert agreement.own_packages(cfg) == ["pairs", "parts"]


def test_processes_compare_them(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(agreement.processes, "same", lambda facts, advice: seen.append(facts))
    monkeypatch.syspath_prepend(tmp_path)
    cfg = dataclasses.replace(tiny.config("x"), loss=LossConfig("own_agreed:make"))
    for code in ("make = 1\n", "make = 2\n"):
        (tmp_path / "own_agreed.py").write_text(code)
        agreement.sources.cache_clear()
        agreement.same_program(cfg, "run")
    one, two = seen
    assert {k for k in one if one[k] != two[k]} == {"the sources of own_agreed"}
    assert one["the sources of clip_jax"] and agreement.sources("not_there_at_all") == ""
