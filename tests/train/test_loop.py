"""A run end to end in this process: what it leaves, resume, changes, damage, bad data."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import command
import jax
import numpy as np
import pytest

import clip_jax
import tiny
from clip_jax.config.base import overfit
from clip_jax.config.schema import InitConfig
from clip_jax.errors import Stop, UserError
from clip_jax.eval import zeroshot
from clip_jax.interop.table import leaves
from clip_jax.metrics.goodput import CAUSES
from clip_jax.metrics.writers import read_metrics
from clip_jax.report.finished import is_finished
from clip_jax.sharding import processes
from clip_jax.train import loop


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_folder(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    clip_jax.pretrain(tiny.config(folder), workdir)
    return workdir


def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_what_a_run_leaves(finished):
    names = sorted(p.name for p in finished.iterdir())
    assert names == [
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "parameters.txt",
        "report.html",
        "tokenizer.model",
    ]
    lines = read_metrics(str(finished))
    assert [x["step"] for x in lines if "loss" in x] == list(range(1, 9))
    assert {x["attempt"] for x in lines} == {1}
    last = [x for x in lines if "loss" in x][-1]
    for name in ("speed/examples_per_s", "data/wait_share", "data/skipped", "logit_scale"):
        assert name in last
    assert 0 <= lines[-1]["eval/colours/top1"] <= 1
    for cause in set(CAUSES) - {"report"}:  # that is written after it
        assert lines[-1][f"time/{cause}_s"] > 0, cause
    assert json.loads((finished / "config.json").read_text())["batch_size"] == 16
    assert "colours" in (finished / "report.html").read_text()


ELSEWHERE = {  # of devices that tell (test_log.py), of tasks with distractors (eval/test_run.py)
    "speed/mfu", "device/peak_bytes", "eval/TASK/top1_all", "eval/TASK/top5_all",
    "eval/TASK/seen_classes",
}  # fmt: skip


def test_the_docs_name_every_number_and_no_other(finished):
    docs = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", docs, re.MULTILINE)
    known = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    names = {name for line in read_metrics(str(finished)) for name in line}
    written = {x.replace("eval/colours/", "eval/TASK/") for x in names}
    assert known == written - {"step", "attempt", "time"} | ELSEWHERE


def test_a_running_job_writes_its_report(folder, tmp_path, monkeypatch):
    """At step 4, the first checkpoint; then it is stopped and goes on."""
    run, real = tmp_path / "run", loop.Log.keep

    def keep(self, step, metrics, host):
        real(self, step, metrics, host)
        if step == 5:
            self._job.signals.status, self._job.signals.name = 42, "SIGTERM"

    monkeypatch.setattr(loop, "REPORT_S", -1.0)
    monkeypatch.setattr(loop, "REPORT_SHARE", -1.0)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(loop.Log, "keep", keep)
        clip_jax.pretrain(tiny.config(folder), str(run))
    page = (run / "report.html").read_text()
    assert "running: step 5 of 8" in page and "Training loss" in page
    assert not is_finished(str(run / "report.html"))
    clip_jax.pretrain(tiny.config(folder), str(run))
    assert is_finished(str(run / "report.html"))
    page = (run / "report.html").read_text()
    assert "running" not in page.replace('content="running"', "") and "were steps" in page


def test_a_run_behind_a_published_one_is_told(folder, tmp_path, capsys):
    cfg = tiny.config(folder)
    curve = ("16ex=.9", "1kex=.95")
    changed = dataclasses.replace(
        cfg.eval, every=4, reference=curve, reference_task=cfg.eval.tasks[0].name.upper()
    )
    clip_jax.pretrain(dataclasses.replace(cfg, eval=changed), str(tmp_path))
    said = capsys.readouterr().out
    assert "steps 0 to 8 of 16 pairs" in said and "memory per device" in said
    spent = (
        r"\nstep 8: .*\n(.*\n)*training took \d+ s \(\d+ % of [\d,]+ s were steps; .*\); report: "
    )
    assert re.search(spent + re.escape(f"{tmp_path}/report.html\n"), said), said
    assert "after 64 pairs; the published run had about 91.7 %." in said
    assert "after 128 pairs; the published run had about 92.5 %." in said  # at the end, too
    page = (tmp_path / "report.html").read_text()
    assert "published, top1" in page and ": behind it (behind is below 80 % of its score)" in page


def test_a_finished_run_does_nothing(finished, tmp_path, folder, capsys):
    run = copy(finished, tmp_path)
    before = (run / "metrics.jsonl").read_bytes()
    clip_jax.pretrain(tiny.config(folder), str(run))
    assert "already finished: step 8; report: " in capsys.readouterr().out
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_run_killed_before_its_report_gets_one(finished, tmp_path, folder):
    run = copy(finished, tmp_path)
    (run / "report.html").unlink()
    clip_jax.pretrain(tiny.config(folder), str(run))
    assert "colours" in (run / "report.html").read_text()


@pytest.mark.parametrize("overlap", [False, True])
def test_a_step_that_has_ended_is_written_before_the_next_begins(
    folder, tmp_path, monkeypatch, overlap
):
    """Else the time of the next would be in its line."""
    events, wait, ready = [], loop.Compiling.wait, loop.Log.ready

    def one_at_a_time(self, stage):
        execute = wait(self, stage)

        def step(state, batch):
            events.append("step")
            return jax.block_until_ready(execute(state, batch))

        return step

    def write(self, step, values):
        events.append("line")

    monkeypatch.setattr(loop.program, "memory_line", lambda _: "")
    monkeypatch.setattr(loop.Compiling, "wait", one_at_a_time)
    monkeypatch.setattr(loop.Log, "ready", lambda log: not overlap and ready(log))
    monkeypatch.setattr(loop.LiveLine, "update", write)
    cfg = tiny.config(folder)
    every = dataclasses.replace(cfg.checkpoint, every=cfg.num_steps)
    once = dataclasses.replace(cfg.eval, every=cfg.num_steps)
    clip_jax.pretrain(dataclasses.replace(cfg, checkpoint=every, eval=once), tmp_path / "run")
    assert (events == ["step", "line"] * cfg.num_steps) == (not overlap)
    assert sorted(events) == ["line"] * cfg.num_steps + ["step"] * cfg.num_steps


@pytest.mark.core
def test_stopped_and_started_equals_uninterrupted(folder, finished, tmp_path, monkeypatch):
    """Stopped after step 3 by a signal, then started again: the same losses to the last bit."""
    run = tmp_path / "run"
    real = loop.Log.keep

    def keep(self, step, metrics, host):
        real(self, step, metrics, host)
        if step == 3:
            self._job.signals.status, self._job.signals.name = 42, "SIGTERM"

    monkeypatch.setattr(loop.Log, "keep", keep)
    with pytest.raises(Stop, match="SIGTERM: saved step 3; the same command goes on") as e:
        clip_jax.pretrain(tiny.config(folder), str(run))
    assert e.value.status == 42
    monkeypatch.undo()
    clip_jax.pretrain(tiny.config(folder), str(run))
    assert command.losses(run) == command.losses(finished)
    attempts = {x["step"]: x["attempt"] for x in read_metrics(str(run)) if "loss" in x}
    assert attempts == {1: 1, 2: 1, 3: 1, **{s: 2 for s in range(4, 9)}}


def test_a_damaged_newest_checkpoint_falls_back(finished, folder, tmp_path, capsys):
    run = copy(finished, tmp_path)
    data = max((run / "checkpoints" / "8" / "params").rglob("*"), key=lambda p: p.stat().st_size)
    raw = bytearray(data.read_bytes())
    raw[len(raw) // 2] ^= 1
    data.write_bytes(raw)
    clip_jax.pretrain(tiny.config(folder), str(run))
    out = capsys.readouterr().out
    assert "checkpoint 8 is damaged" in out and "resumed from step 4" in out
    assert command.losses(run) == command.losses(finished)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "another model, data or optimizer.*config.seed: was 0, now 1"),
        ({"num_steps": 12}, "--accept_changes.*config.num_steps: was 8, now 12"),
    ],
)
def test_changed_settings_are_named(finished, folder, tmp_path, change, message):
    run = copy(finished, tmp_path)
    with pytest.raises(UserError, match=message):
        clip_jax.pretrain(dataclasses.replace(tiny.config(folder), **change), str(run))


def test_a_longer_run_goes_on(finished, folder, tmp_path, capsys):
    run = copy(finished, tmp_path)
    longer = dataclasses.replace(tiny.config(folder), num_steps=10)
    clip_jax.pretrain(longer, str(run), accept_changes=True)
    assert "changed: config.num_steps: was 8, now 10" in capsys.readouterr().out
    assert max(command.losses(run)) == 10


def test_other_data_at_the_same_path_is_refused(finished, tmp_path):
    run = copy(finished, tmp_path)
    other = tiny.write_folder(tmp_path / "other", count=48)
    with pytest.raises(UserError, match="another order of examples.*data set"):
        clip_jax.pretrain(tiny.config(other), str(run))


def test_too_many_bad_images_stop_the_run(tmp_path):
    folder = tiny.write_folder(tmp_path / "pairs")
    for path in sorted(folder.glob("*.png"))[:16]:
        path.write_bytes(b"broken")
    with pytest.raises(UserError, match="config.data.train: .* % of the pairs are unusable"):
        clip_jax.pretrain(tiny.config(folder), str(tmp_path / "run"))


def test_few_bad_images_are_counted(tmp_path):
    folder = tiny.write_folder(tmp_path / "pairs")
    (folder / "0003.png").write_bytes(b"broken")
    clip_jax.pretrain(tiny.config(folder), str(tmp_path / "run"))
    last = [x for x in read_metrics(str(tmp_path / "run")) if "loss" in x][-1]
    assert last["data/skipped"] == 2  # 128 examples of 64 pairs


def test_divergence_stops_with_status_4(folder, tmp_path):
    cfg = tiny.config(folder)
    optim = dataclasses.replace(cfg.optim, max_skipped=2)
    model = dataclasses.replace(cfg.model, logit_scale_init=float("nan"))
    cfg = dataclasses.replace(cfg, optim=optim, model=model)
    with pytest.raises(Stop, match="diverged: 2 steps in a row.*there is no checkpoint yet") as e:
        clip_jax.pretrain(cfg, str(tmp_path / "run"))
    assert e.value.status == 4


def test_fewer_pairs_than_a_batch(folder, tmp_path):
    cfg = dataclasses.replace(tiny.config(folder), batch_size=80)
    with pytest.raises(UserError, match="config.batch_size: 80 is more than the 64 training pairs"):
        clip_jax.pretrain(cfg, str(tmp_path / "run"))


@pytest.mark.slow
def test_overfit_passes_and_fails(folder, tmp_path, capsys):
    from clip_jax.config.codec import from_dict, to_config_dict

    config = to_config_dict(tiny.config(folder))
    overfit(config)
    config.batch_size, config.data.limit, config.optim.learning_rate = 16, 16, 3e-3
    clip_jax.pretrain(config, str(tmp_path / "good"))
    assert "overfit check" in capsys.readouterr().out
    config.num_steps, config.optim.learning_rate = 25, 1e-6
    short = from_dict(config)
    with pytest.raises(Stop, match="overfit check: .*not reached; ") as e:
        clip_jax.pretrain(short, str(tmp_path / "bad"))
    assert e.value.status == 3


def on_eight(folder):
    """The tiny run on another mesh."""
    cfg = tiny.config(folder)
    return dataclasses.replace(cfg, mesh=dataclasses.replace(cfg.mesh, data=4, fsdp=2))


def test_eight_devices_give_the_same_losses(folder, finished, tmp_path):
    clip_jax.pretrain(on_eight(folder), str(tmp_path / "run"))
    got, want = command.losses(tmp_path / "run"), command.losses(finished)
    np.testing.assert_allclose(list(got.values()), list(want.values()), rtol=1e-5)


def test_a_checkpoint_moves_to_another_mesh(folder, finished, tmp_path, capsys):
    run = copy(finished, tmp_path)
    shutil.rmtree(run / "checkpoints" / "8")
    clip_jax.pretrain(on_eight(folder), str(run))
    assert "resumed from step 4" in capsys.readouterr().out
    got, want = command.losses(run), command.losses(finished)
    np.testing.assert_allclose(list(got.values()), list(want.values()), rtol=1e-5)


def test_a_failed_first_start_does_not_bind_the_workdir(folder, tmp_path):
    cfg = tiny.config(folder)
    with pytest.raises(UserError, match="config.batch_size"):
        clip_jax.pretrain(dataclasses.replace(cfg, batch_size=80), str(tmp_path / "run"))
    clip_jax.pretrain(cfg, str(tmp_path / "run"))


def test_a_refused_restart_leaves_the_config_alone(finished, folder, tmp_path):
    run = copy(finished, tmp_path)
    before = (run / "config.json").read_bytes()
    with pytest.raises(UserError):
        clip_jax.pretrain(tiny.config(folder, seed=3), str(run))
    assert (run / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_field": "colour"}, "label_field: no such field .*'colour'.*here: name"),
        ({"classes": ("cat", "dog")}, "classes: the data has other classes"),
    ],
)
def test_a_wrong_task_is_found_before_training(folder, tmp_path, change, message):
    cfg = tiny.config(folder)
    task = dataclasses.replace(cfg.eval.tasks[0], **change)
    cfg = dataclasses.replace(cfg, eval=dataclasses.replace(cfg.eval, tasks=(task,)))
    with pytest.raises(UserError, match=message):
        clip_jax.pretrain(cfg, str(tmp_path / "run"))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("kind", "joins"),
    [(None, True), (Stop, True), (processes.Shared, True), (UserError, False), (KeyError, False)],
)
def test_saving_ends_in_order_where_all_processes_end(monkeypatch, kind, joins):
    """One that fails alone must not wait for the others in the commit of a checkpoint."""

    class Saving:
        closed = False

        def close(self):
            self.closed = True

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    saving = Saving()
    loop._close(saving, kind)
    assert saving.closed is joins


def test_a_tower_stands_still_and_an_average_is_kept_scored_and_exported(
    folder, finished, tmp_path, capsys, monkeypatch
):
    """As a user would: start from a run, freeze a tower, average, stop, go on, score, export."""
    scored, embed = [], zeroshot.embed_split

    def spy(model, *rest):
        scored.append(leaves(jax.device_get(model.params)))
        return embed(model, *rest)

    monkeypatch.setattr(zeroshot, "embed_split", spy)
    optim = dataclasses.replace(
        tiny.config(folder).optim, rates=("image/.*=0",), ema=0.5, kind="adafactor", b2=0.95
    )
    cfg = tiny.config(folder, optim=optim, init=(InitConfig(str(finished)),))
    cfg = dataclasses.replace(cfg, eval=dataclasses.replace(cfg.eval, start=True, ema=True))
    run = tmp_path / "run"
    run.mkdir()  # with the score of another start, which was killed before its first checkpoint
    (run / "metrics.jsonl").write_text('{"step": 0, "attempt": 1, "eval/colours/top1": 9.0}\n')
    clip_jax.pretrain(dataclasses.replace(cfg, num_steps=4), str(run), accept_changes=True)
    clip_jax.pretrain(cfg, str(run), accept_changes=True)
    assert f"start as in {finished}" in capsys.readouterr().out
    steps = [x["step"] for x in read_metrics(str(run)) if "eval/colours/top1" in x]
    assert steps[0] == 0 and steps[-1] == cfg.num_steps
    assert max(x.get("eval/colours/top1", 0.0) for x in read_metrics(str(run))) <= 1.0
    start, end = clip_jax.load(finished), clip_jax.load(run)
    average = clip_jax.load(run, ema=True)
    for path, x in leaves(start.params).items():
        same = np.array_equal(x, leaves(end.params)[path])
        assert same == path.startswith("image/"), path
        near = np.array_equal(leaves(average.params)[path], leaves(end.params)[path])
        assert near == path.startswith("image/"), path
    status, out, err = command.run(
        "export", str(run), "--ema", "--to=clip_jax", f"--out={tmp_path}/w"
    )
    assert status == 0, out + err
    for path, x in leaves(clip_jax.load(tmp_path / "w").params).items():
        np.testing.assert_array_equal(x, leaves(average.params)[path], err_msg=path)
    status, out, err = command.run("eval", str(run), "--ema")
    assert status == 0, out + err
    last = [x for x in read_metrics(str(run)) if "eval/colours/top1" in x][-1]["eval/colours/top1"]
    assert f"{100 * last:.1f} %" in out
    for path, x in leaves(average.params).items():
        for params in scored[-2:]:  # at the end of the run, and by the command
            np.testing.assert_array_equal(x, params[path], err_msg=path)
    with pytest.raises(UserError, match="kept no moving average"):
        clip_jax.load(finished, ema=True)
