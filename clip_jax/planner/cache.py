"""Compiled results on disk: JSON files named by a hash of what went into the compiler.

That is the config (without what only names or reads data), the topology, the versions of jax,
jaxlib and libtpu, and the sources of this package and of those that the user's own towers and loss
come from: an edit makes a new name.
"""

import dataclasses
import hashlib
import json
import os
import uuid
from typing import Any

import clip_jax
from clip_jax import files
from clip_jax.config.chips import Topology
from clip_jax.config.codec import to_dict
from clip_jax.config.schema import Config
from clip_jax.planner.compile import Measure, version
from clip_jax.planner.counts import Collective
from clip_jax.train.agreement import own_packages, sources

APART = ("name", "seed", "overfit", "tokenizer", "data", "eval", "checkpoint", "log")


def folder() -> str:
    """$XDG_CACHE_HOME/clip_jax/plans, else ~/.cache/clip_jax/plans."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(caches, "clip_jax", "plans")


def versions() -> dict[str, str]:
    """Of what decides how a program compiles."""
    return {n: version(n) for n in ("jax", "jaxlib", "libtpu", "flax", "optax")} | {
        "clip_jax": clip_jax.__version__
    }


def key(cfg: Config, topology: Topology) -> str:
    """The name of a result."""
    fields = {k: v for k, v in to_dict(cfg).items() if k not in APART}
    fields["negatives"] = len(cfg.data.negatives)
    code = {name: sources(name) for name in ("clip_jax", *own_packages(cfg))}
    parts: Any = [fields, topology.name, versions(), code]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def read(where: str, name: str) -> Measure | None:
    """A stored result; None if there is none, or one that cannot be read."""
    try:
        data = json.loads(files.read_bytes(files.join(where, f"{name}.json")))["measure"]
        found = tuple(Collective(**c) for c in data.pop("collectives"))
        return Measure(**data, collectives=found)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def prepare(where: str) -> None:
    """Raises UserError where nothing can be stored: now, not after a compilation."""
    probe = files.join(where, f"probe-{uuid.uuid4().hex[:8]}")
    files.write_bytes(probe, b"")
    files.remove(probe)


def write(where: str, name: str, cfg: Config, topology: Topology, measure: Measure) -> None:
    """Stores a result, with what it belongs to for a reader."""
    data = {
        "topology": topology.name,
        "versions": versions(),
        "measure": dataclasses.asdict(measure),
        "config": to_dict(cfg),
    }
    files.write_bytes(files.join(where, f"{name}.json"), json.dumps(data, indent=1).encode())
