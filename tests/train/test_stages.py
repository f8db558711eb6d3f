"""Runs in stages: one job, each pair once an epoch, gone on with anywhere bit by bit."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

import clip_jax
import tiny
from clip_jax.checkpoint.manager import Checkpoints
from clip_jax.config import schema
from clip_jax.config.load import checked
from clip_jax.config.schema import StageConfig
from clip_jax.data.pipeline import Pipeline
from clip_jax.errors import Stop, UserError
from clip_jax.interop.table import leaves
from clip_jax.metrics.writers import read_metrics
from clip_jax.models import posemb
from clip_jax.train import inputs, loop, stages
from clip_jax.train.state import init_state

LAST = 9


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Forty pairs, one of them broken, and sixteen others."""
    root = tmp_path_factory.mktemp("pairs")
    pairs = tiny.write_folder(root / "a", 40), tiny.write_folder(root / "b", 16)
    (pairs[0] / "0003.png").write_bytes(b"broken")
    return pairs


def config(folders, **changes):
    """Small images (4 steps of 16), large ones (3 of 8), other data (1), the first again (1)."""
    first, other = folders
    parts = (
        StageConfig("small", ("num_steps=4", "model.image.patch_dropout=0.5")),
        StageConfig(
            "large",
            (
                "num_steps=3", "batch_size=8", "model.image.size=24", "model.text.context=6",
                "optim.learning_rate=1e-4", "optim.warmup_steps=1",
            ),
        ),
        StageConfig("other", ("num_steps=1", "optim.warmup_steps=0", f"data.train.paths={other}")),
        StageConfig("again", ("num_steps=1", "optim.warmup_steps=0", "optim.rates=image/.*=0")),
    )  # fmt: skip
    cfg = tiny.config(first, stages=parts, num_steps=1)
    optim = dataclasses.replace(cfg.optim, ema=0.9)
    checkpoint = schema.CheckpointConfig(every=1, keep=20)
    data = dataclasses.replace(cfg.data, max_bad_share=0.2)
    cfg = dataclasses.replace(cfg, optim=optim, checkpoint=checkpoint, data=data, **changes)
    return checked(cfg)


def opened(patch):
    """A list that fills with the folder of each training set that is opened."""
    found, plain = [], inputs.open_source

    def spy(cfg, **more):
        if "limit" in more:  # not the test split
            found.append(cfg.paths[0])
        return plain(cfg, **more)

    patch.setattr(inputs, "open_source", spy)
    return found


@pytest.fixture(scope="module")
def whole(folders, tmp_path_factory):
    """An uninterrupted run: (workdir, what it read: fingerprint -> positions in order)."""
    workdir, read = tmp_path_factory.mktemp("whole"), {}
    plain = Pipeline.examples

    def spy(self, position, row):
        read.setdefault(self.source.fingerprint, []).extend(position.tolist())
        return plain(self, position, row)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pipeline, "examples", spy)
        found = opened(patch)
        clip_jax.pretrain(config(folders), str(workdir))
    assert found == [str(x) for x in folders]  # all at the start, once for stages that share them
    return workdir, read


def losses(run):
    return {x["step"]: x["loss"] for x in read_metrics(str(run)) if "loss" in x}


def saved(run, step=LAST):
    """Checksums of everything in a checkpoint."""
    return Checkpoints(str(run)).manifest(step)["checksums"]


def test_steps_go_through_and_schedules_start_again(whole):
    lines = [x for x in read_metrics(str(whole[0])) if "loss" in x]
    assert [x["step"] for x in lines] == list(range(1, LAST + 1))
    rates = [x["learning_rate"] for x in lines]
    assert rates[1] == pytest.approx(1e-3) and rates[4] == pytest.approx(1e-4)
    assert rates[6] < rates[5] and rates[7] == pytest.approx(1e-3)


def test_scores_stand_where_stages_meet_and_at_the_end(whole):
    scored = [x["step"] for x in read_metrics(str(whole[0])) if "eval/colours/top1" in x]
    assert scored == [4, 7, 8, LAST]


def test_every_pair_is_read_once_an_epoch_through_all_stages(whole):
    """A data set is gone on with; another one starts at its first pair."""
    first, other = whole[1].values()
    assert sorted(first) == list(range(4 * 16 + 3 * 8 + 16))
    assert sorted(other) == list(range(16))


