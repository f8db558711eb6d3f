"""What all processes of a run must share before its first step: command, code, data.

Processes with another seed, another version or other files would compute something that nobody
asked for, or wait for each other for ever in collectives of unlike shapes.
"""

import functools
import hashlib
from pathlib import Path
from typing import Any

import clip_jax
from clip_jax.checkpoint.manifest import software
from clip_jax.config.codec import flatten
from clip_jax.config.schema import Config
from clip_jax.sharding import processes


def same_program(cfg: Config, workdir: str) -> None:
    """Refuses processes with another config, workdir or code; names each difference.

    Raises:
        UserError: on all processes.
    """
    facts: dict[str, Any] = {**flatten(cfg, "config."), "--workdir": workdir, **software()}
    facts["the sources of clip_jax"] = sources()
    processes.same(facts, "give all processes the same command and the same installation")


def same_data(orders: list[dict[str, Any]], tokenizer: bytes, test: str) -> None:
    """Refuses processes that see other data.

    Args:
        orders: of the training examples, start.order_parts of each stage.
        tokenizer: its file.
        test: fingerprint of the test split.

    Raises:
        UserError: on all processes.
    """
    facts = {f"config.data, {name}": value for name, value in orders[0].items()}
    for i, order in enumerate(orders[1:], 1):
        facts |= {f"config.data of stage {i + 1}, {name}": v for name, v in order.items()}
    facts |= {"the tokenizer": hashlib.sha256(tokenizer).hexdigest()[:12], "config.data.test": test}
    processes.same(facts, "let all processes see the same data")


@functools.cache
def sources() -> str:
    """A short hash of all Python files of the package, as they lie on this host."""
    root, digest = Path(clip_jax.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        text = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(text)}\n".encode())
        digest.update(text)
    return digest.hexdigest()[:12]
