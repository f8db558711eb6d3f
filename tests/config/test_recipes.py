"""Recipes of published runs: their numbers, schedules and groups, and a trial of each."""

import dataclasses
import difflib
import math
import re

import golden_configs
import jax
import numpy as np
import pytest

import tiny
from clip_jax.config import stages
from clip_jax.config.load import load, recipe_folders
from clip_jax.interop.table import leaves
from clip_jax.models import dual
from clip_jax.train.groups import decay_mask, moving
from clip_jax.train.schedule import make_schedule

SIZE = ("--config.data.epoch_size=2_900_000",)  # where the recipe leaves it to the data
WANT = {  # recipe: steps, batch, parameters in millions, warm-up, peak of the rate
    "openai:ViT-B-32": (390_625, 32_768, 151.28, 2_000, 5e-4),
    "openai:RN50": (390_625, 32_768, 102.01, 2_000, 5e-4),
    "openai:ViT-L-14": (390_625, 32_768, 427.62, 2_000, 4e-4),
    "openclip:b32-400m": (153_646, 86_016, 151.28, 2_000, 1e-3),
    "openclip:h14-2b": (438_835, 79_104, 986.11, 2_000, 5e-4),
    "openclip:g14-2b": (190_688, 64_000, 1366.68, 2_000, 5e-4),
    "datacomp:small": (3_125, 4_096, 151.28, 500, 5e-4),
    "datacomp:xlarge": (142_045, 90_112, 427.62, 10_000, 1e-3),
    "small:cc3m": (28_320, 4_096, 149.62, 708, 5e-4),
    "small:yfcc15m-s16": (17_700, 4_096, 85.29, 708, 5e-4),
    "small:cc12m-rn50": (84_961, 1_024, 102.01, 10_000, 1e-3),
    "siglip:b16": (274_658, 32_768, 203.16, 20_000, 1e-3),
    "siglip:so400m": (274_658, 32_768, 877.36, 20_000, 1e-3),
    "lit": (5_000, 512, 203.12, 150, 1e-3),
    "finetune:ViT-B-32": (28_320, 512, 151.28, 566, 1e-5),
}

STAGED = {  # recipe: of each stage steps, batch, pixels, tokens, masked, warm-up, peak of the rate
    "openai:ViT-L-14-336": (
        (390_625, 32_768, 224, 77, 0.0, 2_000, 4e-4),
        (12_207, 32_768, 336, 77, 0.0, 2_000, 2e-5),
    ),
    "clipa:b16": (
        (85_449, 32_768, 112, 32, 0.0, 1_600, 1.024e-3),
        (4_000, 32_768, 224, 32, 0.0, 800, 1.024e-4),
    ),
    "clipa:h14": (
        (195_491, 65_536, 84, 8, 0.0, 3_200, 2.048e-3),
        (16_000, 32_768, 224, 32, 0.3, 800, 5.12e-5),
        (8_000, 16_384, 336, 32, 0.4, 1_600, 6.4e-6),
    ),
    "flip:l16": (
        (195_491, 65_536, 224, 32, 0.5, 782, 1.024e-3),
        (1_955, 65_536, 224, 32, 0.0, 391, 1.024e-5),
    ),
}
ALL = (*WANT, *STAGED)
OURS = ("cifar10", "clip:", "digits", "finetune", "folder", "glyphs")  # in a table of their own


def config(name, *flags):
    needs = name.startswith(("small", "finetune"))
    return load(name, (*(SIZE if needs else ()), *flags), needs_data=False)