def test_unusable_pairs_are_counted_through_all_stages(whole):
    counts = [x["data/skipped"] for x in read_metrics(str(whole[0])) if "loss" in x]
    assert counts == sorted(counts) and counts[-1] >= 2  # 104 examples of 40 pairs


@pytest.mark.parametrize(
    "step", [pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow), 7]
)
def test_a_run_that_was_killed_goes_on_bit_by_bit(whole, folders, step, tmp_path, monkeypatch):
    """It opens the data of its stage, and of later ones in turn."""
    run, found = cut(whole, step, tmp_path), opened(monkeypatch)
    clip_jax.pretrain(config(folders), str(run))
    assert losses(run) == losses(whole[0])
    assert saved(run) == saved(whole[0])
    first, other = map(str, folders)
    assert found == ([other, first] if step == 7 else [first, other, first])


def test_data_of_a_stage_that_is_over_may_be_gone(whole, folders, tmp_path):
    """At a restart; the first start looks for all before its first step."""
    run, other = cut(whole, 8, tmp_path), folders[1]
    away = other.rename(other.with_name("away"))
    try:
        clip_jax.pretrain(config(folders), str(run))
        with pytest.raises(UserError, match=str(other)):
            clip_jax.pretrain(config(folders), str(tmp_path / "new"))
    finally:
        away.rename(other)
    assert saved(run) == saved(whole[0])  # also where its last stage goes on in the other data
    assert read_metrics(str(tmp_path / "new")) == []


def test_captions_that_the_end_wants_are_of_all_stages(whole, folders, tmp_path, monkeypatch):
    run, found = cut(whole, 8, tmp_path), opened(monkeypatch)
    cfg = config(folders)
    tasks = tuple(dataclasses.replace(t, distractors=True) for t in cfg.eval.tasks)
    cfg = dataclasses.replace(cfg, eval=dataclasses.replace(cfg.eval, tasks=tasks))
    clip_jax.pretrain(cfg, str(run))
    assert found == [str(x) for x in folders]


def cut(whole, step, tmp_path):
    """A copy of the run as if it had been killed after `step`."""
    run = shutil.copytree(whole[0], tmp_path / "run")
    for later in range(step + 1, LAST + 1):
        shutil.rmtree(run / "checkpoints" / str(later))
    return run


def test_a_damaged_first_checkpoint_of_a_stage_falls_back_to_the_stage_before(
    whole, folders, tmp_path, capsys
):
    run = shutil.copytree(whole[0], tmp_path / "run")
    for later in range(6, LAST + 1):
        shutil.rmtree(run / "checkpoints" / str(later))
    (run / "checkpoints" / "5" / "manifest" / "metadata").write_text("{}")
    clip_jax.pretrain(config(folders), str(run))
    assert "checkpoint 5 is damaged" in capsys.readouterr().out
    assert saved(run) == saved(whole[0])


