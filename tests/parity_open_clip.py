"""OpenCLIP in an environment with the CPU build of torch: `from parity_open_clip import ...`."""

import torch

from clip_jax.bench import peer

open_clip = peer.open_clip()

__all__ = ["open_clip", "torch"]
