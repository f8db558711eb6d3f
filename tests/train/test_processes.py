"""Two processes of four devices each: the same run as one of eight, and one end for both."""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import command
import jax
import numpy as np
import processes_recipe
import pytest

import clip_jax
import tiny
from clip_jax.metrics.writers import read_metrics
from clip_jax.sharding.rules import path_of

pytestmark = pytest.mark.slow

RECIPE = command.TESTS / "processes_recipe.py"
LONG = (  # no saving of its own, and a step does not depend on how many will follow
    "--config.num_steps=100000",
    "--config.checkpoint.every=100000",
    "--config.optim.schedule=constant",
)
PATIENCE_S = 240  # for processes that take seconds when they have two cores


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """64 pairs, one of them broken."""
    folder = tiny.write_folder(tmp_path_factory.mktemp("pairs"))
    (folder / "0003.png").write_bytes(b"broken")
    return folder


@pytest.fixture(scope="module")
def one(folder, tmp_path_factory):
    """The run in this process, on eight devices."""
    workdir = tmp_path_factory.mktemp("one")
    clip_jax.pretrain(processes_recipe.get_config(str(folder)), str(workdir))
    return workdir


@pytest.fixture(scope="module")
def start(folder, tmp_path_factory):
    """Starts the launcher; what was compiled serves the tests after it too."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

    def start(workdir, *more, devices=1, **environment):
        config = f"--config={RECIPE}:{folder}"
        args = ["train", config, f"--workdir={workdir}", *more]
        return command.start_local(*args, devices=devices, **cache, **environment)

    return start


@pytest.fixture(scope="module")
def two(start, tmp_path_factory):
    """(workdir, stdout, stderr) of the run in two processes."""
    workdir = tmp_path_factory.mktemp("two")
    status, out, err = end(start(workdir, devices=4))
    assert status == 0, out + err
    return workdir, out, err


def end(child):
    """(status, stdout, stderr); no process outlives the test."""
    try:
        out, err = child.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        child.kill()  # takes its children along
        out, err = child.communicate()
        raise AssertionError(f"hangs\n{out}\n{err}") from None
    return child.returncode, out, err


def wait_for_step(child, workdir, step):
    for _ in range(10 * PATIENCE_S):
        if child.poll() is not None:
            raise AssertionError(child.communicate())
        path = workdir / "metrics.jsonl"
        if path.exists() and len(path.read_text().splitlines()) >= step:
            return
        time.sleep(0.1)
    child.kill()
    raise AssertionError(child.communicate())


def close(got, want):
    assert set(got) == set(want)
    np.testing.assert_allclose([got[s] for s in want], list(want.values()), rtol=1e-5)


def assert_parameters_close(got, want):
    for (path, x), y in zip(
        jax.tree_util.tree_flatten_with_path(clip_jax.load(got).params)[0],
        jax.tree.leaves(clip_jax.load(want).params),
        strict=True,
    ):
        if not path_of(path).endswith("attn/k/bias"):  # nothing depends on it: rounding alone
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-4, err_msg=path_of(path))


def scores(workdir):
    return {k: v for x in read_metrics(str(workdir)) for k, v in x.items() if "eval/" in k}


def test_losses_and_scores_are_those_of_one_process(one, two):
    workdir, *_ = two
    close(command.losses(workdir), command.losses(one))
    assert scores(workdir) == scores(one) and len(scores(workdir)) == 3
    lines = [x for x in read_metrics(str(workdir)) if "loss" in x]
    assert [(x["attempt"], x["step"]) for x in lines] == [(1, step) for step in range(1, 9)]
    assert lines[-1]["data/skipped"] == 2  # 128 examples of 64 pairs, whoever read them


def test_ten_steps_are_those_of_one_device_and_go_on_there(folder, start, tmp_path):
    """Each run of ten steps, cut after eight, is ended by the other's machine."""
    alone, both = tmp_path / "alone", tmp_path / "both"
    cfg = processes_recipe.get_config(str(folder))
    cfg.num_steps, cfg.mesh.data = 10, 1

    def run_both(workdir):
        status, out, err = end(start(workdir, "--config.num_steps=10", devices=4))
        assert status == 0, out + err
        return out

    clip_jax.pretrain(cfg, str(alone))
    run_both(both)
    ten = command.losses(alone)
    close(command.losses(both), ten)
    assert len(ten) == 10
    assert_parameters_close(both, alone)

    for workdir in (alone, both):
        shutil.rmtree(workdir / "checkpoints" / "10")
    assert "resumed from step 8" in run_both(alone)
    clip_jax.pretrain(cfg, str(both))
    for workdir in (alone, both):
        close(command.losses(workdir), ten)
    assert_parameters_close(both, alone)


