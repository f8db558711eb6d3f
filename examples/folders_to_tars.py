"""Turns class-named folders of images into WebDataset tars.

    python examples/folders_to_tars.py --images DIR/train --out TARS

DIR/train/cat/1.jpg becomes three members of a tar: NNN.jpg (the file as it is), NNN.txt
("a photo of a cat.") and NNN.json ({"label": 0, "name": "cat"}; labels count the sorted folders).
The order is shuffled by a hash of the names, so two runs write the same bytes. Standard library.
"""

import argparse
import hashlib
import io
import json
import os
import pathlib
import sys
import tarfile

SUFFIXES = {".jpg": "jpg", ".jpeg": "jpg", ".png": "png", ".webp": "webp"}


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Appends a member without owner or time, which would differ between runs."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def write_shard(
    path: pathlib.Path, samples: list[tuple[int, pathlib.Path, int]], template: str
) -> None:
    """Writes (number, image file, label) triples under a temporary name, then renames."""
    temporary = path.with_name(f".{path.name}.tmp")
    with tarfile.open(temporary, "w") as tar:
        for number, file, label in samples:
            name = file.parent.name.replace("_", " ")
            fields = json.dumps({"label": label, "name": name})
            add(tar, f"{number:09d}.{SUFFIXES[file.suffix.lower()]}", file.read_bytes())
            add(tar, f"{number:09d}.txt", template.format(name).encode())
            add(tar, f"{number:09d}.json", fields.encode())
    os.replace(temporary, path)


def convert(images: pathlib.Path, out: pathlib.Path, per_shard: int, template: str) -> int:
    """Writes all shards; returns the number of samples. Raises ValueError, OSError."""
    if "{}" not in template or per_shard < 1:
        raise ValueError("--template needs a {}, --samples_per_shard a number above 0")
    classes = sorted(x.name for x in images.iterdir() if x.is_dir() and x.name[0] != ".")
    files = [
        x for name in classes for x in (images / name).iterdir() if x.suffix.lower() in SUFFIXES
    ]
    if not files:
        raise ValueError(f"{images}: no CLASS/IMAGE.jpg (png, webp) in it; give the folder above")
    out.mkdir(parents=True, exist_ok=True)
    if any(out.glob("*.tar")):
        raise ValueError(f"{out}: holds tars already; choose an empty folder")
    files.sort(key=lambda x: hashlib.sha256(x.relative_to(images).as_posix().encode()).digest())
    samples = [(n, x, classes.index(x.parent.name)) for n, x in enumerate(files)]
    for start in range(0, len(samples), per_shard):
        shard = out / f"{images.resolve().name}-{start // per_shard:05d}.tar"
        write_shard(shard, samples[start : start + per_shard], template)
    return len(samples)


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description="class-named folders of images -> WebDataset tars")
    parser.add_argument("--images", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--samples_per_shard", type=int, default=5000)
    parser.add_argument("--template", default="a photo of a {}.")
    args = parser.parse_args()
    try:
        count = convert(args.images, args.out, args.samples_per_shard, args.template)
    except (ValueError, OSError, LookupError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    print(f"{count} samples in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
