"""Data sets that need no download: built on first use into a cache folder, in TFDS form.

The cache is $CLIP_JAX_DATA, else $XDG_CACHE_HOME/clip_jax, else ~/.cache/clip_jax, else (no home
that can be written) a folder of this user under the system's temporary folder.
A set is built aside and renamed when complete, so a killed build is never taken for a set, and
of two processes that build at once one wins and the other uses the winner's.
Costs: see digits.py (about a second) and glyphs.py (some seconds); nothing once built.
"""

import contextlib
import io
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from clip_jax.errors import UserError

_STALE_S = 3600  # a build takes seconds: a folder this old was left by a killed one


def cache_root() -> str:
    """The cache folder; created if missing.

    Raises:
        UserError: the folder that the environment names cannot be written.
    """
    chosen = os.environ.get("CLIP_JAX_DATA")
    if chosen:
        if not _writable(chosen):
            raise UserError(
                f"CLIP_JAX_DATA: the folder cannot be written (got {chosen}); name another one"
            )
        return os.path.abspath(chosen)
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if os.path.isabs(caches) and _writable(folder := os.path.join(caches, "clip_jax")):
        return folder
    folder = os.path.join(tempfile.gettempdir(), f"clip_jax-{os.getuid()}")
    # Where everybody may write, a folder of this name can be a stranger's.
    if _writable(folder) and os.stat(folder).st_uid == os.getuid():
        return folder
    raise UserError(f"{caches}: no cache folder can be written; set CLIP_JAX_DATA to one that can")


def _writable(folder: str) -> bool:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def build_digits() -> str:
    """Folder of the built digits set. Raises UserError if scikit-learn is missing."""
    from clip_jax.data.embedded.digits import Digits

    return _built(Digits)


def build_glyphs() -> str:
    """Folder of the built glyphs set."""
    from clip_jax.data.embedded.glyphs import Glyphs

    return _built(Glyphs)


EMBEDDED: dict[str, Callable[[], str]] = {"digits": build_digits, "glyphs": build_glyphs}


def _built(builder: Any) -> str:
    """Builds the set of this TFDS builder class unless the cache has it; returns its folder."""
    parent = os.path.join(cache_root(), builder.name)
    final = os.path.join(parent, str(builder.VERSION))
    if os.path.isdir(final):
        return final
    os.makedirs(parent, exist_ok=True)
    _sweep(parent)
    aside = tempfile.mkdtemp(prefix=".building-", dir=parent)
    try:
        with _quiet():
            ready = builder(data_dir=aside, file_format="array_record")
            ready.download_and_prepare()
        with contextlib.suppress(OSError):  # refused if another process was first
            os.rename(ready.data_dir, final)
    except (OSError, RuntimeError) as e:
        if isinstance(e, RuntimeError) and "write() failed" not in str(e):  # as ArrayRecord says it
            raise
        raise UserError(
            f"{parent}: the set cannot be written (got {e}); free some space or set CLIP_JAX_DATA"
        ) from e
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    if not os.path.isdir(final):
        raise UserError(f"{final}: the set cannot be moved there; set CLIP_JAX_DATA to another one")
    return final


def _sweep(parent: str) -> None:
    """Removes what killed builds left."""
    for entry in os.scandir(parent):
        if entry.name.startswith(".building-"):
            with contextlib.suppress(OSError):
                if time.time() - entry.stat().st_mtime > _STALE_S:
                    shutil.rmtree(entry.path, ignore_errors=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, prints or log lines of TFDS inside; as it was before outside."""
    from tensorflow_datasets.core.utils import tqdm_utils

    log, bars = logging.getLogger("absl"), tqdm_utils._active
    level = log.level
    log.setLevel(logging.ERROR)
    tqdm_utils.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        log.setLevel(level)
        tqdm_utils._active = bars
