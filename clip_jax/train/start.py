"""Where a run starts: its own newest good checkpoint, or from scratch; and what may have changed.

A restart with another model or another order of data is refused; another optimizer or length is
listed and needs --accept_changes; logging, evaluation, mesh and speed are free.
"""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from clip_jax import files
from clip_jax.checkpoint.manager import Checkpoints, Restored
from clip_jax.config.codec import differences, flatten
from clip_jax.config.schema import Config
from clip_jax.config.stored import write_config
from clip_jax.data.pipeline import Pipeline
from clip_jax.errors import UserError
from clip_jax.metrics.trackers import with_trackers
from clip_jax.metrics.writers import JsonlWriter, Writer, drop_after
from clip_jax.tokenizers import Tokenizer

FREE = ("log", "eval", "checkpoint", "mesh", "compile", "name")
FREE_FIELDS = (
    "model.remat", "model.unroll", "model.attention", "num_microbatches", "loss.chunk",
    "loss.memory_mib", "data.cache", "data.epoch_size", "data.threads", "data.prefetch",
    "data.max_bad_share", "data.train.paths", "tokenizer.path",
)  # fmt: skip
REFUSED = ("model", "tokenizer", "data", "seed", "loss", "init", "stages")
STATE = ("optim.kind", "optim.mu_dtype", "optim.rates")  # checkpoints have other arrays then


def check_same_run(old: Config, new: Config, accept_changes: bool) -> list[str]:
    """Lines about changes that are fine.

    Raises:
        UserError: changes that make it another run, or that want --accept_changes.
    """
    lines: dict[str, list[str]] = {"refused": [], "ask": [], "free": []}
    for path, (before, now) in differences(old, new).items():
        kind = "ask"
        if _is_free(path) or (path.endswith("].changes") and _kept(before) == _kept(now)):
            kind = "free"
        elif path.startswith("data.test."):
            kind = "free"
        elif path == "loss.kind" and _family(before) == _family(now):
            kind = "free"  # another way to the same number
        elif path.startswith(tuple(f"{p}{x}" for p in REFUSED for x in ".[")) or path in REFUSED:
            kind = "refused"
        elif path == "batch_size" and new.stages:  # positions of later stages follow from it
            kind = "refused"
        elif path in STATE or (path == "optim.ema" and bool(before) != bool(now)):
            kind = "refused"
        lines[kind].append(f"config.{path}: was {before!r}, now {now!r}")
    if lines["refused"]:
        raise UserError(
            "--workdir: holds a run with another model, data or optimizer; choose another "
            "--workdir (config.init starts from these weights), or undo: "
            + "; ".join(lines["refused"])
        )
    if lines["ask"] and not accept_changes:
        raise UserError(
            "--workdir: the run there was started with other settings; give --accept_changes to "
            "go on with the new ones, or undo: " + "; ".join(lines["ask"])
        )
    return [*lines["ask"], *lines["free"]]


def check_length(num_steps: int, step: int) -> None:
    """Raises a UserError if the checkpoint of `step` is of a longer run."""
    if step > num_steps:
        raise UserError(
            f"config.num_steps: the checkpoint in --workdir is of step {step:,}, beyond "
            f"{num_steps:,}; give at least {step:,}, or choose another --workdir"
        )


def _is_free(path: str) -> bool:
    return path.startswith(tuple(f"{p}." for p in FREE)) or path in (*FREE_FIELDS, *FREE)


def _kept(changes: tuple[str, ...] | None) -> set[str]:
    """Of a stage, what may not change."""
    return {c for c in changes or () if not _is_free(c.partition("=")[0])}


def _family(kind: str) -> str:
    """softmax, sigmoid, or the user's own loss."""
    return kind if ":" in kind else kind.replace("auto", "softmax").partition("_")[0]


def order_parts(cfg: Config, pipeline: Pipeline) -> dict[str, Any]:
    """Everything that decides which example stands at which position, by name."""
    data = dataclasses.asdict(cfg.data)
    kept = ("group_by", "negatives", "crop_scale", "crop_ratio", "flip", "limit")
    transform = {k: v for k, v in data.items() if k in kept}
    image = cfg.model.image
    transform |= {"shape": image.shape(), "resize": image.resize}
    transform |= {"interpolation": image.interpolation}
    parts = {
        "seed": cfg.seed,
        "data set": pipeline.source.fingerprint,
        "examples": pipeline.size,
        "transform": transform,
    }
    return json.loads(json.dumps(parts))  # as it will be read back


def read_before(manifest: dict[str, Any]) -> dict[str, int]:
    """How many pairs of each data set, by fingerprint, the steps up to a checkpoint have read."""
    own = {manifest["order"]["data set"]: manifest["position"]}
    return manifest.get("read", own)  # older checkpoints have only those of their stage


def check_same_order(saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuses a resume that would lose or repeat samples, naming the difference."""
    changed = [f"{k}: was {saved.get(k)!r}, now {now[k]!r}" for k in now if saved.get(k) != now[k]]
    if changed:
        raise UserError(
            "config.data: the checkpoint counts on another order of examples; choose another "
            "--workdir, or undo: " + "; ".join(changed)
        )


def restore(
    checkpoints: Checkpoints,
    abstract: Callable[[int], dict[str, Any]],
    say: Callable[[str], None],
) -> Restored | None:
    """The newest good checkpoint, as `abstract` wants it for its step; None for a new run."""
    restored = checkpoints.restore_latest(abstract, say)
    if restored is not None:
        say(f"resumed from step {restored.step}")
    return restored


def config_lines(cfg: Config) -> str:
    """Flat sorted `path = value` lines."""
    return "\n".join(f"{p} = {v!r}" for p, v in sorted(flatten(cfg).items()))


def describe(cfg: Config, workdir: str, tokenizer: Tokenizer) -> None:
    """Writes what the run is."""
    write_config(workdir, cfg)
    files.write_bytes(files.join(workdir, _tokenizer_name(cfg)), tokenizer.to_bytes())


def open_writer(cfg: Config, workdir: str, kept: int, say: Callable[[str], None]) -> Writer:
    """Of the metrics after step `kept`; -1: of all. A finished run opens no tracker."""
    if kept < cfg.num_steps:
        main = JsonlWriter(workdir, _clear(workdir, kept))
        return with_trackers(main, cfg.log.writers, cfg, workdir, max(kept, 0), say)
    return JsonlWriter(workdir, max(drop_after(workdir, kept) - 1, 1))


def _clear(workdir: str, kept: int) -> int:
    """Removes what a longer or killed attempt left after step `kept`; number of this one."""
    files.remove(files.join(workdir, "report.html"))
    return drop_after(workdir, kept)


def _tokenizer_name(cfg: Config) -> str:
    return {"sentencepiece": "tokenizer.model", "clip_bpe": "merges.txt"}.get(
        cfg.tokenizer.kind, "tokenizer.bin"
    )
