"""The tar walk against Python's tarfile, and against every way to damage an archive."""

import bz2
import gzip
import io
import lzma
import subprocess
import tarfile

import numpy as np
import pytest

from clip_jax.data.sources import tar
from clip_jax.errors import UserError

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def _write(path, names, format=tarfile.USTAR_FORMAT, **options):
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w", format=format, **options) as out:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = int(rng.integers(0, 2000))
            out.addfile(info, io.BytesIO(rng.bytes(info.size)))
    return path


def _ours(path):
    data = path.read_bytes()
    return [(m.name, data[m.offset : m.offset + m.size]) for m in tar.members(str(path))]


def _theirs(path):
    with tarfile.open(path) as f:
        files = [(m.name, f.extractfile(m)) for m in f if m.isreg()]
        return [(name, file.read()) for name, file in files if file]


def _long(n):
    return "/".join(["d" * 45] * n) + "/x.jpg"


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "names",
    [
        ["a.jpg", "a.txt", "dir/b.jpg"],
        [_long(3), _long(5), "short.txt"],
        ["n" * 99, "n" * 100, "d" * 60 + "/" + "n" * 100],
        ["caf\u00e9.jpg", "\u65e5\u672c/\U0001f600.txt"],
        ["BZh.jpg"],
        [],
    ],
)
def test_agrees_with_tarfile(tmp_path, format, names):
    path = _write(tmp_path / "a.tar", names, FORMATS[format])
    assert _ours(path) == _theirs(path) and len(_ours(path)) == len(names)


@pytest.mark.parametrize("format", ["gnu", "pax"])
def test_names_longer_than_any_header(tmp_path, format):
    names = ["x" * 300 + ".jpg", _long(20), "plain.jpg"]
    path = _write(tmp_path / "a.tar", names, FORMATS[format])
    assert [n for n, _ in _ours(path)] == names
    assert _ours(path) == _theirs(path)


