"""What the stages of a run read: their training pairs, the test split, tokenizer and batches."""

from clip_jax.config.schema import Config
from clip_jax.data.pipeline import Pipeline
from clip_jax.data.sources import Source, all_captions, index_dir, open_source
from clip_jax.errors import UserError
from clip_jax.eval.zeroshot import check_task
from clip_jax.tokenizers import Tokenizer
from clip_jax.tokenizers import build as build_tokenizer
from clip_jax.train import stages


def open_train(cfg: Config, workdir: str) -> Source:
    """The training pairs of a stage."""
    return open_source(cfg.data.train, index_dir=index_dir(workdir), limit=cfg.data.limit)


def open_test(cfg: Config, workdir: str) -> Source | None:
    """The test split, with each task tried on its first record; None without tasks."""
    if not cfg.eval.tasks:
        return None
    source = open_source(cfg.data.test, index_dir=index_dir(workdir))
    for task in cfg.eval.tasks:
        check_task(source, task)
    return source


def make_pipelines(
    parts: tuple[stages.Stage, ...], sources: list[Source], stored: bytes | None
) -> list[Pipeline]:
    """What makes the batches of each stage; `stored` is the tokenizer of a checkpoint.

    Raises:
        UserError: the tokenizer does not fit the text tower, or a batch is larger than the data.
    """
    found: list[Pipeline] = []
    for stage, source in zip(parts, sources, strict=True):
        cfg, model = stage.cfg, stage.cfg.model
        tokenizer = make_tokenizer(cfg, source, stored) if not found else found[0].tokenizer
        found.append(
            Pipeline(source, tokenizer, cfg.data, model.image, model.text.context, cfg.seed)
        )
        check_size(cfg, found[-1])
    return found


def make_tokenizer(cfg: Config, source: Source, stored: bytes | None) -> Tokenizer:
    """The run's tokenizer, checked against the text tower.

    Raises:
        UserError: ids of the tokenizer do not fit the tower.
    """
    text = cfg.model.text
    tokenizer = build_tokenizer(
        cfg.tokenizer,
        vocab_size=text.vocab_size,
        captions=all_captions(source),
        stored=stored,
    )
    ways = {"eos_id": "", "pad_id": f", or config.tokenizer.pad_id={text.pad_id}"}
    for name, other in ways.items():
        if getattr(text, name) != getattr(tokenizer, name):
            raise UserError(
                f"config.model.text.{name}: is {getattr(text, name)}, but the tokenizer's is "
                f"{getattr(tokenizer, name)}; set it so{other}"
            )
    return tokenizer


def check_size(cfg: Config, pipeline: Pipeline) -> None:
    """Refuses a batch larger than the data: it would repeat pairs as their own negatives."""
    if pipeline.size < cfg.batch_size:
        raise UserError(
            f"config.batch_size: {cfg.batch_size} is more than the {pipeline.size} training pairs; "
            f"set it to at most {pipeline.size}"
        )
