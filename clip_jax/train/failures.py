"""What devices and collectives raise, in one line that says what to do."""

import contextlib
import re
from collections.abc import Iterator

import jax

from clip_jax import files
from clip_jax.errors import RESTART, Stop, UserError

_PEER_GONE = re.compile("Gloo|Connection (closed|reset) by peer|heartbeat|UNAVAILABLE")


@contextlib.contextmanager
def told(workdir: str) -> Iterator[None]:
    """One line instead of the pages of the allocator, or of a collective whose peers are gone."""
    try:
        yield
    except jax.errors.JaxRuntimeError as e:
        text = str(e)
        if "RESOURCE_EXHAUSTED" in text:
            raise UserError(
                "device memory: not enough for this run; lower config.batch_size, set "
                "config.model.remat=full, or raise config.mesh.fsdp"
                f"{_memory_profile(workdir)}"
            ) from e
        if jax.process_count() > 1 and _PEER_GONE.search(text):
            me = jax.process_index()
            text = f"process {me}: another process is gone; the same command goes on"
            raise Stop(text, RESTART) from e
        raise


def _memory_profile(workdir: str) -> str:
    """Writes what is in device memory now for pprof, and says where; '' if that fails too."""
    path = files.join(workdir, "memory.prof")
    if jax.process_index():
        return ""
    with contextlib.suppress(Exception):
        files.write_bytes(path, jax.profiler.device_memory_profile())
        return f"; what filled it: {path} (for pprof)"
    return ""
