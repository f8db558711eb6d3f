"""OpenAI's CLIP byte-pair encoding, with the ids that OpenCLIP's SimpleTokenizer gives.

ids: 256 bytes, the same 256 at the end of a word, 48,894 merges, start 49406, end 49407.
A row is start, words, end, pads (0, also the id of `!`); a longer one is cut and ends in 49407.

Legend: n = captions, t = context.
Costs: each whitespace-separated chunk is encoded once and remembered, and ASCII captions skip the
repair, which changes nothing there: about 4 us a caption on one core, 30 us for the others.
`clip_jax bench tokenizer` measures it. Memory: at most 2^18 remembered chunks, some 40 MB.
"""

import array
import glob
import gzip
import hashlib
import heapq
import importlib.util
import itertools
import json
import os
import zlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import regex

from clip_jax.config.schema import TokenizerConfig
from clip_jax.errors import UserError
from clip_jax.tokenizers.canonicalize import repair
from clip_jax.tokenizers.source import model_bytes

VOCAB_SIZE, SOT_ID, EOS_ID = 49408, 49406, 49407
NUM_MERGES = VOCAB_SIZE - 2 * 256 - 2
# Of the merges in our plain form; the same from OpenAI's .txt.gz and Hugging Face's merges.txt.
MERGES_SHA256 = "9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a"

# IGNORECASE although the text is lower case: `s` then also matches U+017F, as in the original.
_WORD = regex.compile(
    r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)
_SPECIAL = {"<start_of_text>": SOT_ID, "<end_of_text>": EOS_ID}
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_MAX_CHUNKS, _MAX_CHUNK_CHARS = 1 << 18, 64


