"""Programs that a thread compiles beside what else a start waits for."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from clip_jax.train.stages import Stage


class Ahead:
    """Compiles in one thread of its own, which XLA lets run beside Python."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "compile")
        self._found: dict[int, Future[Any]] = {}

    def begin(self, stage: Stage) -> None:
        """Begins with the step of `stage`, once."""
        if stage.index not in self._found:
            self._found[stage.index] = self._pool.submit(stage.prog.compile)

    def wait(self, stage: Stage) -> Any:
        """The executable of `stage`; raises what compiling it raised."""
        self.begin(stage)
        return self._found.pop(stage.index).result()  # not kept here

    def close(self) -> None:
        """Begins nothing more, and does not wait for what was begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)
