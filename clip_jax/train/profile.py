"""A profile of some steps, where config.log.profile asks for one: workdir/profile, for XProf.

tensorboard --logdir=RUN/profile    with the package tensorboard-plugin-profile
"""

from collections.abc import Callable
from typing import Any

import jax

from clip_jax import files
from clip_jax.errors import UserError


class Profile:
    """Starts before one step and ends after another; nothing otherwise.

    Args:
        steps: (first, last) of the run; () for none.
        workdir: of the run.
        say: prints one line.
    """

    def __init__(self, steps: tuple[int, ...], workdir: str, say: Callable[[str], None]):
        self._first, self._last = steps or (0, -1)
        self._folder, self._say = files.join(workdir, "profile"), say
        self._on, self._seen = False, 0
        if steps and files.is_remote(workdir):
            raise UserError(
                f"config.log.profile: needs a local workdir (got {workdir}); set it to ()"
            )

    def before(self, step: int) -> None:
        """Call it before step `step` is given to the devices."""
        if step == self._first:
            jax.profiler.start_trace(self._folder)
            self._on = True

    def after(self, step: int, results: Any) -> None:
        """Call it with what the step returns."""
        self._seen = step
        if self._on and step >= self._last:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Ends a profile that is still open, as at the end of a run."""
        if self._on:
            jax.profiler.stop_trace()
            self._on = False
            self._say(f"profile of steps {self._first} to {self._seen}: {self._folder}")
