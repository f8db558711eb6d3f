"""What the stages of a run read: their training pairs, the test split, tokenizer and batches."""

from collections.abc import Hashable, Sequence
from typing import Any

from clip_jax.config.schema import Config, DataConfig
from clip_jax.config.stages import at
from clip_jax.data.pipeline import Pipeline
from clip_jax.data.sources import Source, all_captions, index_dir, open_source
from clip_jax.errors import UserError
from clip_jax.eval.zeroshot import check_task
from clip_jax.sharding import processes
from clip_jax.tokenizers import Tokenizer
from clip_jax.tokenizers import build as build_tokenizer
from clip_jax.train import agreement, stages, start


class Inputs:
    """What makes the batches of the stages that are open, and their orders, by index of the stage.

    Stages with the same data share them, the pixels that data.cache keeps too; all share one
    tokenizer.

    Args:
        workdir: of the run.
        stored: the tokenizer of a checkpoint; None: built for the first stage that is opened.
    """

    def __init__(self, workdir: str, stored: bytes | None):
        self._workdir, self._stored = workdir, stored
        self.pipelines: dict[int, Pipeline] = {}
        self.orders: dict[int, dict[str, Any]] = {}
        self.test: Source | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the run; some stage is open."""
        return next(iter(self.pipelines.values())).tokenizer

    def open(self, parts: Sequence[stages.Stage]) -> None:
        """Opens what these stages read, and at first the test split, on all processes.

        Raises:
            UserError: data that cannot be read, lack a field or differ between processes, a
                tokenizer that does not fit the text tower, or a batch larger than the data.
        """
        first = not self.pipelines
        sources = processes.by_host(lambda: self._sources(parts))
        processes.together(lambda: self._add(parts, sources))
        if first:
            self.test = processes.by_host(lambda: open_test(parts[0].cfg, self._workdir))
        test = self.test.fingerprint if self.test else ""
        agreement.same_data(self.orders, self.tokenizer.to_bytes(), test)

    def close(self, stage: stages.Stage) -> None:
        """Forgets a stage that is over: the indexes and pixels of large data take much memory."""
        self.pipelines.pop(stage.index, None)
        self.orders.pop(stage.index, None)

    def _sources(self, parts: Sequence[stages.Stage]) -> dict[Hashable, Source]:
        found = {pairs_of(p.data): p.source for p in self.pipelines.values()}
        for data in (s.cfg.data for s in parts):
            if pairs_of(data) not in found:
                where = index_dir(self._workdir)
                source = open_source(data.train, index_dir=where, limit=data.limit)
                found[pairs_of(data)] = source
        return found

    def _add(self, parts: Sequence[stages.Stage], sources: dict[Hashable, Source]) -> None:
        for stage in parts:
            cfg, model = stage.cfg, stage.cfg.model
            source = sources[pairs_of(cfg.data)]
            known = self.pipelines
            if known:
                tokenizer = self.tokenizer
                check_ids(cfg, tokenizer)
            else:
                tokenizer = make_tokenizer(cfg, source, self._stored)
            kept = next((p.kept for p in known.values() if p.source is source), {})
            pipeline = Pipeline(
                source, tokenizer, cfg.data, model.image, model.text.context, cfg.seed, kept
            )
            check_size(cfg, pipeline)
            pipeline.check()
            self.pipelines[stage.index] = pipeline
            self.orders[stage.index] = start.order_parts(cfg, pipeline)


def at_once(
    cfg: Config, parts: tuple[stages.Stage, ...], step: int | None
) -> Sequence[stages.Stage]:
    """The stages whose data a start opens.

    All at the first start, for mistakes in any to be told before step 0. At a restart, that of the
    next step: the data of stages that are over may be gone, and later ones are opened in turn. Only
    captions that the end wants are those of all.

    Args:
        cfg: of the run.
        parts: its stages.
        step: of the checkpoint; None: the first start.
    """
    if step is None or wants_captions(cfg):
        return parts
    now, coming = at(parts, step), at(parts, step + 1)
    # Where stages meet, data that go on are compared with the order of the checkpoint.
    return [s for s in (now, coming) if pairs_of(s.cfg.data) == pairs_of(coming.cfg.data)]


def wants_captions(cfg: Config) -> bool:
    """Whether the last evaluation scores among the captions of all stages."""
    return any(t.distractors for t in cfg.eval.tasks)


def pairs_of(data: DataConfig) -> Hashable:
    """Equal for stages that read the same pairs."""
    return data.train, data.limit


def open_test(cfg: Config, workdir: str) -> Source | None:
    """The test split, with each task tried on its first record; None without tasks."""
    if not cfg.eval.tasks:
        return None
    source = open_source(cfg.data.test, index_dir=index_dir(workdir))
    for task in cfg.eval.tasks:
        check_task(source, task)
    return source


def make_tokenizer(cfg: Config, source: Source, stored: bytes | None) -> Tokenizer:
    """The run's tokenizer, checked against the text tower.

    Raises:
        UserError: ids of the tokenizer do not fit the tower.
    """
    tokenizer = build_tokenizer(
        cfg.tokenizer,
        vocab_size=cfg.model.text.vocab_size,
        captions=all_captions(source),
        stored=stored,
    )
    check_ids(cfg, tokenizer)
    return tokenizer


def check_ids(cfg: Config, tokenizer: Tokenizer) -> None:
    """Raises a UserError if the text tower takes other ids for the end and for pads."""
    text = cfg.model.text
    ways = {"eos_id": "", "pad_id": f", or config.tokenizer.pad_id={text.pad_id}"}
    for name, other in ways.items():
        if getattr(text, name) != getattr(tokenizer, name):
            raise UserError(
                f"config.model.text.{name}: is {getattr(text, name)}, but the tokenizer's is "
                f"{getattr(tokenizer, name)}; set it so{other}"
            )


def check_size(cfg: Config, pipeline: Pipeline) -> None:
    """Refuses a batch larger than the data: it would repeat pairs as their own negatives."""
    if pipeline.size < cfg.batch_size:
        raise UserError(
            f"config.batch_size: {cfg.batch_size} is more than the {pipeline.size} training pairs; "
            f"set it to at most {pipeline.size}"
        )
