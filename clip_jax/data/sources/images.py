"""Image files alone, without captions: what there is in folders, at any depth, globs and names.

Not a Source to train on. Costs: about 0.3 KB of memory a file; opening asks for every file's size.
"""

import glob
import os
from collections.abc import Iterator, Sequence

from clip_jax import files
from clip_jax.data.record import IMAGE_SUFFIXES, BadRecord, Place, digest, printable
from clip_jax.errors import UserError


def is_image(name: str) -> bool:
    """True for a name that ends as image files do."""
    return os.path.splitext(name)[1][1:].lower() in IMAGE_SUFFIXES


def find_images(paths: Sequence[str]) -> list[tuple[str, str]]:
    """The image files of folders (at any depth, sorted), globs (sorted) and names (as they are).

    Returns:
        (key, path) of each file once; the key is the path, in a folder relative to it. A file that
        is named needs no image's suffix, and is listed even where there is none.

    Raises:
        UserError: a folder without images, or a glob without a match.
    """
    found: dict[str, str] = {}  # path -> key
    for path in paths:
        if os.path.isdir(path):
            inside = list(_walk(path))
            if not inside:
                raise UserError(f"{path}: no images in this folder; check the path")
            found |= {full: key for key, full in inside if full not in found}
            continue
        names = [path]
        if glob.has_magic(path) and not files.is_remote(path) and not os.path.lexists(path):
            names = sorted(x for x in glob.glob(path, recursive=True) if os.path.isfile(x))
            if not names:
                raise UserError(f"{path}: no file matches; check the pattern")
        found |= {name: name for name in names if name not in found}
    return [(key, path) for path, key in found.items()]


def _walk(root: str) -> Iterator[tuple[str, str]]:
    """(path under root, path); links to folders are not followed, for they may lead in a circle."""
    for folder, subs, names in os.walk(root):
        subs[:] = sorted(x for x in subs if not x.startswith(".") and x != "__MACOSX")
        for name in sorted(names):
            if is_image(name) and not name.startswith("."):
                path = os.path.join(folder, name)
                yield os.path.relpath(path, root), path


class Images:
    """Image files by number."""

    def __init__(self, found: list[tuple[str, str]]):
        self._found = found
        sizes = [(printable(key), os.path.getsize(path)) for key, path in found]
        self.fingerprint = digest("images", 1, sizes)

    def __len__(self) -> int:
        return len(self._found)

    def place(self, i: int) -> Place:
        """Path below the folder, and path."""
        key, path = self._found[i]
        return Place(printable(key), printable(os.path.abspath(path)))

    def image(self, i: int) -> bytes:
        """The file. Raises BadRecord if it cannot be read."""
        try:
            with open(self._found[i][1], "rb") as f:
                return f.read()
        except OSError as e:
            raise BadRecord(f"image file: {e.strerror}") from e

    def texts(self, i: int) -> tuple[str, ...]:
        """None."""
        del i
        return ()


def open_images(paths: Sequence[str]) -> Images:
    """Opens the image files of folders, globs and names.

    Raises:
        UserError: as find_images does; a URL; a file that is not there.
    """
    for path in paths:
        if files.is_remote(path) or path.startswith("file:"):
            raise UserError(f"{path}: only local files can be read for now; copy the data here")
    found = find_images(paths)
    try:
        return Images(found)
    except OSError as e:
        raise UserError(f"{e.filename}: cannot be read ({e.strerror}); check the path") from e
