"""Cross-field checks that need no device: all findings in one list, each a line for the user."""

import dataclasses
import math
import re
from collections.abc import Iterator

from clip_jax.config.schema import Config, ImageConfig, ModelConfig, TaskConfig, TextConfig

ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu")
PROJECTIONS = ("linear", "bias", "none")


def findings(cfg: Config, *, needs_data: bool = True) -> list[str]:
    """What is wrong with `cfg`; empty if nothing. Without data, its paths may be missing."""
    return [
        *_positive(cfg),
        *model_findings(cfg.model),
        *_choices(cfg),
        *_rest(cfg),
        *(_paths(cfg) if needs_data else ()),
        *(x for i, t in enumerate(cfg.eval.tasks) for x in _task(t, f"config.eval.tasks[{i}]")),
    ]


def model_findings(model: ModelConfig) -> list[str]:
    """What is wrong with a model by itself."""
    return [*_towers(model), *_image(model.image), *_text(model.text), *_model_choices(model)]


def _towers(model: ModelConfig) -> Iterator[str]:
    values = {"embed_dim": model.embed_dim, "unroll": model.unroll}
    for side in ("image", "text"):
        for name in ("width", "layers", "heads", "mlp_dim"):
            values[f"{side}.{name}"] = getattr(getattr(model, side), name)
    for path, value in values.items():
        if value <= 0:
            yield f"config.model.{path}: must be above 0 (got {value})"
    for name in ("columns", "registers", "layer_scale"):
        value = getattr(model.image, name)
        if not 0 <= value < math.inf:
            yield f"config.model.image.{name}: must not be negative (got {value})"
    for side, tower in (("image", model.image), ("text", model.text)):
        if ":" in tower.kind or tower.kind == "resnet" or tower.projection != "none":
            continue
        if tower.width != model.embed_dim:
            yield (
                f"config.model.{side}.projection: 'none' needs width = embed_dim "
                f"(got {tower.width} and {model.embed_dim})"
            )


def _positive(cfg: Config) -> Iterator[str]:
    values = {
        "batch_size": cfg.batch_size,
        "num_microbatches": cfg.num_microbatches,
        "loss.memory_mib": cfg.loss.memory_mib,
        "mesh.num_slices": cfg.mesh.num_slices,
        "num_steps": cfg.num_steps,
        "eval.batch_size": cfg.eval.batch_size,
        "checkpoint.every": cfg.checkpoint.every,
        "checkpoint.keep": cfg.checkpoint.keep,
        "log.every": cfg.log.every,
        "data.prefetch": cfg.data.prefetch,
        "optim.max_skipped": cfg.optim.max_skipped,
        "optim.learning_rate": cfg.optim.learning_rate,
        "optim.eps": cfg.optim.eps,
    }
    for path, value in values.items():
        if not 0 < value < math.inf:
            yield f"config.{path}: must be above 0 (got {value})"
    if not 0 <= cfg.seed < 2**32:
        yield f"config.seed: must lie in 0..2**32-1 (got {cfg.seed})"
    for path, value in {
        "data.limit": cfg.data.limit,
        "tokenizer.train_captions": cfg.tokenizer.train_captions,
        "loss.chunk": cfg.loss.chunk,
        "data.epoch_size": cfg.data.epoch_size,
        "optim.grad_clip": cfg.optim.grad_clip,
        "optim.weight_decay": cfg.optim.weight_decay,
        "optim.warmup_steps": cfg.optim.warmup_steps,
        "optim.cooldown_steps": cfg.optim.cooldown_steps,
        "optim.timescale_steps": cfg.optim.timescale_steps,
        "eval.every": cfg.eval.every,
        "log.watchdog_seconds": cfg.log.watchdog_seconds,
        **{f"augment.{k}": v for k, v in dataclasses.asdict(cfg.augment).items()},
    }.items():
        if not 0 <= value < math.inf:
            yield f"config.{path}: must not be negative (got {value})"
    if cfg.data.threads < -1:
        yield f"config.data.threads: must be -1 or more (got {cfg.data.threads})"


def _image(image: ImageConfig) -> Iterator[str]:
    if image.kind == "vit":
        yield from _vit(image)
    if image.kind == "resnet":
        yield from _resnet(image)
    if image.channels not in (1, 3):
        yield f"config.model.image.channels: must be 1 or 3 (got {image.channels})"
    for name in ("mean", "std"):
        if len(getattr(image, name)) != image.channels:
            yield (
                f"config.model.image.{name}: needs one value per channel "
                f"(got {len(getattr(image, name))} for {image.channels})"
            )


