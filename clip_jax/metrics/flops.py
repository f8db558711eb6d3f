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
    return count_jaxpr(jax.make_jaxpr(f)(*args).jaxpr)


def count_jaxpr(jaxpr: Any) -> float:
    """FLOPs of a traced function over all devices."""
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
            inner = [count_jaxpr(inner) for inner in inner_jaxprs(params)]
            one_runs = name == "cond"  # also what a platform has of its own
            total += _times(name, params) * (max(inner) if one_runs else sum(inner))
    return total


def _size(equation: Any) -> int:
    return math.prod(equation.outvars[0].aval.shape)


def _times(name: str, params: dict[str, Any]) -> int:
    """How often the body of an equation runs, over all devices."""
    if name == "scan":
        return params["length"]
    if name == "shard_map":  # its body sees one part along these axes; JAX renamed them once
        axes = params["newly_manual_axes" if "newly_manual_axes" in params else "manual_axes"]
        return math.prod(params["mesh"].shape[a] for a in axes)
    return 1


def inner_jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs that an equation with these parameters runs."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(item, "eqns"):
                yield item
            elif hasattr(getattr(item, "jaxpr", None), "eqns"):
                yield item.jaxpr
