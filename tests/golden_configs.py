"""tests/golden/configs: what each recipe resolves to, for a change to show as a diff.

    python tests/golden_configs.py

writes the files anew; `tests/config/test_recipes.py` compares. A file has, stage by stage, the
fields that are not the schema's defaults (those stand in `defaults.txt`), the learning rate at
chosen steps, and every parameter: shape, start, decay, factor of its rate. A start is "~" and the
standard deviation of what is drawn, or "=" and a constant. Later stages list what changed.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import pathlib
import re
import sys
import types
from collections.abc import Iterator
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import numpy as np
from scipy import stats

from clip_jax.config import stages
from clip_jax.config.codec import flatten
from clip_jax.config.load import load, recipe_folders
from clip_jax.config.presets import MODELS
from clip_jax.config.schema import Config, ModelConfig
from clip_jax.interop.table import leaves
from clip_jax.models import dual
from clip_jax.train.groups import decay_mask, moving, rates
from clip_jax.train.schedule import make_schedule

FOLDER = pathlib.Path(__file__).parent / "golden" / "configs"
EPOCH = 2_900_000  # pairs, where a recipe leaves it to the data
ANY_MODEL = {  # of recipes that take all of MODELS: one of each family
    "clip": ("ViT-B-32", "RN50", "ViT-B-16-SigLIP"),
    "finetune": ("ViT-B-32", "RN50", "ViT-B-16-SigLIP", "ViT-L-14-CLIPA", "ViT-L-14-worldwide"),
}
WORDS = {"glyphs": ("", "quick", "tune")}  # in no table; shown as changes of the first
TABLES = ("RATES", "RUNS", "SCALES", "MODELS")  # where recipes have their variants


def names() -> list[str]:
    """Every variant of every recipe."""
    found = []
    for path in sorted(p for folder in recipe_folders() for p in folder.glob("*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        tables = [t for x in TABLES if (t := getattr(module, x, None)) and t is not MODELS]
        variants = {**ANY_MODEL, **WORDS}.get(path.stem) or (tuple(tables[0]) if tables else ("",))
        found += [f"{path.stem}:{x}" if x else path.stem for x in variants]
    return found


def config(name: str) -> Config:
    """The resolved config of a recipe, with an epoch where it has none of its own."""
    size = () if _own_epoch(name) else (f"--config.data.epoch_size={EPOCH}",)
    return load(name, size, needs_data=False)


def _own_epoch(name: str) -> bool:
    return not name.startswith(("small", "finetune", "folder"))


def path(name: str) -> pathlib.Path:
    """Where the text of a recipe lies."""
    return FOLDER / f"{name.replace(':', '.')}.txt"


def defaults() -> str:
    """The schema's own values."""
    return "".join(f"{p} = {v!r}\n" for p, v in sorted(flatten(Config()).items()))


def text(name: str) -> str:
    """What stands in the file of a recipe."""
    recipe, _, word = name.partition(":")
    before, parts = _Shown(flatten(Config()), []), []
    if word and word in WORDS.get(recipe, ()):
        plain = config(recipe)
        before = _Shown(flatten(plain), _parameters(plain))
    for stage in stages.expand(config(name)):
        now = _Shown(flatten(stage.cfg), _parameters(stage.cfg))
        parts.append(_block(stage, now, before))
        before = now
    return "\n".join(parts)


@dataclasses.dataclass(frozen=True)
class _Shown:
    fields: dict[str, Any]
    parameters: list[str]


def _block(stage: stages.Stage, now: _Shown, before: _Shown) -> str:
    lines = [f"## stage {stage.name}", ""] if stage.name else []
    changed = {p: v for p, v in now.fields.items() if before.fields.get(p, ...) != v}
    lines += [f"{p} = {v!r}" for p, v in sorted(changed.items())]
    lines += ["", "# step: learning rate", *_rates_at(stage.cfg)]
    lines += ["", "# parameter: shape, start, decay, factor of the learning rate"]
    lines += [x for x in now.parameters if x not in before.parameters]
    return "\n".join(lines) + "\n"


