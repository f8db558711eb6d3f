"""Order + source + transforms -> the host's part of each global batch, by Grain.

Letters: b rows of this host, y x pixels, c channels, t tokens.
Everything is a function of (seed, position): any number of hosts and threads makes the same
batches, and a resume starts at a position. Grain reads chunks of a batch in its threads.
"""

import collections
import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np

from clip_jax.config.schema import DataConfig, ImageConfig
from clip_jax.data import captions, order, transforms
from clip_jax.data.record import BadRecord, Example, decode_image
from clip_jax.data.sources import Source
from clip_jax.errors import UserError
from clip_jax.tokenizers import Tokenizer

CHUNK = 32  # samples; large enough to hide Grain's cost per element, small enough to share work
STAGES: tuple[str, ...] = ("read", "decode", "transform", "tokenize")
MOST_TRIES = 100  # neighbours tried in place of an unusable record
MOST_THREADS = 32  # of themselves: Python's lock lets more of them wait for each other


@dataclasses.dataclass(frozen=True)
class HostBatch:
    """This host's rows of one global batch.

    arrays: image uint8 (b, y, x, c), text int32 (b, t), index uint32 (b, 2), group int32 (b,);
        with hard negatives also negative int32 (b, k, t).
    bad: reasons of the records that had to be replaced, with counts.
    seconds: what reading, decoding, transforming and tokenizing took, summed over threads.
    """

    arrays: dict[str, np.ndarray]
    bad: collections.Counter[str]
    seconds: dict[str, float] = dataclasses.field(
        default_factory=lambda: dict.fromkeys(STAGES, 0.0)
    )


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """What makes training examples out of a source."""

    source: Source
    tokenizer: Tokenizer
    data: DataConfig
    image: ImageConfig
    context: int
    seed: int
    kept: dict[int, tuple[Example, np.ndarray]] = dataclasses.field(default_factory=dict)

    @property
    def size(self) -> int:
        """Records in an epoch."""
        return len(self.source)

    def check(self) -> None:
        """Makes the first example: what is wrong with all of them is told before they are needed.

        Raises:
            UserError: a field that the records lack, or no usable record.
        """
        record, _ = order.locate(np.zeros(1, np.int64), self.size, self.seed)
        self._example(0, int(record[0]), collections.Counter(), dict.fromkeys(STAGES, 0.0))

    def batches(
        self, *, start: int, batch_size: int, num_steps: int, rows: Sequence[int]
    ) -> Iterator[HostBatch]:
        """Batches from global position `start` on.

        Args:
            start: position of the first example of the first batch.
            batch_size: of the global batch.
            num_steps: how many batches.
            rows: rows of the global batch that this host makes, ascending.
        """
        parts = [rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)]

        def chunk(number: int) -> HostBatch:
            step, part = divmod(int(number), len(parts))
            row = np.asarray(parts[part], np.int64)
            return self.examples(start + step * batch_size + row, row)

        threads = num_threads(self.data.threads)
        options = grain.ReadOptions(
            num_threads=threads,
            prefetch_buffer_size=max(threads, self.data.prefetch * len(parts)) if threads else 0,
        )
        chunks = grain.MapDataset.range(num_steps * len(parts)).map(chunk)
        stream = iter(chunks.to_iter_dataset(options))
        for _ in range(num_steps):
            yield _join([next(stream) for _ in parts])

    def examples(self, position: np.ndarray, row: np.ndarray) -> HostBatch:
        """The examples at global positions (b,), rows (b,) of their batch."""
        record, _ = order.locate(position, self.size, self.seed)
        bad: collections.Counter[str] = collections.Counter()
        seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        images, texts, groups, wrong = [], [], [], []
        for p, r, i in zip(position, record, row, strict=True):
            image, text, group, negatives = self._example(int(p), int(r), bad, seconds)
            images.append(image)
            texts.append(text)
            wrong += negatives
            groups.append(int(i) if group is None else group)
        index = np.stack([position >> 32, position & 0xFFFFFFFF], axis=1).astype(np.uint32)
        with _timed(seconds, "tokenize"):
            ids = self.tokenizer([*texts, *wrong], self.context)
        arrays = {
            "image": np.stack(images),
            "text": ids[: len(texts)],
            "index": index,
            "group": np.asarray(groups, np.int32),
        }
        if wrong:
            arrays["negative"] = ids[len(texts) :].reshape(len(images), -1, self.context)
        return HostBatch(arrays, bad, seconds)

    def _example(
        self, position: int, record: int, bad: collections.Counter[str], seconds: dict[str, float]
    ) -> tuple[np.ndarray, str, int | None, list[str]]:
        """Image, caption, group, wrong captions; an unusable record gives way to the next."""
        for shift in range(min(MOST_TRIES, self.size)):
            rng = np.random.Generator(np.random.Philox(key=[self.seed, position]))
            try:
                example, pixels = self._read((record + shift) % self.size, seconds)
                negatives = captions.negatives_of(example, self.data.negatives)
            except BadRecord as e:
                bad[str(e)] += 1
                continue
            text = captions.pick(example.texts, rng)
            with _timed(seconds, "transform"):
                image = self._transform(pixels, rng)
            return image, text, self._group(example, text), negatives
        reasons = ", ".join(f"{n} x {r}" for r, n in bad.most_common(3))
        raise UserError(f"config.data.train: {MOST_TRIES} unusable pairs in a row ({reasons})")

    def _read(self, record: int, seconds: dict[str, float]) -> tuple[Example, np.ndarray]:
        """A pair with its pixels uint8 (y, x, c), from memory if data.cache has it there."""
        if (known := self.kept.get(record)) is not None:
            return known
        with _timed(seconds, "read"):
            example = self.source[record]
        with _timed(seconds, "decode"):
            pair = example, decode_image(example.image, self.image.channels)
        if self.data.cache:
            self.kept[record] = pair
        return pair

    def _transform(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        data, shape, interpolation = self.data, self.image.shape(), self.image.interpolation
        if data.crop_scale:
            height, width, _ = image.shape
            box = transforms.random_box(height, width, data.crop_scale, data.crop_ratio, rng)
            image = transforms.resized(image, shape, box, interpolation)
        else:
            image = transforms.evaluation(image, shape, self.image.resize, interpolation)
        return image[:, ::-1] if data.flip and rng.random() < 0.5 else image

    def _group(self, example: Example, text: str) -> int | None:
        if self.data.group_by == "none":
            return None
        try:
            return captions.group_of(example, text, self.data.group_by)
        except KeyError as e:
            known = ", ".join(["none", "caption", *sorted(example.fields)])
            raise UserError(
                f"config.data.group_by: no such field (got '{self.data.group_by}'); here: {known}"
            ) from e


def num_threads(asked: int) -> int:
    """How many read for `config.data.threads`."""
    if asked >= 0:
        return asked
    if jax.default_backend() == "cpu":
        return 1
    bound = getattr(os, "sched_getaffinity", None)  # of this task, where a scheduler binds it
    cores = len(bound(0)) if bound else os.cpu_count() or 1
    return min(cores, MOST_THREADS)


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] += time.perf_counter() - start


def _join(parts: list[Any]) -> HostBatch:
    if len(parts) == 1:
        return parts[0]
    arrays = {k: np.concatenate([p.arrays[k] for p in parts]) for k in parts[0].arrays}
    seconds = {k: sum((p.seconds[k] for p in parts), 0.0) for k in STAGES}
    return HostBatch(arrays, sum((p.bad for p in parts), collections.Counter()), seconds)
