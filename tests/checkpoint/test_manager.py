"""What was saved is what comes back, or the step before it with one line that says so."""

import json
import os
import pathlib
import resource  # noqa: F401  (for the processes of `run`)
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.checkpoint.checksum import checksums
from clip_jax.checkpoint.manager import Checkpoints
from clip_jax.errors import UserError

MANIFEST = {"config": {"model": "tiny", "sizes": [1, 2]}, "position": 12_800_000_000}
FILES = {"tokenizer.model": bytes(range(256)), "empty": b""}


def sharding(shape=(8,), *spec):
    devices = np.array(jax.devices()[: np.prod(shape)]).reshape(shape)
    names = ("data", "fsdp")[: len(shape)]
    return NamedSharding(jax.sharding.Mesh(devices, names, (AxisType.Auto,) * len(shape)), P(*spec))


def make(seed=0, where=None):
    """The items of a small state: all that a training state holds, with random numbers."""
    rng = np.random.default_rng(seed)

    def array(*shape, dtype="float32"):
        x = jnp.asarray(rng.normal(size=shape) * 30, dtype)
        return jax.device_put(x, where or sharding((8,), "data"))

    params = {
        "image": {"blocks": {"attn": {"kernel": array(8, 64, 64)}}, "cls": array(8)},
        "text": {"half": array(8, 32, dtype="bfloat16"), "ids": array(16, dtype="int32")},
    }
    return {
        "params": params,
        "stats": {},
        "opt_state": jax.jit(optax.adamw(1e-3).init)(params),
        "rest": {
            "step": jnp.int32(seed),
            "rng": jax.random.key(seed),
            "none": None,
            "flags": jnp.arange(8) % 3 == 0,
            "void": jnp.zeros((0, 3)),
        },
    }


def abstract(items, where=None):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where or x.sharding), items
    )


def save(workdir, *steps, keep=9):
    checkpoints = Checkpoints(str(workdir), keep=keep)
    for step in steps:
        checkpoints.save(step, make(step), MANIFEST | {"at": step}, FILES)
    checkpoints.close()


def restore(workdir, want=None, keep=9):
    """(restored, lines that were said)."""
    said = []
    checkpoints = Checkpoints(str(workdir), keep=keep)
    restored = checkpoints.restore_latest(lambda _: want or abstract(make()), said.append)
    checkpoints.close()
    return restored, said


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    assert checksums(got) == checksums(want)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with steps 100 and 200; copy it before you damage it."""
    workdir = tmp_path_factory.mktemp("saved")
    save(workdir, 100, 200)
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    return pathlib.Path(shutil.copytree(saved, tmp_path / "run"))


def run(code, *args):
    """Runs Python in a process of its own with this file's helpers; its output may be read."""
    command = [sys.executable, "-c", "from test_manager import *\n" + code, *map(str, args)]
    here = str(pathlib.Path(__file__).parent)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([here, *filter(None, sys.path)])}
    env["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    return subprocess.Popen(command, env=env, stdout=-1, stderr=-1, text=True)


def test_comes_back_bit_by_bit(workdir):
    restored, said = restore(workdir)
    assert said == []
    assert restored.step == 200
    assert_same(restored.items, make(200))
    for got, want in zip(
        jax.tree.leaves(restored.items), jax.tree.leaves(abstract(make())), strict=True
    ):
        assert got.sharding == want.sharding
    assert restored.extra_files == FILES
    assert restored.manifest.items() >= (MANIFEST | {"at": 200}).items()
    assert restored.manifest["layout_version"] == 1
    assert restored.manifest["software"]["jax"] == jax.__version__
    assert restored.manifest["checksums"] == checksums(make(200))
    assert restored.manifest["arrays"]["params/text/half"] == "bfloat16[8,32]"


@pytest.mark.parametrize(
    "where",
    [sharding((1,)), sharding((4,)), sharding((2, 4)), None],
    ids=["one device", "four", "2x4", "2x4 fsdp"],
)
def test_comes_back_on_another_mesh(workdir, where):
    want = abstract(make(), where)
    if where is None:
        kernel = jax.ShapeDtypeStruct((8, 64, 64), "float32")
        kernel = kernel.update(sharding=sharding((2, 4), None, "fsdp", "data"))
        want = abstract(make(), sharding((2, 4)))
        want["params"]["image"]["blocks"]["attn"]["kernel"] = kernel
    restored, said = restore(workdir, want)
    assert (restored.step, said) == (200, [])
    assert_same(restored.items, make(200))
    for got, ask in zip(jax.tree.leaves(restored.items), jax.tree.leaves(want), strict=True):
        assert got.sharding == ask.sharding


def test_part_of_the_items(workdir):
    restored, _ = restore(workdir, {"params": abstract(make()["params"])})
    assert_same(restored.items, {"params": make(200)["params"]})


def test_nothing_yet(tmp_path):
    assert restore(tmp_path)[0] is None
    reader = Checkpoints(str(tmp_path / "nowhere"))
    assert (reader.restore_latest(lambda _: abstract(make()), print), reader.steps()) == (None, [])
    assert reader.manifest() is None
    reader.close()
    assert not (tmp_path / "nowhere").exists()


def test_steps_and_manifest(workdir):
    reader = Checkpoints(str(workdir))
    assert reader.steps() == [100, 200]
    assert (reader.manifest()["at"], reader.manifest(100)["at"]) == (200, 100)
    with pytest.raises(UserError, match="checkpoint 150 is damaged .it has no manifest"):
        reader.manifest(150)
    with pytest.raises(ValueError, match="read only"):
        reader.save(300, make(), {})


def test_relative_workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("my run", 1)
    monkeypatch.chdir("/")
    assert restore(tmp_path / "my run")[0].step == 1


def test_retention_by_count(tmp_path):
    save(tmp_path, *range(1, 6), keep=2)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["4", "5"]
    assert restore(tmp_path)[0].step == 5


def test_saving_a_step_again_changes_nothing(workdir):
    checkpoints = Checkpoints(str(workdir), keep=9)
    checkpoints.save(200, make(1), {"at": "again"})
    checkpoints.close()
    assert_same(restore(workdir)[0].items, make(200))


def test_arrays_may_be_donated_after_save(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), keep=2)
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    for step in (1, 2, 3):
        items = make(step)
        checkpoints.save(step, items, {})
        params = items["params"]
        for _ in range(5):
            params = overwrite(params)
        checkpoints.wait()
        restored = checkpoints.restore_latest(lambda _: abstract(make()), print)
        assert restored.step == step
        assert_same(restored.items, make(step))
    checkpoints.close()


