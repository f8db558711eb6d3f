"""What all processes of a run must share before its first step: command, code, data.

Processes with another seed, another version or other files would compute something that nobody
asked for, or wait for each other for ever in collectives of unlike shapes.
"""

import functools
import hashlib
import importlib.util
from pathlib import Path
from typing import Any

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
    for name in ("clip_jax", *own_packages(cfg)):
        facts[f"the sources of {name}"] = sources(name)
    processes.same(facts, "give all processes the same command and the same installation")


def same_data(orders: dict[int, dict[str, Any]], tokenizer: bytes, test: str) -> None:
    """Refuses processes that see other data.

    Args:
        orders: of the training examples, start.order_parts by index of the stage.
        tokenizer: its file.
        test: fingerprint of the test split.

    Raises:
        UserError: on all processes.
    """
    facts: dict[str, Any] = {}
    for i, order in orders.items():
        where = f"config.data of stage {i + 1}" if i else "config.data"
        facts |= {f"{where}, {name}": v for name, v in order.items()}
    facts |= {"the tokenizer": hashlib.sha256(tokenizer).hexdigest()[:12], "config.data.test": test}
    processes.same(facts, "let all processes see the same data")


def own_packages(cfg: Config) -> list[str]:
    """Where the user's own parts come from: my_package, of a kind my_package.towers:build."""
    kinds = [v for k, v in flatten(cfg).items() if k.endswith("kind") and ":" in v]
    return sorted({kind.partition(":")[0].partition(".")[0] for kind in kinds} - {""})


@functools.cache
def sources(package: str = "clip_jax") -> str:
    """A short hash of all Python files of a package, as they lie on this host; of a module its own.

    Empty if it is not there.
    """
    spec = importlib.util.find_spec(package)
    folders = [Path(p) for p in (spec and spec.submodule_search_locations) or ()]
    found = [(p.relative_to(root).as_posix(), p) for root in folders for p in root.rglob("*.py")]
    if spec and spec.origin and not folders:
        found = [(package, Path(spec.origin))]
    if not found:
        return ""
    digest = hashlib.sha256()
    for name, path in sorted(found):
        text = path.read_bytes()
        digest.update(f"{name} {len(text)}\n".encode())
        digest.update(text)
    return digest.hexdigest()[:12]
