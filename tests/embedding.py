"""Embeds data in this process, as the command does, and reads what it wrote."""

import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from clip_jax.config.schema import SplitConfig
from clip_jax.data.sources.located import guess_kind, open_located
from clip_jax.inference.embed import embed
from clip_jax.inference.index import Index, model_digest, software
from clip_jax.metrics.writers import LiveLine


def write(model, data, out, *, what="both", part_size=10_000, kind="", stream=None, **fields):
    """Embeds `data` (a path) into the folder `out`."""
    kind = kind or guess_kind([str(data)], captions=what != "image")
    cfg = SplitConfig(kind=kind, paths=(str(data),), **fields)
    source = open_located(cfg, index_dir="")
    index = Index(
        source="the model",
        model=model_digest(model),
        embed_dim=model.config.model.embed_dim,
        what=what,
        part_size=part_size,
        num_records=len(source),
        fingerprint=source.fingerprint,
        data=cfg,
        software=software(),
    )
    return embed(model, source, index, str(out), LiveLine(len(source), stream, unit="record"))


def parts(out):
    """{name: bytes} of the parts."""
    return {p.name: p.read_bytes() for p in sorted(pathlib.Path(out).glob("part-*"))}


def table(out):
    """All parts as one pyarrow table."""
    return pa.concat_tables(
        [pa.parquet.read_table(p) for p in sorted(pathlib.Path(out).glob("part-*"))]
    )


def column(table, name):
    """An embedding column as float32 (b, e), NaN where null."""
    empty = [np.nan] * table.schema.field(name).type.list_size
    return np.asarray([x or empty for x in table.column(name).to_pylist()], np.float32)
