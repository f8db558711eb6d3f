"""The planner compiles the program that training compiles; test_libtpu.py does so for TPUs."""

import dataclasses
import importlib.util

import jax
import pytest

import tiny
from clip_jax.config.chips import parse_topology
from clip_jax.config.schema import MeshConfig
from clip_jax.errors import UserError
from clip_jax.metrics import flops
from clip_jax.planner import analytic
from clip_jax.planner import compile as compiler
from clip_jax.sharding.mesh import make_mesh
from clip_jax.train import loop, program

FOUR = MeshConfig(data=2, fsdp=2, tensor=1)


@pytest.fixture(scope="module")
def cfg():
    return tiny.config("nowhere", mesh=FOUR)


@pytest.fixture(scope="module")
def found(cfg):
    """What the compiler for the CPU answers; no libtpu needed."""
    return compiler.measure(cfg, jax.devices()[:4])


@pytest.mark.slow
def test_training_and_planning_lower_the_same_program(tmp_path, monkeypatch):
    texts, lower = [], program.Program.lower

    def recording(self):
        lowered = lower(self)
        texts.append(lowered.as_text())
        return lowered

    monkeypatch.setattr(program.Program, "lower", recording)
    cfg = tiny.config(tiny.write_folder(tmp_path / "pairs"), num_steps=1, mesh=FOUR)
    cfg = dataclasses.replace(
        cfg, optim=dataclasses.replace(cfg.optim, warmup_steps=0), eval=type(cfg.eval)()
    )
    loop.run(cfg, str(tmp_path / "run"))
    compiler.measure(cfg, jax.devices()[:4])
    assert len(texts) == 2 and len(texts[0]) > 10_000
    assert texts[0] == texts[1]
    changed = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, remat="full"))
    program.build(changed, make_mesh(FOUR, jax.devices()[:4])).lower()
    assert texts[2] != texts[1]


@pytest.mark.slow
def test_measures_of_a_program_on_this_machine(cfg, found):
    assert found.compiled and not found.over
    prog = program.build(cfg, make_mesh(FOUR, jax.devices()[:4]))
    params = jax.tree.leaves(prog.abstract.params)
    whole = sum(4 * x.size for x in params)
    assert whole / 2 <= found.parameters < whole  # what fsdp=2 does not split is small
    assert 2 * found.parameters <= found.optimizer <= 2 * found.parameters + 8
    assert found.batch == 16 / 4 * (16 * 16 * 3 + 8 * 4 + 2 * 4 + 4)
    assert found.arguments >= found.parameters + found.optimizer + found.batch
    assert found.temporaries > 0 and found.seconds > 0
    kinds = {(c.kind, c.axes) for c in found.collectives}
    assert ("all-gather", "fsdp") in kinds
    assert any("data" in axes for kind, axes in kinds if kind == "all-reduce")


@pytest.mark.slow
def test_flops_of_a_step_are_those_of_its_jaxpr(cfg, found):
    prog = program.build(cfg, make_mesh(FOUR, jax.devices()[:4]))
    with jax.set_mesh(prog.mesh):
        want = flops.count(prog.step, prog.abstract, prog.batch)
    assert found.flops == want
    shapes, _ = analytic.measure(cfg, {"data": 2, "fsdp": 2, "tensor": 1})
    assert shapes.flops == want


@pytest.mark.slow
def test_shapes_alone_tell_the_same_state(cfg, found):
    shapes, least = analytic.measure(cfg, {"data": 2, "fsdp": 2, "tensor": 1})
    for name in ("parameters", "optimizer", "batch"):
        assert getattr(shapes, name) == getattr(found, name)
    assert least > shapes.parameters + shapes.optimizer + shapes.batch


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-L-14"])
def test_a_step_is_three_times_the_published_forward_flops(name):
    from clip_jax.config.load import load

    published = {"ViT-B-32": 14.78e9, "ViT-L-14": 175.33e9}  # open_clip, docs/model_profile.csv
    cfg = load(f"clip:{name}", ("--config.batch_size=512",), needs_data=False)
    assert analytic.model_flops(cfg) == pytest.approx(3 * 512 * published[name], rel=0.02)


@pytest.mark.slow
def test_recomputation_is_counted_but_is_no_work_of_the_model(tmp_path):
    cfg = tiny.config(tmp_path)
    one = {"data": 1, "fsdp": 1, "tensor": 1}
    full = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, remat="full"))
    parts = dataclasses.replace(cfg, num_microbatches=2)
    plain = analytic.model_flops(cfg)
    assert analytic.model_flops(full) == analytic.model_flops(parts) == plain
    image, text = cfg.model.image, cfg.model.text
    scores = sum(  # (b, h, t, s), computed again: 2 b t t d of each layer
        2 * cfg.batch_size * t * t * side.width * side.layers
        for t, side in (((image.size // image.patch) ** 2, image), (text.context, text))
    )
    assert analytic.measure(cfg, one)[0].flops == plain + scores
    kept = dataclasses.replace(full.model, attention="kept")
    assert analytic.measure(dataclasses.replace(full, model=kept), one)[0].flops == (
        analytic.measure(full, one)[0].flops  # scores are computed again once, not twice
    )
    for more in (full, parts):
        assert 1.2 < analytic.measure(more, one)[0].flops / plain < 1.4


@pytest.mark.slow
def test_remat_and_micro_batches_save_activations(tmp_path):
    cfg = tiny.config(tmp_path, batch_size=512)
    one = {"data": 1, "fsdp": 1, "tensor": 1}

    def least(**fields):
        model = dataclasses.replace(cfg.model, remat=fields.pop("remat", "none"))
        return analytic.measure(dataclasses.replace(cfg, model=model, **fields), one)[1]

    assert least() > least(remat="dots") > least(remat="full")
    assert least() > least(num_microbatches=2) > least(num_microbatches=4)


@pytest.mark.parametrize(
    ("message", "capacity", "over"),
    [
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 27.46G of 15.75G hbm. Exceeded hbm capacity by 11.71G.",
            15.75,
            11.71,
        ),
        (
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: total memory required for HLO "
            "temporaries (19.03G) exceeds available HBM (15.75G)",
            15.75,
            3.28,
        ),
        (  # libtpu 0.0.42.1
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (480.00G) exceeds available HBM (95.74G).",
            95.74,
            384.26,
        ),
        ("RESOURCE_EXHAUSTED: something else", 0.0, 0.0),
    ],
)
def test_what_the_compiler_says_of_too_large_programs(message, capacity, over):
    found = compiler.exhausted(message)
    assert found == (pytest.approx(capacity * 2**30), pytest.approx(over * 2**30))


def test_without_libtpu(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as e:
        compiler.topology_devices(parse_topology("v5e:2x2"))
    assert "clip-jax-pretrain[plan]" in str(e.value) and "libtpu==" in str(e.value)
