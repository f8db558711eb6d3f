"""The promises: public names, verbs, options, exit statuses. A change here is one for users."""

import importlib

import clip_jax
from clip_jax import __main__ as entry
from clip_jax import errors
from clip_jax.cli import train


def test_names():
    assert clip_jax.__all__ == [
        "MODELS",
        "Config",
        "Model",
        "UserError",
        "__version__",
        "export",
        "interpolate",
        "load",
        "pretrain",
        "recipe",
    ]
    assert all(getattr(clip_jax, n) is not None for n in clip_jax.__all__)


def options(verb):
    parser = importlib.import_module(f"clip_jax.cli.{verb}").parser()
    names = [x.option_strings[0] if x.option_strings else x.dest for x in parser._actions]
    return [x for x in names if x != "-h"]


def test_verbs_and_options():
    verbs = ["train", "plan", "sweep", "eval", "embed", "classify", "search", "export", "bench"]
    assert list(entry.VERBS) == verbs
    assert list(train.OPTIONS) == [
        "--config",
        "--workdir",
        "--dry_run",
        "--accept_changes",
        "--distributed",
    ]
    assert {verb: options(verb) for verb in ("plan", "sweep", *verbs[4:8])} == {
        "plan": [
            "--config",
            "--topology",
            "--search",
            "--stage",
            "--samples",
            "--price",
            "--json",
            "--cache",
        ],
        "sweep": ["--config", "--workdir", "--parallel", "--sort", "--print", "--table"],
        "embed": [
            "source",
            "--config",
            "--data",
            "--out",
            "--kind",
            "--what",
            "--batch_size",
            "--part_size",
            "--split",
            "--image_field",
            "--caption_field",
        ],
        "classify": [
            "source",
            "--config",
            "images",
            "--labels",
            "--labels_file",
            "--template",
            "--top",
            "--format",
        ],
        "search": ["source", "--config", "index", "--text", "--image", "--top", "--html"],
        "export": ["source", "--config", "--to", "--out", "--ema", "--start", "--share", "--dtype"],
    }


def test_exit_statuses():
    names = ("DONE", "BUG", "USER", "CHECK_FAILED", "DIVERGED", "RESTART", "INTERRUPTED")
    assert [getattr(errors, n) for n in names] == [0, 1, 2, 3, 4, 42, 130]