# A config that does not fit


def test_other_model_is_refused_with_all_differences(workdir):
    want = abstract(make())
    want["params"]["image"]["cls"] = jax.ShapeDtypeStruct((16,), "float32")
    want["params"]["text"]["half"] = jax.ShapeDtypeStruct((8, 32), "float32")
    want["params"]["new"] = want["params"]["text"].pop("ids")
    want["ema"] = {}
    with pytest.raises(UserError) as e:
        restore(workdir, want)
    first, *differences = str(e.value).split("\n  ")
    assert "checkpoint 200 does not fit this config; use the config it was saved with" in first
    assert differences == [
        "params/image/cls: saved float32[8] -> wanted float32[16]",
        "params/new: saved nothing -> wanted int32[16]",
        "params/text/half: saved bfloat16[8,32] -> wanted float32[8,32]",
        "params/text/ids: saved int32[16] -> wanted nothing",
        "ema: was not saved",
    ]
    assert Checkpoints(str(workdir)).steps() == [100, 200]


def rewrite(workdir, step, change):
    """Changes a manifest and seals it again."""
    from clip_jax.checkpoint.manifest import seal, unseal

    path = workdir / "checkpoints" / str(step) / "manifest" / "metadata"
    manifest = unseal(path.read_bytes())
    change(manifest)
    path.write_text(json.dumps(seal(manifest)))


def test_newer_layout_is_refused(workdir):
    rewrite(workdir, 200, lambda m: m.update(layout_version=2))
    with pytest.raises(UserError, match="has layout 2, this clip_jax reads up to 1; update"):
        restore(workdir)


# Damage


def damage(path, how):
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    if how == "delete":
        path.unlink()
        return
    if how == "flip" and data:
        data[middle] ^= 4
    if how == "zero":
        data[middle : middle + 100] = bytes(len(data[middle : middle + 100]))
    if how == "truncate":
        del data[middle:]
    path.write_bytes(data)


def step_files(workdir):
    folder = workdir / "checkpoints" / "200"
    return sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())


