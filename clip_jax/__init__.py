"""clip_jax: pretrain CLIP models in JAX, on a laptop or a pod, with the same program.

The public names are loaded on first use, so that `import clip_jax` is cheap.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from clip_jax.config.load import read_recipe as recipe
    from clip_jax.config.presets import MODELS as MODELS
    from clip_jax.config.schema import Config as Config
    from clip_jax.errors import UserError as UserError
    from clip_jax.inference.api import Model as Model
    from clip_jax.inference.export import export as export
    from clip_jax.inference.interpolate import interpolate as interpolate
    from clip_jax.inference.load import load as load
    from clip_jax.train.api import pretrain as pretrain

_PUBLIC = {
    "Config": ("clip_jax.config.schema", "Config"),
    "MODELS": ("clip_jax.config.presets", "MODELS"),
    "Model": ("clip_jax.inference.api", "Model"),
    "UserError": ("clip_jax.errors", "UserError"),
    "export": ("clip_jax.inference.export", "export"),
    "interpolate": ("clip_jax.inference.interpolate", "interpolate"),
    "load": ("clip_jax.inference.load", "load"),
    "pretrain": ("clip_jax.train.api", "pretrain"),
    "recipe": ("clip_jax.config.load", "read_recipe"),
}
__all__ = [
    "MODELS",
    "Config",
    "Model",
    "UserError",
    "__version__",
    "export",
    "interpolate",
    "load",
    "pretrain",
    "recipe",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        module, attribute = _PUBLIC[name]
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module 'clip_jax' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