def test_stages_from_other_weights_and_a_restart_where_they_meet(
    start, one, folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("TINY_INIT", str(one))
    alone, run = tmp_path / "alone", tmp_path / "run"
    clip_jax.pretrain(processes_recipe.get_config(str(folder)), str(alone))
    status, out, err = end(start(run, devices=4))
    assert status == 0, out + err
    assert out.count("parameters start as in") == 1 and "stage 2 of 2, b: steps 4 to 7" in out
    assert sorted(command.losses(run)) == list(range(1, 8))
    close(command.losses(run), command.losses(alone))
    shutil.rmtree(run / "checkpoints" / "7")
    status, out, err = end(start(run, devices=4))
    assert status == 0, out + err
    assert "resumed from step 4" in out
    close(command.losses(run), command.losses(alone))


def test_one_log_and_one_set_of_files(one, two):
    workdir, out, err = two
    assert err == ""
    assert out.count("memory per device") == 1 and out.count("report: ") == 1
    assert "mesh data 8 x fsdp 1 x tensor 1" in out
    names = {p.name for p in workdir.iterdir()}
    assert names == {p.name for p in one.iterdir()}
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"4", "8"}


def test_parameters_over_both_processes_then_a_damaged_checkpoint(one, start, tmp_path):
    """Another mesh continues from the checkpoint before, which all processes find alike."""
    spread = [f"--config.mesh.{axis}" for axis in ("data=1", "fsdp=4", "tensor=2")]
    status, out, err = end(start(tmp_path, *spread, devices=4))
    assert status == 0, out + err
    assert "mesh data 1 x fsdp 4 x tensor 2" in out
    close(command.losses(tmp_path), command.losses(one))
    assert_parameters_close(tmp_path, one)
    other = shutil.copytree(tmp_path, tmp_path.with_name("other"))

    files = [p for p in (tmp_path / "checkpoints" / "8").rglob("*") if p.is_file()]
    newest = max(files, key=lambda p: p.stat().st_size)
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    status, out, err = end(start(tmp_path, devices=4))
    assert status == 0, out + err
    assert (out + err).count("checkpoint 8 is damaged") == 1 and "using 4 instead" in out + err
    assert "mesh data 8 x fsdp 1 x tensor 1" in out
    again = [x["step"] for x in read_metrics(str(tmp_path)) if "loss" in x and x["attempt"] == 2]
    assert again == [5, 6, 7, 8]
    close(command.losses(tmp_path), command.losses(one))

    own = (other / "checkpoints" / "8" / "params" / "ocdbt.process_1" / "d").iterdir()
    for part in own:  # only process 1 reads it, and cannot
        part.write_bytes(part.read_bytes()[:8])
    status, out, err = end(start(other, *spread, devices=4))
    assert status == 0, out + err
    assert (out + err).count("checkpoint 8 is damaged") == 1 and "using 4 instead" in out + err
    close(command.losses(other), command.losses(one))


def test_a_signal_anywhere_saves_once_on_all_and_two_go_on(folder, start, tmp_path):
    run, folders = tmp_path / "two", tmp_path / "two" / "checkpoints"
    child = start(run, *LONG)
    wait_for_step(child, run, 12)
    os.kill(command.children(child)[1], signal.SIGTERM)
    status, out, err = end(child)
    assert status == 42, out + err
    first = saved(err, "SIGTERM")
    assert [p.name for p in folders.iterdir()] == [str(first)]
    assert max(command.losses(run)) == first

    child = start(run, *LONG)
    wait_for_step(child, run, first + 12)
    os.kill(child.pid, signal.SIGINT)
    status, out, err = end(child)
    assert status == 130, out + err
    second = saved(err, "Ctrl-C")
    assert f"resumed from step {first}" in out and second > first
    assert {p.name for p in folders.iterdir()} == {str(first), str(second)}

    cfg = processes_recipe.get_config(str(folder))
    cfg.num_steps, cfg.optim.schedule, cfg.eval.tasks = second, "constant", ()
    clip_jax.pretrain(cfg, str(tmp_path / "whole"))
    close(command.losses(run), command.losses(tmp_path / "whole"))


def saved(err, name):
    """The step, which is told once."""
    assert err.count("saved step") == 1 and f"{name}: saved step " in err, err
    return int(err.split("saved step ")[1].split(";")[0])


