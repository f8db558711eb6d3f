"""Recipe file + overrides -> checked Config. Touches no device.

A recipe is a Python file with `get_config(arg: str = "") -> ConfigDict`; `--config=NAME` finds the
ones that come with the package, `--config=path/to/file.py:arg` any other. `:overfit` and `:tiny`
work on all.
"""

import contextlib
import importlib.util
import os
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import clip_jax.config
from clip_jax.config import check, stages, units
from clip_jax.config.base import overfit, tiny
from clip_jax.config.codec import from_dict, to_config_dict
from clip_jax.config.override import check_overrides, overridden
from clip_jax.config.schema import Config
from clip_jax.errors import UserError, near

FOR_ALL: dict[str, Callable[[Any], None]] = {"overfit": overfit, "tiny": tiny}


def load(
    recipe: str,
    overrides: tuple[str, ...] = (),
    *,
    needs_data: bool = True,
    pairs: Callable[[Config], int] | None = None,
) -> Config:
    """The Config of a recipe with overrides applied.

    Args:
        recipe: name or path, with an optional `:argument`.
        overrides: command-line arguments such as `--config.optim.learning_rate=1e-3`.
        needs_data: False = no data is read, so its paths may be missing.
        pairs: counts the training pairs, for lengths in epochs.

    Raises:
        UserError: a missing recipe, an unknown field, a wrong type, or fields that contradict.
    """
    config = read_recipe(recipe)
    check_overrides(overrides)
    cfg = from_dict(overridden(config, overrides))
    for flag in overrides:
        path = flag.lstrip("-").partition("=")[0].removeprefix("config.")
        if stages.lost(cfg, path):
            raise UserError(
                f"--config.{path}: each stage has its own; change config.stages[0].changes and so "
                "on, or take the stages out with --config.stages=()"
            )
    return checked(cfg, needs_data=needs_data, pairs=pairs)


def read_recipe(recipe: str | os.PathLike[str]) -> Any:
    """The fields of a recipe as a ConfigDict, to change and then give to `clip_jax.pretrain`.

    Args:
        recipe: name or path, with an optional `:argument`.
    """
    path, _, arg = os.fspath(recipe).partition(":")
    words = arg.split(",") if arg else []
    config = _call(_find(path), ",".join(w for w in words if w not in FOR_ALL))
    config = to_config_dict(from_dict(config))
    for word in words:
        if word in FOR_ALL:
            FOR_ALL[word](config)
    return config


def checked(
    cfg: Config, *, needs_data: bool = True, pairs: Callable[[Config], int] | None = None
) -> Config:
    """`cfg` with all lengths in steps; or raises one UserError with all findings."""
    if findings := stages.findings(cfg):
        raise UserError("\n".join(findings))
    cfg = stages.settled(cfg, lambda part: units.settled(part, pairs))
    parts = stages.expand(cfg)
    each = [check.findings(stage.cfg, needs_data=needs_data) for stage in parts]
    findings = [x for x in each[0] if all(x in those for those in each)]
    for stage, own in zip(parts, each, strict=True):
        findings += [f"stage '{stage.name}': {x}" for x in own if x not in findings]
    if findings:
        raise UserError("\n".join(findings))
    return cfg


def recipe_folders() -> list[Path]:
    """Where named recipes lie: in the wheel, or beside the package in a checkout."""
    package = Path(clip_jax.config.__file__).parents[1]
    return [f for f in (package / "configs", package.parent / "configs") if f.is_dir()]


def recipe_names() -> list[str]:
    """Names that `--config=NAME` knows."""
    found = {p.stem for folder in recipe_folders() for p in folder.glob("*.py")}
    return sorted(n for n in found if not n.startswith("_"))


def _find(name: str) -> Path:
    if name.endswith(".py") or "/" in name:
        if not Path(name).is_file():
            raise UserError(f"--config: no such file (got '{name}'); give a recipe file or a name")
        return Path(name)
    for folder in recipe_folders():
        if (folder / f"{name}.py").is_file():
            return folder / f"{name}.py"
    known = recipe_names()
    raise UserError(
        f"--config: no such recipe (got '{name}'); known: {', '.join(known)}{near(name, known)}"
    )


def read_sweep(recipe: str) -> Callable[[Callable[..., None]], Any]:
    """The recipe's `sweep(add)`, which calls add({field: value, ...}) once for each trial.

    Raises:
        UserError: the recipe has none; also when called and its code fails.
    """
    path = _find(recipe.partition(":")[0])
    module = _module(path)
    if not hasattr(module, "sweep"):
        raise UserError(f"{path}: no function sweep(add); a sweep needs one")

    def sweep(add: Callable[..., None]) -> Any:
        with _named(path):
            return module.sweep(add)

    return sweep


def _call(path: Path, arg: str) -> Any:
    module = _module(path)
    if not hasattr(module, "get_config"):
        raise UserError(f"{path}: no function get_config(arg); a recipe needs one")
    with _named(path):
        return module.get_config(arg)


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--config: not a Python file (got '{path}')")
    module = importlib.util.module_from_spec(spec)
    try:
        with _named(path):
            spec.loader.exec_module(module)
    except SyntaxError as e:
        raise UserError(f"{path}:{e.lineno}: {e.msg}; mend the recipe") from e
    return module


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """An error of the recipe's code as one line that says where."""
    try:
        yield
    except (UserError, SyntaxError):
        raise
    except Exception as e:
        raise _broken(path, e) from e


def _broken(path: Path, error: Exception) -> UserError:
    """The last line of the recipe that the error passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    here = str(path.absolute())  # as Python names it
    lines = [f":{f.lineno}" for f in frames if f.filename == here]
    text = " ".join(str(error).split())
    where = f"{path}{lines[-1] if lines else ''}"
    return UserError(f"{where}: {type(error).__name__}: {text}; mend the recipe")


def variant(arg: str, known: tuple[str, ...]) -> str:
    """The single word of a recipe's argument, checked; '' if there is none."""
    if arg and arg not in known:
        raise UserError(
            f"--config: no variant '{arg}'; known: {', '.join((*known, *FOR_ALL))}"
            f"{near(arg, known)}"
        )
    return arg