def _vit(image: ImageConfig) -> Iterator[str]:
    for name, pixels in (("size", image.size), ("columns", image.columns or image.size)):
        if image.patch <= 0 or pixels < image.patch:
            yield f"config.model.image.{name}: must be at least patch={image.patch} (got {pixels})"
    if image.heads > 0 and image.width % image.heads:
        yield f"config.model.image.width: must be a multiple of heads={image.heads}"
    if image.pool == "cls" and not image.class_token:
        yield "config.model.image.pool: 'cls' needs class_token=True; set it, or pool 'mean'"
    if image.posemb != "learned" and image.width % 4:
        yield f"config.model.image.width: a fixed posemb needs a multiple of 4 (got {image.width})"
    if not 0 <= image.patch_dropout < 1:
        yield f"config.model.image.patch_dropout: must lie in [0, 1) (got {image.patch_dropout})"


def _resnet(image: ImageConfig) -> Iterator[str]:
    for name, pixels in (("size", image.size), ("columns", image.columns or image.size)):
        if pixels <= 0 or pixels % 32:
            yield f"config.model.image.{name}: must be a multiple of 32 (got {pixels})"
    if len(image.stages) != 4 or min(image.stages) < 1:
        yield f"config.model.image.stages: needs four counts of blocks (got {image.stages})"
    if image.heads > 0 and (image.width % 2 or 32 * image.width % image.heads):
        yield (
            f"config.model.image.width: must be even, and 32 times it a multiple of "
            f"heads={image.heads} (got {image.width})"
        )


def _text(text: TextConfig) -> Iterator[str]:
    if text.heads > 0 and text.width % text.heads:
        yield f"config.model.text.width: must be a multiple of heads={text.heads}"
    if text.context < 2:
        yield f"config.model.text.context: must be at least 2 (got {text.context})"
    for name in ("eos_id", "pad_id"):
        if not 0 <= getattr(text, name) < text.vocab_size:
            yield (
                f"config.model.text.{name}: must lie in 0..vocab_size-1 = {text.vocab_size - 1} "
                f"(got {getattr(text, name)})"
            )


def _model_choices(model: ModelConfig) -> Iterator[str]:
    image, text = model.image, model.text
    yield from _chosen(
        {
            "model.image.pool": (image.pool, ("cls", "mean", "map")),
            "model.image.ln_post": (image.ln_post, ("before", "after")),
            "model.image.posemb": (image.posemb, ("learned", "sincos2d", "sincos2d_mae")),
            "model.image.projection": (image.projection, PROJECTIONS),
            "model.image.resize": (image.resize, ("shortest", "squash")),
            "model.image.interpolation": (image.interpolation, ("bicubic", "bilinear")),
            "model.image.activation": (image.activation, ACTIVATIONS),
            "model.text.activation": (text.activation, ACTIVATIONS),
            "model.text.pool": (text.pool, ("eos", "last", "first", "mean", "map")),
            "model.text.projection": (text.projection, PROJECTIONS),
            "model.init": (model.init, ("open_clip", "big_vision")),
            "model.dtype": (model.dtype, ("float32", "bfloat16")),
            "model.attention": (model.attention, ("xla", "cudnn")),
            "model.remat": (model.remat, ("none", "dots", "full", "offload")),
        }
    )
    if model.attention == "cudnn" and model.dtype != "bfloat16":
        yield (
            "config.model.attention: 'cudnn' computes in bfloat16; set "
            f"config.model.dtype=bfloat16 (got '{model.dtype}')"
        )


def _choices(cfg: Config) -> Iterator[str]:
    yield from _chosen(
        {
            "loss.wire_dtype": (cfg.loss.wire_dtype, ("float32", "bfloat16")),
            "optim.mu_dtype": (cfg.optim.mu_dtype, ("float32", "bfloat16")),
            "optim.schedule": (cfg.optim.schedule, ("cosine", "linear", "rsqrt", "constant")),
            "optim.kind": (cfg.optim.kind, ("adamw", "lion", "adafactor", "muon")),
            "optim.decay_convention": (cfg.optim.decay_convention, ("torch", "big_vision")),
            "tokenizer.clean": (cfg.tokenizer.clean, ("none", "lower", "canonicalize")),
            "tokenizer.model_type": (cfg.tokenizer.model_type, ("unigram", "bpe")),
        }
    )


def _chosen(choices: dict[str, tuple[str, tuple[str, ...]]]) -> Iterator[str]:
    for path, (value, allowed) in choices.items():
        if value not in allowed:
            yield f"config.{path}: must be one of {', '.join(allowed)} (got '{value}')"


