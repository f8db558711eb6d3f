"""The tables of plans: which plan is taken, and that a row says what the plan says."""

import dataclasses

import pytest

import tiny
from clip_jax.bench import plans as bench
from clip_jax.config.chips import parse_topology
from clip_jax.config.stages import Stage
from clip_jax.errors import UserError
from clip_jax.planner import plan
from clip_jax.planner.compile import Measure
from clip_jax.planner.counts import Collective
from clip_jax.planner.estimate import estimate
from clip_jax.planner.search import Found

POD = parse_topology("v5e:4x4")
CFG = tiny.config("nowhere", batch_size=2048)
MIB, GIB = 2**20, 2**30


def made(cfg, gib):
    """A plan that needs so much memory."""
    mesh = {"data": cfg.mesh.data, "fsdp": cfg.mesh.fsdp, "tensor": 1}
    over = max(0.0, gib * GIB - POD.device_usable)
    sent = (
        Collective("all-reduce", "data", 3, 100.0 * MIB, 16),
        Collective("all-gather", "data", 1, 7.0 * MIB, 16),
        Collective("all-reduce", "slices", 1, 3.0 * MIB, 2),
    )
    m = Measure(0.0, 0.0, 0.0, 1e15, seconds=1.0, over=over, collectives=sent)
    if over:
        return plan.Plan(cfg, POD, mesh, m, 0.0, 1e15, None)
    m = dataclasses.replace(m, arguments=gib * GIB)
    return plan.Plan(cfg, POD, mesh, m, 0.0, 1e15, estimate(m, POD, mesh, 2048, 1e15))


def test_rows():
    found = made(dataclasses.replace(CFG, mesh=dataclasses.replace(CFG.mesh, data=16)), 12)
    cells = [x.strip() for x in bench.row(Found(CFG, POD, [found], [], [])).split("|")]
    assert cells[1:7] == ["tiny", "v5e:4x4", "16 x 1", "none", "1", "12.00 of 15.75"]
    assert cells[8] == f"{100 * found.estimate.mfu:.0f} %"
    assert len(cells) == bench.FITS.count("|") + 1
    for untried, text in (([], "nothing fits"), (["mesh 1 x 16 x 1"], "not found yet")):
        assert f"| {text} |" in (line := bench.row(Found(CFG, POD, [], [], untried)))
        assert line.count("|") == bench.FITS.count("|")
    cells = [x.strip() for x in bench.growth_row(found).split("|")]
    assert cells[1:-1] == ["tiny", "v5e:4x4", "16", "2,048", "12.00", "100", "107", "3"]
    assert len(cells) == bench.GROWTH.count("|") + 1


def test_a_row_of_a_run_has_the_hours_of_its_stage():
    found = made(dataclasses.replace(CFG, mesh=dataclasses.replace(CFG.mesh, data=16)), 12)
    part = Stage("tune", found.cfg, 100, 300)
    line = bench.run_row("a:b", part, Found(found.cfg, POD, [found], [], []))
    cells = [x.strip() for x in line.split("|")]
    assert cells[1:6] == ["`a:b`", "tune", "v5e:4x4", "2,048", "16 x 1, remat none"]
    seconds = found.estimate.seconds
    hours = 200 * seconds * 16 / 3600
    assert cells[6:9] == [f"{seconds:.3f}", "200", f"{hours:,.0f}"]
    assert len(cells) == bench.RUNS.count("|") + 1
    line = bench.run_row("a:b", part, Found(CFG, POD, [], [], []))
    assert "| nothing fits |" in line and line.count("|") == bench.RUNS.count("|")


def test_slices_are_the_recipes_unless_asked_for(monkeypatch, tmp_path):
    from clip_jax.planner import search

    seen = []

    def run(cfg, topology, *_, **__):
        seen.append((cfg.mesh.num_slices, topology.name))
        return Found(cfg, topology, [], [], [])

    monkeypatch.setattr(search, "run", run)
    recipe = tmp_path / "own.py"
    recipe.write_text(
        "from clip_jax import recipe\n\n\ndef get_config(arg=''):\n    c = recipe('digits')\n"
        "    c.mesh.num_slices = 2\n    return c\n"
    )
    bench.main([f"--recipes={recipe}", "--topologies=v5e:2x2"])
    bench.main([f"--recipes={recipe}", "--topologies=v5e:2x2", "--num_slices=4"])
    bench.main(["--models=ViT-S-32-alt", "--topologies=v5e:2x2"])
    assert seen == [(2, "2 x v5e:2x2"), (4, "4 x v5e:2x2"), (1, "v5e:2x2")]


def test_recipes_in_epochs_take_the_size_of_an_epoch(monkeypatch, tmp_path):
    from clip_jax.planner import search

    seen = []

    def run(cfg, topology, *_, **__):
        seen.append((cfg.num_steps, cfg.name))
        return Found(cfg, topology, [], [], [])

    monkeypatch.setattr(search, "run", run)
    names = ["--topologies=v5e:2x2", f"--cache={tmp_path}"]
    with pytest.raises(UserError, match="set config.data.epoch_size"):
        bench.main(["--recipes=small:cc3m", *names])
    bench.main(["--recipes=small:cc3m", "--config.data.epoch_size=4096", *names])
    bench.main(["--models=ViT-S-32-alt", "--config.name=own", *names])
    assert seen[0][0] == 40 and seen[1][1] == "own"


@pytest.mark.parametrize("flag", ["mesh.fsdp=2", "model.remat=full", "num_microbatches=2"])
def test_what_is_looked_for_is_not_set(monkeypatch, flag):
    from clip_jax.planner import search

    monkeypatch.setattr(
        search, "run", lambda cfg, topology, *_, **__: Found(cfg, topology, [], [], [])
    )
    with pytest.raises(UserError, match="is looked for here"):
        bench.main(["--models=ViT-S-32-alt", f"--config.{flag}"])


@pytest.mark.parametrize("flag", ["--per_device=8", "--batch_size=64"])
def test_the_batch_has_one_name(flag):
    given = [flag, "--config.batch_size=32"]
    with pytest.raises(UserError, match="batch_size=32: give --batch_size, or --per_device, inst"):
        bench.main(["--models=ViT-S-32-alt", "--topologies=v5e:2x2", *given])


def test_gpus_are_refused():
    with pytest.raises(UserError, match="only TPU programs can be compiled here .got H100:8"):
        bench.main(["--models=ViT-S-32-alt", "--topologies=v5e:2x2,H100:8"])


def test_it_needs_the_compiler_for_tpus(monkeypatch, tmp_path):
    from clip_jax.planner import compile as compiler

    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="the TPU compiler is not installed"):
        bench.main(["--models=ViT-S-32-alt", "--topologies=v5e:2x2", "--per_device=8",
                    f"--cache={tmp_path}"])  # fmt: skip
