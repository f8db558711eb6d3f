"""Every command of the README runs, on small data; its two scripts are run by .ci/run."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import command
import pytest
import tiny_weights

import clip_jax
import tiny
from clip_jax.__main__ import VERBS
from clip_jax.config.presets import MODELS

USE = ("embed", "classify", "search")
ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SMALL = {
    name: ["--config.num_steps=2", "--config.batch_size=16", "--config.optim.warmup_steps=1"]
    for name in ("folder", "cifar10")
}
# A home of nobody, so no gcloud, sbatch or xpk of the machine is asked.
WITHOUT = {"PATH": os.defpath, "HOME": "/nonexistent", "PYTHON": "python3"}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands():
    text = "\n".join(blocks("bash")).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    return [line for line in lines if line]


def test_all_commands_are_known():
    """A new command in the README needs a place in the tests below."""
    assert [c[:2] + [a for a in c if a.startswith("--config=")] for c in commands()] == [
        ["bash", "launch/demo.sh"],
        ["bash", "launch/test.sh"],
        ["clip_jax", "train", "--config=folder"],
        ["python", "examples/folders_to_tars.py"],
        ["python", "examples/folders_to_tars.py"],
        ["clip_jax", "train", "--config=cifar10"],
        ["bash", "launch/slurm.sh", "--config=openclip:b16-400m"],
        ["bash", "launch/tpu_vm.sh"],
        ["bash", "launch/tpu_vm.sh"],
        ["bash", "launch/tpu_vm.sh", "--config=openai:ViT-B-32"],
        ["bash", "launch/tpu_vm.sh"],
        ["bash", "launch/tpu_vm.sh"],
        ["bash", "launch/gke.sh", "--config=openclip:l14-400m"],
        ["bash", "launch/local.sh", "--config=digits"],
    ]


def launches():
    return [
        c
        for c in commands()
        if c[1:2]
        and c[1] not in ("launch/demo.sh", "launch/test.sh")
        and c[1].startswith("launch/")
    ]


def test_launch_lines_print_what_they_would_run(tmp_path, monkeypatch):
    """Against stored output; after a change that is meant, write it anew from `printed`."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    printed = ""
    for words in launches():
        cut = words.index("--") if "--" in words else len(words)
        line = [*words[:cut], "--dry_run", *words[cut:]]
        done = subprocess.run(line, cwd=ROOT, env=WITHOUT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        printed += f"$ {shlex.join(line)}\n{done.stdout}\n"
    printed = printed.replace(str(ROOT), "ROOT")
    printed = re.sub(r"(/[\w.-]+)+/clip_jax.tar.gz", "TMP/clip_jax.tar.gz", printed)
    printed = re.sub(r"127.0.0.1:\d+", "127.0.0.1:PORT", printed)
    assert printed == (ROOT / "tests" / "golden" / "launch.txt").read_text()


@pytest.mark.slow
def test_launch_lines_have_flags_that_train_takes():
    """On eight devices: a typing mistake, or a batch that does not divide, would be refused."""
    for words in launches():
        if "--" in words:
            flags = words[words.index("--") + 1 :]
            status, out, err = command.run("train", *flags, "--dry_run")
            assert status == 0 and "parameters" in out, err


def run(words):
    config = next(a for a in words if a.startswith("--config=")).partition("=")[2]
    status, out, err = command.run(*words[1:], *SMALL[config])
    assert status == 0, out + err
    return out


@pytest.mark.slow
def test_own_folder_then_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.write_folder(tmp_path / "my_images")
    (tmp_path / "picture.jpg").write_bytes(tiny.png(1, tiny.COLOURS["red"]))
    run(next(c for c in commands() if "--config=folder" in c))
    names: dict = {}
    exec(blocks("python")[0], names)
    assert names["model"].embed_images(["picture.jpg"]).shape == (1, 192)


@pytest.mark.slow
def test_published_models(tmp_path, monkeypatch):
    """The hub's name stands for a folder, and a large model for its smallest form."""
    monkeypatch.chdir(tmp_path)
    siglip = tiny_weights.config("ViT-B-16-SigLIP")
    tiny_weights.write("ViT-B-16-SigLIP", "big_vision", "siglip")
    (tmp_path / "siglip" / "big_vision.npz").rename(tmp_path / "siglip_b16.npz")
    tiny_weights.write("ViT-B-32-quickgelu", "hf", "clip")
    monkeypatch.setitem(MODELS, "ViT-B-16-SigLIP", siglip)
    load = clip_jax.load

    def local(source, **options):
        return load("clip" if source.startswith("hf-hub:") else source, **options)

    monkeypatch.setattr(clip_jax, "load", local, raising=False)
    names = {"clip_jax": clip_jax}
    exec(blocks("python")[1], names)
    assert names["prompt_states"].shape == (1, 77, 8)
    assert names["siglip"].config.model.image.pool == "map"
    assert (tmp_path / "for_transformers" / "model.safetensors").exists()


@pytest.mark.slow
def test_tars(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    classes = ["airplane", "automobile", "bird", "cat", "deer"]
    classes += ["dog", "frog", "horse", "ship", "truck"]
    for split in ("train", "test"):
        for c, colour in zip(classes, [*tiny.COLOURS.values()] * 2, strict=False):
            folder = tmp_path / "photos" / split / c
            folder.mkdir(parents=True)
            for i in range(4):
                (folder / f"{i}.png").write_bytes(tiny.png(i, colour))
    for words in commands():
        if words[0] == "python":
            size = "4" if "photos/train" in words else "40"
            args = [sys.executable, str(ROOT / words[1]), *words[2:], "--samples_per_shard", size]
            subprocess.run(args, check=True)
    out = run(next(c for c in commands() if "--config=cifar10" in c))
    assert "cifar10" in out
    status, out, _ = command.run(
        "eval", "runs/cifar10", "--tasks=cifar10", "--floor=cifar10/top1=0"
    )
    assert status == 0


def test_the_table_of_verbs():
    rows = re.findall(r"^\| `clip_jax ([a-z]+)([^`]*)` \|", README, re.MULTILINE)
    assert {verb for verb, _ in rows} == set(VERBS)
    status, out, _ = command.run("train", "--config=digits", "--dry_run")
    assert status == 0 and "memory per device" in out
    assert command.run("train", "--help")[0] == 0
    assert command.run("bench", "--help")[0] == 0
    for verb, options in rows:  # each option in the table is one of the verb's
        for option in re.findall(r"--[a-z_]+", options if verb in USE else ""):
            parser = importlib.import_module(f"clip_jax.cli.{verb}").parser()
            assert option in parser._option_string_actions, (verb, option)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_what_fits_where_is_what_the_planner_found():
    """The README shows a part of the table of docs/planning.md."""
    table = (ROOT / "docs" / "planning.md").read_text()
    found = {}
    for line in re.findall(r"^\| (ViT-.* of .* % \|)$", table, re.MULTILINE):
        model, topology, *_, memory, _, mfu = (x.strip() for x in line.strip("| ").split("|"))
        found[model, topology] = f"{float(memory.split()[0]):.1f} GiB, {mfu}"
    head, *rows = re.findall(r"^\| (?:model|ViT-.*GiB).*\|$", README, re.MULTILINE)[-6:]
    cells = [[x.strip() for x in row.strip("|").split("|")] for row in (head, *rows)]
    shown = {(m, t): x for m, *row in cells[1:] for t, x in zip(cells[0][1:], row, strict=True)}
    assert len(shown) == 20 and shown == {k: found.get(k) for k in shown}
