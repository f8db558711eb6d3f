"""The promises: public names, verbs, options, exit statuses. A change here is one for users."""

import clip_jax
from clip_jax import __main__ as entry
from clip_jax import errors
from clip_jax.cli import train


def test_names():
    assert clip_jax.__all__ == [
        "Config",
        "Model",
        "UserError",
        "__version__",
        "load",
        "pretrain",
        "recipe",
    ]
    assert all(getattr(clip_jax, n) is not None for n in clip_jax.__all__)


def test_verbs_and_options():
    assert list(entry.VERBS) == ["train", "eval", "bench"]
    assert list(train.OPTIONS) == ["--config", "--workdir", "--dry_run", "--accept_changes"]


def test_exit_statuses():
    names = ("DONE", "BUG", "USER", "CHECK_FAILED", "DIVERGED", "RESTART", "INTERRUPTED")
    assert [getattr(errors, n) for n in names] == [0, 1, 2, 3, 4, 42, 130]
