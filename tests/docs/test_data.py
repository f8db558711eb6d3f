"""The recipe in docs/data.md has the task that it promises."""

import re
from pathlib import Path

from clip_jax.config.load import load

TEXT = (Path(__file__).parents[2] / "docs" / "data.md").read_text()


def test_a_recipe_with_a_task(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imagenet_classes.txt").write_text("tench\ngoldfish\n")
    (tmp_path / "mine.py").write_text(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)[0])
    cfg = load("mine.py", ("--config.data.train.paths=x.tar",))
    assert cfg.model.image.patch == 32 and cfg.batch_size == 86_016
    assert [t.name for t in cfg.eval.tasks] == ["imagenet"]
    assert cfg.eval.tasks[0].classes == ("tench", "goldfish")
    assert cfg.eval.reference
