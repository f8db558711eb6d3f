"""Tars of samples that differ in every byte we read."""

import io
import json
import tarfile

from clip_jax.config.schema import SplitConfig
from clip_jax.data.sources.webdataset import open_webdataset


def write_tar(path, members):
    """A tar of (name, bytes); its path."""
    with tarfile.open(path, "w") as out:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return str(path)


def sample(n, **fields):
    """The members of sample n."""
    image, text = f"jpeg {n}".encode(), f"caption {n}\n".encode()
    json_text = json.dumps({"label": n, **fields}).encode()
    return [(f"{n:04d}.jpg", image), (f"{n:04d}.txt", text), (f"{n:04d}.json", json_text)]


def write_shards(folder, count=3, each=4):
    """The paths of tars s-00000.tar, ...; samples are numbered over all."""
    return [
        write_tar(folder / f"s-{k:05d}.tar", sum((sample(k * each + i) for i in range(each)), []))
        for k in range(count)
    ]


def open_tars(*paths, index_dir="", **options):
    """The source of these tars."""
    cfg = SplitConfig(kind="webdataset", paths=tuple(map(str, paths)), **options)
    return open_webdataset(cfg, index_dir)