def test_kill_9_of_one_ends_all_and_the_run_goes_on(folder, start, tmp_path):
    every = "--config.checkpoint.every=20"
    child = start(tmp_path, *(x for x in LONG if "checkpoint" not in x), every)
    wait_for_step(child, tmp_path, 25)
    begin = time.monotonic()
    os.kill(command.children(child)[1], signal.SIGKILL)
    status, out, err = end(child)
    assert status == 137, out + err
    assert time.monotonic() - begin < 15
    assert "process 1 was killed by SIGKILL first, with status 137" in err
    killed = command.losses(tmp_path)
    cfg = processes_recipe.get_config(str(folder))
    cfg.num_steps, cfg.optim.schedule, cfg.checkpoint.every = max(killed), "constant", 20
    clip_jax.pretrain(cfg, str(tmp_path), accept_changes=True)
    assert read_metrics(str(tmp_path))[-1]["attempt"] == 2
    close(command.losses(tmp_path), killed)


def test_a_hung_process_is_found_by_the_watchdog(start, tmp_path):
    child = start(tmp_path, *LONG, "--config.log.watchdog_seconds=4")
    wait_for_step(child, tmp_path, 12)
    os.kill(command.children(child)[1], signal.SIGSTOP)
    begin = time.monotonic()
    status, out, err = end(child)
    assert status == 42, out + err
    assert time.monotonic() - begin < 20
    assert "process 0: nothing was done for 4 s" in err and "loop.py" in err


def test_an_option_that_the_compiler_does_not_know_is_told_once(start, tmp_path):
    status, out, err = end(start(tmp_path, "--config.compile.options=xla_no_such_thing=1"))
    assert status == 2, out + err
    assert len(err.splitlines()) == 1 and "xla_no_such_thing" in err


def test_a_bug_in_one_process_is_told_with_its_traceback(start, tmp_path):
    child = start(tmp_path, *LONG, TINY_FAULT="bug")
    status, out, err = end(child)
    assert status == 1, out + err
    assert "[1] ZeroDivisionError: the fault of process 1" in err
    assert "process 1 ended first, with status 1" in err


def test_other_data_on_one_process_is_refused(start, tmp_path):
    status, out, err = end(start(tmp_path, TINY_FAULT="data"))
    assert status == 2, out + err
    assert err.startswith("error: process 1: differs from process 0: config.data, data set is ")
    assert "config.data, examples is 63, there 64" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "metrics.jsonl").exists()


def test_another_config_and_other_code_are_refused(folder, tmp_path):
    """Process 1 has another seed, and a package with one more line."""
    roots = [tmp_path / "process0", tmp_path / "process1"]
    for root in roots:
        shutil.copytree(Path(clip_jax.__file__).parent, root / "clip_jax")
    with open(roots[1] / "clip_jax" / "files.py", "a") as f:
        f.write("# changed\n")
    args = ["train", f"--config={RECIPE}:{folder}", f"--workdir={tmp_path}/run"]
    children = by_hand(*args, roots=roots, TINY_FAULT="seed")
    (status0, _, err), (status1, _, silent) = map(end, children)
    assert (status0, status1) == (2, 2), err + silent
    lines = told(err)
    assert len(lines) == 1
    assert lines[0].startswith(
        "error: process 1: differs from process 0: config.seed is 1, there 0"
    )
    assert "the sources of clip_jax is " in lines[0]
    assert told(silent) == [] and not (tmp_path / "run").exists()


def test_two_processes_evaluate(two):
    run = two[0]
    best = scores(run)["eval/colours/top1"]
    children = by_hand("eval", str(run), "--floor=colours/top1=2", "--distributed=on")
    (status0, out, err), (status1, silent, also) = map(end, children)
    assert (status0, status1) == (3, 3), err + also
    assert f" {100 * best:.1f} %" in told(out)[1] and told(silent) == []
    assert "is below 2.0" in err and told(also) == []


def by_hand(*args, roots=(None, None), **environment):
    """Two processes with the variables that stand in docs/processes.md, in the folders `roots`."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    own = {"CLIP_JAX_COORDINATOR": address, "CLIP_JAX_NUM_PROCESSES": "2"}
    own |= {"JAX_NUM_CPU_DEVICES": "2", **environment}
    return [
        command.start(
            *args, cwd=root, CLIP_JAX_PROCESS_ID=str(i), **own
        )  # Python looks there first
        for i, root in enumerate(roots)
    ]


def told(text):
    """The lines without those of the network library, whose threads write into one another."""
    pieces = r"\[Gloo\] Rank |is connected to|peer ranks\.|Expected number of connected .* is :"
    return [x for x in text.splitlines() if re.sub(rf"{pieces}|[\d\s]", "", x)]
