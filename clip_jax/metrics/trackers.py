"""Metrics in other programs: TensorBoard, Weights & Biases, or a writer of the user's own.

metrics.jsonl is always written and is what everything here is made from; a tracker that fails is
named once, and the run goes on without the numbers it missed.
"""

import contextlib
import importlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from clip_jax import files
from clip_jax.config.codec import to_dict
from clip_jax.config.extend import resolve
from clip_jax.config.schema import Config
from clip_jax.errors import UserError
from clip_jax.metrics.writers import Writer


class TensorBoard:
    """Event files in workdir/tensorboard; what a killed attempt wrote after `first` is hidden."""

    def __init__(self, cfg: Config, workdir: str, first: int):
        del cfg
        if files.is_remote(workdir):
            raise UserError(
                f"config.log.writers: 'tensorboard' needs a local workdir (got {workdir}); leave "
                "it out, metrics.jsonl is written there too"
            )
        library = _library("tensorboardX", "tensorboard")
        folder = files.join(workdir, "tensorboard")
        self._writer = library.SummaryWriter(folder, purge_step=first + 1)

    def write(self, step: int, values: Mapping[str, float | int]) -> None:
        """Adds one scalar for each name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Ends the event file."""
        self._writer.close()


class Wandb:
    """A run of Weights & Biases, the same one after a restart; WANDB_MODE=offline works too."""

    def __init__(self, cfg: Config, workdir: str, first: int):
        del first
        library = _library("wandb", "wandb")
        local = {} if files.is_remote(workdir) else {"dir": workdir}
        self._run = library.init(
            project="clip_jax",
            name=cfg.name,
            id=_own_id(workdir),
            resume="allow",
            config=to_dict(cfg),
            **local,
        )
        # Its own counter only goes up, and a restart goes back to a checkpoint.
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float | int]) -> None:
        """Logs all values of a step at once."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """Waits for what is on its way."""
        self._run.finish()


TRACKERS: dict[str, Callable[[Config, str, int], Writer]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
}


def _own_id(workdir: str) -> str:
    """The name of this run among all, made at its first start and kept in the workdir."""
    path = files.join(workdir, "wandb_id.txt")
    with contextlib.suppress(FileNotFoundError):
        return files.read_bytes(path).decode().strip()
    made = uuid.uuid4().hex[:16]
    files.write_bytes(path, made.encode())
    return made


def _library(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise UserError(
            f"config.log.writers: '{extra}' needs the package {module}; "
            f"pip install 'clip-jax-pretrain[{extra}]'"
        ) from e


class All:
    """Writes to one that must work, and to trackers that may fail.

    Args:
        main: raises what it likes.
        trackers: by name; an error of theirs is said once each.
        say: prints one line.
    """

    def __init__(self, main: Writer, trackers: Mapping[str, Writer], say: Callable[[str], None]):
        self._main, self._trackers, self._say = main, trackers, say
        self._failed: set[str] = set()

    def write(self, step: int, values: dict[str, float | int]) -> None:
        """Takes the values of one step."""
        self._main.write(step, values)
        for name, tracker in self._trackers.items():
            self._guarded(name, lambda t=tracker: t.write(step, values), f"from step {step} on")

    def close(self) -> None:
        """Called once, after the last write."""
        self._main.close()
        for name, tracker in self._trackers.items():
            self._guarded(name, tracker.close, "at its end")

    def _guarded(self, name: str, call: Callable[[], None], when: str) -> None:
        try:
            call()
        except Exception as e:  # whatever a tracker's outage looks like
            if name not in self._failed:
                self._failed.add(name)
                text = " ".join(str(e).split())[:200] or type(e).__name__
                self._say(f"{name}: misses metrics {when} ({text}); metrics.jsonl has them all")


def with_trackers(
    main: Writer,
    names: Sequence[str],
    cfg: Config,
    workdir: str,
    first: int,
    say: Callable[..., None],
) -> Writer:
    """`main`, and the trackers that config.log.writers names.

    Args:
        main: of metrics.jsonl.
        names: keys of TRACKERS, or 'package.module:function' called as they are.
        cfg: of the run.
        workdir: of the run.
        first: steps that are done already.
        say: prints one line.

    Raises:
        UserError: an unknown name, or a package that is missing.
    """
    found: dict[str, Writer] = {}
    for name in names:
        make = resolve(name, TRACKERS, "config.log.writers")
        try:
            found[name] = make(cfg, workdir, first)
        except UserError:
            raise
        except Exception as e:  # an outage at the start: the same as later
            text = " ".join(str(e).split())[:200] or type(e).__name__
            say(f"{name}: cannot start ({text}); metrics.jsonl has all metrics")
    return All(main, found, say) if found else main
