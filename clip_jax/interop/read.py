"""read(source, config) -> what a foreign model is: config, tokenizer, and its tensors, unread.

Sources: a Hugging Face or OpenCLIP folder, `hf-hub:OWNER/NAME`, or a file of weights (.safetensors,
.bin, .pt, .npz). The config comes with the weights or is given; where both are there they must
agree, since a wrong activation or epsilon changes results without a word.
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

from clip_jax import files
from clip_jax.config import check
from clip_jax.config.codec import differences, from_dict, to_dict
from clip_jax.config.presets import MODELS
from clip_jax.config.schema import ModelConfig, TokenizerConfig
from clip_jax.errors import UserError, near
from clip_jax.interop import big_vision, hf, hub, open_clip, open_clip_config
from clip_jax.interop.open_file import open_tensors
from clip_jax.interop.table import Rule
from clip_jax.interop.tensors import Tensors
from clip_jax.tokenizers.bpe import VOCAB_SIZE, merges_of_json

WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin", "pytorch_model.bin",
)  # fmt: skip
METADATA_KEY = "clip_jax"  # our own exports carry ModelConfig and TokenizerConfig in the header
PIXELS = ("resize", "interpolation", "mean", "std")

# Fields that no weight depends on: how training starts, and how fast things run.
FREE = ("init", "logit_scale_init", "logit_bias_init", "dtype", "remat", "unroll",
        "image.patch_dropout")  # fmt: skip
RESIZED = ("image.size", "image.columns", "text.context")  # these change the position tables only


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A model of another program, found and checked but not yet read.

    Attributes:
        where: the source, for messages.
        config: the model to make of it.
        stored: the model that lies there: another size or context means resized positions.
        tokenizer: from captions to ids; `tokenizer_file` are its bytes, b"" if none came along.
        tensors: the file.
        rules: its names.
        optional: names that may be there and are not read.
    """

    where: str
    config: ModelConfig
    stored: ModelConfig
    tokenizer: TokenizerConfig
    tokenizer_file: bytes
    tensors: Tensors
    rules: Sequence[Rule]
    optional: Callable[[str], bool]


def preset(name: str) -> ModelConfig:
    """MODELS[name].

    Raises:
        UserError: no such model.
    """
    if name not in MODELS:
        raise UserError(f"config: no such model (got '{name}'){near(name, MODELS)}")
    return MODELS[name]


def read(source: str, config: ModelConfig | str | None = None) -> Foreign:
    """Finds a model.

    Args:
        source: folder, `hf-hub:OWNER/NAME`, or file.
        config: of the model, or a name of MODELS; needed where the source has none.

    Raises:
        UserError: nothing usable is there, or it contradicts `config`.
    """
    given = preset(config) if isinstance(config, str) else config
    path = hub.download(source, WEIGHTS) if source.startswith(hub.PREFIX) else source
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    tensors = open_tensors(_weights(path) if os.path.isdir(path) else path)
    try:
        return _described(source, folder, tensors, given)
    except BaseException:
        tensors.close()
        raise


def _described(source: str, folder: str, tensors: Tensors, given: ModelConfig | None) -> Foreign:
    family = _family(tensors)
    own, tokenizer = _own_config(tensors, folder, family)
    if own is None and given is None:
        raise UserError(
            f"{source}: says nothing of its architecture, and the activation cannot be seen in "
            "weights; give a config, such as ViT-B-32 or ViT-B-32-quickgelu"
        )
    if own is None:
        assert given is not None
        own = _as_stored(given, tensors, family)
    final = given or own
    _agree(source, own, final)
    optional = {"hf": hf.is_optional, "open_clip": open_clip.is_optional}
    return Foreign(
        source,
        final,
        own,
        *_tokenizer(folder, final, tokenizer),
        tensors,
        _rules(family, own, tensors),
        optional.get(family, lambda name: False),
    )


