"""Where the file of a tokenizer comes from: the checkpoint first, then the config."""

from clip_jax import files
from clip_jax.config.schema import TokenizerConfig
from clip_jax.errors import UserError


def model_bytes(cfg: TokenizerConfig, stored: bytes | None) -> tuple[bytes | None, str]:
    """Reads the model or merges file.

    Args:
        cfg: its `path` may be local or remote.
        stored: bytes from a checkpoint; they win over `cfg.path`, so that a run that resumes or is
            loaded elsewhere never meets another file.

    Returns:
        The bytes, None if neither is there; and their origin, for the messages of errors.

    Raises:
        UserError: `cfg.path` cannot be read.
    """
    if stored is not None:
        return stored, "tokenizer of the checkpoint"
    if not cfg.path:
        return None, "config.tokenizer.path"
    try:
        return files.read_bytes(cfg.path), f"config.tokenizer.path: {cfg.path}"
    except OSError as e:
        reason = e.strerror or "no such file"
        raise UserError(
            f"config.tokenizer.path: cannot be read (got {cfg.path}: {reason}); check the path"
        ) from e
