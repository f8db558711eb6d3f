"""What devices send each other in a compiled step, told by shapes from its text.

The sizes tell apart what travels: no layer's kernel has as many elements as a device's token
states, the batch is no size of a parameter, and the towers have other numbers of layers.
"""

import dataclasses
import math
from collections.abc import Iterable

import tiny
from clip_jax.config.schema import Config, LossConfig, MeshConfig
from clip_jax.planner import hlo

WIDTH, HIDDEN, TOKENS, BATCH, LAYERS = 256, 1024, 16, 768, (6, 5)
KERNEL = WIDTH * HIDDEN  # elements of the largest of a layer
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


def config(**changes) -> Config:
    """Two transformers in bfloat16 on eight devices of the axis fsdp, which divides every dim."""
    image, text = tiny.model().image, tiny.model().text
    size = {"width": WIDTH, "mlp_dim": HIDDEN}
    model = dataclasses.replace(
        tiny.model(),
        image=dataclasses.replace(image, size=32, layers=LAYERS[0], **size),
        text=dataclasses.replace(text, vocab_size=320, context=TOKENS, layers=LAYERS[1], **size),
        embed_dim=64,
        dtype="bfloat16",
    )
    given = {"mesh": MeshConfig(1, 8, 1), "batch_size": BATCH, "loss": LossConfig("softmax")}
    return tiny.config("unused", model=model, **{**given, **changes})


def travelling(text: str) -> tuple[set[tuple[int, ...]], set[tuple[int, ...]]]:
    """Shapes of what collectives make (in loops, elsewhere)."""
    inside: set[tuple[int, ...]] = set()
    outside: set[tuple[int, ...]] = set()
    for i, _, times, _ in hlo.parse(text).walk():
        if i.opcode.startswith(COLLECTIVES):
            (inside if times > 1 else outside).update(a.shape for a in i.arrays)
    return inside, outside


def types_of_kernels(text: str) -> set[str]:
    """In which types the weights of layers, and their gradients, travel in loops."""
    return {
        a.dtype
        for i, _, times, _ in hlo.parse(text).walk()
        for a in i.arrays
        if i.opcode.startswith(COLLECTIVES) and times > 1 and math.prod(a.shape) >= KERNEL // 8
    }


def faults(inside: Iterable[tuple[int, ...]], outside: Iterable[tuple[int, ...]]) -> list[str]:
    """What should stay where it is, of `travelling`; and whether the weights of layers travel."""
    inside, outside = list(inside), list(outside)
    stacks = [s for s in (*inside, *outside) if len(s) > 2 and s[0] in LAYERS]
    states = [s for s in inside if math.prod(s) > KERNEL]
    found = [f"a stack of kernels: {s}" for s in stacks] + [f"states: {s}" for s in states]
    shared = [s for s in inside if math.prod(s) >= KERNEL // 8]
    return found if shared else [*found, "no kernel is gathered in a loop"]
