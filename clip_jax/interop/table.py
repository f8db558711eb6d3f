"""Invertible tables between our parameters and another program's tensors.

A table is a list of rules, one per foreign name; a rule reads both ways. Reading streams: one
foreign tensor and one of our leaves (with its layers stacked) are in memory at a time.
Letters: l layers, d width, h heads, k head dim, f mlp hidden.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from clip_jax.errors import UserError
from clip_jax.interop.tensors import Tensors
from clip_jax.sharding.rules import path_of


@dataclasses.dataclass(frozen=True)
class Way:
    """How one foreign tensor becomes some of ours, and back.

    ours: (x, our shapes) -> our arrays. theirs: our arrays -> x. Written with methods that NumPy
    arrays and jax tracers share, so that eval_shape tells the shape to expect.
    """

    ours: Callable[[Any, Sequence[tuple[int, ...]]], list[Any]]
    theirs: Callable[[Sequence[Any]], Any]


def _join(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return jax.numpy.concatenate(parts)


def _split(x: Any, shapes: Sequence[tuple[int, ...]]) -> list[Any]:
    size = x.shape[0] // len(shapes)
    return [x[i * size : (i + 1) * size] for i in range(len(shapes))]


# torch's Linear is (out, in), our kernels are (in, out).
SAME = Way(lambda x, s: [x], lambda a: a[0])
LINEAR = Way(lambda x, s: [x.T], lambda a: a[0].T)
CONV = Way(lambda x, s: [x.transpose(2, 3, 1, 0)], lambda a: a[0].transpose(3, 2, 0, 1))
ROW = Way(lambda x, s: [x.reshape(s[0])], lambda a: a[0].reshape(1, *a[0].shape))
PROBE = Way(lambda x, s: [x.reshape(s[0])], lambda a: a[0].reshape(1, 1, -1))
ONE = Way(lambda x, s: [x.reshape(())], lambda a: a[0].reshape(1))
COUNT = Way(lambda x, s: [x.astype(np.int32)], lambda a: a[0].astype(np.int64))
FUSED = Way(  # q, k, v (or k, v) of torch's attention in one matrix, rows in that order
    lambda x, s: [p.T for p in _split(x, s)], lambda a: _join([p.T for p in a])
)
FUSED_BIAS = Way(_split, _join)


def into_heads(heads: int) -> Way:
    """big_vision's kernels (d, h, k) and biases (h, k) of q, k, v."""
    return Way(lambda x, s: [x.reshape(s[0])], lambda a: a[0].reshape(*a[0].shape[:-1], heads, -1))


def from_heads(heads: int) -> Way:
    """big_vision's kernels (h, k, d) of attention's output."""
    return Way(
        lambda x, s: [x.reshape(s[0])],
        lambda a: a[0].reshape(*a[0].shape[:-2], heads, -1, a[0].shape[-1]),
    )


@dataclasses.dataclass(frozen=True)
class Rule:
    """One foreign tensor, or one per layer.

    Attributes:
        theirs: its name; with `{i}` it exists for each layer of `ours`.
        ours: paths of our leaves, "image/blocks/attn/q/kernel".
        way: between the two, for one layer.
        constant: for a tensor that we compute and they store (fixed positions): its values.
    """

    theirs: str
    ours: tuple[str, ...]
    way: Way = SAME
    constant: np.ndarray | None = None

    @property
    def stacked(self) -> bool:
        """Whether our leaves have a leading layer dim that their names count."""
        return "{i}" in self.theirs


Leaves = dict[str, Any]


def leaves(tree: Any) -> Leaves:
    """{path: leaf} of a tree of dicts."""
    return {path_of(p): x for p, x in jax.tree_util.tree_flatten_with_path(tree)[0]}


