"""The verb: text, JSON, stored results, and what it says when something is missing or too large."""

import dataclasses
import importlib.util
import json
import os
import re
from unittest import mock

import command
import jax
import pytest

import tiny
from clip_jax.config.chips import joined, parse_topology
from clip_jax.config.schema import LossConfig, MeshConfig
from clip_jax.planner import cache, plan
from clip_jax.planner import compile as compiler
from clip_jax.planner.counts import Collective

GIB = 2**30


@pytest.fixture(autouse=True)
def environment():
    """The verb sets variables for libtpu; they end with the test."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture
def cpu_as_tpu(monkeypatch):
    """The compiler for the CPU in place of libtpu's."""
    monkeypatch.setattr(
        compiler, "topology_devices", lambda topology: jax.devices()[: topology.num_devices]
    )


@pytest.fixture
def table_as_tpu(monkeypatch):
    """An answer at once in place of a compiler; how often it was asked."""
    asked = []

    def measure(cfg, devices, meanwhile):
        asked.append(cfg)
        sent = (Collective("all-gather", "fsdp", 4, 1e6, 2),)
        return compiler.Measure(
            1e6, 2e6, 1e5, 1e12, arguments=4e6, temporaries=5e6, seconds=2.0, collectives=sent
        )

    monkeypatch.setattr(compiler, "topology_devices", lambda topology: [])
    monkeypatch.setattr(compiler, "measure", measure)
    return asked


def args(tmp_path, *more):
    return ["plan", f"--config={command.RECIPE}:nowhere", f"--cache={tmp_path / 'c'}", *more]