def is_foreign(source: str) -> bool:
    """Whether `source` is meant for `read`, and not the workdir of a run."""
    if source.startswith(hub.PREFIX) or os.path.isfile(source):
        return True
    names = [*WEIGHTS, "open_clip_config.json", "preprocessor_config.json"]
    return any(os.path.exists(os.path.join(source, name)) for name in names)


def _weights(folder: str) -> str:
    for name in WEIGHTS:
        if os.path.exists(os.path.join(folder, name)):
            return os.path.join(folder, name)
    raise UserError(f"{folder}: no weights here; looked for {', '.join(WEIGHTS)}")


def _family(tensors: Tensors) -> str:
    names = tensors.shapes
    if any(n.startswith(("vision_model.", "text_model.")) for n in names):
        return "hf"
    if any(n.startswith(("params/img/", "img/")) for n in names):
        return "big_vision"
    if any(n.startswith("visual.") for n in names):
        return "open_clip"
    some = ", ".join(list(names)[:3])
    raise UserError(
        f"{tensors.path}: not the names of OpenCLIP, Hugging Face or big_vision (got {some}); "
        "only those families can be read"
    )


def _rules(family: str, cfg: ModelConfig, tensors: Tensors) -> Sequence[Rule]:
    if family == "hf":
        return hf.table(cfg)
    if family == "big_vision":
        return big_vision.table(cfg, *big_vision.dialect(tensors.shapes))
    return open_clip.table(cfg, custom_text="text.token_embedding.weight" in tensors.shapes)


def _json(path: str) -> dict[str, Any]:
    """A JSON object, {} if there is no such file."""
    try:
        data = json.loads(files.read_bytes(path))
    except FileNotFoundError:
        return {}
    except ValueError as e:
        raise UserError(f"{path}: not JSON ({e}); get the file again") from e
    if not isinstance(data, dict):
        raise UserError(f"{path}: must be a JSON object; get the file again")
    return data


def _own_config(
    tensors: Tensors, folder: str, family: str
) -> tuple[ModelConfig | None, TokenizerConfig | None]:
    """The configs that came with the weights, if any."""
    if METADATA_KEY in tensors.metadata:
        where = f"{tensors.path}: header"

        def part(name: str, kind: Any) -> Any:
            own = json.loads(tensors.metadata[METADATA_KEY])
            return from_dict(own.get(name, {}), kind, f"{where}: {name}")

        model = _checked(lambda: part("model", ModelConfig), where)
        return model, part("tokenizer", TokenizerConfig)
    if family == "open_clip":
        path = os.path.join(folder, "open_clip_config.json")
        if found := _json(path):
            model, pixels = found.get("model_cfg", {}), found.get("preprocess_cfg", {})
            cfg = _checked(lambda: open_clip_config.to_model(model, pixels, path), path)
            return cfg, open_clip_config.tokenizer(model, cfg)
        if "input_resolution" in tensors.shapes:  # only OpenAI's archives have it
            return open_clip_config.from_shapes(tensors), None
    if family == "hf":
        path = os.path.join(folder, "config.json")
        if found := _json(path):
            pixels = _json(os.path.join(folder, "preprocessor_config.json"))
            words = _json(os.path.join(folder, "tokenizer_config.json")).get("pad_token", "")
            pad = words if isinstance(words, str) else words.get("content", "")
            return _checked(lambda: hf.to_model(found, pixels, path, pad), path), None
    return None, None


def _checked(make: Callable[[], ModelConfig], path: str) -> ModelConfig:
    """The config that `make` gives, if it could be built.

    Raises:
        UserError: a field is of the wrong type, or the numbers do not fit each other.
    """
    try:
        cfg = from_dict(to_dict(make()), ModelConfig, path)
    except (TypeError, ValueError, AttributeError, KeyError, ZeroDivisionError) as e:
        raise UserError(f"{path}: a field has no sense ({e}); get the file again") from e
    if found := check.model_findings(cfg):
        raise UserError("\n".join(f"{path}: {line}" for line in found))
    return cfg


