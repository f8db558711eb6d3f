"""Profiles of steps, and the picture of the memory when it is full."""

import gzip
import uuid

import jax
import pytest

import clip_jax
import tiny
from clip_jax import files
from clip_jax.config.load import checked
from clip_jax.config.schema import LogConfig
from clip_jax.errors import UserError
from clip_jax.train import failures
from clip_jax.train.profile import Profile


@pytest.mark.slow
def test_two_steps_of_a_run(tmp_path, capsys):
    folder, run = tiny.write_folder(tmp_path / "pairs"), tmp_path / "run"
    clip_jax.pretrain(tiny.config(folder, log=LogConfig(every=1, profile=(3, 4))), str(run))
    assert f"profile of steps 3 to 4: {run}/profile" in capsys.readouterr().out
    (trace,) = (run / "profile").rglob("*.trace.json.gz")
    assert b"traceEvents" in gzip.decompress(trace.read_bytes())


def test_it_starts_and_ends_where_it_is_told(monkeypatch, tmp_path):
    calls, said = [], []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    for steps, last in (((2, 3), 6), ((4, 9), 6), ((), 6)):
        calls.clear()
        profile = Profile(steps, str(tmp_path), said.append)
        for step in range(1, last):
            profile.before(step)
            calls.append(step)
            profile.after(step, ())
        profile.close()
        if steps == (2, 3):
            assert calls == [1, "start", 2, 3, "stop", 4, 5]
        elif steps:
            assert calls == [1, 2, 3, "start", 4, 5, "stop"]  # the run ended first
        else:
            assert calls == [1, 2, 3, 4, 5]
    assert len(said) == 2
    for first, start in ((9, 1), (2, 4)):  # the run is shorter, or was started again after it
        profile = Profile((first, first + 1), str(tmp_path), said.append)
        for step in range(start, 6):
            profile.before(step)
            profile.after(step, ())
        profile.close()
        assert f"nothing recorded, since step {first} is not among those" in said.pop()
    Profile((2, 3), str(tmp_path), said.append).close()  # of a run that has ended already
    assert len(said) == 2


def test_refusals(tmp_path):
    with pytest.raises(UserError, match=r"log.profile: must be \(first, last\).* \(got \(3, 2\)\)"):
        checked(tiny.config("x", log=LogConfig(profile=(3, 2))), needs_data=False)


def test_a_profile_reaches_a_remote_workdir(monkeypatch):
    workdir, said, written = f"memory://{uuid.uuid4().hex}", [], []
    monkeypatch.setattr(jax.profiler, "start_trace", written.append)
    monkeypatch.setattr(
        jax.profiler, "stop_trace", lambda: files.write_bytes(f"{written[0]}/plugins/a.pb", b"x")
    )
    profile = Profile((1, 1), workdir, said.append)
    profile.before(1)
    profile.after(1, ())
    assert files.read_bytes(f"{workdir}/profile/plugins/a.pb") == b"x"
    assert said == [f"profile of steps 1 to 1: {workdir}/profile"]


@pytest.mark.parametrize("remote", [False, True])
def test_full_memory_leaves_a_picture(remote, tmp_path):
    workdir = f"memory://{uuid.uuid4().hex}" if remote else str(tmp_path)
    words = rf"device memory: not enough .* what filled it: {workdir}/memory.prof"
    with pytest.raises(UserError, match=words), failures.told(workdir):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
    assert gzip.decompress(files.read_bytes(f"{workdir}/memory.prof"))