@pytest.mark.slow
def test_a_plan_in_text_and_json(tmp_path, cpu_as_tpu):
    file = tmp_path / "plan.json"
    more = ["--config.mesh.fsdp=2", "--config.mesh.data=2", "--price=1.2", "--samples=1e9"]
    status, out, err = command.run(*args(tmp_path, "--topology=v5e:2x2", f"--json={file}", *more))
    assert status == 0, err
    for part in (
        "tiny: 16 pairs a step on v5e:2x2 (4 chips)",
        "mesh data 2 x fsdp 2 x tensor 1; float32, remat none, 1 micro-batch, loss softmax",
        "fits: yes, ",
        "temporaries",
        "all-gather",
        "host transfers per step: none",
        "estimates, not measurements",
        "1,000,000,000 pairs",
        "at 1.2 per chip-hour",
        "docs.cloud.google.com/tpu/docs/v5e",
    ):
        assert part in out, part
    data = json.loads(file.read_text())
    assert data["fits"] is True and data["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1}
    e, run = data["estimate"], data["estimate"]["run"]
    assert e["seconds"] >= e["best"] > 0
    assert run["days"] == pytest.approx(1e9 / e["examples"] / 86400)
    assert run["cost"] == pytest.approx(1.2 * 4 * 24 * run["days"])
    assert data["settings"]["loss"] == "softmax" and data["versions"]["jax"] == jax.__version__


@pytest.mark.slow
def test_results_are_stored_by_what_goes_into_the_compiler(tmp_path, table_as_tpu):
    command.run(*args(tmp_path, "--topology=v5e:2x2"))
    first = command.run(*args(tmp_path, "--topology=v5e:2x2"))[1]
    assert len(table_as_tpu) == 1
    again = command.run(*args(tmp_path, "--topology=v5litepod-4", "--config.log.every=7"))[1]
    assert len(table_as_tpu) == 1 and again == first
    command.run(*args(tmp_path, "--topology=v5e:2x2", "--config.model.remat=full"))
    assert len(table_as_tpu) == 2
    command.run(*args(tmp_path, "--topology=v6e:2x2"))
    assert len(table_as_tpu) == 3
    for file in (tmp_path / "c").iterdir():
        file.write_text("{}")  # damaged: made again
    assert command.run(*args(tmp_path, "--topology=v5e:2x2"))[1] == first
    assert len(table_as_tpu) == 4


def test_other_versions_and_other_code_are_other_results(monkeypatch, tmp_path):
    cfg, where = tiny.config(tmp_path), parse_topology("v5e:2x2")
    name = cache.key(cfg, where)
    assert name == cache.key(dataclasses.replace(cfg, name="other"), where)
    assert name != cache.key(dataclasses.replace(cfg, batch_size=32), where)
    two = dataclasses.replace(cfg, mesh=dataclasses.replace(cfg.mesh, num_slices=2))
    assert name != cache.key(two, joined(where, 2))
    monkeypatch.setattr(cache, "versions", lambda: {"jax": "0.0"})
    assert name != cache.key(cfg, where)
    monkeypatch.undo()
    monkeypatch.setattr(cache, "sources", lambda package: "edited")
    assert name != cache.key(cfg, where)


def test_stored_results_belong_to_the_code_of_own_towers_and_losses(tmp_path, monkeypatch):
    """Also to what the module of the tower imports from its package."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "planned_parts").mkdir()
    (tmp_path / "planned_parts" / "towers.py").write_text(
        "from planned_parts.layers import build\n"
    )
    where, layers = parse_topology("v5e:2x2"), tmp_path / "planned_parts" / "layers.py"
    plain = tiny.config(tmp_path)
    image = dataclasses.replace(plain.model.image, kind="planned_parts.towers:build")
    tower = dataclasses.replace(plain, model=dataclasses.replace(plain.model, image=image))
    loss = dataclasses.replace(
        plain, loss=dataclasses.replace(plain.loss, kind="planned_loss:make")
    )

    def keys(code):
        layers.write_text(code)
        (tmp_path / "planned_loss.py").write_text(code)
        cache.sources.cache_clear()
        return [cache.key(cfg, where) for cfg in (plain, tower, loss)]

    first, second = keys("build = 1\n"), keys("build = 2\n")
    assert first[0] == second[0]
    assert first[1] != second[1] and first[2] != second[2]
    assert keys("build = 1\n") == first


def test_what_does_not_fit(tmp_path, monkeypatch):
    too_large = compiler.Measure(
        1e9, 2e9, 1e6, 1e15, seconds=3.0, over=2.5 * GIB, capacity=15.75 * GIB
    )
    monkeypatch.setattr(compiler, "topology_devices", lambda topology: [])
    monkeypatch.setattr(compiler, "measure", lambda cfg, devices, meanwhile: too_large)
    file = tmp_path / "plan.json"
    status, out, err = command.run(*args(tmp_path, "--topology=v5e:2x2", f"--json={file}"))
    assert status == 3
    assert "fits: no, 18.25 of 15.75 GiB a device" in out
    assert err.splitlines()[-1] == (
        "plan: tiny does not fit on v5e:2x2: 2.50 GiB a device more than the 15.75 GiB that are "
        "usable; try --config.model.dtype=bfloat16 or --config.model.remat=full or "
        "--config.num_microbatches=2"
    )
    data = json.loads(file.read_text())
    assert data["fits"] is False and data["estimate"] is None
    assert data["bytes_per_device"]["needed"] == 18.25 * GIB


def test_without_the_compiler(tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "libtpu" else find_spec(name)
    )
    status, _, err = command.run(*args(tmp_path, "--topology=v5e:2x2"))
    assert status == 2
    assert re.fullmatch(
        r"error: plan: the TPU compiler is not installed \(jax [\d.]+ wants libtpu==[\d.*]+\); "
        r"pip install 'clip-jax-pretrain\[plan\]'\n",
        err,
    )


def test_gpus_are_estimated_and_it_says_so(tmp_path):
    file = tmp_path / "plan.json"
    status, out, err = command.run(
        *args(tmp_path, "--topology=H100:8", "--config.mesh.data=-1", f"--json={file}")
    )
    assert status == 0, err
    assert "from shapes alone: nothing was compiled, so temporaries are not known" in out
    assert "fits: not known; at least" in out and "estimates, and bounds" in out
    assert "XLA's cycles, without collectives" in out and "not given" in out
    data = json.loads(file.read_text())
    assert data["fits"] is None and data["bytes_per_device"]["temporaries"] is None
    sent = {(c["kind"], c["axes"]): c for c in data["collectives_per_step"]}
    params = data["bytes_per_device"]["parameters"]
    assert sent["all-reduce", "data"]["sent"] == pytest.approx(2 * params * 7 / 8)
    assert sent["all-gather", "data"]["sent"] == 2 * 16 * 4 * 7  # two texts of 16 f32, to seven


def test_kernels_of_gpus_are_planned_without_one(tmp_path):
    given = ["--topology=H100:8", "--config.mesh.data=-1", "--config.model.dtype=bfloat16"]
    plain = command.run(*args(tmp_path, *given))
    cudnn = command.run(*args(tmp_path, *given, "--config.model.attention=cudnn"))
    assert plain[0] == 0 and cudnn == plain  # both compute the scores again


def test_large_parameters_that_every_device_holds_are_named(tmp_path):
    """The table of tokens is not split over tensor."""
    mesh = ["--config.mesh.data=1", "--config.mesh.fsdp=1", "--config.mesh.tensor=8"]
    large, file = "--config.model.text.vocab_size=70000", tmp_path / "plan.json"
    found = args(tmp_path, "--topology=H100:8", *mesh, large, f"--json={file}")
    status, out, err = command.run(*found)
    assert status == 0, err
    leaf = "text/token/embedding (70000, 16)"
    assert f"whole on every device, though large: {leaf}\n" in out
    assert json.loads(file.read_text())["whole_on_every_device"] == [leaf]
    _, out, _ = command.run(*args(tmp_path, "--topology=H100:8", *mesh))
    assert "whole on every device" not in out


def test_a_state_larger_than_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(plan.analytic, "measure", lambda cfg, mesh: (TOO_MUCH, 100e9))
    status, out, err = command.run(*args(tmp_path, "--topology=H100", "--config.mesh.data=1"))
    assert status == 3 and "fits: no" in out and "more than the 74.51 GiB" in err
    assert "MFU" not in out  # nobody needs the speed of what does not fit


TOO_MUCH = compiler.Measure(40e9, 50e9, 1e6, 1e15)


def test_several_slices(tmp_path, monkeypatch):
    sent = (
        Collective("all-reduce", "data", 4, 1e6, 4),
        Collective("all-reduce", "slices", 4, 3.125e7, 2),
    )
    found = compiler.Measure(1e6, 2e6, 1e3, 1e12, arguments=3e6, peak=4e6, collectives=sent)
    asked = []
    monkeypatch.setattr(compiler, "topology_devices", lambda topology: asked.append(topology) or [])
    monkeypatch.setattr(compiler, "measure", lambda cfg, devices, meanwhile: found)
    file = tmp_path / "plan.json"
    two = "--config.mesh.num_slices=2"
    status, _, err = command.run(*args(tmp_path, "--topology=v5e:2x2", two))  # data is 1 there
    assert status == 2 and "must divide the axis data, 1 here (got 2)" in err
    more = [two, "--config.mesh.data=-1", f"--json={file}"]
    status, out, err = command.run(*args(tmp_path, "--topology=v5e:2x2", *more))
    assert status == 0, err
    assert [(t.slice_name, t.slices) for t in asked] == [("v5e:2x2", 2)]
    assert "tiny: 16 pairs a step on 2 x v5e:2x2 (8 chips)\n  mesh data 8 x fsdp 1" in out
    assert re.search(r"network between slices +0\.0100 s", out)
    data = json.loads(file.read_text())
    assert (data["topology"], data["slices"], data["chips"]) == ("v5e:2x2", 2, 8)
    assert data["estimate"]["network"] == pytest.approx(0.01)
    status, _, err = command.run(*args(tmp_path, "--topology=H100:4", two))
    assert status == 2 and "plan H100:8 with config.mesh.num_slices=1" in err


def test_a_folder_that_cannot_be_written_is_told_before_compiling(tmp_path, table_as_tpu):
    (tmp_path / "c").write_text("a file")
    status, _, err = command.run(*args(tmp_path, "--topology=v5e:2x2"))
    assert (status, table_as_tpu) == (2, []) and "choose another folder" in err
    assert err.count("\n") == 1
    good = tmp_path / "good"
    cache.prepare(str(good))
    assert list(good.iterdir()) == []


def test_what_to_try(tmp_path):
    cfg = tiny.config(tmp_path)
    cfg = dataclasses.replace(
        cfg, model=dataclasses.replace(cfg.model, remat="full", dtype="bfloat16")
    )
    mesh = {"data": 4, "fsdp": 1, "tensor": 1}
    large = compiler.Measure(8 * GIB, 16 * GIB, 0.0, 1.0, seconds=1.0, over=1.0)
    p = plan.Plan(cfg, parse_topology("v5e:2x2"), mesh, large, 0.0, 1.0, None)
    wider = "--config.mesh.data=2 --config.mesh.fsdp=2"
    assert plan.advice(p) == f"try {wider} or --config.num_microbatches=2 or --search"
    odd = dataclasses.replace(p, mesh={"data": 3, "fsdp": 3, "tensor": 1})
    assert plan.advice(odd).startswith("try --config.mesh.data=1 --config.mesh.fsdp=9 or ")
    mesh = {"data": 2, "fsdp": 2, "tensor": 1}
    two = dataclasses.replace(cfg, mesh=MeshConfig(num_slices=2))
    whole = dataclasses.replace(p, cfg=two, mesh=mesh)  # fsdp fills the slice
    assert plan.advice(whole) == "try --config.num_microbatches=2 or --search"
    mesh = {"data": 4, "fsdp": 1, "tensor": 1}
    gpus = dataclasses.replace(p, topology=parse_topology("H100:4"))
    assert plan.advice(gpus) == f"try {wider} or --config.num_microbatches=2"
    image = dataclasses.replace(cfg.model.image, kind="resnet")
    resnet = dataclasses.replace(cfg.model, image=image)  # micro-batches are of no use
    norm = dataclasses.replace(p, cfg=dataclasses.replace(cfg, model=resnet))
    none = dataclasses.replace(cfg, model=dataclasses.replace(resnet, remat="none"))
    again = "--config.model.remat=full or a lower --config.batch_size"
    assert plan.advice(dataclasses.replace(p, cfg=none)) == f"try {wider} or {again}"
    other = "a lower --config.batch_size or a larger topology"
    assert plan.advice(norm) == f"try {wider} or {other}"
    assert plan.advice(dataclasses.replace(norm, mesh={**mesh, "data": 1})) == f"try {other}"
    long = dataclasses.replace(cfg, batch_size=2**17, loss=LossConfig("sigmoid"))
    little = dataclasses.replace(large, parameters=0.0, optimizer=0.0)
    logits = dataclasses.replace(p, cfg=long, measure=little)
    ring = "--config.loss.kind=sigmoid_ring"  # three blocks of 16 GiB
    assert plan.advice(logits) == f"try {ring} or --config.num_microbatches=2 or --search"
    ringed = dataclasses.replace(long, loss=LossConfig("sigmoid_ring"))
    assert "loss.kind" not in plan.advice(dataclasses.replace(logits, cfg=ringed))
    small = dataclasses.replace(cfg, batch_size=1)
    one = dataclasses.replace(p, cfg=small, mesh={**mesh, "data": 1})
    assert plan.advice(one) == "try a larger topology"


def test_a_compiler_that_gives_up_without_a_number(tmp_path):
    """Then nothing says that more memory is there than is needed."""
    mesh = {"data": 4, "fsdp": 1, "tensor": 1}
    m = compiler.Measure(1.0, 2.0, 0.0, 1.0, seconds=1.0)
    p = plan.Plan(tiny.config(tmp_path), parse_topology("v5e:2x2"), mesh, m, 3.0, 1.0, None)
    assert "fits: no, more than the 15.75 GiB a device" in plan.text(p, 1.0, None)


@pytest.mark.slow
def test_the_mesh_of_the_config_is_kept(tmp_path, table_as_tpu):
    cfg = tiny.config(tmp_path, mesh=MeshConfig(data=-1, fsdp=2, tensor=1))
    p = plan.make(cfg, parse_topology("v5e:2x2"), str(tmp_path / "c"))
    assert p.mesh == {"data": 2, "fsdp": 2, "tensor": 1}


def test_one_stage_of_a_run_is_planned(tmp_path):
    recipe = tmp_path / "staged.py"
    recipe.write_text(
        "from clip_jax.config.codec import to_config_dict\n"
        "from clip_jax.config.schema import StageConfig\n"
        "import tiny\n"
        "def get_config(arg=''):\n"
        "    c = to_config_dict(tiny.config('x'))\n"
        "    c.stages = (StageConfig('small', ('num_steps=5',)),\n"
        "                StageConfig('large', ('num_steps=3', 'batch_size=64')))\n"
        "    return c\n"
    )
    words = ["plan", f"--config={recipe}", f"--cache={tmp_path}", "--topology=H100:8"]
    words += ["--config.mesh.data=-1"]
    for name, pairs, all_ in (("small", "16", 80), ("large", "64", 192)):
        status, out, err = command.run(*words, f"--stage={name}")
        assert status == 0, err
        assert f"{pairs} pairs a step" in out and re.search(rf"\b{all_} pairs\b", out), out
    for wrong in ([], ["--stage=larg"]):
        status, _, err = command.run(*words, *wrong)
        assert status == 2
        assert "--stage: no stage '" in err and err.endswith("in tiny; its stages: small, large\n")
    status, _, err = command.run(*args(tmp_path, "--topology=H100:8", "--stage=x"))
    assert (status, err) == (2, "error: --stage: no stage 'x' in tiny; its stages: none\n")
