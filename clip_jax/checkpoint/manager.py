"""Checkpoints of a run: written in the background, restored only if they are what was saved.

    workdir/checkpoints/STEP/params, stats, opt_state, ...   orbax, one folder an item
    workdir/checkpoints/STEP/manifest/metadata               JSON: see manifest.py
    workdir/checkpoints/STEP/extra_files/metadata            JSON: small files in base64
    workdir/checkpoints/STEP.damaged                         a step that was passed over

Orbax commits a step by one rename, so a killed job leaves a whole step or a temporary folder. It
does not see damage to the stored bytes; the manifest does. Trees are stored as nested dicts of
their paths (`opt_state/0/mu/...`), so no Python class is needed to read them.

Cost: save() blocks for the copy to host memory and one pass of checksums; restore reads once and
checks once. Disk: `keep` + 1 checkpoints while one is being written.
"""

import base64
import contextlib
import dataclasses
import json
import os
import re
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from clip_jax import files
from clip_jax.checkpoint import faults
from clip_jax.checkpoint.checksum import paths
from clip_jax.checkpoint.manifest import LAYOUT_VERSION, damage, facts, misfits, seal, unseal
from clip_jax.checkpoint.quiet import mute_orbax
from clip_jax.errors import UserError
from clip_jax.sharding import processes