class ClipBPE:
    """Captions to rows of ids.

    Args:
        merges: the merges file in plain form, as `read_merges` returns it.
        pad_id: id that fills a row; Stable Diffusion 1 wants the end of text there.
    """

    vocab_size, eos_id = VOCAB_SIZE, EOS_ID

    def __init__(self, merges: bytes, pad_id: int = 0):
        self._merges, self.pad_id = merges, pad_id
        self._pad = _raw([pad_id])
        self._byte_ids, self._pairs = _tables(merges)
        self._chunks = _Memo(self._chunk)

    def __call__(self, texts: Sequence[str], context: int) -> np.ndarray:
        """Returns int32 (n, t)."""
        rows = bytearray().join([self._row(text, 4 * context) for text in texts])
        return np.frombuffer(rows, np.int32).reshape(len(texts), context)  # (n, t)

    def to_bytes(self) -> bytes:
        """The merges, for `build(stored=...)`."""
        return self._merges

    def _row(self, text: str, num_bytes: int) -> bytes:
        """One row of ids as raw int32."""
        if not _is_plain(text):
            text = repair(text)
        row = b"".join((_SOT, *map(self._chunks.__getitem__, text.lower().split()), _EOS))
        if len(row) > num_bytes:
            return row[: num_bytes - 4] + _EOS
        return row + self._pad * ((num_bytes - len(row)) // 4)

    def _chunk(self, chunk: str) -> bytes:
        """Ids of text without whitespace as raw int32. No word of the pattern spans whitespace."""
        return _raw([i for word in _WORD.findall(chunk) for i in self._word(word)])

    def _word(self, word: str) -> list[int]:
        if word in _SPECIAL:
            return [_SPECIAL[word]]
        ids = [self._byte_ids[b] for b in word.encode()]
        ids[-1] += 256
        return merge(ids, self._pairs)


def _is_plain(text: str) -> bool:
    """True if `repair` would change nothing but whitespace at the ends.

    ftfy acts on non-ASCII, control characters and entities, unescape on entities.
    """
    return text.isascii() and text.strip().isprintable() and "&" not in text


class _Memo(dict[str, bytes]):
    """Raw ids by chunk, computed on first use; bounded in entries and in the size of each."""

    def __init__(self, encode: Callable[[str], bytes]):
        super().__init__()
        self._encode = encode

    def __missing__(self, chunk: str) -> bytes:
        ids = self._encode(chunk)
        if len(chunk) <= _MAX_CHUNK_CHARS:
            if len(self) >= _MAX_CHUNKS:
                self.clear()
            self[chunk] = ids
        return ids


def merge(ids: list[int], pairs: dict[tuple[int, int], int]) -> list[int]:
    """Joins neighbours, the earliest merge first, from left to right.

    A heap over a linked list: O(n log n), so that one huge word (base64 in a web caption) costs
    a second and not minutes. It equals the usual "replace every occurrence of the best pair",
    because a merge that uses a new id always has a later id itself.

    Args:
        ids: one word; overwritten.
        pairs: (left id, right id) -> merged id; a smaller merged id is an earlier merge.
    """
    n = len(ids)
    left, right = list(range(-1, n - 1)), list(range(1, n + 1))
    heap = [(pairs[p], i) for i, p in enumerate(itertools.pairwise(ids)) if p in pairs]
    heapq.heapify(heap)
    while heap:
        new, i = heapq.heappop(heap)
        j = right[i]
        if j == n or pairs.get((ids[i], ids[j])) != new:
            continue  # one of the two has been merged since
        ids[i], ids[j] = new, -1
        right[i] = right[j]
        if right[j] < n:
            left[right[j]] = i
        for k in (left[i], i):
            if k >= 0 and right[k] < n and (pair := (ids[k], ids[right[k]])) in pairs:
                heapq.heappush(heap, (pairs[pair], k))
    return [i for i in ids if i >= 0]


def _raw(ids: list[int]) -> bytes:
    return array.array("i", ids).tobytes()


_SOT, _EOS = _raw([SOT_ID]), _raw([EOS_ID])


def vocabulary(merges: bytes) -> dict[str, int]:
    """Token -> id, as Hugging Face's vocab.json writes them."""
    symbols = _symbols()
    words = [*symbols, *(s + "</w>" for s in symbols)]
    words += ["".join(line.split(" ")) for line in merges.decode().split("\n")[1:-1]]
    return {w: i for i, w in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}


def _symbols() -> list[str]:
    """The characters of the 256 bytes: Latin-1, the unprintable ones as U+0100 and on."""
    return [chr(b) for b in _PRINTABLE] + [chr(256 + i) for i in range(256 - len(_PRINTABLE))]


def _tables(merges: bytes) -> tuple[dict[int, int], dict[tuple[int, int], int]]:
    """Returns byte -> id, and (left id, right id) -> merged id."""
    order = _PRINTABLE + [b for b in range(256) if b not in _PRINTABLE]
    symbols = _symbols()
    id_of = {s: i for i, s in enumerate(symbols + [s + "</w>" for s in symbols])}
    pairs = {}
    for line in merges.decode().split("\n")[1:-1]:
        a, b = line.split(" ")
        pairs[id_of[a], id_of[b]] = id_of[a + b] = len(id_of)
    return {b: i for i, b in enumerate(order)}, pairs


# The merges file


def read_merges(data: bytes, where: str) -> bytes:
    """Brings a merges file to one plain form: a header line, then NUM_MERGES lines `a b`.

    Args:
        data: OpenAI's `bpe_simple_vocab_16e6.txt.gz`, Hugging Face's `merges.txt` or our own form;
            gzip or plain.
        where: origin, for the message.

    Raises:
        UserError: the merges are not CLIP's. Others would give other ids to the same words, and
            nothing would show it.
    """
    try:
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as e:
        raise _not_merges(where, "unreadable") from e
    lines = [" ".join(line.split()) for line in text.split("\n")[: NUM_MERGES + 1]]
    plain = "\n".join(["#version: 0.2", *lines[1:], ""]).encode()
    if hashlib.sha256(plain).hexdigest() != MERGES_SHA256:
        raise _not_merges(where, "other contents")
    return plain


def merges_of_json(data: bytes) -> bytes:
    """The merges inside Hugging Face's tokenizer.json, as a merges.txt; b"" if it has none."""
    try:
        pairs = json.loads(data)["model"]["merges"]
        lines = [pair if isinstance(pair, str) else " ".join(pair) for pair in pairs]
    except (ValueError, KeyError, TypeError):
        return b""
    return "\n".join(["#version: 0.2", *lines, ""]).encode()


def _not_merges(where: str, what: str) -> UserError:
    return UserError(
        f"{where}: not the merges of CLIP (got {what}); "
        "give bpe_simple_vocab_16e6.txt.gz of OpenAI or merges.txt of openai/clip-vit-base-patch32"
    )


def _candidates() -> Iterable[str]:
    """Paths where other installed software keeps the merges."""
    for package in ("open_clip", "clip"):
        spec = importlib.util.find_spec(package)  # finds it without importing it
        for folder in (spec and spec.submodule_search_locations) or ():
            yield os.path.join(folder, "bpe_simple_vocab_16e6.txt.gz")
    env = os.environ.get
    cache = env("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    home = env("HF_HOME") or os.path.join(cache, "huggingface")
    hub = env("HF_HUB_CACHE") or os.path.join(home, "hub")
    pattern = os.path.join("models--openai--clip-*", "snapshots", "*", "merges.txt")
    yield from sorted(glob.glob(os.path.join(glob.escape(hub), pattern)))


def find_merges() -> str:
    """Returns the path of an installed merges file.

    Raises:
        UserError: there is none.
    """
    for path in _candidates():
        if os.path.isfile(path):
            return path
    raise UserError(
        "config.tokenizer.path: no merges file of CLIP in open_clip, clip or the Hugging Face cache"
        " (got an empty path); run `pip install --no-deps open_clip_torch`, or give the path"
    )


def build(
    cfg: TokenizerConfig,
    *,
    vocab_size: int,
    captions: Iterable[str] | None = None,
    stored: bytes | None = None,
) -> ClipBPE:
    """Builds from stored bytes, else `cfg.path`, else an installed merges file."""
    del vocab_size, captions  # the vocabulary is given
    data, where = model_bytes(cfg, stored)
    if data is None:
        where = find_merges()
        with open(where, "rb") as f:
            data = f.read()
    return ClipBPE(read_merges(data, where), max(cfg.pad_id, 0))