def _optim(cfg: Config) -> Iterator[str]:
    optim = cfg.optim
    if optim.warmup_steps + optim.cooldown_steps >= cfg.num_steps:
        both = optim.warmup_steps + optim.cooldown_steps
        name = "warmup_steps + cooldown_steps" if optim.cooldown_steps else "warmup_steps"
        yield f"config.optim.{name}: must be below num_steps={cfg.num_steps} (got {both})"
    if optim.cooldown_steps and optim.schedule not in ("rsqrt", "constant"):
        yield (
            f"config.optim.cooldown_steps: '{optim.schedule}' comes down by itself; set it to 0, "
            "or schedule to rsqrt or constant"
        )
    if optim.timescale_steps and optim.schedule != "rsqrt":
        yield f"config.optim.timescale_steps: only for rsqrt, not '{optim.schedule}'; set it to 0"
    for item in optim.rates:
        _, equals, factor = item.rpartition("=")
        try:
            good = bool(equals) and 0 <= float(factor) < math.inf
        except ValueError:
            good = False
        if not good:
            yield f"config.optim.rates: must be PATTERN=FACTOR, at least 0 (got '{item}')"
    patterns = [("decay", p) for p in optim.decay]
    patterns += [("rates", item.rpartition("=")[0]) for item in optim.rates]
    for field, pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as e:
            yield f"config.optim.{field}: not a regular expression ({e}; got '{pattern}')"
    for name in ("image_layer_decay", "text_layer_decay"):
        if not 0 < (value := getattr(optim, name)) <= 1:
            yield f"config.optim.{name}: must lie above 0 and at most at 1 (got {value})"
    for name in ("b1", "b2", "ema"):
        if not 0 <= (value := getattr(optim, name)) < 1:
            yield f"config.optim.{name}: must lie in 0..1, without 1 (got {value})"
    if not 0 <= optim.final_lr <= 1:
        yield f"config.optim.final_lr: is a share, and must lie in 0..1 (got {optim.final_lr})"
    if cfg.eval.ema and not optim.ema:
        yield "config.eval.ema: there is no moving average; set config.optim.ema=0.9999"
    if optim.logit_scale_max != 0 and not optim.logit_scale_max >= 1:
        yield f"config.optim.logit_scale_max: must be 0 or >= 1 (got {optim.logit_scale_max})"


def _init(cfg: Config) -> Iterator[str]:
    for i, item in enumerate(cfg.init):
        try:
            re.compile(item.parts)
        except re.error as e:
            yield f"config.init[{i}].parts: not a regular expression ({e}; got '{item.parts}')"


def _rest(cfg: Config) -> Iterator[str]:
    yield from _optim(cfg)
    yield from _init(cfg)
    for option in cfg.compile.options:
        if not re.fullmatch(r"\w+=\S+", option):
            yield f"config.compile.options: must be name=value (got '{option}')"
    numbers = [item.partition("=")[0] for item in cfg.eval.reference]
    for item, pairs in zip(cfg.eval.reference, numbers, strict=True):
        number = r"(?=[^=]*[1-9])\d+(\.\d+)?[kMB]?ex"
        good = re.fullmatch(rf"{number}=0?\.\d+", item) and numbers.count(pairs) == 1
        if not good:
            yield f"config.eval.reference: must be like '413Mex=0.335' (got '{item}')"
    profile = cfg.log.profile
    if profile and (len(profile) != 2 or not 0 < profile[0] <= profile[1]):
        yield f"config.log.profile: must be (first, last) with 0 < first <= last (got {profile})"
    for name in ("crop_scale", "crop_ratio"):
        value = getattr(cfg.data, name)
        if (value or name == "crop_ratio") and (len(value) != 2 or not 0 < value[0] <= value[1]):
            yield f"config.data.{name}: must be (low, high) with 0 < low <= high (got {value})"
    if max(cfg.data.crop_scale, default=0.0) > 1:
        yield f"config.data.crop_scale: must be shares, at most 1 (got {cfg.data.crop_scale})"
    if cfg.augment.dim > 1:
        yield f"config.augment.dim: is a share, at most 1 (got {cfg.augment.dim})"
    if cfg.loss.kind.startswith("sigmoid") and not cfg.model.logit_bias:
        yield f"config.loss.kind: '{cfg.loss.kind}' needs config.model.logit_bias=True; set it"
    if not 0 <= cfg.data.max_bad_share <= 1:
        yield f"config.data.max_bad_share: must lie in 0..1 (got {cfg.data.max_bad_share})"
    names = [t.name for t in cfg.eval.tasks]
    if len(set(names)) < len(names):
        yield f"config.eval.tasks: two have the same name (got {', '.join(names)})"


def _paths(cfg: Config) -> Iterator[str]:
    for i, item in enumerate(cfg.init):
        if not item.weights:
            yield f"config.init[{i}].weights: is empty; name a run, a folder or a file"
    if not any(cfg.data.train.paths):
        yield "config.data.train.paths: is empty; give --config.data.train.paths=PATH"
    if cfg.eval.tasks and not any(cfg.data.test.paths):
        yield "config.data.test.paths: is empty, but config.eval.tasks needs it; give the path"


def _task(task: TaskConfig, where: str) -> Iterator[str]:
    if not task.templates:
        yield f"{where}.templates: is empty; give at least ('{{}}',)"
    for template in task.templates:
        if template.count("{}") != 1:
            yield f"{where}.templates: each needs one {{}} (got '{template}')"
