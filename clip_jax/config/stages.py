"""Runs in stages: what changes from one to the next, as a whole config for each.

A stage is a name and changes of fields; `expand` makes a Config of it, without stages. Steps count
through the whole run; schedules and lengths inside a stage count from its own first step.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import TypeVar

from clip_jax.config import units
from clip_jax.config.codec import flatten, from_dict, to_config_dict
from clip_jax.config.override import check_overrides, is_length, overridden
from clip_jax.config.schema import Config, StageConfig
from clip_jax.errors import UserError

CHANGEABLE = (
    "num_steps", "batch_size", "num_microbatches", "model.", "data.", "augment.", "loss.", "optim.",
)  # fmt: skip
OF_THE_RUN = ("checkpoint", "eval", "log")  # their lengths mean the same in every stage


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of a run.

    Attributes:
        name: empty for a run without stages.
        cfg: the settings of this part; its num_steps are those of this part.
        first: steps of the run before it.
        last: the step it ends with.
    """

    name: str
    cfg: Config
    first: int
    last: int

    @property
    def examples(self) -> int:
        """Pairs that it sees."""
        return (self.last - self.first) * self.cfg.batch_size


Part = TypeVar("Part", bound=Stage)


def expand(cfg: Config) -> tuple[Stage, ...]:
    """The stages of a checked config, in order; one for a run without."""
    if not cfg.stages:
        return (Stage("", cfg, 0, cfg.num_steps),)
    found: list[Stage] = []
    for item in cfg.stages:
        changed = units.settled(_changed(cfg, item))  # "5" is a text until then
        first = found[-1].last if found else 0
        found.append(Stage(item.name, changed, first, first + changed.num_steps))
    return tuple(found)


def at(stages: tuple[Part, ...], step: int) -> Part:
    """The stage that made step `step` of the run; the last one for steps beyond the end."""
    return next((s for s in stages if step <= s.last), stages[-1])


def settled(cfg: Config, settle: Callable[[Config], Config]) -> Config:
    """`cfg` with all lengths in steps, also those of its stages; num_steps is their sum.

    Args:
        cfg: with lengths in any unit; a stage counts its own examples and epochs.
        settle: of one config without stages.
    """
    if not cfg.stages:
        return settle(cfg)
    base = settle(dataclasses.replace(cfg, stages=()))
    of_base, stages, total = flatten(base), [], 0
    for item in cfg.stages:
        stage = settle(_changed(cfg, item))
        stage = dataclasses.replace(stage, **{k: getattr(base, k) for k in OF_THE_RUN})
        values = flatten(stage)
        given = {c.partition("=")[0] for c in item.changes}
        lengths = {
            path: value
            for path, value in values.items()
            if is_length(f"config.{path}") and (path in given or value != of_base.get(path, value))
        }
        kept = [c for c in item.changes if c.partition("=")[0] not in lengths]
        changes = (*kept, *(f"{path}={value}" for path, value in lengths.items()))
        stages.append(StageConfig(item.name, changes))
        total += stage.num_steps
    return dataclasses.replace(base, stages=tuple(stages), num_steps=total)


def lost(cfg: Config, path: str) -> bool:
    """Whether every stage has a value of its own for a field, so that the run's counts nowhere."""
    own = [any(c.startswith(f"{path}=") for c in s.changes) for s in cfg.stages]
    return bool(own) and (all(own) or path == "num_steps")


def findings(cfg: Config) -> list[str]:
    """What is wrong with the list of stages itself."""
    return [x for i in range(len(cfg.stages)) for x in _findings(cfg, i)]


def _findings(cfg: Config, i: int) -> Iterator[str]:
    where, item = f"config.stages[{i}]", cfg.stages[i]
    if not item.name or item.name in [s.name for s in cfg.stages[:i]]:
        yield f"{where}.name: each stage needs a name of its own (got '{item.name}')"
    for change in item.changes:
        path, equals, _ = change.partition("=")
        if not equals:
            yield f"{where}.changes: must be FIELD=VALUE (got '{change}')"
        elif path.startswith("data.test.") or not path.startswith(CHANGEABLE):
            yield (
                f"{where}.changes: {path} is one for the whole run; a stage may change "
                f"{', '.join(p + '*' if p.endswith('.') else p for p in CHANGEABLE)}"
            )
    if not any(c.startswith("num_steps=") for c in item.changes):
        yield f"{where}.changes: has no num_steps=LENGTH; give it"


def _changed(cfg: Config, item: StageConfig) -> Config:
    plain = to_config_dict(dataclasses.replace(cfg, stages=()))
    flags = tuple(f"--config.{c}" for c in item.changes)
    try:
        check_overrides(flags)
        return from_dict(overridden(plain, flags))
    except UserError as e:
        raise UserError(f"stage '{item.name}': {e}") from e
