"""Every test: on the CPU, with eight devices, without silent rank promotion.

Subprocesses inherit the environment, but see one device. Data sets that tests build are kept in
`.cache/test-data` of the checkout, so only the first run pays for them.
"""

import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # `-m gpu` and `-m tpu` set it themselves
os.environ.setdefault("CLIP_JAX_DATA", str(ROOT / ".cache" / "test-data"))

import jax  # noqa: E402  (reads the environment)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