T = TypeVar("T")
_TEMPORARY = ".orbax-checkpoint-tmp"
_STEP = re.compile(r"0|[1-9]\d*")


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint in memory: `items` has the trees and shardings that were asked for."""

    step: int
    items: dict[str, Any]
    manifest: dict[str, Any]
    extra_files: dict[str, bytes]


class _Manager(ocp.CheckpointManager):
    """Orbax's, but it leaves the count of steps for preemption to the training loop.

    Its background threads would set it back to the step that they save.
    """

    def reached_preemption(self, step: int) -> bool:
        del step
        return False


class _DamagedError(Exception):
    """This step is not what was saved; the message says which part."""


class Checkpoints:
    """The checkpoints of one workdir. In a job of several processes all make the same calls.

    Args:
        workdir: folder or URL of the run.
        keep: how many of the newest steps stay. None: only read, as beside a run that is alive;
            nothing is written, renamed or cleaned, and `save` may not be called.

    Raises:
        UserError: the folder cannot be made.
    """

    def __init__(self, workdir: str, *, keep: int | None = None):
        folder = files.join(workdir, "checkpoints")
        if not files.is_remote(folder):
            folder = os.path.abspath(folder.removeprefix("file://"))
        try:
            self._folder = epath.Path(folder)
        except KeyError as e:  # a scheme that etils does not know
            raise UserError(
                f"{workdir}: checkpoints go to local folders, gs:// and s3://; choose one of them"
            ) from e
        self._keep = keep
        self._saving: int | None = None
        self._manager: ocp.CheckpointManager | None = None
        mute_orbax()
        if keep is not None:
            self._remove_temporary()
            self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(max_to_keep=self._keep)
        with files.user_errors(str(self._folder)):
            return _Manager(self._folder, options=options)

    # Reading

    def steps(self) -> list[int]:
        """The steps that were saved whole, in order; their arrays are not looked at."""
        return [n for n in self._numbers() if self._path(n, "manifest", "metadata").exists()]

    def manifest(self, step: int | None = None) -> dict[str, Any] | None:
        """Reads the manifest of a step, or of the newest step that has a good one; None if none.

        Raises:
            UserError: the step asked for is missing or damaged.
        """
        for number in reversed(self._numbers()) if step is None else [step]:
            try:
                return self._json(number, "manifest")
            except _DamagedError as e:
                if step is not None:
                    raise UserError(f"{self._folder}: checkpoint {step} is damaged ({e})") from e
        return None

    def restore_latest(
        self,
        abstract: Callable[[int], dict[str, Any]],
        say: Callable[[str], None],
        *,
        only: int | None = None,
    ) -> Restored | None:
        """Restores the newest step that is provably what was saved, on the shardings asked for.

        A damaged step is reported by one line and the one before it is tried; when that works the
        damaged one is renamed to `STEP.damaged` (not when these checkpoints are only read).

        Args:
            abstract: of a step: item -> tree of `jax.ShapeDtypeStruct` with shardings. Items that
                are not named here are neither read nor checked.
            say: prints one line.
            only: this step and no other.

        Returns:
            The restored step; None if there is no checkpoint at all.

        Raises:
            UserError: the checkpoint holds other arrays than asked for (all are listed), or all
                steps are damaged.
        """
        damaged: dict[int, str] = {}
        numbers = self._numbers()
        if only is not None:
            if only not in numbers:
                here = ", ".join(map(str, numbers)) or "none"
                raise UserError(f"{self._folder}: no checkpoint of step {only}; here: {here}")
            numbers = [only]
        for step in reversed(numbers):
            try:
                restored = self._restore(step, abstract(step))
            except _DamagedError as e:
                damaged[step] = str(e)
                continue
            for bad, why in damaged.items():
                say(f"checkpoint {bad} is damaged ({why}); using {step} instead")
            if self._manager is not None:
                self._move_away(damaged)
            return restored
        if damaged:
            each = ", ".join(f"{step}: {why}" for step, why in damaged.items())
            raise UserError(
                f"{self._folder}: every checkpoint is damaged ({each}); put back a copy of one, or "
                "start again in another --workdir"
            )
        return None

    def _restore(self, step: int, abstract: dict[str, Any]) -> Restored:
        manifest, encoded = self._read(step, lambda: self._notes(step))
        self._check_fits(step, manifest, abstract)
        items = self._read(
            step, lambda: {k: self._item(step, k, tree) for k, tree in abstract.items()}
        )
        self._agree(step, damage(manifest, items))
        extra = {name: base64.b64decode(text) for name, text in encoded.items()}
        return Restored(step, items, manifest, extra)

    def _read(self, step: int, read: Callable[[], T]) -> T:
        """What `read` gives, if it can on all processes; nothing in it may wait for the others."""
        found, why = None, ""
        try:
            found = read()
        except Exception as e:  # tensorstore raises nothing more special
            if faults.is_memory(e):
                raise
            why = faults.short(e)
        self._agree(step, why)
        return cast(T, found)

    def _agree(self, step: int, why: str) -> None:
        """Raises on every process if a part of the step is damaged, or away, for one of them."""
        why = processes.agree(why, lambda each: next(filter(None, each), ""))
        if faults.AWAY.search(why):
            raise processes.error(
                f"{self._folder}: checkpoint {step} cannot be read now ({why}); try again"
            )
        if why:
            raise _DamagedError(why)

    def _notes(self, step: int) -> tuple[dict[str, Any], dict[str, str]]:
        manifest = self._json(step, "manifest")
        return manifest, self._json(step, "extra_files") if manifest["extra_files"] else {}

    def _check_fits(self, step: int, manifest: dict[str, Any], abstract: dict[str, Any]) -> None:
        where = f"{self._folder}: checkpoint {step}"
        version = manifest["layout_version"]
        if version > LAYOUT_VERSION:
            raise UserError(
                f"{where} has layout {version}, this clip_jax reads up to {LAYOUT_VERSION}; "
                "update clip_jax"
            )
        wrong = misfits(manifest, abstract)
        if wrong:
            advice = "use the config it was saved with, or another --workdir"
            raise UserError("\n  ".join([f"{where} does not fit this config; {advice}", *wrong]))

    def _item(self, step: int, name: str, abstract: Any) -> Any:
        named = {path: _with_sharding(x) for path, x in paths(abstract).items()}
        stored = {path: x for path, x in named.items() if x.size}
        found = {}
        if stored:
            # Not by a Checkpointer: it would wait for processes that may have failed to read.
            reader = ocp.StandardCheckpointHandler()
            args = ocp.args.StandardRestore(_nested(stored))
            found = paths(reader.restore(self._path(step, name), args=args))
            reader.close()
        leaves = [
            found[path] if path in found else jnp.zeros(x.shape, x.dtype, device=x.sharding)
            for path, x in named.items()
        ]
        return jax.tree.unflatten(jax.tree.structure(abstract), leaves)

    def _json(self, step: int, name: str) -> Any:
        try:
            return unseal((self._path(step, name) / "metadata").read_bytes())
        except FileNotFoundError as e:
            raise _DamagedError(f"it has no {name}") from e
        except ValueError as e:
            raise _DamagedError(f"its {name} cannot be read") from e
        except OSError as e:
            raise _DamagedError(f"its {name} cannot be read: {faults.short(e)}") from e

    def _path(self, step: int, *names: str) -> epath.Path:
        return self._folder.joinpath(str(step), *names)

    def _numbers(self) -> list[int]:
        """All folders that are named like a step and were not left behind by a killed save."""
        if not self._folder.exists():
            return []
        named = [p for p in self._folder.iterdir() if _STEP.fullmatch(p.name)]
        return sorted(int(p.name) for p in named if p.is_dir() and not _is_unfinished(p))

    # Writing

    def save(
        self,
        step: int,
        items: dict[str, Any],
        manifest: dict[str, Any],
        extra_files: dict[str, bytes] | None = None,
    ) -> None:
        """Starts to save a step; returns when the arrays may be donated or overwritten.

        Waits for the save before it, and raises what went wrong there. A step that was saved
        before stays as it is.

        Args:
            step: number of the step.
            items: name -> tree of jax arrays; a tree without leaves is fine.
            manifest: plain JSON data to keep with the step.
            extra_files: name -> bytes of small files to keep with the step.

        Raises:
            UserError: the storage is full or failed, now or during the save before.
        """
        self.wait()
        here = json.loads(processes.tell(json.dumps(self.steps())))  # a mount may show it late
        if step in here:
            return
        extra = {name: base64.b64encode(b).decode() for name, b in (extra_files or {}).items()}
        with jax.transfer_guard("allow"):
            args: dict[str, Any] = {}
            for name, tree in _stored(items).items():
                args[name] = ocp.args.StandardSave(tree)
            complete = {**manifest, **facts(items), "extra_files": sorted(extra)}
            args["manifest"] = ocp.args.JsonSave(seal(complete))
            args["extra_files"] = ocp.args.JsonSave(seal(extra))
            self._attempt(step, lambda: self._start(step, args))
        self._saving = step

    def _start(self, step: int, args: dict[str, Any]) -> None:
        # Orbax would count foreign folders as steps, and keep them in place of real ones.
        self._move_away(n for n in self._numbers() if n not in self.steps())
        if not self._writer().save(step, args=ocp.args.Composite(**args), force=True):
            raise RuntimeError(f"orbax refused to save step {step}")

    def wait(self) -> None:
        """Waits for the save under way. Raises UserError if it failed."""
        if self._saving is not None:
            step, self._saving = self._saving, None
            self._attempt(step, self._writer().wait_until_finished)

    def close(self) -> None:
        """Waits for the save under way and ends its threads. Raises UserError if it failed."""
        try:
            self.wait()
        finally:
            if self._manager is not None:
                self._manager.close()
                self._manager = None
                if not files.is_remote(str(self._folder)):
                    with contextlib.suppress(OSError):  # not empty; else a start that failed
                        os.rmdir(self._folder)

    def _writer(self) -> ocp.CheckpointManager:
        if self._manager is None:
            raise ValueError("these checkpoints are closed, or were opened to be read only")
        return self._manager

    def _attempt(self, step: int, call: Callable[[], Any]) -> None:
        """Calls orbax; a failed storage becomes one line, and nothing of the step stays behind."""
        try:
            call()
        except Exception as e:
            if not faults.is_storage(e):
                raise
            if jax.process_count() == 1:  # else the others would not join in
                self._abandon()
            why = faults.short(e)
            advice = "free some space" if faults.FULL.search(why) else "mend the storage"
            raise UserError(
                f"{self._folder}: cannot save step {step}: {why}; {advice} and start the same "
                "command again"
            ) from e

    def _abandon(self) -> None:
        with contextlib.suppress(Exception):  # it fails again with what is known already
            self._writer().close()
        self._remove_temporary()
        self._manager = self._open()

    def _remove_temporary(self) -> None:
        """Deletes what a killed or failed save left; orbax never does."""
        if jax.process_index() != 0 or not self._folder.exists():
            return
        for path in self._folder.iterdir():
            if _TEMPORARY in path.name or (_STEP.fullmatch(path.name) and _is_unfinished(path)):
                _remove(path)

    def _move_away(self, steps: Iterable[int]) -> None:
        """Renames folders, so that their numbers are free and orbax does not count them."""
        steps, several = list(steps), jax.process_count() > 1
        for step in steps if jax.process_index() == 0 else []:
            target = self._folder / f"{step}.damaged"
            if target.exists():
                target.rmtree()
            self._path(step).rename(target)
        if several:  # also with nothing to do: the others may have looked earlier or later
            multihost_utils.sync_global_devices("clip_jax: damaged checkpoints are renamed")
        if several or steps:
            self._writer().reload()


def _stored(items: dict[str, Any]) -> dict[str, Any]:
    """The items as nested dicts, without what orbax cannot store: empty arrays and empty trees."""
    named = {k: {p: x for p, x in paths(tree).items() if x.size} for k, tree in items.items()}
    return {k: _nested(leaves) for k, leaves in named.items() if leaves}


def _nested(named: dict[str, Any]) -> dict[str, Any]:
    """{"a/b": x} -> {"a": {"b": x}}."""
    tree: dict[str, Any] = {}
    for path, x in named.items():
        *folders, last = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = x
    return tree


def _with_sharding(x: Any) -> jax.ShapeDtypeStruct:
    sharding = x.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _is_unfinished(path: epath.Path) -> bool:
    """True for a step on gs:// that has no mark of orbax's: nothing is renamed there at the end."""
    return files.is_remote(str(path)) and not ocp.utils.is_checkpoint_finalized(path)


def _remove(path: epath.Path) -> None:
    for _ in range(20):  # a thread of the failed save may still be writing into it
        with contextlib.suppress(OSError):
            path.rmtree()
        if not path.exists():
            return
        time.sleep(0.1)
