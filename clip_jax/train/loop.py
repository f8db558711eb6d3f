"""run(cfg, workdir): mesh, data, state, loop, evaluation, checkpoints. One screen a phase.

Side effects all live here: files of the workdir, the terminal, signals. The order is fixed:
lock, config, checkpoint, data, start state, loop, final evaluation, report. The step compiles
meanwhile: beside drawing the first state, or at a restart beside checkpoint and data.
Several processes all run this; process 0 prints and writes, the others keep in step with it.
"""

import contextlib
import dataclasses
import functools
import json
import sys
import time
from typing import Any

import jax

from clip_jax import files
from clip_jax.checkpoint import bucket
from clip_jax.checkpoint.lock import WorkdirLock, hold
from clip_jax.checkpoint.manager import Checkpoints
from clip_jax.config.schema import Config
from clip_jax.config.stages import at
from clip_jax.config.stored import read_config
from clip_jax.data.feed import feed, host_rows
from clip_jax.data.pipeline import Pipeline
from clip_jax.data.sources import Source, all_captions
from clip_jax.errors import CHECK_FAILED, Stop
from clip_jax.eval import published
from clip_jax.eval.run import Result, run_tasks, table
from clip_jax.inference.api import Model
from clip_jax.inference.load import TOKENIZER_FILE
from clip_jax.metrics import trackers
from clip_jax.metrics.goodput import Ledger
from clip_jax.metrics.writers import LiveLine, NoWriter, Writer, read_metrics
from clip_jax.report.finished import is_finished
from clip_jax.sharding import processes
from clip_jax.sharding.rules import copies_line, large_copies
from clip_jax.train import agreement, failures, inputs, program, stages, start, summary, warm
from clip_jax.train import table as parameter_table
from clip_jax.train.compiler import use_cache
from clip_jax.train.compiling import Compiling
from clip_jax.train.log import Log
from clip_jax.train.profile import Profile
from clip_jax.train.signals import Signals
from clip_jax.train.state import TrainState, from_items, init_state, to_items
from clip_jax.train.watchdog import Watchdog

REPORT_S = 60.0  # a running job writes its report at most this often
REPORT_SHARE = 50  # and spends at most one part in so many on it: metrics in a bucket take long