@pytest.mark.slow
@pytest.mark.parametrize("how", ["flip", "zero", "truncate", "delete"])
def test_damage_to_any_file_is_never_silent(workdir, how):
    """Each file of the newest step in turn: what comes back is right, or the step before."""
    good, seen = {step: make(step) for step in (100, 200)}, {}
    reader = Checkpoints(str(workdir))
    for name in step_files(workdir):
        if name.parts[0] == "opt_state":  # the same kinds of files as params
            continue
        path = workdir / "checkpoints" / "200" / name
        content = path.read_bytes()
        damage(path, how)
        said = []
        restored = reader.restore_latest(lambda _: abstract(make()), said.append)
        seen[name] = restored.step
        assert_same(restored.items, good[restored.step])
        assert restored.extra_files == FILES and restored.manifest["at"] == restored.step
        assert len(said) == (restored.step == 100), (name, said)
        path.write_bytes(content)
    assert len(seen) > 15
    needed = ("manifest/metadata", "extra_files/metadata", "params/manifest.ocdbt")
    arrays = biggest(workdir).relative_to(workdir / "checkpoints" / "200")
    assert {seen[pathlib.Path(name)] for name in (*needed, arrays)} == {100}


def test_damage_all_over_the_arrays_is_never_silent(workdir):
    path = biggest(workdir)
    content = path.read_bytes()
    want = {"params": abstract(make()["params"])}
    reader = Checkpoints(str(workdir))
    for place in np.random.default_rng(0).integers(len(content), size=10):
        data = bytearray(content)
        data[place] ^= 16
        path.write_bytes(data)
        restored = reader.restore_latest(lambda _: want, lambda line: None)
        assert_same(restored.items["params"], make(restored.step)["params"])
        assert restored.step == 100


def biggest(workdir, item="params"):
    folder = workdir / "checkpoints" / "200" / item
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_flipped_bit_in_an_array(workdir, capfd):
    path = biggest(workdir)
    damage(path, "flip")
    restored, said = restore(workdir)
    assert restored.step == 100
    (line,) = said
    assert line == (
        "checkpoint 200 is damaged (params/image/blocks/attn/kernel: checksum differs); "
        "using 100 instead"
    )
    assert sorted(os.listdir(workdir / "checkpoints")) == ["100", "200.damaged"]
    save(workdir, 200)  # the run comes by again
    restored, said = restore(workdir)
    assert (restored.step, said) == (200, [])
    assert_same(restored.items, make(200))
    damage(biggest(workdir), "flip")
    assert restore(workdir)[0].step == 100
    assert sorted(os.listdir(workdir / "checkpoints")) == ["100", "200.damaged"]
    assert capfd.readouterr() == ("", "")


def test_a_manifest_that_is_there_and_cannot_be_read(workdir):
    path = workdir / "checkpoints" / "200" / "manifest" / "metadata"
    path.unlink()
    path.mkdir()  # the same error class as of a bad sector or a stale mount
    restored, (line,) = restore(workdir)
    assert restored.step == 100
    assert "200 is damaged (its manifest cannot be read: Is a directory); using 100" in line


def test_step_older_than_the_damaged_one_can_be_saved(workdir):
    damage(biggest(workdir), "truncate")
    checkpoints = Checkpoints(str(workdir), keep=2)
    restored = checkpoints.restore_latest(lambda _: abstract(make()), print)
    assert restored.step == 100
    for step in (150, 200):
        checkpoints.save(step, make(step), {})
    checkpoints.close()
    assert sorted(os.listdir(workdir / "checkpoints")) == ["150", "200", "200.damaged"]
    assert_same(restore(workdir)[0].items, make(200))


def test_parameters_that_are_not_finite(tmp_path):
    save(tmp_path, 100)
    bad = make(200)
    bad["params"]["image"]["cls"] = bad["params"]["image"]["cls"].at[3].set(jnp.inf)
    checkpoints = Checkpoints(str(tmp_path), keep=9)
    checkpoints.save(200, bad, {})
    checkpoints.close()
    restored, said = restore(tmp_path)
    assert restored.step == 100
    assert "(params/image/cls: not finite)" in said[0]


def test_things_that_are_no_checkpoints(workdir):
    folder = workdir / "checkpoints"
    (folder / "777").mkdir()
    (folder / "888" / "mine").mkdir(parents=True)
    (folder / "999").write_text("a file")
    (folder / "0300").mkdir()
    (folder / "notes.txt").write_text("keep me")
    assert Checkpoints(str(workdir)).steps() == [100, 200]
    restored, said = restore(workdir)
    assert restored.step == 200
    assert said == [
        "checkpoint 888 is damaged (it has no manifest); using 200 instead",
        "checkpoint 777 is damaged (it has no manifest); using 200 instead",
    ]
    assert (folder / "888.damaged" / "mine").exists()
    assert (folder / "notes.txt").exists() and (folder / "999").exists()


