"""The import layers of docs/architecture.md: a package sees itself and the rows below it."""

import ast
import pathlib

import clip_jax

PACKAGE = pathlib.Path(clip_jax.__file__).parent
LAYERS = (
    ("errors",),
    ("files",),
    ("config",),
    ("sharding", "tokenizers", "metrics", "report"),
    ("models", "losses", "data"),
    ("checkpoint",),
    ("interop",),
    ("inference",),
    ("eval",),
    ("train",),
    ("planner", "sweep"),
    ("bench",),
    ("cli",),
    ("__main__", "__init__"),
)
ROW = {name: row for row, names in enumerate(LAYERS) for name in names}
ONLY_IN = {
    "flax": ("models",),
    "optax": ("train",),
    "orbax": ("checkpoint",),
    "grain": ("data",),
    "torch": ("interop", "bench"),
    "tensorflow": (),
    "tensorflow_datasets": ("data",),
    "ml_collections": ("config",),
    "matplotlib": ("report", "data"),
}


def imported(tree: ast.AST) -> list[str]:
    """Every module that a file imports, also inside functions; a relative import as '.'."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                names.append(".")
            elif node.module == "clip_jax":
                names += [f"clip_jax.{alias.name}" for alias in node.names]
            else:
                names.append(node.module or "")
    return names


def fault(place: str, module: str) -> str:
    """What is wrong with importing `module` in the package or file `place`; empty if nothing."""
    top, _, rest = module.partition(".")
    if module.startswith("."):
        return "relative import"
    if top in ONLY_IN and place not in ONLY_IN[top]:
        return f"{top} belongs in {', '.join(ONLY_IN[top]) or 'no file'}"
    below = rest.partition(".")[0]
    if top != "clip_jax" or below == place or below not in ROW:
        return ""  # a name of clip_jax/__init__.py, such as __version__, is no layer
    return "" if ROW[below] < ROW[place] else f"{below} is not below {place}"


def faults(package: pathlib.Path) -> list[str]:
    """All forbidden imports under a package, as 'file: module: why'."""
    found = []
    for path in sorted(package.rglob("*.py")):
        inside = path.relative_to(package)
        place = inside.parts[0].removesuffix(".py")
        if place not in ROW:
            found.append(f"{inside}: {place} stands in no layer of docs/architecture.md")
            continue
        for module in imported(ast.parse(path.read_text(encoding="utf-8"))):
            if why := fault(place, module):
                found.append(f"{inside}: import of {module}: {why}")
    return found


def test_imports_point_down():
    assert faults(PACKAGE) == []


def test_catches_upward_sideways_relative_and_foreign_imports(tmp_path):
    files = {
        "models/vit.py": "def f():\n    from clip_jax.train import step\n",
        "losses/a.py": "import clip_jax.data.order\nfrom clip_jax.config import schema\n",
        "data/b.py": "from . import order\nfrom clip_jax import eval\n",
        "train/c.py": "import flax.linen as nn\nimport optax\n",
        "cli/d.py": "import tensorflow\nfrom clip_jax import __version__, train\n",
        "utils.py": "",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert [line.split(": ")[0] for line in faults(tmp_path)] == [
        "cli/d.py",
        "data/b.py",
        "data/b.py",
        "losses/a.py",
        "models/vit.py",
        "train/c.py",
        "utils.py",
    ]
