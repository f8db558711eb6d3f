"""From class names to class embeddings: prompts, averaged in embedding space.

Letters: n classes, m prompts per class, e embedding.
"""

from collections.abc import Callable, Sequence

import numpy as np


def class_embeddings(
    embed_texts: Callable[[Sequence[str]], np.ndarray],
    classes: Sequence[str],
    templates: Sequence[str],
) -> np.ndarray:
    """One unit vector per class: the mean of its prompts' embeddings (Radford et al. 2021, 3.1.4).

    Args:
        embed_texts: texts -> float32 (., e) of unit length.
        classes: names, n.
        templates: each with one {}, m.

    Returns:
        float32 (n, e).
    """
    prompts = [t.replace("{}", c) for c in classes for t in templates]
    z = embed_texts(prompts).reshape(len(classes), len(templates), -1).mean(axis=1)  # (n, e)
    return z / np.maximum(np.linalg.norm(z, axis=-1, keepdims=True), 1e-12)
