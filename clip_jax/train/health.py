"""Is this run healthy? Each finding is said once in a stage of an attempt, with what to do.

Pure but for its memory of what was said. It looks at the same numbers as metrics.jsonl.
"""

import math
from collections.abc import Mapping

from clip_jax.config.schema import Config

IN_A_ROW = 3  # lines of metrics that must agree
GUESSING = 0.02  # nats below ln(batch) that are still guessing
FALLEN = 0.7  # of its highest value so far: the logit scale falls
COLLAPSED = 0.95  # mean cosine of embeddings that belong to different pairs
REPEATED = 0.05  # share of captions that stand more than once in a batch
STARVING = 0.3  # share of the time spent waiting for input
STARVING_S = 60  # and for so long: when a run begins nothing is ready yet
FINDINGS: tuple[str, ...] = ("loss", "scale", "image", "text", "twins", "input")
REMEDIES = {
    "read": "put the data nearer, or raise config.data.threads",
    "decode": "store smaller images, or raise config.data.threads up to the number of cores",
    "transform": "store images near the size of training, or raise config.data.threads",
    "tokenize": "give the host more cores for config.data.threads, or a faster tokenizer",
}


class Health:
    """What stands out in the metrics of a stage.

    Args:
        cfg: of the stage.
        first: steps of the run before the stage.
    """

    def __init__(self, cfg: Config, first: int):
        self._cfg = cfg
        self._warm = first + max(cfg.optim.warmup_steps, 20)
        self._step = first
        self._starved_s = 0.0
        self._streak: dict[str, int] = {}
        self._said: set[str] = set()
        self._highest = 0.0

    def look(self, step: int, values: Mapping[str, float | int]) -> list[str]:
        """New findings at `step`, each one line."""
        self._highest = max(self._highest, values.get("logit_scale", 0.0))
        starving = values.get("data/wait_share", 0.0) > STARVING
        lap_s = (step - self._step) * values.get("speed/step_s", 0.0)
        self._step, self._starved_s = step, (self._starved_s + lap_s) * starving
        return [
            f"step {step}: {text}"
            for name, text in self._findings(step, values).items()
            if self._often_enough(name, bool(text))
        ]

    def _often_enough(self, name: str, seen: bool) -> bool:
        self._streak[name] = self._streak.get(name, 0) + 1 if seen else 0
        if self._streak[name] < IN_A_ROW or name in self._said:
            return False
        if name == "input" and self._starved_s < STARVING_S:
            return False
        self._said.add(name)
        return True

    def _findings(self, step: int, values: Mapping[str, float | int]) -> dict[str, str]:
        """By name; empty where all is well."""
        cfg = self._cfg
        found: dict[str, str] = dict.fromkeys(FINDINGS, "")
        guess = math.log(cfg.batch_size)
        if step > self._warm:
            if cfg.loss.kind.startswith(("softmax", "auto")) and values["loss"] > guess - GUESSING:
                found["loss"] = (
                    f"loss {values['loss']:.3f} is that of guessing (ln of the batch: {guess:.3f}) "
                    "though the warm-up is over; lower config.optim.learning_rate, and see with "
                    ":overfit whether captions belong to their images"
                )
            scale = values.get("logit_scale", self._highest)
            if scale < FALLEN * self._highest:
                found["scale"] = (
                    f"the logit scale fell from {self._highest:.1f} to {scale:.1f}; lower "
                    "config.optim.learning_rate, or set config.optim.b2=0.95"
                )
            for side in ("image", "text"):
                cosine = values.get(f"cosine/{side}", 0.0)
                if cosine > COLLAPSED:
                    found[side] = (
                        f"embeddings of different {side}s are nearly one (mean cosine "
                        f"{cosine:.3f}); lower config.optim.learning_rate, and look whether all "
                        f"{side}s of the data are alike"
                    )
        repeated = values.get("data/repeated", 0.0)
        if cfg.data.group_by == "none" and repeated > REPEATED:
            found["twins"] = (
                f"{100 * repeated:.0f} % of the captions of a batch stand in it more than once, "
                "and count as each other's negatives; set config.data.group_by=caption"
            )
        if (wait := values.get("data/wait_share", 0.0)) > STARVING:
            seconds = {k: values.get(f"data/{k}_s", 0.0) for k in REMEDIES}
            slowest = max(seconds, key=lambda k: seconds[k])
            found["input"] = (
                f"{100 * wait:.0f} % of the time is spent waiting for input, most of it to "
                f"{slowest}; {REMEDIES[slowest]}"
            )
        return found
