"""What a dry run says; the command itself is tried in tests/cli."""

import dataclasses

import tiny
from clip_jax.config.schema import MeshConfig
from clip_jax.train import dry_run, program


def test_large_parameters_that_every_device_holds_are_named(monkeypatch):
    monkeypatch.setattr(program.Program, "compile", lambda self: None)
    monkeypatch.setattr(program, "memory_line", lambda executable: "memory")
    cfg = tiny.config("unused", mesh=MeshConfig(1, 1, 8))
    text = dataclasses.replace(cfg.model.text, vocab_size=70_000)
    large = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, text=text))
    line = "whole on every device, though large: text/token/embedding (70000, 16)\nmemory"
    assert dry_run.describe(large).endswith(line)
    assert "whole on" not in dry_run.describe(cfg)
