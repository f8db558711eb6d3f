"""embed, classify and search as a user types them, and what they say to mistakes."""

import csv
import io
import json
import os
import re
import signal
import sys
import time

import command
import embedding
import pytest
import tiny_weights

import tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return tiny.write_folder(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def run(pairs, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    assert command.run(*command.train_args(pairs, workdir, "--config.num_steps=60"))[0] == 0
    return str(workdir)


@pytest.fixture(scope="module")
def index(run, pairs, tmp_path_factory):
    out = tmp_path_factory.mktemp("index")
    status, said, err = command.run(
        "embed", run, f"--data={pairs}", f"--out={out}", "--part_size=30"
    )
    assert status == 0, err
    assert said == f"{out}: 64 rows in 3 parts\n"
    assert "record 64/64" in err
    return str(out)


def refused(result, *parts):
    status, out, err = result
    assert status == 2 and out == "", out + err
    assert len(err.splitlines()) == 1 and err.startswith("error: "), err
    for part in parts:
        assert part in err


def test_embed_again_and_otherwise(run, pairs, index, tmp_path):
    args = ("embed", run, f"--data={pairs}", f"--out={index}")
    status, out, err = command.run(*args, "--part_size=30", "--batch_size=5")
    assert status == 0 and "3 parts, 3 of them from before" in out and "3 of 3 parts stand" in err
    refused(command.run(*args), "part_size: was 30, now 10000")
    refused(command.run(*args, "--part_size=30", "--kind=foldr"), "did you mean 'folder'?")
    refused(command.run(*args, "--part_size=30", "--kind=images"), "give --what=image")
    new = f"--out={tmp_path / 'new'}"
    refused(command.run("embed", "nowhere", f"--data={pairs}", new), "nowhere")
    refused(command.run("embed", run, "--data=nowhere", new), "nowhere")
    assert not (tmp_path / "new").exists()


def test_bare_images_need_to_be_meant(run, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(tiny.png(1, tiny.COLOURS["red"]))
    args = ("embed", run, f"--data={tmp_path / 'in'}", f"--out={tmp_path / 'out'}")
    refused(command.run(*args), "images without captions; give --what=image")
    assert not (tmp_path / "out").exists()
    assert command.run(*args, "--what=image")[0] == 0


def test_the_example_of_the_docs(index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.symlink(index, "embedded")
    text = (command.TESTS.parent / "docs/embeddings.md").read_text()
    names: dict = {}
    exec(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0], names)
    rows = {x["key"]: x["similarity"] for x in embedding.table(index).to_pylist()}
    assert len(names["keys"]) == 32
    worst = min(rows[x] for x in names["keys"])
    assert worst >= max(v for k, v in rows.items() if k not in names["keys"])


def test_embed_tells_what_is_missing(run, tmp_path):
    pairs = tiny.write_folder(tmp_path / "in", 9)
    (pairs / "0002.png").write_bytes(b"no picture")
    status, out, _ = command.run("embed", run, f"--data={pairs}", f"--out={tmp_path / 'out'}")
    assert status == 0
    assert "1 rows without an embedding that was asked for:\n  1 x image in no known format" in out


def test_a_kill_between_parts(run, pairs, tmp_path):
    args = ["embed", run, f"--data={pairs}", "--part_size=2", "--batch_size=2"]
    child = command.start(*args, f"--out={tmp_path / 'a'}")
    end = time.monotonic() + 120
    while not (tmp_path / "a/part-00001.parquet").exists() and time.monotonic() < end:
        time.sleep(0.001)
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    before = embedding.parts(tmp_path / "a")
    assert 2 <= len(before) < 32
    for out in ("a", "b"):
        child = command.start(*args, f"--out={tmp_path / out}")
        _, err = child.communicate()
        assert child.returncode == 0, err
        assert ("parts stand already" in err) == (out == "a")
    after = embedding.parts(tmp_path / "a")
    assert after == embedding.parts(tmp_path / "b") and len(after) == 32
    assert {k: after[k] for k in before if ".tmp" not in k} == {
        k: v for k, v in before.items() if ".tmp" not in k
    }
    assert sorted(os.listdir(tmp_path / "a")) == sorted(os.listdir(tmp_path / "b"))


def test_search(run, index, tmp_path):
    page = tmp_path / "page.html"
    status, out, err = command.run(
        "search", run, index, "--text=a red square", "--top=3", f"--html={page}"
    )
    assert status == 0, err
    head, *rows, said = out.splitlines()
    assert said == f"page: {page}"
    assert head.split() == ["rank", "similarity", "path", "caption"] and len(rows) == 3
    assert [x.split()[0] for x in rows] == ["1", "2", "3"]
    assert page.read_text().count("<img") == 3
    picture = tmp_path / "red.png"
    picture.write_bytes(tiny.png(3, tiny.COLOURS["red"]))
    status, out, _ = command.run("search", run, index, f"--image={picture}")
    assert status == 0 and len(out.splitlines()) == 13


def test_search_refuses(run, pairs, index, tmp_path):
    refused(command.run("search", run, index), "give one of --text")
    refused(command.run("search", run, index, "--text= "), "give one of --text")
    refused(command.run("search", run, index, "--text=a", "--image=b"), "give one of --text")
    refused(command.run("search", run, index, "--text=a", "--top=0"), "--top")
    refused(command.run("search", run, str(tmp_path / "no"), "--text=a"), "no such folder")
    refused(command.run("search", run, str(tmp_path), "--text=a"), "no embed.json")
    refused(command.run("search", run, index, "--image=gone.png"), "gone.png: cannot be read")
    refused(
        command.run("search", run, index, "--text=a", "--html=/dev/null/page.html"),
        "/dev/null/page.html",
    )
    other = tmp_path / "other"
    args = command.train_args(pairs, other, "--config.num_steps=4", "--config.seed=5")
    assert command.run(*args)[0] == 0
    refused(command.run("search", str(other), index, "--text=a"), "by another model")


def test_classify(run, tmp_path):
    names = list(tiny.COLOURS)
    for i, name in enumerate(names[:3]):
        (tmp_path / f"{i}.png").write_bytes(tiny.png(i, tiny.COLOURS[name]))
    labels = f"--labels={','.join(names)}"
    args = ("classify", run, str(tmp_path), labels, "--template=a {} square")
    status, out, err = command.run(*args, "--format=jsonl", "--top=8")
    assert (status, err) == (0, "")
    rows = [json.loads(x) for x in out.splitlines()]
    assert [x["image"] for x in rows] == [str(tmp_path / f"{i}.png") for i in range(3)]
    for row in rows:
        shares = list(row["probabilities"].values())
        assert sorted(row["probabilities"]) == sorted(names)
        assert shares == sorted(shares, reverse=True) and abs(sum(shares) - 1) < 1e-5
    status, out, _ = command.run(*args, "--format=csv", "--top=2")
    table = list(csv.DictReader(io.StringIO(out)))
    assert status == 0 and len(table) == 6
    for row, (a, b) in zip(rows, zip(table[::2], table[1::2], strict=True), strict=True):
        assert [a["label"], b["label"]] == list(row["probabilities"])[:2]
        assert abs(float(a["probability"]) - row["probabilities"][a["label"]]) < 1e-5
    status, out, _ = command.run(*args, "--top=1")
    head, *lines = out.splitlines()
    assert status == 0 and head.split() == ["image", "label", "probability"] and len(lines) == 3
    assert all(x.endswith(" %") for x in lines)
    (tmp_path / "labels.txt").write_text("red\n\n green \n")
    status, out, _ = command.run(
        "classify", f"--labels_file={tmp_path / 'labels.txt'}", run, f"{tmp_path}/*.png"
    )
    assert status == 0 and len(out.splitlines()) == 7


def test_classify_prints_what_it_can(run, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    (tmp_path / "b.png").write_bytes(tiny.png(1, tiny.COLOURS["red"]))
    status, out, err = command.run(
        "classify", run, str(tmp_path), str(tmp_path / "gone.png"), "--labels=red,green"
    )
    assert status == 2
    assert [x.split()[0] for x in out.splitlines()[:2]] == ["image", str(tmp_path / "b.png")]
    assert len(out.splitlines()) == 3
    assert len(err.splitlines()) == 2 and all(x.startswith("error: ") for x in err.splitlines())
    assert "a.png: cannot be read" in err and "gone.png: cannot be read" in err


def test_without_pyarrow(run, index, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for args in (("search", run, index, "--text=a"), ("embed", run, "--data=x", "--out=y")):
        refused(command.run(*args), "pip install 'clip-jax-pretrain[embed]'")


def test_export(run, tmp_path):
    """A run whose poolings transformers lacks, and published weights there and back."""
    out = str(tmp_path / "out")
    refused(command.run("export", run, "--to=hf", f"--out={out}"), "config.model.", "CLIPModel")
    refused(command.run("export", run, "--to=hff", f"--out={out}"), "did you mean 'hf'?")
    refused(command.run("export", run, "--to=hf", f"--out={run}"), "is there already")
    refused(command.run("export", run, "--to=hf"), "--out")
    assert not os.path.exists(out)
    status, said, err = command.run("export", run, "--to=clip_jax", f"--out={out}")
    assert status == 0 and said == f"wrote {out}\n", err
    tiny_weights.write("ViT-B-32-quickgelu", "hf", str(tmp_path / "weights"))
    source, bare = str(tmp_path / "weights"), str(tmp_path / "oc")
    status, _, err = command.run(
        "export", source, "--to=open_clip", f"--out={bare}", "--dtype=float16"
    )
    assert status == 0, err
    refused(
        command.run("export", bare, "--to=hf", f"--out={out}2", "--config=ViT-B-32"),
        "contradicts the config: ", "image.activation is 'quick_gelu' there and 'gelu'",
    )  # fmt: skip
    status, _, err = command.run("export", bare, "--to=hf", f"--out={out}2")
    assert status == 0, err
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "vocab.json",
            "merges.txt", "README.md"} <= set(os.listdir(f"{out}2"))  # fmt: skip
