"""Every field of a run: frozen dataclasses, one place for defaults, each field with its meaning.

Only plain types stand here (int, float, bool, str, tuples of them, dataclasses and tuples of
dataclasses), so that a Config travels through ConfigDict, JSON and the command line unchanged.
"""

import dataclasses
from typing import Any


def _field(default: Any, meaning: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": meaning})


def _length(default: int, meaning: str) -> Any:
    """A number of steps; in a recipe also a text in another unit, see config/units.py."""
    return dataclasses.field(default=default, metadata={"help": meaning, "length": True})


def _part(kind: type) -> Any:
    return dataclasses.field(default_factory=kind)


@dataclasses.dataclass(frozen=True)
class ImageConfig:
    """The image tower and the pixels it wants. Fields that a kind does not use are ignored."""

    kind: str = _field("vit", "'vit', 'resnet', or 'package.module:function' for one of your own")
    size: int = _field(224, "side of the square input, pixels; with `columns`, its rows")
    columns: int = _field(0, "columns of the input, pixels; 0 = square")
    channels: int = _field(3, "3 = RGB, 1 = grey")
    patch: int = _field(32, "side of a patch, pixels")
    patch_bias: bool = _field(False, "bias in the patch embedding")
    width: int = _field(768, "model width; of a ResNet, the stem's")
    layers: int = _field(12, "number of blocks")
    stages: tuple[int, ...] = _field((), "ResNet: blocks in each of its four stages")
    heads: int = _field(12, "attention heads; of a ResNet, in its attention pool")
    mlp_dim: int = _field(3072, "hidden width of the MLP")
    class_token: bool = _field(True, "a learned token stands before the patches")
    registers: int = _field(0, "learned tokens without position, read by nobody")
    posemb: str = _field(
        "learned", "positions: 'learned'; fixed 'sincos2d' (big_vision) or 'sincos2d_mae'"
    )
    ln_pre: bool = _field(True, "layer norm before the first block, as OpenAI's ViT has it")
    pool: str = _field("cls", "'cls' (class token), 'mean' (of the patches) or 'map' (attention)")
    ln_post: str = _field("before", "final layer norm 'before' or 'after' the pooling")
    projection: str = _field("linear", "to embed_dim: 'linear', 'bias' (linear with) or 'none'")
    layer_scale: float = _field(0.0, "start of a learned scale per channel and branch; 0 = none")
    patch_dropout: float = _field(0.0, "share of the patches left out of each training image")
    activation: str = _field("gelu", "'gelu' (exact), 'gelu_tanh' or 'quick_gelu'")
    ln_eps: float = _field(1e-5, "epsilon of the layer norms")
    resize: str = _field("shortest", "evaluation: 'shortest' side then centre crop, or 'squash'")
    interpolation: str = _field("bicubic", "evaluation: 'bicubic' or 'bilinear'")
    mean: tuple[float, ...] = _field(
        (0.48145466, 0.4578275, 0.40821073), "pixel mean per channel, of values in 0..1"
    )
    std: tuple[float, ...] = _field(
        (0.26862954, 0.26130258, 0.27577711), "pixel standard deviation per channel"
    )

    def shape(self) -> tuple[int, int, int]:
        """(y, x, c) of an input."""
        return (self.size, self.columns or self.size, self.channels)


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The text tower."""

    kind: str = _field("transformer", "'transformer', or 'package.module:function'")
    context: int = _field(77, "tokens per caption")
    vocab_size: int = _field(49408, "rows of the token table; size of a tokenizer that we train")
    width: int = _field(512, "model width")
    layers: int = _field(12, "number of blocks")
    heads: int = _field(8, "attention heads")
    mlp_dim: int = _field(2048, "hidden width of the MLP")
    pool: str = _field(
        "eos", "'eos' (first end-of-text token), 'last', 'first', 'mean' (of non-pads) or 'map'"
    )
    causal: bool = _field(True, "a token sees only those before it; False = both ways")
    mask_pads: bool = _field(False, "pads are not looked at")
    projection: str = _field("linear", "to embed_dim: 'linear', 'bias' (linear with) or 'none'")
    eos_id: int = _field(49407, "id of the end-of-text token; must be the tokenizer's")
    pad_id: int = _field(0, "id that fills a row; must be the tokenizer's")
    activation: str = _field("gelu", "'gelu' (exact), 'gelu_tanh' or 'quick_gelu'")
    ln_eps: float = _field(1e-5, "epsilon of the layer norms")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Two towers and the logit parameters. The last four fields change speed, not results."""

    image: ImageConfig = _part(ImageConfig)
    text: TextConfig = _part(TextConfig)
    embed_dim: int = _field(512, "size of the shared embedding")
    logit_scale_init: float = _field(2.6592600369, "start of the log of the logit scale")
    logit_bias: bool = _field(False, "a learned bias is added to the logits")
    logit_bias_init: float = _field(-10.0, "start of that bias")
    init: str = _field("open_clip", "how the towers' weights start: 'open_clip' or 'big_vision'")
    dtype: str = _field("float32", "compute type: 'float32' or 'bfloat16'; parameters are float32")
    attention: str = _field("xla", "how attention is computed: 'xla' or 'cudnn' (GPU, bfloat16)")
    remat: str = _field(
        "none", "activations again: 'none', 'dots', 'full'; or 'offload' to the host"
    )
    unroll: int = _field(1, "blocks per iteration of the layer loop")


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """From captions to ids."""

    kind: str = _field(
        "sentencepiece", "'sentencepiece', 'clip_bpe', 'hf', 'wordpiece' or 'module:function'"
    )
    path: str = _field("", "its file; empty: train (sentencepiece), search (clip_bpe)")
    model_type: str = _field("unigram", "kind of SentencePiece model to train: 'unigram' or 'bpe'")
    train_captions: int = _field(100_000, "train on at most this many captions")
    clean: str = _field("lower", "'none', 'lower' or 'canonicalize' (SigLIP); clip_bpe has its own")
    sticky_eos: bool = _field(True, "a caption that is cut still ends in end-of-text")
    pad_id: int = _field(-1, "id that fills a row; -1 = the tokenizer's own")
    keep_eos: bool = _field(
        True, "hf, wordpiece: False = pads stand where end-of-text would (CLIPA)"
    )


@dataclasses.dataclass(frozen=True)
class SplitConfig:
    """Where pairs come from."""

    kind: str = _field("tfds", "'tfds', 'webdataset', 'folder' or 'package.module:function'")
    paths: tuple[str, ...] = _field(
        (), "tfds: built data set or an embedded name (glyphs, digits); tars ({00..09}, *); folders"
    )
    split: str = _field("train", "split of a TFDS data set")
    image_field: str = _field(
        "", "field, tar suffixes (a,b) or column with the image; empty: usual"
    )
    caption_field: str = _field("", "field, tar suffix or column with the caption; empty: usual")
    caption_template: str = _field("a photo of a {}.", "caption of class-named folders")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Sources, host transforms and the pipeline."""

    train: SplitConfig = _part(SplitConfig)
    test: SplitConfig = dataclasses.field(default_factory=lambda: SplitConfig(split="test"))
    group_by: str = _field(
        "none", "pairs that are positives of each other: 'none', 'caption' (equal ones) or a field"
    )
    negatives: tuple[str, ...] = _field(
        (), "fields of a sample that hold captions wrong for its image (hard negatives)"
    )
    crop_scale: tuple[float, ...] = _field(
        (), "area of the random resized crop, e.g. (0.9, 1.0); empty: as in evaluation"
    )
    crop_ratio: tuple[float, ...] = _field((0.75, 1.3333333), "aspect ratio of that crop")
    flip: bool = _field(False, "mirror half of the images")
    epoch_size: int = _field(0, "pairs of an epoch, for lengths in epochs; 0 = all there are")
    limit: int = _field(0, "use only so many pairs, spread over the training data; 0 = all")
    cache: bool = _field(False, "keep the decoded pairs in memory, for small data")
    threads: int = _field(
        -1,
        "threads that read and decode; -1 = as the process has cores, at most 32, and 1 beside "
        "steps on CPUs; 0 = in the training thread",
    )
    prefetch: int = _field(2, "batches that wait ready")
    max_bad_share: float = _field(0.05, "stop when more than this share of the pairs is unusable")


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random changes of the training images on the device; zeros switch them off."""

    rotate: float = _field(0.0, "rotation up to this many degrees")
    zoom: float = _field(0.0, "scale by exp of up to this much")
    shift: float = _field(0.0, "move by up to this many pixels")
    dim: float = _field(0.0, "multiply the pixel values by 1 minus up to this much")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The contrastive loss."""

    kind: str = _field(
        "auto",
        "'softmax', 'sigmoid', each also with _chunked or _ring; 'auto': softmax or softmax_ring "
        "by memory_mib; or 'package.module:function'",
    )
    chunk: int = _field(0, "images of a device at a time (_chunked, _ring); 0 = by memory_mib")
    memory_mib: int = _field(512, "memory per device that logits may take, MiB")
    wire_dtype: str = _field("float32", "of the embeddings that travel: 'float32' or 'bfloat16'")


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimizer, its schedule and its guards."""

    kind: str = _field("adamw", "'adamw', 'lion', 'adafactor' (big_vision's), or 'muon' for blocks")
    learning_rate: float = _field(5e-4, "peak learning rate")
    b1: float = _field(0.9, "beta 1 of AdamW and Lion, momentum of Adafactor")
    b2: float = _field(0.98, "beta 2 of AdamW and Lion; Adafactor's rises to it")
    mu_dtype: str = _field("float32", "type of the first moment: 'float32' or 'bfloat16'")
    eps: float = _field(1e-6, "epsilon of AdamW and Muon")
    weight_decay: float = _field(0.2, "decoupled; how it is scaled is decay_convention")
    decay_convention: str = _field(
        "torch", "'torch': times the learning rate; 'big_vision': times the schedule alone, peak 1"
    )
    decay: tuple[str, ...] = _field(
        (".*/(kernel|embedding|posemb|probe)",), "patterns of the parameter paths that decay"
    )
    rates: tuple[str, ...] = _field(
        (), "'PATTERN=FACTOR' of the learning rate, first match wins; 0 = stands still"
    )
    image_layer_decay: float = _field(1.0, "factor of the learning rate per layer, from the top")
    text_layer_decay: float = _field(1.0, "the same for the text tower")
    schedule: str = _field("cosine", "after the warm-up: 'cosine', 'linear', 'rsqrt', 'constant'")
    warmup_steps: int = _length(0, "steps of linear warm-up")
    cooldown_steps: int = _length(0, "last steps, linearly down to final_lr (rsqrt, constant)")
    timescale_steps: int = _length(0, "of rsqrt: steps to 0.71 of the peak; 0 = as the warm-up")
    final_lr: float = _field(0.0, "learning rate at the end, as a share of the peak")
    ema: float = _field(0.0, "decay of a moving average of the parameters; 0 = none is kept")
    grad_clip: float = _field(0.0, "largest global gradient norm; 0 = no clipping")
    logit_scale_max: float = _field(100.0, "the logit scale stays in 1..this; 0 = it is free")
    max_skipped: int = _field(10, "stop after this many steps in a row with a non-finite loss")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices as a grid; one axis may be -1 (what is left)."""

    data: int = _field(-1, "devices that see different pairs and hold whole parameters")
    fsdp: int = _field(1, "devices that see different pairs and share the parameters")
    tensor: int = _field(1, "devices that share each layer")
    num_slices: int = _field(1, "slices joined by the data-centre network; `data` spans them")


@dataclasses.dataclass(frozen=True)
class CompileConfig:
    """How XLA compiles the step; changes speed and memory, and may change the last digits."""

    preset: str = _field("", "options by name, see train/compiler.py; empty: XLA's own defaults")
    options: tuple[str, ...] = _field((), "'name=value', after the preset's")
    cache_dir: str = _field("", "keep compiled programs in this private folder; empty: nowhere")


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """Zero-shot classification of the test split."""

    name: str = _field("zeroshot", "name in the metrics: eval/NAME/top1")
    label_field: str = _field("label", "field with the class: its number, or its name")
    classes: tuple[str, ...] = _field((), "class names by number; empty: the field's own values")
    templates: tuple[str, ...] = _field(("a photo of a {}.",), "prompts, averaged per class")
    distractors: bool = _field(False, "at the end also score among all training captions")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation inside the run."""

    every: int = _length(0, "steps between evaluations; 0 = only at the end")
    start: bool = _field(False, "also before the first step")
    ema: bool = _field(False, "score the moving average (optim.ema) instead of the parameters")
    batch_size: int = _field(256, "images or prompts per step of an evaluation")
    tasks: tuple[TaskConfig, ...] = _field((), "what to evaluate")
    reference: tuple[str, ...] = _field(
        (), "'PAIRS=TOP1' of a published run, to compare with: '413Mex=0.335'"
    )
    reference_task: str = _field("imagenet", "name of the task that these are of, in any case")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Saving."""

    every: int = _length(1000, "steps between checkpoints; the last step is always saved")
    keep: int = _field(3, "how many to keep")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Logging."""

    every: int = _length(10, "steps between lines of metrics.jsonl")
    writers: tuple[str, ...] = _field(
        (), "metrics also to 'tensorboard', 'wandb' or 'package.module:function'"
    )
    profile: tuple[int, ...] = _field((), "(first, last) step to profile, into workdir/profile")
    watchdog_seconds: float = _field(
        3600.0,
        "end with status 42 when no step, evaluation or checkpoint ends for so long; 0 = never",
    )


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Weights that a new run starts from."""

    weights: str = _field("", "what clip_jax.load takes: a run, a folder, a file, hf-hub:NAME")
    config: str = _field("", "name of their model, for weights that come without one")
    parts: str = _field(".*", "pattern of the parameter paths that are taken")
    ema: bool = _field(False, "the moving average of a run, instead of its parameters")


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """A part of a run: what is different while it lasts. The optimizer starts afresh in each."""

    name: str = _field("", "for messages")
    changes: tuple[str, ...] = _field(
        (), "'FIELD=VALUE' of the config, as after --config.; num_steps is needed"
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run."""

    name: str = _field("run", "name of the run, for the report")
    seed: int = _field(0, "seed of parameters, order and augmentation")
    batch_size: int = _field(1024, "pairs per step over all devices")
    num_microbatches: int = _field(
        1, "the towers see the batch in this many parts: less memory, the same gradient"
    )
    num_steps: int = _length(10_000, "training steps; with stages, the sum of theirs")
    overfit: bool = _field(False, "fail unless the training loss ends near its floor (:overfit)")
    model: ModelConfig = _part(ModelConfig)
    init: tuple[InitConfig, ...] = _field((), "weights to start from, one after the other")
    tokenizer: TokenizerConfig = _part(TokenizerConfig)
    data: DataConfig = _part(DataConfig)
    augment: AugmentConfig = _part(AugmentConfig)
    loss: LossConfig = _part(LossConfig)
    optim: OptimConfig = _part(OptimConfig)
    mesh: MeshConfig = _part(MeshConfig)
    compile: CompileConfig = _part(CompileConfig)
    eval: EvalConfig = _part(EvalConfig)
    checkpoint: CheckpointConfig = _part(CheckpointConfig)
    log: LogConfig = _part(LogConfig)
    stages: tuple[StageConfig, ...] = _field((), "parts of the run with settings of their own")