@pytest.mark.core
@pytest.mark.parametrize("name", WANT)
def test_numbers_and_schedule(name):
    cfg = config(name)
    steps, batch, size, warmup, peak = WANT[name]
    assert (cfg.num_steps, cfg.batch_size) == (steps, batch)
    params = leaves(golden_configs.shapes(cfg.model)).values()
    assert sum(x.size for x in params) / 1e6 == pytest.approx(size, abs=0.06)
    lr = make_schedule(cfg.optim, cfg.num_steps)
    got = [float(lr(s)) for s in (0, warmup - 1, steps // 2, steps)]
    share = (steps // 2 - warmup) / (steps - warmup)
    middle = 0.5 * (1 + math.cos(math.pi * share))
    if name.startswith("siglip"):
        middle = (20_000 / (steps // 2 - warmup + 20_000)) ** 0.5
    end = 1e-5 if name.startswith("small") and not name.endswith("rn50") else 0.0  # SLIP's lr_end
    want = [peak / warmup, peak, end + (peak - end) * middle, end]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-9)


@pytest.mark.core
@pytest.mark.parametrize("name", STAGED)
def test_stages(name):
    found = []
    for stage in stages.expand(config(name)):
        cfg = stage.cfg
        image, optim, steps = cfg.model.image, cfg.optim, cfg.num_steps
        lr = make_schedule(optim, steps)
        ends = [float(lr(s)) for s in (optim.warmup_steps - 1, steps)]
        np.testing.assert_allclose(ends, [optim.learning_rate, 0.0], rtol=1e-5, atol=1e-9)
        found.append(
            (
                steps, cfg.batch_size, image.size, cfg.model.text.context, image.patch_dropout,
                optim.warmup_steps, optim.learning_rate,
            )
        )  # fmt: skip
    assert tuple(found) == STAGED[name]


@pytest.mark.core
def test_what_decays_and_what_stands_still():
    for name, never in {"openclip:b32-400m": ("bias", "scale", "cls"), "siglip:b16": ()}.items():
        cfg = config(name)
        params = golden_configs.shapes(cfg.model)
        decays = leaves(decay_mask(cfg.optim.decay, params))
        for path, decayed in decays.items():
            kernel = path.endswith("/kernel")
            if name == "siglip:b16":
                assert decayed == kernel, path
            else:  # legacy OpenCLIP: everything but what has one dim, tables of positions too
                assert decayed != path.endswith(never), path
    cfg = config("flip:b16")
    params = golden_configs.shapes(cfg.model)
    for path, decayed in leaves(decay_mask(cfg.optim.decay, params)).items():
        assert decayed == path.endswith(("kernel", "token/embedding", "cls", "logit/scale")), path
    cfg = config("lit")
    params = golden_configs.shapes(cfg.model)
    for path, moves in leaves(moving(cfg.optim, params)).items():
        assert moves != path.startswith("image/"), path
    assert cfg.loss.kind == "sigmoid" and cfg.optim.decay_convention == "big_vision"


@pytest.mark.core
@pytest.mark.parametrize("name", ALL)
def test_every_recipe_has_its_check_of_data(name):
    recipe, _, arg = name.partition(":")
    for words in ("overfit", "tiny,overfit"):
        name = f"{recipe}:{','.join(x for x in (arg, words) if x)}"
        cfg = load(name, SIZE, needs_data=False)
        assert cfg.overfit and cfg.batch_size == 128 and cfg.optim.schedule == "constant"
        assert cfg.optim.kind == "adamw"


@pytest.mark.core
@pytest.mark.parametrize("name", golden_configs.names())
def test_what_each_recipe_resolves_to(name):
    """Fields, rates of learning and parameters are those that are stored: a change is a diff."""
    differ(golden_configs.path(name), golden_configs.text(name))


@pytest.mark.core
@pytest.mark.parametrize("style", ["open_clip", "big_vision"])
def test_starts_are_those_that_are_drawn(style):
    model = dataclasses.replace(config("glyphs").model, init=style)
    starts = golden_configs.starts(model)
    drawn = leaves(dual.build(model).init(jax.random.key(0))[0])
    for path, x in drawn.items():
        kind, number = starts[path][0], float(starts[path][1:])
        if kind == "=":
            np.testing.assert_allclose(x, number, rtol=1e-5, err_msg=path)
        else:  # of n draws, one in sqrt(2 n)
            spread = 5 / math.sqrt(2 * x.size) + 0.01
            assert np.std(x) == pytest.approx(number, rel=spread), path
    assert len(drawn) > 30


@pytest.mark.core
def test_stored_recipes_are_those_that_stand():
    differ(golden_configs.FOLDER / "defaults.txt", golden_configs.defaults())
    wanted = {golden_configs.path(name).name for name in golden_configs.names()}
    assert {p.name for p in golden_configs.FOLDER.iterdir()} == {"defaults.txt", *wanted}


def differ(path, text):
    """Fails with a diff unless `path` holds `text`."""
    stored = path.read_text().splitlines() if path.exists() else []
    lines = difflib.unified_diff(stored, text.splitlines(), "stored", "now", lineterm="", n=0)
    if diff := "\n".join(lines):
        meant = "if that is meant, `python tests/golden_configs.py` writes it anew"
        pytest.fail(f"{path.name}:\n{diff}\n{meant}", pytrace=False)


def trial(name):
    """The recipe's `:tiny` form."""
    recipe, _, arg = name.partition(":")
    return load(f"{recipe}:{','.join(x for x in (arg, 'tiny') if x)}", SIZE, needs_data=False)


def kind(name):
    """What two trials of a recipe share if they differ by a few numbers of the optimizer alone."""
    cfg = trial(name)
    numbers = {"learning_rate": 0.0, "weight_decay": 0.0, "b1": 0.0, "b2": 0.0, "eps": 0.0}
    optim = dataclasses.replace(cfg.optim, **numbers, warmup_steps=0)
    return repr((name.partition(":")[0], dataclasses.replace(cfg, name="", optim=optim)))


SAME = {  # their trials are those of the first variant
    "openai:ViT-L-14", "openclip:h14-2b", "openclip:g14-2b", "datacomp:xlarge", "siglip:so400m",
    "small:yfcc15m-s16",
}  # fmt: skip


@pytest.mark.slow
def test_each_recipe_runs_tiny(tmp_path):
    """End to end, on few distinct shapes, in this process; a variant that is another's, once.

    On one device: programs for eight take longer to compile, and meshes have tests of their own.
    """
    import clip_jax
    from clip_jax.metrics.writers import read_metrics

    folder = tiny.write_folder(tmp_path / "pairs")
    names = {kind(name): name for name in reversed(ALL)}.values()
    assert set(ALL) - set(names) == SAME
    for name in names:
        cfg = trial(name)
        split = dataclasses.replace(cfg.data.train, kind="folder", paths=(str(folder),))
        mesh = dataclasses.replace(cfg.mesh, data=1)
        cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, train=split), mesh=mesh)
        run = tmp_path / name.replace(":", "_")
        clip_jax.pretrain(cfg, str(run))
        losses = [x["loss"] for x in read_metrics(str(run)) if "loss" in x]
        assert len(losses) == (2 * len(STAGED[name]) if name in STAGED else 4), name
        assert np.isfinite(losses).all(), name


@pytest.mark.core
def test_the_table_of_recipes_is_theirs():
    """Batch and steps in configs/README.md are those of the recipes that stand in the same row."""
    rows = (recipe_folders()[0] / "README.md").read_text().splitlines()
    checked = set()
    for row in (r for r in rows if r.startswith("| `") and r.count("|") == 6):
        names, _, batch, steps, _ = (x.strip() for x in row.strip("|").split("|"))
        first, *others = re.findall(r"`([^`]+)`", names)
        recipe = first.partition(":")[0]
        variants = [first, *(f"{recipe}:{x}" for x in others)]
        numbers = lambda text: [int(x.replace(",", "")) for x in re.findall(r"[\d,]*\d", text)]  # noqa: E731
        for i, name in enumerate(variants):
            cfg = config(name)
            many = numbers(batch)
            assert cfg.batch_size == many[min(i, len(many) - 1)], name
            if "epochs" in steps:
                epochs = numbers(steps)
                pairs = epochs[min(i, len(epochs) - 1)] * cfg.data.epoch_size
                assert cfg.num_steps == round(pairs / cfg.batch_size), name
            else:
                many = numbers(steps)
                assert cfg.num_steps == many[min(i, len(many) - 1)], name
            checked.add(name)
    published = {x for x in golden_configs.names() if not x.startswith(OURS)}
    assert checked == published - {x for x in published if config(x).stages}


@pytest.mark.core
def test_the_table_of_stages_is_theirs():
    rows = (recipe_folders()[0] / "README.md").read_text().splitlines()
    found: dict[str, list[tuple[str, ...]]] = {}
    for row in (r for r in rows if r.startswith("| `") and r.count("|") == 8):
        names, stage, *numbers, _ = (x.strip() for x in row.strip("|").split("|"))
        for name in re.findall(r"`([^`]+)`", names):
            found.setdefault(name, []).append((stage, *numbers))
    assert set(found) == {x for x in golden_configs.names() if config(x).stages}
    for name, table in found.items():
        cfgs = [(s.name, s.cfg) for s in stages.expand(config(name))]
        assert table == [
            (
                stage, f"{c.batch_size:,}", f"{c.num_steps:,}", f"{c.model.image.size}",
                f"{c.model.text.context}",
            )
            for stage, c in cfgs
        ], name  # fmt: skip
