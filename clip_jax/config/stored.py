"""The resolved config of a run, as it lies in its workdir."""

import json

from clip_jax import files
from clip_jax.config.codec import from_dict, to_dict
from clip_jax.config.schema import Config
from clip_jax.errors import UserError


def config_path(workdir: str) -> str:
    """Where the resolved config of a run lies."""
    return files.join(workdir, "config.json")


def read_config(workdir: str) -> Config:
    """The config of a run.

    Raises:
        UserError: no run lies there, or its config is damaged.
    """
    try:
        return from_dict(json.loads(files.read_bytes(config_path(workdir))))
    except FileNotFoundError as e:
        raise UserError(f"{workdir}: no config.json, so no run lies there; check the path") from e
    except ValueError as e:
        raise UserError(f"{config_path(workdir)}: not JSON ({e}); restore or remove it") from e


def write_config(workdir: str, cfg: Config) -> None:
    """Stores it whole."""
    files.write_bytes(config_path(workdir), json.dumps(to_dict(cfg), indent=1).encode() + b"\n")
