"""Image files against names, one result a file, in the order of the files.

Letters: b images, n names, e embedding.
Costs: the names are embedded once; threads decode while the devices work.
"""

import contextlib
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from clip_jax.errors import UserError
from clip_jax.inference.ahead import ahead
from clip_jax.inference.api import Model
from clip_jax.inference.prompts import class_embeddings


def classify_files(
    model: Model, paths: Sequence[str], labels: Sequence[str], templates: Sequence[str]
) -> Iterator[np.ndarray | UserError]:
    """For each file the probability of each label, float32 (n,), or why it cannot be read.

    The numbers are those of `Model.classify`.
    """
    classes = class_embeddings(model.embed_texts, labels, templates)  # (n, e)
    scale = model.logit_scale()

    def read(path: str) -> np.ndarray | UserError:
        try:
            return model.preprocess(path)
        except UserError as e:
            return e

    with contextlib.closing(ahead(read, paths, window=2 * model.batch_size)) as images:
        while chunk := list(itertools.islice(images, model.batch_size)):
            z = model.embed_images([x for x in chunk if isinstance(x, np.ndarray)])
            logits = scale * z @ classes.T  # (b, n)
            p = np.exp(logits - logits.max(axis=1, keepdims=True))
            rows = iter((p / p.sum(axis=1, keepdims=True)).astype(np.float32))
            yield from (x if isinstance(x, UserError) else next(rows) for x in chunk)
