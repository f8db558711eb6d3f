"""TFDS data sets built in ArrayRecord, read without TensorFlow.

We read TFDS's raw records and pick the stored image file and the strings from the tf.train.Example
ourselves. Measured: 15 us a record and 5 us for each field, where TFDS's own feature layer takes
several times as long. Opening counts the records of each file (0.3 ms). Memory: TFDS's reader only.
"""

import dataclasses
import os
from typing import Any

import numpy as np

from clip_jax import files
from clip_jax.config.schema import SplitConfig
from clip_jax.data.embedded import EMBEDDED
from clip_jax.data.record import BadRecord, Example, Place, checked, clean_texts, digest, scalars
from clip_jax.errors import UserError, near

_CAPTION_FIELDS = ("caption", "captions", "text", "texts")


@dataclasses.dataclass(frozen=True)
class _Fields:
    """Which features of a data set become what."""

    image: str
    caption: str
    scalars: tuple[str, ...]
    classes: dict[str, tuple[str, ...]]  # names of each ClassLabel


def open_tfds(cfg: SplitConfig, index_dir: str) -> "Tfds":
    """Opens one split of a built data set, or of an embedded one (which is built at first use)."""
    del index_dir  # ArrayRecord files have their own index
    if len(cfg.paths) != 1:
        raise UserError(f"data paths: one TFDS data set at a time (got {len(cfg.paths)})")
    return Tfds(_directory(cfg.paths[0]), cfg)