def contradictions(own: ModelConfig, given: ModelConfig) -> dict[str, str]:
    """{field: what it is there and in the config}, of those that change what weights mean."""
    free = {*FREE, *RESIZED}
    if given.text.pool != "eos":
        free.add("text.eos_id")  # nobody reads it
    if given.text.causal and given.text.pool == "eos":
        free.add("text.pad_id")  # what comes after the end is not seen
    if bool(own.image.layer_scale) == bool(given.image.layer_scale):
        free.add("image.layer_scale")  # how it starts
    return {
        path: f"{path} is {old!r} there and {new!r} in the config"
        for path, (old, new) in differences(own, given).items()
        if path not in free
    }


def _agree(source: str, own: ModelConfig, given: ModelConfig) -> None:
    """Refuses a config that contradicts the weights."""
    if odd := contradictions(own, given):
        raise UserError(
            f"{source}: contradicts the config: {'; '.join(odd.values())}; take the weights' own"
        )


def _as_stored(given: ModelConfig, tensors: Tensors, family: str) -> ModelConfig:
    """`given` with the size and context of the file's position tables."""
    rules = {r.ours[0]: r for r in _rules(family, given, tensors) if r.ours}
    image, text = given.image, given.text
    name = "image/pool/posemb" if image.kind == "resnet" else "image/posemb"
    if (rule := rules.get(name)) and rule.theirs in tensors.shapes:
        before = int(image.class_token or image.kind == "resnet")
        patches = math.prod(tensors.shapes[rule.theirs][:-1]) - before
        unit = 32 if image.kind == "resnet" else image.patch
        rows, columns = image.size // unit, (image.columns or image.size) // unit
        side = math.isqrt(max(patches, 0))
        if patches != rows * columns:
            if side * side != patches:
                raise UserError(
                    f"{tensors.path}: {rule.theirs}: {patches} positions are no square grid and "
                    f"not the config's {rows} x {columns}; give the size of these weights"
                )
            image = dataclasses.replace(image, size=side * unit, columns=0)
    rule = rules["text/posemb"]
    if rule.theirs in tensors.shapes:
        context = math.prod(tensors.shapes[rule.theirs][:-1])
        text = dataclasses.replace(text, context=context)
    return dataclasses.replace(given, image=image, text=text)


def _tokenizer(
    folder: str, cfg: ModelConfig, own: TokenizerConfig | None
) -> tuple[TokenizerConfig, bytes]:
    """What turns captions into the ids that these weights know, from the files beside them."""
    text, siglip = cfg.text, cfg.image.pool == "map"
    names = {"sentencepiece": "spiece.model", "hf": "tokenizer.json"}

    def beside(name: str) -> bytes:
        path = os.path.join(folder, name)
        return files.read_bytes(path) if os.path.isfile(path) else b""

    def merges() -> bytes:  # transformers 5 writes them into tokenizer.json only
        return beside("merges.txt") or merges_of_json(beside("tokenizer.json"))

    if own is not None and own.kind == "clip_bpe":
        return own, merges()
    if own is not None and (data := beside(names.get(own.kind, "tokenizer.bin"))):
        return own, data
    clean = "canonicalize" if siglip else "lower"
    if data := beside("spiece.model"):
        return TokenizerConfig("sentencepiece", clean=clean, pad_id=text.pad_id), data
    if text.vocab_size == VOCAB_SIZE and text.eos_id == VOCAB_SIZE - 1:
        return TokenizerConfig("clip_bpe", pad_id=text.pad_id), merges()
    if own is not None:
        return own, b""
    if data := beside("tokenizer.json"):
        clean = clean if siglip else "none"
        return TokenizerConfig("hf", clean=clean, pad_id=text.pad_id), data
    return TokenizerConfig("sentencepiece", clean=clean, pad_id=text.pad_id), b""
