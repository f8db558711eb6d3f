"""Reads the text of a compiled program: its instructions, and how often each of them runs.

The trip count of a loop is the s32 constant of its condition: what scans and fori_loops compile to.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator

BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
    "s64": 64, "u64": 64, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip
_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([0-9,]*)\](?:\{([^{}]*)\})?")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) (?:\(.*)?.*\{$")


@dataclasses.dataclass(frozen=True)
class Array:
    """Part of an instruction's type."""

    dtype: str
    shape: tuple[int, ...]
    space: int

    @property
    def bytes(self) -> float:
        """Without the padding of its layout."""
        return math.prod(self.shape) * BITS.get(self.dtype, 8 if "f8" in self.dtype else 0) / 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation; `rest` holds its attributes."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    inside: str
    rest: str
    root: bool


@dataclasses.dataclass(frozen=True)
class Computation:
    """A named list of instructions, in order."""

    name: str
    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        """Instructions by name."""
        return {i.name: i for i in self.instructions}

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Who reads the result of an instruction."""
        found: dict[str, list[Instruction]] = collections.defaultdict(list)
        for i in self.instructions:
            for name in dict.fromkeys(i.operands):
                found[name].append(i)
        return found

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        """Parameters by number."""
        return {int(i.inside): i for i in self.instructions if i.opcode == "parameter"}

    @property
    def root(self) -> Instruction:
        """What the computation returns."""
        return next((i for i in self.instructions if i.root), self.instructions[-1])


@dataclasses.dataclass(frozen=True)
class Program:
    """A module: its computations and which of them is the entry."""

    computations: dict[str, Computation]
    entry: str

    def walk(self) -> Iterator[tuple[Instruction, Computation, float, str]]:
        """Every instruction that runs: (instruction, its computation, times, name of its fusion).

        The name is empty outside fusions. Both branches of a conditional count.
        """
        stack = [(self.entry, 1.0, "")]
        while stack:
            name, times, fusion = stack.pop()
            if name not in self.computations:
                continue
            here = self.computations[name]
            for i in here.instructions:
                yield i, here, times, fusion
                if i.opcode == "while":
                    stack.append((called(i, "body"), times * self.trips(i), fusion))
                elif i.opcode == "fusion":
                    stack.append((called(i, "calls"), times, fusion or i.name))
                elif i.opcode in ("call", "async-start"):
                    stack.append((called(i, "to_apply") or called(i, "calls"), times, fusion))
                elif i.opcode == "conditional":
                    stack += [(b, times, fusion) for b in _branches(i)]

    def trips(self, loop: Instruction) -> int:
        """How often the body of a while runs; 1 where its condition has no single constant."""
        condition = self.computations.get(called(loop, "condition"))
        if condition is None:
            return 1
        inner = [condition]
        for i in condition.instructions:
            name = called(i, "calls") or called(i, "to_apply")
            if name in self.computations:
                inner.append(self.computations[name])
        values = {
            int(i.inside)
            for c in inner
            for i in c.instructions
            if i.opcode == "constant"
            and i.arrays[0].dtype == "s32"
            and i.inside.lstrip("-").isdigit()
        }
        return max(values) if values and max(values) > 0 else 1


def parse(text: str) -> Program:
    """The computations of `compiled.as_text()`."""
    found: dict[str, Computation] = {}
    entry, name, lines = "", "", []
    for line in text.splitlines():
        if not line[:1].isspace():
            match = _COMPUTATION.match(line)
            if match and not line.startswith("HloModule"):
                name, lines = match[1], []
                if line.startswith("ENTRY"):
                    entry = name
            elif line.startswith("}") and name:
                found[name] = Computation(name, tuple(lines))
                name = ""
        elif name and (instruction := _instruction(line)):
            lines.append(instruction)
    return Program(found, entry)


def called(i: Instruction, attribute: str) -> str:
    """The computation that an attribute names; '' if there is none."""
    match = re.search(rf"\b{attribute}=%?([\w.\-]+)", i.rest)
    return match[1] if match else ""


def _branches(i: Instruction) -> list[str]:
    if match := re.search(r"branch_computations=\{([^}]*)\}", i.rest):
        return [x.strip().lstrip("%") for x in match[1].split(",")]
    return [x for a in ("true_computation", "false_computation") if (x := called(i, a))]


def _instruction(line: str) -> Instruction | None:
    match = _INSTRUCTION.match(line)
    if not match:
        return None
    rest = line[match.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    opcode, bracket, _ = rest.partition("(")
    if not bracket:
        return None
    close = _closing(rest, len(opcode))
    inside = rest[len(opcode) + 1 : close]
    return Instruction(
        name=match[2],
        opcode=opcode.strip(),
        arrays=tuple(_arrays(kind)),
        operands=tuple(re.findall(r"%([\w.\-]+)", inside)),
        inside=inside,
        rest=rest[close + 1 :],
        root=bool(match[1]),
    )


def _closing(text: str, start: int) -> int:
    """Index of the bracket that closes the one at `start`."""
    depth = 0
    for n in range(start, len(text)):
        depth += (text[n] == "(") - (text[n] == ")")
        if depth == 0:
            return n
    return len(text) - 1


def _arrays(kind: str) -> Iterator[Array]:
    for dtype, shape, layout in _ARRAY.findall(kind):
        space = re.search(r"S\((\d+)\)", layout)
        dims = tuple(int(n) for n in shape.split(",") if n)
        yield Array(dtype, dims, int(space[1]) if space else 0)
