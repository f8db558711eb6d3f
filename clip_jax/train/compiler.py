"""Options for XLA: named presets, checked by the compiler itself; and a cache of its results.

The default is none: an option can change speed, memory and the last digits of a loss, so each
preset says what it is for and where its names come from. tests/train/test_compiler.py compiles
with those of the CPU and of GPUs; `clip_jax plan` with those of TPUs.
"""

import os
from typing import Any

import jax

from clip_jax.config.schema import CompileConfig
from clip_jax.errors import UserError, near
from clip_jax.files import is_remote
from clip_jax.sharding.start import several

PRESETS: dict[str, dict[str, str]] = {
    # Matrix products by Eigen instead of YNNPACK, which is the default since jaxlib 0.10.
    "cpu_eigen": {"xla_cpu_experimental_ynn_fusion_type": ""},
    # No kernels that add in another order each time, none chosen by a race of their speeds.
    "gpu_deterministic": {"xla_gpu_deterministic_ops": "True"},
    # Collectives beside compute; from MaxText's benchmarks/xla_flags_library.py.
    "tpu_overlap": {
        "xla_tpu_enable_latency_hiding_scheduler": "true",
        "xla_enable_async_collective_permute": "true",
        "xla_tpu_enable_async_collective_fusion": "true",
    },
}


def options(cfg: CompileConfig) -> dict[str, str]:
    """The preset's options, then the config's own.

    Raises:
        UserError: no such preset.
    """
    if cfg.preset and cfg.preset not in PRESETS:
        known = ", ".join(PRESETS)
        raise UserError(
            f"config.compile.preset: unknown (got '{cfg.preset}'); known: {known}"
            f"{near(cfg.preset, PRESETS)}"
        )
    own = dict(o.split("=", 1) for o in cfg.options)
    return {**(PRESETS[cfg.preset] if cfg.preset else {}), **own}


def compiled(lowered: Any, cfg: CompileConfig) -> Any:
    """The executable of a lowered program.

    Raises:
        UserError: the compiler does not know an option, or refuses its value.
    """
    try:
        return lowered.compile(compiler_options=options(cfg) or None)
    except jax.errors.JaxRuntimeError as e:
        line = str(e).splitlines()[0]
        if "compile option" in line or "While setting option" in line or "into flag" in line:
            raise UserError(
                f"config.compile: {line.removeprefix('INVALID_ARGUMENT: ')}; mend the option, or "
                "choose a preset of this platform"
            ) from e
        raise


def one_step_at_a_time() -> None:
    """A process of one CPU device: a step ends before its call returns.

    Call it before anything touches a device. Where steps overlap, the next may take its memory
    before the last has given back its own: room for two in a process that never needs it, and more
    whenever the first is not free. No speed is lost, the cores are busy either way. Several devices
    overlap as before, says JAX; several processes are left alone, whose small programs would wait
    for each other in their calls. JAX_CPU_ENABLE_ASYNC_DISPATCH in the environment comes first.
    """
    if "JAX_CPU_ENABLE_ASYNC_DISPATCH" not in os.environ and not several():
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def use_cache(folder: str) -> None:
    """Keeps compiled programs of this process in `folder`, which only its owner may enter.

    Raises:
        UserError: it is a URL, cannot be made, or others may write into it: what is there is
            executed.
    """
    if not folder:
        return
    if is_remote(folder):
        raise UserError(
            f"config.compile.cache_dir: must be a folder of this machine (got '{folder}'); "
            "compiled programs are executed, and who may write there cannot be seen from here"
        )
    path = os.path.abspath(os.path.expanduser(folder))
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        mode, owner = os.stat(path).st_mode, os.stat(path).st_uid
    except OSError as e:
        raise UserError(
            f"config.compile.cache_dir: cannot be made ({e.strerror}: {path}); choose another"
        ) from e
    if mode & 0o022 or owner != os.getuid():
        raise UserError(
            f"config.compile.cache_dir: others may write into {path}, and compiled programs are "
            f"executed; run: chmod go-w {path}, or choose another"
        )
    jax.config.update("jax_compilation_cache_dir", path)
