"""What a run says of itself: the line at its start, its report, and the verdict of `:overfit`."""

import importlib.metadata
import math
import platform
from typing import Any

import jax

from clip_jax import losses
from clip_jax.config.codec import to_dict
from clip_jax.config.schema import Config
from clip_jax.config.stages import expand
from clip_jax.eval import published
from clip_jax.eval.run import Result
from clip_jax.metrics import goodput
from clip_jax.report.page import RunReport, write_report
from clip_jax.train import program, stages

GAP = 0.1  # nats above the floor that count as learnt by heart


def plan_line(stage: stages.Stage, size: int, first: int) -> str:
    """What is about to happen, in one line."""
    cfg, prog, examples = stage.cfg, stage.prog, stage.examples
    mesh = " x ".join(f"{k} {v}" for k, v in prog.mesh.shape.items())
    unscored = cfg.eval.start and not cfg.eval.tasks
    loss = losses.named(cfg.loss, prog.mesh, cfg.batch_size, len(cfg.data.negatives))
    return (
        f"{cfg.name}: {stage.title}{': ' if stage.title else ''}"
        f"steps {first:,} to {stage.last:,} of {cfg.batch_size:,} pairs = "
        f"{examples:,} examples ({examples / size:.1f} epochs of {size:,}), "
        f"{program.num_params(prog.abstract.params):,} parameters, mesh {mesh}, "
        f"{jax.default_backend()}, {cfg.model.dtype}, loss {loss}"
        f"{', no scores at the start (config.eval.tasks is empty)' if unscored else ''}"
    )


def steps_line(cfg: Config) -> str:
    """How many steps of how many pairs, stage by stage."""
    return "; ".join(
        f"{s.name}{': ' if s.name else ''}{s.last - s.first:,} of {s.cfg.batch_size:,} pairs"
        for s in expand(cfg)
    )


def write(
    cfg: Config,
    workdir: str,
    metrics: list[dict[str, Any]],
    result: Result | None,
    facts: list[tuple[str, str]],
) -> str:
    """Writes report.html and returns its path; without a `result` the run still goes on."""
    notes = []
    if result and result.rows:
        notes.append(
            "Chance is one over the number of classes. A tie with another class counts as wrong."
        )
        if any(k.endswith("/seen_classes") and v == 0 for k, v in result.metrics.items()):
            notes.append(
                "No name of a test class was a caption in training. Among all captions most "
                "errors go to names that were."
            )
    if said := published.sentence(cfg, metrics):
        notes.append(said)
    facts = [*facts, ("training time", time_line(metrics)), ("software", _software())]
    return write_report(
        workdir,
        RunReport(
            title=cfg.name,
            summary=facts,
            metrics=metrics,
            scores=result.rows if result else [],
            samples=result.samples if result else [],
            notes=notes,
            config=to_dict(cfg),
            finished=result is not None,
            published=published.by_step(cfg),
        ),
    )


def time_line(metrics: list[dict[str, Any]]) -> str:
    """'training took 318 s; 88 % of 363 s were steps; compilation 20 s'."""
    found = goodput.summary(metrics)
    rest = f" ({found.text()})" if found else ""
    return f"training took {training_seconds(metrics):.0f} s{rest}"


def training_seconds(metrics: list[dict[str, Any]]) -> float:
    """Time of all steps of all attempts, evaluation, saving and compilation left out."""
    total, before, attempt = 0.0, 0, 0
    for line in (m for m in metrics if "speed/step_s" in m):
        if line["attempt"] != attempt:  # an attempt always logs its first step
            before, attempt = line["step"] - 1, line["attempt"]
        total += line["speed/step_s"] * (line["step"] - before)
        before = line["step"]
    return total


def _software() -> str:
    names = ("clip-jax-pretrain", "jax", "flax", "optax", "orbax-checkpoint")
    found = []
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0].device_kind
    return ", ".join([*found, f"Python {platform.python_version()}", f"on {device}"])


def overfit_verdict(metrics: list[dict[str, Any]], batch_size: int) -> tuple[bool, str]:
    """Whether the training loss came near its floor, and what to look at if not."""
    metrics = [m for m in metrics if "loss" in m]
    last = metrics[-1]
    floor = last.get("loss_floor", 0.0)  # a loss of the user's own need not tell one
    gap = last["loss"] - floor
    text = f"overfit check: loss {last['loss']:.3f}, lowest possible {floor:.3f}"
    if floor > math.log(batch_size / 2):
        return False, f"{text}: says nothing, since most captions are equal; look at the captions"
    if gap < GAP:
        return True, f"{text}: passed"
    if gap < metrics[len(metrics) // 2]["loss"] - floor - GAP:
        advice = "it still falls: give more steps with --config.num_steps"
    elif last.get("accuracy/image_to_text", 0.0) < 0.2:
        advice = (
            "almost nothing is learnt: look for equal images under different captions, captions "
            "cut by model.text.context, or a learning rate that does not fit"
        )
    else:
        advice = (
            "some pairs cannot be told apart: look for repeated images, or captions that differ "
            "only after model.text.context tokens"
        )
    return False, f"{text}: not reached; {advice}"


def scores_of(step: int, line: dict[str, Any]) -> bool:
    """Whether a line of the metrics holds scores of an evaluation at `step`."""
    return line["step"] == step and any(k.startswith("eval/") for k in line)
