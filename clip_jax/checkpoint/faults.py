"""What an error of orbax, or of tensorstore below it, says about the storage."""

import re

import jax

FULL = re.compile("No space left( on device)?|File too large|(disk )?quota exceeded", re.I)
AWAY = re.compile(
    "UNAVAILABLE|PERMISSION_DENIED|UNAUTHENTICATED|DEADLINE_EXCEEDED|ABORTED|Permission denied"
)


def short(e: Exception) -> str:
    """The part of a long message that a user can use."""
    text = " ".join((isinstance(e, OSError) and e.strerror or str(e) or type(e).__name__).split())
    for known in (FULL, AWAY):
        if found := known.search(text):
            return found.group()
    return text if len(text) <= 100 else text[:97] + "..."


def is_storage(e: Exception) -> bool:
    """True for what a file system says, by itself or through tensorstore (`OUT_OF_RANGE: ...`)."""
    return isinstance(e, OSError) or bool(
        isinstance(e, ValueError) and re.match("[A-Z_]+: ", str(e))
    )


def is_memory(e: Exception) -> bool:
    """True if this machine or its devices failed, not the files."""
    machine = isinstance(e, MemoryError | jax.errors.JaxRuntimeError)
    return machine or "Out of memory" in str(e)