def run(cfg: Config, workdir: str, *, accept_changes: bool = False) -> TrainState:
    """Trains until cfg.num_steps, from where the workdir stands.

    Raises:
        UserError: what the user can mend.
        Stop: stopped by a signal (42, 130), diverged (4), or failed the overfit check (3).
    """
    ledger = Ledger()
    with failures.told(workdir), contextlib.ExitStack() as stack:
        processes.together(lambda: use_cache(cfg.compile.cache_dir))
        processes.together(lambda: bucket.check(workdir))
        processes.together(lambda: trackers.check(cfg.log.writers))
        parts = processes.together(lambda: stages.programs(cfg))
        agreement.same_program(cfg, workdir)
        line = LiveLine(cfg.num_steps, sys.stdout if processes.lead() else None)
        stack.callback(line.close)
        lock = stack.enter_context(hold(workdir, line.say))
        signals = stack.enter_context(Signals())
        checkpoints = Checkpoints(workdir, keep=cfg.checkpoint.keep)
        stack.push(functools.partial(_close, checkpoints))
        compiling = Compiling()
        stack.callback(compiling.close)
        saved = json.loads(processes.tell(json.dumps(checkpoints.steps())))  # one listing for all
        if saved:  # a first start that failed leaves nothing to agree with
            check = lambda: start.check_same_run(read_config(workdir), cfg, accept_changes)  # noqa: E731
            for text in processes.together(check):
                line.say(f"changed: {text}")
            if saved[-1] < parts[-1].last:
                following = at(parts, saved[-1] + 1)
                processes.together(functools.partial(compiling.begin, following))
        else:
            processes.together(lambda: warm.check(parts[0].cfg))
        abstract = lambda step: to_items(at(parts, step).prog.abstract)  # noqa: E731
        restored = start.restore(checkpoints, abstract, line.say)
        stored = restored.extra_files[TOKENIZER_FILE] if restored else None
        data = inputs.Inputs(workdir, stored)
        data.open(inputs.at_once(cfg, parts, restored.step if restored else None))
        test, tokenizer = data.test, data.tokenizer
        if restored:
            stage, first = at(parts, restored.step), restored.step
            state = from_items(restored.items)
            start.check_length(parts[-1].last, first)
            if stage.index in data.orders:
                start.check_same_order(restored.manifest["order"], data.orders[stage.index])
            read = start.read_before(restored.manifest)
        else:
            stage, first, read = parts[0], 0, {}
            processes.together(functools.partial(compiling.begin, stage))
            with jax.set_mesh(stage.prog.mesh):
                state = init_state(stage.prog.init, stage.prog.abstract, cfg.seed)
                state, lines = warm.warmed(stage.cfg, state, tokenizer)
            for text in lines:
                line.say(text)
        processes.on_lead(lambda: start.describe(cfg, workdir, tokenizer))
        profile = processes.together(lambda: Profile(cfg.log.profile, workdir, line.say))
        stack.callback(profile.close)
        kept = first if restored else -1  # metrics of step 0 may be those of another start
        writer = (
            processes.on_lead(lambda: start.open_writer(cfg, workdir, kept, line.say)) or NoWriter()
        )
        stack.callback(writer.close)
        ledger.started()
        began, skipped = first, 0
        for now in parts[stage.index :]:
            if now is not stage:
                with ledger.spend("start"):
                    processes.together(functools.partial(compiling.begin, now))
                    if now.index not in data.pipelines:
                        data.open([now])
                    if not inputs.wants_captions(cfg):
                        data.close(stage)
                    state, first, stage = stages.advance(state, stage, now), now.first, now
            if now.index not in data.pipelines:
                continue  # the checkpoint is its last
            job = Job(
                cfg=now.cfg,
                workdir=workdir,
                stage=now,
                compiling=compiling,
                pipeline=data.pipelines[now.index],
                checkpoints=checkpoints,
                lock=lock,
                signals=signals,
                line=line,
                order=data.orders[now.index],
                read=read,
                writer=writer,
                ledger=ledger,
                profile=profile,
                began=began,
                sources=[p.source for p in data.pipelines.values()],
            )
            if first < now.last:
                state, read, skipped = job.train(state, test, first, skipped)
        with Watchdog(cfg.log.watchdog_seconds, "the last step"):
            job.conclude(state, test)
    processes.tell("")  # who leaves waits for the others a minute: not before process 0 has closed
    return state