def test_links_and_folders_have_no_data(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as out:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo("l.jpg")
            info.type, info.linkname, info.size = kind, "/etc/passwd" * 20, 0
            out.addfile(info)
        info = tarfile.TarInfo("r.jpg")
        info.size = 3
        out.addfile(info, io.BytesIO(b"abc"))
    assert _ours(path) == [("r.jpg", b"abc")]


def test_global_pax_headers_and_pax_sizes(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x"}) as out:
        info = tarfile.TarInfo("a.jpg")
        info.size, info.pax_headers = 700, {"size": "700", "mtime": "1.5", "path": "b=\n c.jpg"}
        out.addfile(info, io.BytesIO(b"z" * 700))
        info = tarfile.TarInfo("d.jpg")
        info.size = 2
        out.addfile(info, io.BytesIO(b"zz"))
    assert _ours(path) == [("b=\n c.jpg", b"z" * 700), ("d.jpg", b"zz")]
    assert _ours(path) == _theirs(path)


def test_a_pax_size_counts_more_than_the_header(tmp_path):
    pax, body = b"12 size=700\n", b"z" * 700
    blocks = [_header(b"x", b"%011o" % len(pax), kind=b"x"), pax.ljust(512, b"\0")]
    blocks += [_header(b"big.jpg", b"00000000000"), body.ljust(1024, b"\0")]
    blocks += [_header(b"next.jpg", b"00000000002"), b"zz".ljust(512, b"\0")]
    path = _raw(tmp_path / "a.tar", *blocks)
    assert _ours(path) == [("big.jpg", body), ("next.jpg", b"zz")] == _theirs(path)


def test_a_cut_inside_a_member_is_told_from_one_between(tmp_path):
    path = _write(tmp_path / "a.tar", ["a.jpg", "b.jpg"])
    data, second = path.read_bytes(), [m.offset for m in tar.members(str(path))][1]
    for size, message in ((second + 5, f"byte {second} is cut off"), (second - 512, "without the")):
        path.write_bytes(data[:size])
        with pytest.raises(UserError, match=message):
            list(tar.members(str(path)))


def _header(name, size_field, kind=b"0", magic=b"ustar\x0000", prefix=b""):
    block = bytearray(512)
    block[: len(name)] = name
    block[124 : 124 + len(size_field)] = size_field
    block[156:157] = kind
    block[257 : 257 + len(magic)] = magic
    block[345 : 345 + len(prefix)] = prefix
    block[148:156] = b"%06o\0 " % (sum(block) + 8 * 32)
    return bytes(block)


def _raw(path, *blocks, end=bytes(1024)):
    path.write_bytes(b"".join(blocks) + end)
    return path


def test_old_forms_of_headers(tmp_path):
    body = b"abc".ljust(512, b"\0")
    path = _raw(
        tmp_path / "a.tar",
        *(_header(b"base256", b"\x80" + (3).to_bytes(11, "big")), body),
        *(_header(b"spaces", b"         3 "), body),
        *(_header(b"v7", b"00000000003", kind=b"\0", magic=b""), body),
        *(_header(b"gnu", b"00000000003", magic=b"ustar  \0", prefix=b"1234567"), body),
        *(_header(b"posix", b"00000000003", prefix=b"p/q"), body),
        *(_header(b"other", b"00000000003", kind=b"Z"), body),
        *(_header(b"bad\xff", b"00000000003", kind=b"7"), body),
    )
    names = [n for n, _ in _ours(path)]
    assert names == ["base256", "spaces", "v7", "gnu", "p/q/posix", "bad\\xff"]
    assert all(data == b"abc" for _, data in _ours(path))


def test_signed_checksums(tmp_path):
    block = bytearray(_header(b"\xe9.jpg", b"00000000000"))
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 8 * 32 - 256)
    assert _ours(_raw(tmp_path / "a.tar", bytes(block))) == [("\\xe9.jpg", b"")]


def test_every_cut_is_reported(tmp_path):
    names = [f"{i}.{s}" for i in range(5) for s in ("jpg", "txt")] + [_long(5) + "y" * 60]
    whole = _write(tmp_path / "a.tar", names, tarfile.GNU_FORMAT)
    data, cut = whole.read_bytes(), tmp_path / "cut.tar"
    # tarfile pads with zeros to 10,240 bytes; the tar is complete after two zero blocks.
    complete = len(data.rstrip(b"\0")) // 512 * 512 + 512 + 1024
    members = _ours(whole)
    boundaries = {x for x in range(0, complete, 512)}
    for size in sorted({*range(0, complete, 100), *boundaries, complete - 1}):
        cut.write_bytes(data[:size])
        with pytest.raises(UserError, match=r"cut.tar: .*byte \d+"):
            list(tar.members(str(cut)))
    cut.write_bytes(data[:complete])
    assert _ours(cut) == members


def test_damaged_headers_are_reported(tmp_path):
    path = _write(tmp_path / "a.tar", ["a.jpg", "b.jpg"])
    data = bytearray(path.read_bytes())
    second = [m.offset - 512 for m in tar.members(str(path))][1]
    for at, value in ((0, 1), (124, ord("9")), (148, 200), (130, 0xFF)):
        bad = data.copy()
        bad[second + at] ^= value
        path.write_bytes(bad)
        with pytest.raises(UserError, match=rf"is damaged .*byte {second}"):
            list(tar.members(str(path)))


def test_bad_numbers_do_not_loop(tmp_path):
    path = tmp_path / "a.tar"
    pax = b"11 size=-9\n"
    for blocks in (
        [_header(b"n", b"-0000001000")],
        [_header(b"n", b"\xff" * 12)],
        [_header(b"x", b"%011o" % len(pax), kind=b"x"), pax.ljust(512, b"\0"), _header(b"n", b"1")],
        [_header(b"x", b"%011o" % 3, kind=b"x"), b"0 =".ljust(512, b"\0"), _header(b"n", b"1")],
        [_header(b"x", b"%011o" % 3, kind=b"x"), b"abc".ljust(512, b"\0"), _header(b"n", b"1")],
    ):
        with pytest.raises(UserError, match="no valid header"):
            list(tar.members(str(_raw(path, *blocks))))


def test_joined_tars_lose_nothing_silently(tmp_path):
    path = _write(tmp_path / "a.tar", ["a.jpg"])
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(UserError, match="other data follows the end"):
        list(tar.members(str(path)))


@pytest.mark.parametrize(
    ("pack", "name"), [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz")]
)
def test_compressed_tars_are_named(tmp_path, pack, name):
    path = _write(tmp_path / "a.tar", ["a.jpg"])
    path.write_bytes(pack(path.read_bytes()))
    with pytest.raises(UserError, match=f"compressed with {name}; unpack"):
        list(tar.members(str(path)))


@pytest.mark.parametrize("data", [b"<html>" + b"x" * 2000, b"\xff\xd8\xff" + bytes(2000)])
def test_other_files_are_named(tmp_path, data):
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    with pytest.raises(UserError, match="is not a tar file"):
        list(tar.members(str(path)))


def test_sparse_members_are_refused(tmp_path):
    (tmp_path / "hole.jpg").touch()
    with open(tmp_path / "hole.jpg", "r+b") as f:
        f.truncate(1 << 20)
    for options in (["--format=gnu"], ["--format=posix"]):
        command = ["tar", "-S", *options, "-cf", "s.tar", "hole.jpg"]
        try:
            subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("no GNU tar here")
        with pytest.raises(UserError, match="sparse"):
            list(tar.members(str(tmp_path / "s.tar")))
