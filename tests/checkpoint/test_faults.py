"""Which errors are the storage's, and the words of them that a user reads."""

import errno

import jax
import pytest

from clip_jax.checkpoint import faults


@pytest.mark.parametrize(
    ("error", "words", "storage", "memory"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device", 1, 0),
        (ValueError("RESOURCE_EXHAUSTED: write:\n no space left [x=1]"), "no space left", 1, 0),
        (ValueError("UNAVAILABLE: 503 from gs://b/o"), "UNAVAILABLE", 1, 0),
        (ValueError("shapes differ"), "shapes differ", 0, 0),
        (ValueError(""), "ValueError", 0, 0),
        (RuntimeError("word " * 40), f"{('word ' * 40)[:97]}...", 0, 0),
        (MemoryError(), "MemoryError", 0, 1),
        (ValueError("NOT_FOUND: Out of memory"), "NOT_FOUND: Out of memory", 1, 1),
        (jax.errors.JaxRuntimeError("INTERNAL: x"), "INTERNAL: x", 0, 1),
    ],
)
def test_errors(error, words, storage, memory):
    assert faults.short(error) == words
    assert (faults.is_storage(error), faults.is_memory(error)) == (storage, memory)


def test_what_may_pass_is_told_from_what_does_not():
    assert faults.AWAY.search("DEADLINE_EXCEEDED: 60 s") and not faults.AWAY.search("DATA_LOSS: x")
    assert faults.FULL.search("Disk quota exceeded") and not faults.FULL.search("I/O error")
