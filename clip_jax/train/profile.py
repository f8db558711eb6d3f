"""A profile of some steps, where config.log.profile asks for one: workdir/profile, for XProf.

tensorboard --logdir=RUN/profile    with the package tensorboard-plugin-profile
"""

from collections.abc import Callable
from typing import Any

import jax

from clip_jax import files


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
        self._local, self._seen = "", 0  # the folder while it records
        self._begun = not steps

    def before(self, step: int) -> None:
        """Call it before step `step` is given to the devices."""
        if step == self._first:
            self._begun = True
            self._local = files.local_folder(self._folder)
            jax.profiler.start_trace(self._local)

    def after(self, step: int, results: Any) -> None:
        """Call it with what the step returns."""
        self._seen = step
        if self._local and step >= self._last:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Ends a profile that is still open, as at the end of a run; says if there was none."""
        if self._local:
            jax.profiler.stop_trace()
            files.upload(self._local, self._folder)
            self._local = ""
            self._say(f"profile of steps {self._first} to {self._seen}: {self._folder}")
        elif self._seen and not self._begun:
            self._say(
                f"config.log.profile: nothing recorded, since step {self._first} is not among "
                f"those of this start, which ended at {self._seen}; name steps that it makes"
            )