def test_foreign_folders_do_not_count_for_retention(workdir):
    for name in ("777", "888"):
        (workdir / "checkpoints" / name).mkdir()
    save(workdir, 300, keep=2)
    assert Checkpoints(str(workdir)).steps() == [200, 300]
    assert restore(workdir)[0].step == 300


def test_all_damaged_is_an_error_and_stays_one(workdir):
    damage(biggest(workdir), "flip")
    (workdir / "checkpoints" / "100" / "manifest" / "metadata").unlink()
    for _ in range(2):
        with pytest.raises(UserError, match="every checkpoint is damaged .200: params/.*, 100: it"):
            restore(workdir)


def test_reader_changes_nothing(workdir):
    damage(biggest(workdir), "flip")
    (workdir / "checkpoints" / "300.orbax-checkpoint-tmp").mkdir()
    before = sorted(workdir.rglob("*"))
    reader = Checkpoints(str(workdir))
    assert reader.restore_latest(lambda _: abstract(make()), print).step == 100
    reader.close()
    assert sorted(workdir.rglob("*")) == before


def test_left_over_folders_are_removed_at_start(workdir):
    (workdir / "checkpoints" / "300.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    (workdir / "checkpoints" / "300.orbax-checkpoint-tmp-17").mkdir()
    Checkpoints(str(workdir), keep=2).close()
    assert sorted(os.listdir(workdir / "checkpoints")) == ["100", "200"]


# Faults of the process and the disk


@pytest.mark.slow
def test_killed_while_saving(tmp_path):
    code = """
checkpoints = Checkpoints(sys.argv[1], keep=2)
checkpoints.save(1, make(1), {})
checkpoints.wait()
items = make(2)
items["params"]["big"] = jnp.asarray(np.random.default_rng(0).normal(size=(4000, 4000)))
checkpoints.save(2, items, {})
os.kill(os.getpid(), signal.SIGKILL)
"""
    child = run(code, tmp_path)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    left = sorted(os.listdir(tmp_path / "checkpoints"))
    assert left[0] == "1" and "2.orbax-checkpoint-tmp" in left[1]
    restored, said = restore(tmp_path)
    assert (restored.step, said) == (1, [])
    assert_same(restored.items, make(1))
    assert os.listdir(tmp_path / "checkpoints") == ["1"]
    save(tmp_path, 2)
    assert restore(tmp_path)[0].step == 2


@pytest.mark.slow
def test_full_disk(tmp_path):
    """Files may not grow past 10 kB: the error is one line, and the step before stays good."""
    code = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
checkpoints = Checkpoints(sys.argv[1], keep=2)
checkpoints.save(1, make(1), {})
checkpoints.wait()
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
for step, call in (2, "wait"), (3, "save"), (4, "close"):
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        checkpoints.save(step, make(step), {})
        if call == "save":
            checkpoints.save(step + 10, make(step), {})
        else:
            getattr(checkpoints, call)()
        print("no error")
    except UserError as e:
        print(str(e).partition("checkpoints: ")[2])
    print(os.listdir(sys.argv[1] + "/checkpoints"))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
checkpoints = Checkpoints(sys.argv[1], keep=2)
checkpoints.save(5, make(5), {})
checkpoints.close()
print(checkpoints.steps())
"""
    child = run(code, tmp_path)
    out, err = child.communicate()
    line = "cannot save step {}: File too large; free some space and start the same command again"
    assert out.splitlines() == [
        *(x for step in (2, 3, 4) for x in (line.format(step), "['1']")),
        "[1, 5]",
    ]
    assert err == ""
    assert_same(restore(tmp_path)[0].items, make(5))


@pytest.mark.slow
def test_terminal_stays_clean_after_a_damaged_step(workdir):
    damage(biggest(workdir), "truncate")
    code = """
import gc
checkpoints = Checkpoints(sys.argv[1])
for _ in range(5):
    print(checkpoints.restore_latest(lambda _: abstract(make()), lambda line: None).step)
    gc.collect()
"""
    child = run(code, workdir)
    out, err = child.communicate()
    assert (out, err, child.returncode) == ("100\n" * 5, "", 0)


def test_unwritable_workdir(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match="a part of the path is a file; choose another folder"):
        Checkpoints(str(tmp_path / "run"), keep=2)