@dataclasses.dataclass(frozen=True)
class Job:
    """One attempt at a stage of a run, all parts open."""

    cfg: Config  # of the stage
    workdir: str
    stage: stages.Stage
    compiling: Compiling
    pipeline: Pipeline
    checkpoints: Checkpoints
    lock: WorkdirLock
    signals: Signals
    line: LiveLine
    order: dict[str, Any]
    writer: Writer
    ledger: Ledger
    profile: Profile
    began: int  # steps of the run before this attempt
    read: dict[str, int]  # before this attempt at the stage: of each data set so many pairs
    sources: list[Source]  # training pairs; of all stages if their captions are wanted

    @property
    def prog(self) -> program.Program:
        """The program of the stage."""
        return self.stage.prog

    def train(
        self, state: TrainState, test: Source | None, first: int, skipped: int
    ) -> tuple[TrainState, dict[str, int], int]:
        """From step `first` of the run to the end of the stage; counts `read`, `skipped` on."""
        cfg, prog, end = self.cfg, self.prog, self.stage.last
        position = self.read.get(self.pipeline.source.fingerprint, 0)
        processes.on_lead(self.write_table)
        self.line.say(summary.plan_line(self.stage, self.pipeline.size, first))
        if copies := large_copies(prog.abstract.params, prog.mesh):
            self.line.say(copies_line(copies))
        with self.ledger.spend("compilation"):
            execute = processes.together(lambda: self.compiling.wait(self.stage))
        self.line.say(program.memory_line(execute))
        batches = self.pipeline.batches(
            start=position,
            batch_size=cfg.batch_size,
            num_steps=end - first,
            rows=host_rows(cfg.batch_size, prog.mesh),
        )
        stream = feed(batches, prog.mesh)
        log = Log(self, self.writer, first, skipped)
        watchdog = Watchdog(cfg.log.watchdog_seconds)
        report_at = time.monotonic() + REPORT_S
        with jax.set_mesh(prog.mesh), jax.transfer_guard("disallow"), watchdog:
            if self.evaluation_due(first) and not self.has_scores(first):
                with log.clock.paused(), self.ledger.spend("evaluation"):
                    self.evaluate(state, test, first)  # at the start, or killed after saving
                watchdog.beat(first)
            for step in range(first + 1, end + 1):
                with log.clock.waiting(), self.ledger.spend("input"):
                    batch, host = next(stream)
                self.profile.before(step)
                state, metrics = execute(state, batch)
                self.profile.after(step, metrics)
                position += cfg.batch_size
                log.count(host)
                last = step == end
                log.flush()  # the line of an earlier step: its arrays are ready by now
                if step % cfg.log.every == 0 or last or step == first + 1:
                    log.keep(step, metrics, host)
                stop = self.signals.asked(step - self.began)
                save = last or stop or step % cfg.checkpoint.every == 0
                evaluate = self.evaluation_due(step) and not last and not stop
                if save or evaluate or log.ready():
                    log.flush()
                with log.clock.paused():
                    if save:
                        with self.ledger.spend("checkpoint"):
                            self.save(step, state, position)
                    if save and not last and (now := time.monotonic()) > report_at:
                        with self.ledger.spend("report"):
                            self.refresh(step)
                        took = time.monotonic() - now
                        report_at = now + max(REPORT_S, REPORT_SHARE * took)
                    if stop and not (last and self.stage.is_last):
                        self.stop(step)
                    if evaluate:
                        with self.ledger.spend("evaluation"):
                            self.evaluate(state, test, step)
                watchdog.beat(step)
            with self.ledger.spend("checkpoint"):
                self.checkpoints.wait()
        return state, self.read_until(position), log.skipped

    def read_until(self, position: int) -> dict[str, int]:
        """`read` when the stage has come to this position of its data."""
        return {**self.read, self.pipeline.source.fingerprint: position}

    def write_table(self) -> None:
        """The parameters as they are in this stage."""
        rows = parameter_table.text(self.prog.abstract.params, self.cfg.optim)
        files.write_bytes(files.join(self.workdir, "parameters.txt"), rows.encode())

    def evaluation_due(self, step: int) -> bool:
        """Whether the scores of `step` belong into the metrics; where stages meet, of the later."""
        every = self.cfg.eval.every
        if step == 0:
            return bool(self.cfg.eval.tasks and self.cfg.eval.start)
        due = step == self.stage.first or (every and step % every == 0)
        return bool(self.cfg.eval.tasks and due)

    def has_scores(self, step: int) -> bool:
        """Whether they are there."""
        lines = processes.on_lead(lambda: read_metrics(self.workdir)) or []
        return bool(processes.tell("yes" if any(summary.scores_of(step, x) for x in lines) else ""))

    def evaluate(self, state: TrainState, test: Source | None, step: int) -> None:
        """Zero-shot scores of the current parameters into the metrics."""
        if test is not None:
            result = run_tasks(self.model(state), test, self.cfg.eval.tasks)
            self.writer.write(step, result.metrics)
            top = {k: v for k, v in result.metrics.items() if "/top" in k}
            text = ", ".join(f"{k.removeprefix('eval/')} {100 * v:.1f} %" for k, v in top.items())
            self.line.say(f"step {step}: {text}")
            cfg = read_config(self.workdir) if self.cfg.eval.reference else self.cfg
            if low := published.behind(cfg, step, result.metrics):
                self.line.say(low)

    def model(self, state: TrainState) -> Model:
        """The current parameters, ready to use."""
        return Model(
            self.cfg,
            state.ema if self.cfg.eval.ema else state.params,
            state.stats,
            self.pipeline.tokenizer,
            self.prog.mesh,
            self.cfg.eval.batch_size,
        )

    def save(self, step: int, state: TrainState, position: int) -> None:
        """Starts an asynchronous checkpoint."""
        self.lock.check()
        manifest = {"position": position, "order": self.order, "batch_size": self.cfg.batch_size}
        manifest["read"] = self.read_until(position)
        extra = {TOKENIZER_FILE: self.pipeline.tokenizer.to_bytes()}
        self.checkpoints.save(step, to_items(state), manifest, extra_files=extra)

    def stop(self, step: int) -> None:
        """Leaves in good order after a signal."""
        self.checkpoints.wait()
        status = self.signals.settle()
        text = f"{self.signals.name}: saved step {step}; the same command goes on"
        raise processes.stop(text, status)

    def conclude(self, state: TrainState, test: Source | None) -> None:
        """Final scores, table and report, unless they stand; and the verdict of `:overfit`."""
        cfg, path = self.cfg, files.join(self.workdir, "report.html")
        stands = processes.on_lead(lambda: is_finished(path))
        if processes.tell("yes" if stands else ""):
            self.line.say(f"already finished: step {self.stage.last}; report: {path}")
        else:
            result = Result({}, [], [])
            if test is not None:
                tasks = cfg.eval.tasks
                wanted = inputs.wants_captions(cfg)
                seen = {x.fingerprint: x for x in self.sources}.values() if wanted else ()
                captions = sorted({text for source in seen for text in all_captions(source)})
                with jax.set_mesh(self.prog.mesh), self.ledger.spend("evaluation"):
                    model = self.model(state)
                    result = run_tasks(model, test, tasks, captions=captions, samples=True)
            processes.on_lead(lambda: self.finish(result))
        if cfg.overfit:
            verdict = processes.on_lead(
                lambda: summary.overfit_verdict(read_metrics(self.workdir), cfg.batch_size)
            )
            passed, text = json.loads(processes.tell(json.dumps(verdict)))
            if not passed:
                raise processes.stop(text, CHECK_FAILED)
            if processes.lead():
                print(text)

    def refresh(self, step: int) -> None:
        """The report of a running job; nobody waits for it, and its failure is only said."""
        if not processes.lead():
            return
        try:
            self.report(None, step, read_metrics(self.workdir))
        except Exception as e:  # whatever it is, training is worth more
            self.line.say(f"step {step}: the report could not be written ({e})")

    def report(self, result: Result | None, step: int, metrics: list[dict[str, Any]]) -> str:
        """Writes report.html as of `step`; `result` is that of the end. Returns its path."""
        cfg = read_config(self.workdir)
        facts = [
            ("steps", summary.steps_line(cfg)),
            ("training pairs", f"{self.pipeline.size:,}"),
            ("parameters", f"{program.num_params(self.prog.abstract.params):,}"),
        ]
        if result is None:
            facts.insert(0, ("state", f"running: step {step:,} of {cfg.num_steps:,}"))
        return summary.write(cfg, self.workdir, metrics, result, facts)

    def finish(self, result: Result) -> None:
        """Writes and prints what is known at the end."""
        end, metrics = self.stage.last, read_metrics(self.workdir)
        if result.metrics and not any(summary.scores_of(end, x) for x in metrics):
            times = self.ledger.values() if self.began < end else {}  # else it trained nothing
            self.writer.write(end, {**result.metrics, **times})
            metrics = read_metrics(self.workdir)
        if low := published.behind(read_config(self.workdir), end, result.metrics):
            self.line.say(low)
        path = self.report(result, end, metrics)
        self.line.close()
        if result.rows:
            print(table(result.rows))
        print(f"{summary.time_line(metrics)}; report: {path}", flush=True)


def _close(checkpoints: Checkpoints, kind: type[BaseException] | None, *error: object) -> None:
    """Ends saving in order, unless this process fails alone: the others would not join in."""
    if jax.process_count() == 1 or kind is None or issubclass(kind, Stop | processes.Shared):
        checkpoints.close()