class Tfds:
    """A Source over one split; a split may be an expression such as 'train[:10%]+validation'."""

    def __init__(self, directory: str, cfg: SplitConfig):
        import tensorflow_datasets as tfds
        from tensorflow_datasets.proto import tf_example_pb2

        proto: Any = tf_example_pb2  # generated: checkers see no names in it
        self._arguments = (directory, cfg)
        info = _info(directory)
        self._fields = _choose(directory, info.features, cfg)
        instructions = _instructions(directory, info, cfg.split)
        self._parse = proto.Example.FromString
        self._records = info.builder.as_data_source(
            cfg.split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        parts = [(os.path.basename(x.filename), _size(x), x.skip, x.take) for x in instructions]
        self.fingerprint = digest("tfds", info.full_name, parts, dataclasses.astuple(self._fields))

    def __reduce__(self):
        return Tfds, self._arguments  # readers do not travel

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> Example:
        features, wanted = self._features(i), self._fields
        image = b"".join(features[wanted.image].bytes_list.value[:1])
        texts = clean_texts(features[wanted.caption].bytes_list.value)
        fields = {name: _scalar(features[name]) for name in wanted.scalars}
        for name, classes in wanted.classes.items():
            number = fields[name]
            if isinstance(number, int) and 0 <= number < len(classes):
                fields[f"{name}_name"] = classes[number]
        return checked(str(i), image, texts, scalars(fields))

    def texts(self, i: int) -> tuple[str, ...]:
        """Only the captions; empty if there are none."""
        try:
            return clean_texts(self._features(i)[self._fields.caption].bytes_list.value)
        except BadRecord:
            return ()

    def place(self, i: int) -> Place:
        """Number and DATA_SET#NUMBER."""
        return Place(str(i), f"{os.path.abspath(self._arguments[0])}#{i}")

    def image(self, i: int) -> bytes:
        """Only the image file; empty if there is none. Raises BadRecord if it cannot be read."""
        return b"".join(self._features(i)[self._fields.image].bytes_list.value[:1])

    def _features(self, i: int) -> Any:
        if not 0 <= i < len(self):
            raise IndexError(i)
        try:
            return self._parse(self._records[i]).features.feature
        except Exception as e:  # C++ errors of the reader and the parser, of several kinds
            raise BadRecord("record damaged") from e


def _scalar(feature: Any) -> int | str | None:
    for value in feature.int64_list.value:
        return int(value)
    for value in feature.bytes_list.value:
        return value.decode("utf-8", "replace")
    return None


# Opening


def _directory(path: str) -> str:
    """The folder with dataset_info.json: the path itself, its only version, or an embedded set."""
    if path in EMBEDDED:
        return EMBEDDED[path]()
    if files.is_remote(path):
        raise UserError(f"{path}: only local data sets can be read for now; copy it here")
    if not os.path.isdir(path):
        raise UserError(
            f"{path}: no such folder, and no embedded data set ({', '.join(EMBEDDED)}); name a "
            f"built data set{near(path, EMBEDDED)}"
        )
    if _is_built(path):
        return path
    versions = [x for x in sorted(os.listdir(path)) if _is_built(os.path.join(path, x))]
    if len(versions) != 1:
        found = f"several versions ({', '.join(versions)})" if versions else "no dataset_info.json"
        raise UserError(f"{path}: {found}; give the folder of one built version, NAME/1.0.0")
    return os.path.join(path, versions[0])


def _is_built(path: str) -> bool:
    return os.path.isfile(os.path.join(path, "dataset_info.json"))


@dataclasses.dataclass(frozen=True)
class _Info:
    builder: Any
    full_name: str
    features: Any
    splits: Any


def _info(directory: str) -> _Info:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(directory)
        info = builder.info
        form = info.file_format.value if info.file_format else "unknown"
        found = _Info(builder, info.full_name, info.features, info.splits)
    except Exception as e:  # damaged JSON, unknown features: TFDS raises many kinds
        line = (str(e).splitlines() or [type(e).__name__])[0]
        raise UserError(
            f"{directory}: not a readable TFDS data set ({line}); build it again"
        ) from e
    if form != "array_record":
        raise UserError(
            f"{directory}: stored as {form}, which has no random access; build it again with "
            "download_and_prepare(file_format='array_record')"
        )
    return found


def _instructions(directory: str, info: _Info, split: str) -> list:
    """The files of a split, all of them there."""
    try:
        instructions = info.splits[split].file_instructions
    except Exception as e:  # KeyError, ValueError, AssertionError: whatever the expression broke
        names = ", ".join(info.splits)
        raise UserError(
            f"{directory}: no split '{split}' (has {names}); use one of them, also as "
            f"'a+b' or 'a[:10%]'{near(split, info.splits) if split.isidentifier() else ''}"
        ) from e
    if not instructions:
        raise UserError(f"{directory}: split '{split}' holds no examples; use a larger one")
    for x in instructions:
        _check_file(x)
    return list(instructions)


def _check_file(instruction: Any) -> None:
    """A cut ArrayRecord file would give empty records, and no error."""
    from array_record.python.array_record_module import ArrayRecordReader

    path, wanted = instruction.filename, instruction.examples_in_shard
    if not os.path.isfile(path):
        raise UserError(f"{path}: missing; copy or build the data set again")
    reader = ArrayRecordReader(path)
    found = reader.num_records() if reader.ok() else 0
    if found != wanted:
        raise UserError(
            f"{path}: cut or damaged ({found} readable records of {wanted}); copy or build the "
            "data set again"
        )
    reader.close()


def _size(instruction: Any) -> int:
    return os.path.getsize(instruction.filename)


def _choose(directory: str, features: Any, cfg: SplitConfig) -> _Fields:
    import tensorflow_datasets as tfds

    kinds = tfds.features
    pick = dict(sorted(features.items()))  # TFDS gives them in another order in each process
    image = cfg.image_field or "image"
    if not isinstance(pick.get(image), kinds.Image) or pick[image].np_dtype == np.float32:
        images = [name for name, x in pick.items() if isinstance(x, kinds.Image)]
        raise _no_field(directory, "image", image, images, pick)
    captions = [name for name, x in pick.items() if _is_text(x) or _is_text(_inner(x))]
    usual = [name for name in _CAPTION_FIELDS if name in captions]
    caption = cfg.caption_field or next(iter(usual), "caption")
    if caption not in captions:
        raise _no_field(directory, "caption", caption, captions, pick)
    others = tuple(n for n, x in pick.items() if n not in (image, caption) and _is_scalar(x))
    labels = {n: tuple(pick[n].names) for n in others if isinstance(pick[n], kinds.ClassLabel)}
    return _Fields(image, caption, others, labels)


def _no_field(
    directory: str, what: str, name: str, fit: list[str], features: dict[str, Any]
) -> UserError:
    hint = f"; name one with {what}_field ({', '.join(fit)})" if fit else ""
    return UserError(
        f"{directory}: no {what} feature '{name}' (has {', '.join(features)})"
        + (hint or "; build the data set with one")
    )


def _inner(feature: Any) -> Any:
    """What a Sequence(feature) is made of."""
    return getattr(feature, "feature", None)


def _is_text(feature: Any) -> bool:
    return feature is not None and _is_scalar(feature) and _is_string(feature)


def _is_string(feature: Any) -> bool:
    return np.dtype(feature.np_dtype).kind in "OSU"


def _is_scalar(feature: Any) -> bool:
    """An integer, a truth value or a string."""
    import tensorflow_datasets as tfds

    if not isinstance(feature, tfds.features.Tensor) or feature.shape != ():
        return False
    return _is_string(feature) or np.dtype(getattr(feature, "np_dtype", None)).kind in "iub"