def tree(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dicts of {path: leaf}."""
    out: dict[str, Any] = {}
    for path, x in flat.items():
        *groups, name = path.split("/")
        here = out
        for group in groups:
            here = here.setdefault(group, {})
        here[name] = x
    return out


def _names(rule: Rule, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The foreign names of a rule, layer by layer."""
    layers = shapes[rule.ours[0]][0] if rule.stacked else 1
    return [rule.theirs.replace("{i}", str(i)) for i in range(layers)]


def no_such_model(path: str, family: str, got: Any) -> UserError:
    """What to raise when `family` cannot hold the value of config.model.PATH."""
    return UserError(
        f"config.model{path and '.'}{path}: {family} has no such model (got {got}); export to "
        "clip_jax, which holds every model"
    )


def expected(rules: Sequence[Rule], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """{foreign name: ShapeDtypeStruct} that a model of these leaves has, in the table's order.

    Args:
        rules: of the family.
        shapes: of all our leaves, parameters and stats.

    Raises:
        UserError: the model has parts that the family lacks, or the other way round.
    """
    covered = {p for r in rules for p in r.ours}
    if covered != set(shapes):
        odd = sorted(covered ^ set(shapes))
        raise UserError(
            f"config.model: the other program has no such model (unlike: {_some(odd)}); export to "
            "clip_jax, or change the model"
        )
    out = {}
    for rule in rules:
        if rule.constant is not None:
            out[rule.theirs] = jax.ShapeDtypeStruct(rule.constant.shape, np.float32)
            continue
        cut = 1 if rule.stacked else 0
        kind = np.int32 if rule.way is COUNT else np.float32
        own = [jax.ShapeDtypeStruct(shapes[p][cut:], kind) for p in rule.ours]
        # int64 has no place in jax without a switch; only the shape matters here
        shape = () if rule.way is COUNT else jax.eval_shape(rule.way.theirs, own).shape
        for name in _names(rule, shapes):
            out[name] = jax.ShapeDtypeStruct(shape, kind)
    return out


def check(
    tensors: Tensors, want: Mapping[str, Any], optional: Callable[[str], bool] = lambda name: False
) -> None:
    """Compares names and shapes before a byte of data is read.

    Args:
        tensors: the file.
        want: of `expected`.
        optional: whether a foreign name that the table lacks may be there, and is not read.

    Raises:
        UserError: keys are missing, too many, or of another shape.
    """
    missing = [n for n in want if n not in tensors.shapes]
    extra = [n for n in tensors.shapes if n not in want and not optional(n)]
    if missing or extra:
        kinds = ((missing, "missing"), (extra, "extra"))
        text = [f"{len(names)} {kind} ({_some(names)})" for names, kind in kinds if names]
        raise UserError(
            f"{tensors.path}: not the tensors of this model: {' and '.join(text)}; give the config "
            "of these weights"
        )
    for name, x in want.items():
        if tuple(tensors.shapes[name]) != x.shape:
            raise UserError(
                f"{tensors.path}: {name}: has shape {tuple(tensors.shapes[name])}, but the config "
                f"wants {x.shape}; give the config of these weights"
            )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def read_leaves(
    rules: Sequence[Rule], tensors: Tensors, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, np.ndarray]]:
    """Our leaves, one rule at a time: float32, layers stacked.

    Raises:
        UserError: a tensor cannot be read.
    """
    for rule in rules:
        if rule.constant is not None:
            if not np.allclose(tensors.read(rule.theirs), rule.constant, rtol=0, atol=1e-6):
                raise UserError(
                    f"{tensors.path}: {rule.theirs}: not the fixed table of the config; "
                    "set model.image.posemb=learned"
                )
            continue
        kind = np.int32 if rule.way is COUNT else np.float32
        out = [np.empty(shapes[p], kind) for p in rule.ours]
        names = _names(rule, shapes)
        for i, name in enumerate(names):
            one = [s.shape[1:] if rule.stacked else s.shape for s in out]
            parts = rule.way.ours(tensors.read(name), one)
            for to, part in zip(out, parts, strict=True):
                if rule.stacked:
                    to[i] = part
                else:
                    to[...] = part
        yield from zip(rule.ours, out, strict=True)


def write_items(
    rules: Sequence[Rule], flat: Leaves, dtype: Any
) -> Iterator[tuple[str, tuple[int, ...], np.dtype, Callable[[], np.ndarray]]]:
    """The foreign tensors of our leaves, for a streaming writer.

    Args:
        rules: of the family.
        flat: our leaves (arrays of any kind), by path.
        dtype: of the floating-point tensors.

    Yields:
        name, shape, dtype and a function that makes the array.
    """
    shapes = {p: tuple(x.shape) for p, x in flat.items()}
    want = expected(rules, shapes)
    held: dict[str, np.ndarray] = {}  # the leaves of the rule at hand

    def make(rule: Rule, i: int, kind: np.dtype) -> np.ndarray:
        if set(held) != set(rule.ours):
            held.clear()
            held.update({p: np.asarray(jax.device_get(flat[p])) for p in rule.ours})
        own = [held[p][i] if rule.stacked else held[p] for p in rule.ours]
        return np.asarray(rule.way.theirs([np.asarray(x) for x in own])).astype(kind)

    for rule in rules:
        if rule.constant is not None:
            table = rule.constant.astype(dtype)
            yield rule.theirs, table.shape, table.dtype, lambda t=table: t
            continue
        kind = np.dtype(np.int64 if rule.way is COUNT else dtype)
        for i, name in enumerate(_names(rule, shapes)):
            yield name, want[name].shape, kind, lambda r=rule, i=i, k=kind: make(r, i, k)
