"""Floating-point operations of a program, counted from its jaxpr.

XLA's own count takes the body of a loop once; here a scan counts as often as it runs. Matrix
products and convolutions only: what model FLOPs mean in the field.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax


def count(f: Callable[..., Any], *args: Any) -> float:
    """FLOPs of f(*args) over all devices, 2 per multiply-add.

    Args:
        f: a jax function.
        args: arrays or ShapeDtypeStructs; nothing is computed.
    """
    return _count(jax.make_jaxpr(f)(*args).jaxpr)


def _count(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2.0 * _size(equation) * math.prod(left[i] for i in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            out_dim = kernel[params["dimension_numbers"].rhs_spec[0]]
            total += 2.0 * _size(equation) * math.prod(kernel) / out_dim
        else:
            total += _times(name, params) * sum(_count(inner) for inner in _inner(params))
    return total


def _size(equation: Any) -> int:
    return math.prod(equation.outvars[0].aval.shape)


def _times(name: str, params: dict[str, Any]) -> int:
    """How often the body of an equation runs, over all devices."""
    if name == "scan":
        return params["length"]
    return params["mesh"].size if name == "shard_map" else 1


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(item, "eqns"):
                yield item
            elif hasattr(getattr(item, "jaxpr", None), "eqns"):
                yield item.jaxpr
