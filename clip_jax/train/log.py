"""The metrics of a run on their way from the devices to metrics.jsonl and the terminal."""

import collections
from typing import TYPE_CHECKING

import jax
import numpy as np

from clip_jax.config.chips import peak_flops
from clip_jax.data.feed import total
from clip_jax.data.pipeline import HostBatch
from clip_jax.errors import DIVERGED
from clip_jax.metrics.clock import Clock
from clip_jax.metrics.writers import Writer
from clip_jax.sharding import processes
from clip_jax.train.health import Health
from clip_jax.train.program import model_flops

if TYPE_CHECKING:
    from clip_jax.train.loop import Job

BAD_MINIMUM = 1000  # pairs seen before the share of bad ones is judged


class Log:
    """Metrics of a step, fetched when they are ready or the next step is under way: nothing waits.

    Args:
        job: of one stage.
        writer: takes the values.
        first: step of the run before the next.
        skipped: unusable pairs of this attempt's stages before, by all processes.
    """

    def __init__(self, job: "Job", writer: Writer, first: int, skipped: int = 0):
        self._job, self._writer, self._before = job, writer, skipped
        self._health = Health(job.cfg, job.stage.first)
        kind = jax.devices()[0].device_kind
        self._peak = peak_flops(kind) * job.prog.mesh.size
        self._flops = model_flops(job.cfg) if self._peak else 0.0
        self._host: dict[str, float] = {}  # what is known of the input on this host
        self._seconds: collections.Counter[str] = collections.Counter()
        self._steps = 0  # since the last `keep`
        self.clock = Clock(job.cfg.batch_size, step=first)
        self._pending: tuple[int, dict[str, jax.Array], np.ndarray | jax.Array] | None = None
        self._reasons: collections.Counter[str] = collections.Counter()  # on this host
        self._new = np.zeros(2, np.int32)  # unusable pairs and all pairs, since the last `keep`
        self._bad = self._seen = 0  # in this stage, on all hosts

    @property
    def skipped(self) -> int:
        """Unusable pairs of this attempt so far, as far as they are written."""
        return self._before + self._bad

    def count(self, host: HostBatch) -> None:
        """Takes note of unusable pairs."""
        self._reasons += host.bad
        self._new += (host.bad.total(), len(host.arrays["group"]))
        self._seconds.update(host.seconds)
        self._steps += 1

    def keep(self, step: int, metrics: dict[str, jax.Array], host: HostBatch) -> None:
        """Remembers the metrics of `step`, whose batch `host` is, until `flush`."""
        text = host.arrays["text"]
        unique = len({row.tobytes() for row in text})
        self._host = {"data/repeated": 1 - unique / len(text)}
        self._host |= {f"data/{k}_s": v / self._steps for k, v in self._seconds.items()}
        self._seconds.clear()
        self._steps = 0
        self._pending = (step, metrics, total(self._new, self._job.prog.mesh))
        self._new = np.zeros(2, np.int32)

    def ready(self) -> bool:
        """Whether the step that is remembered has ended, as on a CPU, where steps do not overlap.

        Then its line, and the time it took, must not wait for the next. Of several processes each
        would see it at another moment.
        """
        if self._pending is None or jax.process_count() > 1:
            return False
        return all(x.is_ready() for x in jax.tree.leaves(self._pending[1]))

    def flush(self) -> None:
        """Writes what is remembered.

        Raises:
            UserError: more than the configured share of the pairs is unusable.
            Stop: too many steps in a row were not finite.
        """
        if self._pending is None:
            return
        step, arrays, counts = self._pending
        self._pending = None
        values: dict[str, float | int] = {k: v.item() for k, v in jax.device_get(arrays).items()}
        bad, seen = jax.device_get(counts).tolist()
        self._bad, self._seen = self._bad + bad, self._seen + seen
        self._judge()
        values |= {**self.clock.lap(step), "data/skipped": self.skipped, **self._host}
        values |= self._job.ledger.values()
        if self._peak and "speed/step_s" in values:
            values["speed/mfu"] = self._flops / (values["speed/step_s"] * self._peak)
        memory = jax.local_devices()[0].memory_stats()
        if memory and "peak_bytes_in_use" in memory:
            values["device/peak_bytes"] = memory["peak_bytes_in_use"]
        self._writer.write(step, values)
        self._job.line.update(step, values)
        for text in self._health.look(step, values):
            self._job.line.say(text)
        if values["skipped_in_row"] >= self._job.cfg.optim.max_skipped:
            self._job.checkpoints.wait()
            good = max(self._job.checkpoints.steps(), default=None)
            kept = f"step {good} is the last checkpoint" if good else "there is no checkpoint yet"
            raise processes.stop(
                f"diverged: {values['skipped_in_row']} steps in a row had a non-finite loss "
                f"(now step {step}); {kept}; lower config.optim.learning_rate",
                DIVERGED,
            )

    def _judge(self) -> None:
        share, most = self._bad / max(self._seen, 1), self._job.cfg.data.max_bad_share
        if share > most and self._seen >= min(BAD_MINIMUM, self._job.pipeline.size):
            own = "; ".join(f"{n} x {r}" for r, n in self._reasons.most_common(3))
            reasons = processes.agree(own, lambda all: "; ".join(filter(None, all[:9])))
            raise processes.error(
                f"config.data.train: {100 * share:.1f} % of the pairs are unusable, more than "
                f"max_bad_share = {100 * most:.1f} % ({reasons}); mend the data or raise it"
            )
