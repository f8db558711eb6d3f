"""Whether a run is at its end: its report says so."""

from clip_jax import files

MARK = b'<meta name="run" content="finished">'


def is_finished(path: str) -> bool:
    """True for the report of a finished run; False for that of a running one, and for none."""
    try:
        return MARK in files.read_bytes(path)[:2000]
    except FileNotFoundError:
        return False
