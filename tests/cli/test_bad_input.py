"""What a user can get wrong: one line on stderr, exit status 2, nothing written, no traceback."""

import resource
import signal
import subprocess
import sys
from pathlib import Path

import command
import pytest

import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_folder(tmp_path_factory.mktemp("pairs"))


def refused(status, out, err, *parts):
    lines = err.splitlines()
    assert status == 2, out + err
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    for part in parts:
        assert part in lines[0], lines[0]


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["trian"], ["no such verb (got 'trian')", "did you mean 'train'?"]),
        (["train", "--config=digits"], ["--workdir: is missing"]),
        (["train", "--workdir=x"], ["--config: is missing"]),
        (["train", "--config=x/y.py", "--workdir=x"], ["no such file (got 'x/y.py')"]),
        (["train", "--config=digit", "--workdir=x"], ["did you mean 'digits'?"]),
        (["train", "--config=digits", "--workdri=x"], ["--workdri=x", "'--workdir'"]),
        (["train", "--config=digits", "--config=glyphs"], ["--config: given twice"]),
        (["train", "--config=digits", "--workdir"], ["--workdir: needs a value"]),
        (["train", "--config=digits", "--dry_run=1"], ["--dry_run: takes no value"]),
        (["eval", "nowhere"], ["nowhere: no config.json"]),
        (["eval", "nowhere", "--floor=x"], ["--floor: must be NAME=VALUE"]),
        (["embed", "run"], ["embed: the following arguments are required: --data, --out"]),
        (["embed", "run", "--data=x", "--out=y", "--what=all"], ["--what", "'all'", "both"]),
        (["embed", "run", "--data=x", "--out=y", "--part_size=0"], ["--part_size", "got '0'"]),
        (["embed", "run", "--data=nowhere", "--out=y"], ["nowhere: cannot be read"]),
        (["embed", "run", "--data=a-{0..3}.tar", "--out=y"], ["a-0.tar: no such file"]),
        (["classify", "run", "a.jpg"], ["--labels: no names"]),
        (["classify", "run", "a.jpg", "--labels=,"], ["--labels: no names"]),
        (["classify", "run", "a.jpg", "--labels=a,b, a"], ["--labels: given 2 times (got 'a')"]),
        (["classify", "run", "a.jpg", "--labels_file=x"], ["x: cannot be read"]),
        (["classify", "run", "a.jpg", "--labels=a", "--template=b"], ["must hold one {}"]),
        (["classify", "run", "*.jpg", "--labels=a"], ["*.jpg: no file matches"]),
        (["classify", "run", "a.jpg", "--labels=a", "--format=xml"], ["--format", "'xml'"]),
        (["classify", "nowhere", "a.jpg", "--labels=a"], ["nowhere"]),
        (["search", "run", "index"], ["give one of --text"]),
        (["search", "run", "index", "--text=a", "--image=b"], ["give one of --text"]),
        (["search", "run", "nowhere", "--text=a"], ["nowhere: no such folder"]),
        (["plan", "--config=digits"], ["plan: the following arguments are required: --topology"]),
        (["plan", "--config=digits", "--topology=v5"], ["--topology: unknown", "v5e:16x16"]),
        (["plan", "--config=digits", "--topology=v5e:3x3"], ["no such v5e", "v5e:2x2"]),
        (["plan", "--config=digits", "--topology=H100:8", "--search"], ["--search: needs a TPU"]),
        (["plan", "--config=digits", "--topology=H100", "--price=0"], ["--price", "above 0"]),
        (["plan", "--config=digit", "--topology=H100"], ["did you mean 'digits'?"]),
        (
            ["plan", "--config=digits", "--topology=H100:7"],
            ["config.batch_size: must be a multiple of 7"],
        ),
        (
            ["plan", "--config=digits", "--topology=H100", "--config.compile.preset=tpu_overlp"],
            ["config.compile.preset: unknown (got 'tpu_overlp')", "did you mean 'tpu_overlap'?"],
        ),
        (["bench", "tokeniser"], ["did you mean 'tokenizer'?"]),
        (["bench", "x"], ["no such benchmark (got 'x'); known: tokenizer, step, loss, plans"]),
        (["bench", "loss", "--bach=3"], ["bench loss: unrecognized arguments: --bach=3"]),
        (["bench", "loss", "--batch_sizes=64,x"], ["--batch_sizes", "whole number", "got 'x'"]),
        (["bench", "loss", "--rounds=0"], ["--rounds", "from 1 on (got '0')"]),
        (["bench", "step", "--batch_sise=3"], ["bench step: unrecognized arguments: --batch_sise"]),
        (["bench", "plans", "--modles=x"], ["bench plans: unrecognized arguments: --modles=x"]),
        (["bench", "tokenizer", "--captions=few"], ["--captions", "got 'few'"]),
        (["bench", "embed", "--images=0"], ["--images", "got '0'"]),
        (["eval", "nowhere", "--floors=x/y=1"], ["eval: unrecognized arguments: --floors=x/y=1"]),
    ],
)
def test_commands(args, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(*command.run(*args), *parts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["--config.batch_sise=4"], ["config.batch_sise: no such field", "'batch_size'"]),
        (["--config.batch_size=4", "--config.batch_size=8"], ["given twice"]),
        (["--config.batch_size=four"], ["config.batch_size", "four"]),
        (["--config.mesh.data=3"], ["config.mesh", "does not divide the 8 devices"]),
        (["--config.mesh.data=64"], ["config.mesh", "needs 64 devices, here are 8"]),
        (
            ["--config.mesh.data=8", "--config.batch_size=20"],
            ["config.batch_size: must be a multiple of 8", "nearest are 16 and 24"],
        ),
        (["--config.batch_size=80"], ["80 is more than the 64 training pairs"]),
        (["--config.data.train.paths=nowhere"], ["nowhere"]),
        (
            ["--config.data.train.kind=webdataset", "--config.data.train.paths=no-{0..3}.tar"],
            ["no-"],
        ),
        (["--config.data.train.kind=tfds"], ["no dataset_info.json"]),
        (["--config.data.group_by=colour"], ["group_by: no such field", "name"]),
        (["--config.tokenizer.path=nowhere.model"], ["config.tokenizer.path", "nowhere.model"]),
        (["--config.model.text.eos_id=5"], ["config.model.text.eos_id: is 5", "is 1"]),
        (["--config.optim.decay=nothing"], ["config.optim.decay: 'nothing' matches no parameter"]),
        (["--config.model.image.kind=vitt"], ["config.model.image.kind", "'vit'"]),
    ],
)
def test_fields_and_data(folder, tmp_path, overrides, parts, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = command.train_args(folder, tmp_path / "run", *overrides)
    refused(*command.run(*args), *parts)
    assert list((tmp_path / "run").rglob("*")) == []


def test_a_shard_that_is_not_a_tar(folder, tmp_path):
    shard = tmp_path / "a.tar"
    shard.write_bytes(b"certainly not a tar" * 100)
    args = command.train_args(folder, tmp_path / "run", f"--config.data.train.paths={shard}")
    refused(*command.run(*args, "--config.data.train.kind=webdataset"), "a.tar")


def test_an_empty_folder(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    path = f"--config.data.train.paths={tmp_path / 'empty'}"
    refused(*command.run(*command.train_args(folder, tmp_path / "run", path)), "empty")


def test_a_merges_file_that_is_not_one(folder, tmp_path):
    merges = tmp_path / "merges.txt"
    merges.write_text("a b\nc d\n")
    more = ["--config.tokenizer.kind=clip_bpe", f"--config.tokenizer.path={merges}"]
    args = command.train_args(folder, tmp_path / "run", *more, "--config.model.text.eos_id=299")
    refused(*command.run(*args), "merges.txt", "not the merges of CLIP")


def test_a_workdir_of_another_run(folder, tmp_path):
    args = command.train_args(folder, tmp_path / "run", "--config.num_steps=3")
    assert command.run(*args)[0] == 0
    refused(
        *command.run(*args, "--config.model.image.width=32"),
        "config.model.image.width: was 16, now 32",
    )


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs Linux's /sys")
def test_a_workdir_that_cannot_be_written(folder):
    refused(
        *command.run(*command.train_args(folder, Path("/sys/clip_jax_run"))), "/sys/clip_jax_run"
    )


@pytest.mark.slow
def test_a_full_disk(folder, tmp_path):
    """A limit on file sizes stands in for the disk: the write fails in the same place."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    args = command.train_args(folder, tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-m", "clip_jax", *args],
        env=command.environment(),
        preexec_fn=limit,
        capture_output=True,
        text=True,
    )
    refused(done.returncode, done.stdout, done.stderr, "run/")


@pytest.mark.slow
def test_eval_has_a_floor(folder, tmp_path):
    args = command.train_args(folder, tmp_path / "run")
    assert command.run(*args)[0] == 0
    status, out, _ = command.run("eval", str(tmp_path / "run"), "--tasks=colours")
    assert status == 0 and "colours" in out
    status, _, err = command.run("eval", str(tmp_path / "run"), "--floor=colours/top1=1.01")
    assert status == 3 and "is below 1.01" in err
    refused(*command.run("eval", str(tmp_path / "run"), "--tasks=flowers"), "no such task")
    refused(*command.run("eval", str(tmp_path / "run"), "--floor=colours/top9=0"), "no score")


def test_help_names_every_field():
    status, out, _ = command.run("train", "--help")
    assert status == 0
    for name in ("--config.optim.learning_rate", "--config.mesh.fsdp", "--accept_changes"):
        assert name in out


def test_dry_run_writes_nothing(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = command.train_args(folder, tmp_path / "run", "--dry_run")
    status, out, _ = command.run(*args)
    assert status == 0 and list(tmp_path.iterdir()) == []
    for part in (
        "batch_size = 16",
        "mesh: data 1",
        "parameters: ",
        "steps: 8",
        "memory per device",
    ):
        assert part in out
