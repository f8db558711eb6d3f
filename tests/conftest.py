"""Every test: on the CPU, with eight devices, without silent rank promotion.

Subprocesses inherit the environment, but see one device. Data sets that tests build are kept in
`.cache/test-data` of the checkout, and compiled programs in `.cache/test-xla`, so only the first
run pays for them. CLIP_JAX_TEST_SECONDS: no test begins later than so many seconds after the start.
"""

import gc
import importlib.metadata
import os
import pathlib
import time

import pytest

START = time.monotonic()

ROOT = pathlib.Path(__file__).resolve().parent.parent

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # `-m gpu` and `-m tpu` set it themselves
os.environ.setdefault("CLIP_JAX_DATA", str(ROOT / ".cache" / "test-data"))

# Tests run tiny programs a few times: compiling them plainly is up to 9 x faster.
FLAGS = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"  # later ones refuse to start with it
os.environ.setdefault("XLA_FLAGS", FLAGS)

import jax  # noqa: E402  (reads the environment)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Not by the environment: subprocesses, which tests kill, would leave half-written entries.
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "test-xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

# Tracing makes millions of objects: by default Python would look through all of JAX for each few.
gc.freeze()
gc.set_threshold(100_000, 20, 10)

# Where another Python, with another JAX, numpy and flax, could change something.
CORE = ("checkpoint", "data", "sharding")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as core what is quick in the folders of CORE; other tests may carry the mark."""
    for item in items:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        if folder in CORE and not item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.core)


@pytest.hookimpl(tryfirst=True)  # before fixtures are made
def pytest_runtest_setup() -> None:
    """Leaves out a test for which there is no time."""
    seconds = float(os.environ.get("CLIP_JAX_TEST_SECONDS") or "inf")
    if time.monotonic() - START > seconds:
        pytest.skip(f"no test begins after {seconds:g} s (CLIP_JAX_TEST_SECONDS)")
