"""A published curve beside a run."""

import dataclasses

import pytest

import tiny
from clip_jax.config.load import checked, load
from clip_jax.config.schema import StageConfig, TaskConfig
from clip_jax.errors import UserError
from clip_jax.eval import published

pytestmark = pytest.mark.core
POINTS = ("100ex=0.2", "400ex=0.4", "1.6kex=0.6")


def config(reference=POINTS, tasks=("CIFAR-10", "ImageNet"), **changes):
    cfg = tiny.config("x", **changes)
    tasks = tuple(TaskConfig(name=name) for name in tasks)
    changed = dataclasses.replace(cfg.eval, reference=reference, tasks=tasks)
    return dataclasses.replace(cfg, eval=changed)


def scores(top1, cifar10=0.1):
    return {"eval/CIFAR-10/top1": cifar10, "eval/ImageNet/top1": top1}


def test_between_the_points_it_is_straight_in_the_log_of_pairs():
    points = published.curve(("400ex=0.4", "100ex=0.2", "1.6kex=0.6"))
    assert points == [(100, 0.2), (400, 0.4), (1600, 0.6)]
    got = {pairs: published.expected(points, pairs) for pairs in (99, 100, 200, 400, 800, 1600)}
    want = {99: None, 100: 0.2, 200: 0.3, 400: 0.4, 800: 0.5, 1600: 0.6}
    assert got == {k: v if v is None else pytest.approx(v) for k, v in want.items()}
    assert published.expected(published.curve(("64ex=0.1",)), 64) == 0.1
    assert published.expected(points, 1632) == pytest.approx(0.6)  # the last one is rounded
    assert published.expected(points, 1633) is None and published.expected([], 5) is None


def test_what_is_said_of_a_run():
    cfg = config(num_steps=200)  # of 16 pairs
    assert published.behind(cfg, 25, scores(0.33)) == ""
    text = published.behind(cfg, 25, scores(0.31))
    assert text.startswith("step 25: 31.0 % after 400 pairs; the published run had about 40.0 %")
    assert published.behind(cfg, 5, scores(0.0)) == ""  # before the first point
    assert published.behind(config(()), 25, scores(0.0)) == ""


def test_only_the_task_of_the_curve_is_compared():
    cfg = config(tasks=("CIFAR-10",), num_steps=200)
    assert published.task(config()) == "ImageNet" and published.task(cfg) == ""
    assert published.behind(cfg, 25, {"eval/CIFAR-10/top1": 0.0}) == ""
    assert published.by_step(cfg) == [] and len(published.by_step(config(num_steps=200))) == 3
    cfg = dataclasses.replace(cfg, eval=dataclasses.replace(cfg.eval, reference_task="cifar-10"))
    assert "published run had about 40.0 %" in published.behind(cfg, 25, scores(1.0, 0.0))


def test_the_sentence_of_the_report():
    cfg = config(num_steps=200)
    lines = [{"step": 25, **scores(0.1)}, {"step": 100, **scores(0.49)}, {"step": 101, "loss": 1.0}]
    assert published.sentence(cfg, lines) == (
        "At the last evaluation (step 100) ImageNet stood at 49.0 %, the published run at about "
        "60.0 % after as many pairs: not behind it (behind is below 80 % of its score)."
    )
    assert "about 40.0 % after as many pairs: behind it" in published.sentence(cfg, lines[:1])
    assert published.sentence(cfg, []) == published.sentence(config(()), lines) == ""
    assert published.sentence(config(tasks=()), lines) == ""
    other = published.sentence(config(tasks=("CIFAR-10",)), lines)
    assert other.startswith("Not compared with the published run: its curve is of 'imagenet'")


def test_stages_count_their_own_batches():
    parts = (
        StageConfig("a", ("num_steps=20",)),  # of 16
        StageConfig("b", ("num_steps=10", "batch_size=64")),
    )
    cfg = checked(config(stages=parts), needs_data=False)
    assert [published.pairs_at(cfg, s) for s in (0, 10, 20, 25, 99)] == [0, 160, 320, 640, 960]
    assert published.by_step(cfg) == [(6.25, 0.2), (20 + 80 / 64, 0.4)]


@pytest.mark.parametrize(
    "item", ["100ex", "100ex=x", "lots=0.5", "100ex=20", "0ex=0.1", "1.2.3ex=0.5"]
)
def test_refusals(item):
    with pytest.raises(UserError, match=r"config.eval.reference"):
        checked(config((item,)), needs_data=False)


@pytest.mark.parametrize("name", ["b32-80m", "b32-400m", "b16-400m", "l14-400m", "b32-2b-13b"])
def test_the_recipes_curves_rise_to_their_end(name):
    cfg = load(f"openclip:{name}", needs_data=False)
    points = published.curve(cfg.eval.reference)
    shares = [y for _, y in points]
    assert shares == sorted(shares) and len(shares) >= 5
    pairs = cfg.num_steps * cfg.batch_size
    assert published.expected(points, pairs) == shares[-1]  # also of a run that has ended
    cfg = dataclasses.replace(
        cfg, eval=dataclasses.replace(cfg.eval, tasks=(TaskConfig(name="imagenet"),))
    )
    assert len(published.by_step(cfg)) >= len(points) - 1
    assert load(f"openclip:{name},tiny", needs_data=False).eval.reference == ()
