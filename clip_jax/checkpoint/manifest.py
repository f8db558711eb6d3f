"""What a checkpoint says about itself, so that a restore can be proved right.

The manifest is the caller's JSON data and these:

    layout_version  2 would be another way to store; older versions are read
    software        {package: version} that wrote it
    items           names of the items, also of those without arrays
    arrays          {item/path: "float32[768,512]"}
    checksums       {item/path: uint32}, see checksum.py
    extra_files     names of the small files beside it

It is stored sealed, as {"crc32": of the content's canonical text, "content": ...}: a flipped bit in
a JSON file often still is JSON.
"""

import contextlib
import importlib.metadata
import json
import platform
import zlib
from typing import Any

import jax
import jax.numpy as jnp

from clip_jax.checkpoint.checksum import checksums, paths

LAYOUT_VERSION = 1
_PACKAGES = ("clip-jax-pretrain", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def seal(content: Any) -> dict[str, Any]:
    """Puts a checksum beside JSON data."""
    content = json.loads(json.dumps(content))  # as it will be read: tuples and keys change
    return {"crc32": _crc(content), "content": content}


def unseal(data: bytes) -> Any:
    """The content of a sealed file. Raises ValueError if it is not as it was written."""
    sealed = json.loads(data)
    if set(sealed) != {"crc32", "content"} or sealed["crc32"] != _crc(sealed["content"]):
        raise ValueError("differs from its checksum")
    return sealed["content"]


def _crc(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def facts(items: dict[str, Any]) -> dict[str, Any]:
    """The part of the manifest that follows from the arrays and the software of this process."""
    return {
        "layout_version": LAYOUT_VERSION,
        "software": software(),
        "items": sorted(items),
        "arrays": {path: spec(x) for path, x in paths(items).items()},
        "checksums": checksums(items),
    }


def software() -> dict[str, str]:
    """{package: version} of what decides numbers in this process."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def spec(x: Any) -> str:
    """Shape and dtype of an array in one word: float32[768,512]."""
    return f"{x.dtype}[{','.join(map(str, x.shape))}]"


def misfits(manifest: dict[str, Any], abstract: dict[str, Any]) -> list[str]:
    """Every array of the items in `abstract` whose path, shape or dtype is not the saved one."""
    wanted = {path: spec(x) for path, x in paths(abstract).items()}
    saved = {k: v for k, v in manifest["arrays"].items() if k.partition("/")[0] in abstract}
    arrays = [
        f"{path}: saved {saved.get(path, 'nothing')} -> wanted {wanted.get(path, 'nothing')}"
        for path in sorted(saved | wanted)
        if saved.get(path) != wanted.get(path)
    ]
    return arrays + [f"{k}: was not saved" for k in abstract if k not in manifest["items"]]


def damage(manifest: dict[str, Any], items: dict[str, Any]) -> str:
    """The first array that is not what was saved, or no finite parameter; empty if all are good."""
    for path, x in paths(items).items():
        if spec(x) != manifest["arrays"][path]:  # seen: a key array without its metadata file
            return f"{path}: {spec(x)} instead of {manifest['arrays'][path]}"
    for path, n in checksums(items).items():
        if n != manifest["checksums"][path]:
            return f"{path}: checksum differs"
    params = paths({"params": items.get("params", {})})
    for path, finite in zip(params, jax.device_get(_finite(list(params.values()))), strict=True):
        if not finite:
            return f"{path}: not finite"
    return ""


@jax.jit
def _finite(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jnp.isfinite(x).all() for x in leaves]
