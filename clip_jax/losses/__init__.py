"""Losses: (z, logit, group) -> (scalar, metrics). They see embeddings and logit parameters only."""

from collections.abc import Callable
from typing import Protocol

import jax

from clip_jax.config.extend import resolve
from clip_jax.config.schema import LossConfig
from clip_jax.losses.sigmoid import sigmoid_loss
from clip_jax.losses.softmax import softmax_loss


class Loss(Protocol):
    """What a loss of your own must look like; arguments as in losses/softmax.py."""

    def __call__(
        self, z: dict[str, jax.Array], logit: dict[str, jax.Array], group: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]: ...


LOSSES: dict[str, Callable[[LossConfig], Loss]] = {
    "softmax": lambda cfg: softmax_loss,
    "sigmoid": lambda cfg: sigmoid_loss,
}


def build(cfg: LossConfig) -> Loss:
    """The loss of `cfg.kind`; one of the user's own is a function of `cfg` that returns it."""
    return resolve(cfg.kind, LOSSES, "config.loss.kind")(cfg)