def _rates_at(cfg: Config) -> list[str]:
    """At the start, the last step of the warm-up, the middle, a cooldown's start, and the end."""
    optim, end = cfg.optim, cfg.num_steps
    steps = {0, max(optim.warmup_steps - 1, 0), end // 2, end - optim.cooldown_steps, end}
    rate = make_schedule(optim, end)
    return [f"{step}: {float(rate(step)):.4g}" for step in sorted(steps)]


def _parameters(cfg: Config) -> list[str]:
    """Those that differ by a number alone, and q, k and v, share a line with their count."""
    params = shapes(cfg.model)
    decays, factors = leaves(decay_mask(cfg.optim.decay, params)), leaves(rates(cfg.optim, params))
    moves = leaves(moving(cfg.optim, params))
    begin = starts(cfg.model)
    found: dict[tuple[str, str], list[str]] = {}
    for name, x in leaves(params).items():
        shape = " x ".join(map(str, x.shape)) or "()"
        rest = f"{begin[name]}, {'decay' if decays[name] else '-'}, {_factor(factors[name])}"
        group = re.sub(r"\d+|(?<=attn/)[qkv](?=/)", "*", name)
        key = (group, f"{shape}, {rest if moves[name] else f'{begin[name]}, frozen'}")
        found.setdefault(key, []).append(name)
    total = sum(x.size for x in leaves(params).values())
    dtypes = ", ".join(sorted({str(x.dtype) for x in leaves(params).values()}))
    lines = [
        f"{group} ({len(members)}): {line}" if len(members) > 1 else f"{members[0]}: {line}"
        for (group, line), members in found.items()
    ]
    return [*lines, f"all: {total:,} of {dtypes}"]


def _factor(x: Any) -> str:
    return f"{x:g}" if isinstance(x, float) else f"{float(x.min()):.3g} to {float(x.max()):.3g}"


def shapes(model: ModelConfig) -> Any:
    """Those of a model's parameters; traced once for all that have the same."""
    return _traced(_plain(model))[0]


def starts(model: ModelConfig) -> dict[str, str]:
    """How each parameter of a model starts, by path."""
    logit = {k: f"={getattr(model, f'logit_{k}_init'):g}" for k in ("scale", "bias")}
    return {**_traced(_plain(model))[1], **{f"logit/{k}": v for k, v in logit.items()}}


def _plain(model: ModelConfig) -> ModelConfig:
    """Without what changes neither shapes nor starts."""
    return dataclasses.replace(
        model,
        image=dataclasses.replace(
            model.image, activation="gelu", patch_dropout=0.0, mean=(), std=(), ln_eps=1e-5
        ),
        text=dataclasses.replace(model.text, activation="gelu", eos_id=1, pad_id=0),
        logit_scale_init=0.0,
    )


@functools.cache
def _traced(model: ModelConfig) -> tuple[Any, dict[str, str]]:
    """Shapes of the parameters, and their starts, by their standard deviation."""
    found: dict[str, str] = {}
    side, param, tower = "", nn.Module.param, dual.DualEncoder._tower

    def noted_tower(self: Any, name: str) -> Any:
        nonlocal side
        side = name
        return tower(self, name)

    def noted_param(self: Any, name: str, init: Any, *args: Any, **more: Any) -> Any:
        with jax.ensure_compile_time_eval(), _quantiles_drawn():
            draws = np.asarray(init(None, *args), np.float64)
        path = "/".join([side, *self.path, name])
        same = draws.min() == draws.max()
        assert same or abs(draws.mean()) < 1e-3 * draws.std(), (path, draws.mean())
        found[path] = f"={draws.min():.3g}" if same else f"~{draws.std():.4g}"
        return param(self, name, init, *args, **more)

    built = dual.build(model)
    init = functools.partial(type(built).init.__wrapped__, built)  # its cache knows no draws
    with (
        mock.patch.object(nn.Module, "param", noted_param),
        mock.patch.object(dual.DualEncoder, "_tower", noted_tower),
    ):
        return jax.eval_shape(init, jax.random.key(0))[0], found


@contextlib.contextmanager
def _quantiles_drawn() -> Iterator[None]:
    """Initializers get evenly spaced quantiles of a distribution for its draws.

    Whichever of these functions a version of JAX draws normal numbers with, their standard
    deviation comes out: that of the quantiles is within 2e-5 of it.
    """
    draws = types.SimpleNamespace(
        uniform=_uniform, normal=_normal, truncated_normal=_truncated_normal
    )
    with (
        mock.patch.object(jax.random, "uniform", _uniform),
        mock.patch.dict(jax.nn.initializers.normal.__globals__, random=draws),
    ):
        yield


QUANTILES = (np.arange(2**16) + 0.5) / 2**16


def _normal(key: Any, shape: Any, dtype: Any = None, **more: Any) -> Any:
    return _truncated_normal(key, -np.inf, np.inf, shape, dtype)


def _truncated_normal(
    key: Any, low: float, high: float, shape: Any, dtype: Any, **more: Any
) -> Any:
    return _truncated(low, high)


@functools.cache
def _truncated(low: float, high: float) -> Any:
    return stats.truncnorm.ppf(QUANTILES, low, high)


def _uniform(
    key: Any, shape: Any, dtype: Any = None, low: float = 0.0, high: float = 1.0, **more: Any
) -> Any:
    return low + (high - low) * QUANTILES


def main() -> None:
    """Writes all files, and removes those of recipes that are gone."""
    FOLDER.mkdir(exist_ok=True)
    wanted = {FOLDER / "defaults.txt": defaults(), **{path(n): text(n) for n in names()}}
    for old in set(FOLDER.glob("*.txt")) - set(wanted):
        old.unlink()
    for file, content in wanted.items():
        file.write_text(content)
    print(f"{len(wanted)} files in {FOLDER}")


if __name__ == "__main__":
    sys.exit(main())
