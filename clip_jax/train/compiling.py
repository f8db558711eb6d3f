"""The compilation of a step, in a thread beside what else a start waits for."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from clip_jax.train.compiler import compiled
from clip_jax.train.stages import Stage

NAME = "clip_jax-compile"  # of the thread


class Compiling:
    """Traces where it is called, under the caller's settings of jax, and compiles in its thread."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, NAME)
        self._found: dict[int, Future[Any]] = {}

    def begin(self, stage: Stage) -> None:
        """Begins with the step of `stage`, once; does nothing on a GPU.

        There XLA picks kernels by timing them, which other work on the device would disturb.
        """
        gpu = stage.prog.mesh.devices.flat[0].platform == "gpu"
        if not gpu and stage.index not in self._found:
            self._found[stage.index] = self._submit(stage)

    def wait(self, stage: Stage) -> Any:
        """The executable of `stage`, which is not kept here; raises what compiling it raised."""
        return (self._found.pop(stage.index, None) or self._submit(stage)).result()

    def close(self) -> None:
        """Begins nothing more. What was begun goes on, and Python waits for it when it ends."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _submit(self, stage: Stage) -> Future[Any]:
        return self._pool.submit(compiled, stage.prog.lower(), stage.prog.options)


def running() -> bool:
    """Whether a thread of this process compiles beside a start that has ended."""
    return any(t.name.startswith(NAME) for t in threading.enumerate())