def test_what_goes_on_and_what_starts_afresh(folders):
    old, new = stages.programs(config(folders))[:2]
    with jax.set_mesh(old.prog.mesh):
        state = init_state(old.prog.init, old.prog.abstract, 0)
    state = dataclasses.replace(
        state,
        step=state.step + 4,
        skipped=state.skipped + 1,
        opt_state=jax.tree.map(lambda x: x + 1, state.opt_state),
        ema=jax.tree.map(lambda x: 2 * x, state.params),
    )
    before, average = leaves(jax.device_get(state.params)), leaves(jax.device_get(state.ema))
    undrawn = dataclasses.replace(new.prog, init=None)  # parameters are not drawn anew
    after = stages.advance(state, old, dataclasses.replace(new, prog=undrawn))
    assert (int(after.step), int(after.skipped)) == (0, 1)
    assert jax.tree.structure(after) == jax.tree.structure(new.prog.abstract)
    for x in jax.tree.leaves(after.opt_state):
        assert not np.any(x)
    for tree, was in (after.params, before), (after.ema, average):
        here = leaves(tree)
        grid = posemb.resize_grid(was["image/posemb"], (2, 2), (3, 3))
        line = posemb.resize_line(was["text/posemb"], 6)
        np.testing.assert_allclose(here.pop("image/posemb"), grid, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(here.pop("text/posemb"), line, rtol=1e-6, atol=1e-7)
        for name, x in here.items():
            np.testing.assert_array_equal(x, was[name], err_msg=name)


def test_the_average_goes_on_where_stages_meet(whole):
    """Step 5 is the fifth of the average too: it moves by 1 - 5 / 14, not by 1 - 1 / 10."""
    load = lambda step, ema: clip_jax.load(str(whole[0]), step=step, ema=ema).params  # noqa: E731
    old, params, new = load(4, True), load(5, False), load(5, True)
    for name in ("image", "text"):
        before, now, after = (x[name]["head"]["kernel"] for x in (old, params, new))
        np.testing.assert_allclose(
            after, before + (1 - 5 / 14) * (now - before), rtol=1e-5, atol=1e-7
        )


def test_a_signal_in_the_last_step_of_a_stage(folders, tmp_path, monkeypatch):
    """It ends there, without a step into the next stage."""
    real = loop.Log.keep

    def keep(self, step, metrics, host):
        real(self, step, metrics, host)
        if step == 4:
            self._job.signals.status, self._job.signals.name = 42, "SIGTERM"

    monkeypatch.setattr(loop.Log, "keep", keep)
    with pytest.raises(Stop, match="saved step 4; the same command goes on"):
        clip_jax.pretrain(config(folders), str(tmp_path))
    assert sorted(losses(tmp_path)) == [1, 2, 3, 4]


def test_another_batch_would_move_the_stages_after_it(whole, folders, tmp_path):
    run = shutil.copytree(whole[0], tmp_path / "run")
    cfg = dataclasses.replace(config(folders), batch_size=32)
    with pytest.raises(UserError, match="config.batch_size: was 16, now 32"):
        clip_jax.pretrain(cfg, str(run), accept_changes=True)


def test_a_frozen_tower_stands_still_in_its_stage_only(whole):
    run = str(whole[0])
    params = {n: leaves(clip_jax.load(run, step=n).params) for n in (7, 8, 9)}
    moved = lambda a, b, side: [  # noqa: E731
        k for k, x in params[a].items() if k.startswith(side) and np.any(x != params[b][k])
    ]
    assert moved(8, 9, "image/") == [] and moved(8, 9, "text/")


def test_a_checkpoint_is_loaded_as_its_stage_had_it(whole, folders, tmp_path):
    run = str(whole[0])
    sizes = {n: clip_jax.load(run, step=n).config.model.image.size for n in (1, 4, 5, 7, 8)}
    assert sizes == {1: 16, 4: 16, 5: 24, 7: 24, 8: 16}
    again = tiny.config(
        folders[0], init=(schema.InitConfig(weights=run, parts="image/.*"),), num_steps=1,
        optim=schema.OptimConfig(),
    )  # fmt: skip
    clip_jax.pretrain(again, str(tmp_path / "next"))


def test_other_stages_are_another_run(whole, folders, tmp_path):
    run = shutil.copytree(whole[0], tmp_path / "run")
    cfg = config(folders)
    longer = dataclasses.replace(cfg.stages[0], changes=("num_steps=5",))
    with pytest.raises(UserError, match=r"stages\[0\].changes: was .* now \('num_steps=5'"):
        clip_jax.pretrain(dataclasses.replace(cfg, stages=(longer, *cfg.stages[1:])), str(run))


def test_a_stage_with_other_parameters_is_refused(folders, tmp_path):
    parts = (
        StageConfig("a", ("num_steps=4",)),
        StageConfig("b", ("num_steps=4", "model.image.mlp_dim=64")),
    )
    words = r"stage 'b': image/.*mlp.* is \(2, 64, 16\), and \(2, 32, 16\) in 'a'"
    with pytest.raises(UserError, match=words):
        clip_jax.pretrain(tiny.config(folders[0], stages=parts), str(tmp_path))


def test_a_field_that_a_later_stage_groups_by_is_looked_for_before_the_first_step(
    folders, tmp_path
):
    later = StageConfig("b", ("num_steps=3", "data.group_by=colour"))
    parts = (StageConfig("a", ("num_steps=3",)), later)
    with pytest.raises(UserError, match="config.data.group_by: no such field"):
        clip_jax.pretrain(tiny.config(folders[0], stages=parts), str(tmp_path))
    assert list(tmp_path.iterdir()) == []
