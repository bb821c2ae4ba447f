"""A worker's process: interprets the worker's program with JAX and a protocol."""

import time

import jax
import jax.numpy as jnp

from asyn2f import errors, programs, serialization, trace
from asyn2f.programs import Seen
from asyn2f.protocol import events as p
from asyn2f.protocol import messages, wire_format
from asyn2f.protocol.settings import RuntimeSettings
from asyn2f.runtime.io_thread import Journal
from asyn2f.runtime.peer import (
    Ended,
    ModelInbox,
    PeerClient,
    Token,
    decode_model,
    global_model,
    hello_of,
    no_token,
    zero_params,
)
from asyn2f.training.batches import steps_per_epoch
from asyn2f.training.experiment import Experiment
from asyn2f.training.trainer import shard_of
from asyn2f.transport.base import Transport
from asyn2f.types import GlobalModel, UpdateInfo, WorkerState


class Worker:
    """One worker: joins, trains, merges and pushes until the run is over."""

    depth = 1  # versions that may wait to be looked at: newest wins

    def __init__(
        self,
        experiment: Experiment,
        worker: int,
        settings: RuntimeSettings,
        journal: Journal,
    ) -> None:
        """Compiles everything, so that it is ready to work when it joins.

        Raises:
          ValueError: there is no data for a worker of this number.
        """
        self._experiment = experiment
        self._trainer = experiment.trainer
        self._settings = settings
        self._worker = worker
        self._journal = journal
        self._shard = shard_of(experiment.task, worker)
        self._num_examples = int(self._shard.num_examples)
        # As float32, which is what comes back in its updates.
        self._quality = float(jnp.float32(experiment.task.qualities[worker]))
        self._epoch_steps = steps_per_epoch(
            self._num_examples, experiment.training.batch_size
        )
        speed = settings.worker_speeds[worker % len(settings.worker_speeds)]
        self._step_s = 1.0 / speed if speed else 0.0
        self._state: WorkerState | None = None
        # Newest version seen, and the incarnation that gave it out; kept once it has
        # been taken in only where it may be adopted again.
        self._fresh: tuple[GlobalModel, int] | None = None
        self._fresh_digest = self._base_digest = ""  # of its payload, of the base's
        self._adopts_again = experiment.strategy.timing.after_push == "adopt"
        self._newest = -1  # newest version seen that could be used
        self._newest_from = self._base_from = -1  # incarnations: of it, and of the base
        self._merges = 0
        self._merged_s = -1.0
        self._mailbox = ModelInbox(self.depth)
        self._warm_up()

    def stop(self, reason: str) -> None:
        """Ends the worker at its next batch boundary; from any thread."""
        self._mailbox.stop(reason)

    def run(
        self, transport: Transport, terms: tuple[str, ...], token: Token = no_token
    ) -> Ended:
        """Joins, and works until the run is over, or it is stopped or turned away.
        `terms`: see `agreement.terms_of`; `token`: of the run, if there are no keys."""
        hello = hello_of(
            self._experiment,
            terms,
            "worker",
            self._worker,
            self._num_examples,
            self._quality,
        )
        self._link = PeerClient(
            hello, self._settings, transport, self._journal, self._mailbox, token
        )
        self._link.start()
        program = programs.worker_program(
            self._experiment.strategy.timing, self._epoch_steps
        )
        command = next(program)
        try:
            while True:
                command = program.send(self._carry_out(command))
        except StopIteration:
            return self._link.leave()

    # ------------------------------------------------------------- commands

    def _carry_out(self, command: programs.WorkerCommand) -> Seen:
        steps = 0
        match command:
            case programs.Wait(known):
                self._wait(known)
            case programs.Adopt():
                self._adopt()
            case programs.Train(wanted, known):
                steps = self._train(wanted, known)
            case programs.Merge():
                self._merge()
            case programs.Push():
                self._push()
        stopped = self._mailbox.stopped is not None
        signal = self._signal()
        self._look()
        return Seen(steps=steps, newest=self._newest, signal=signal, stop=stopped)

    def _signal(self) -> float:
        """Read from the device only where a push may depend on it."""
        timing = self._experiment.strategy.timing
        if self._state is None or not timing.depends_on_values:
            return 0.0
        return float(self._trainer.report(self._state).info.signal)

    def _look(self) -> None:
        """Opens the newest letter, if there is one; a bad one is left out."""
        letter = self._mailbox.take()
        if letter is not None:
            try:
                model = decode_model(self._experiment, letter)
                self._fresh = model, letter.header.incarnation
                self._fresh_digest = letter.header.digest
                self._newest = letter.header.version
                self._newest_from = letter.header.incarnation
            except errors.WireError as error:
                print(f"worker {self._worker}: left out a version: {error}", flush=True)

    def _wait(self, known: int) -> None:
        start_s = time.monotonic()
        self._report_progress("waiting")
        self._look()
        while self._is_known(known) and self._mailbox.stopped is None:
            self._mailbox.wait()
            self._look()
        if self._state is not None:
            waited = trace.Blocked(
                time.monotonic(), self._worker, start_s, self._newest
            )
            self._journal.write(waited)

    def _is_known(self, known: int) -> bool:
        """Whether the newest version is that one; another server's of the same number,
        after a crash has taken the first, is not."""
        return self._newest == known and self._newest_from == self._base_from

    def _adopt(self) -> None:
        model, incarnation = self._take_fresh()
        if self._state is None:
            self._state = self._trainer.start(
                model, self._worker, self._num_examples, self._quality
            )
        else:
            self._state = self._trainer.adopt(self._state, model)
        step = int(self._state.step)
        version = int(model.version)
        self._journal.write(
            trace.Adopted(time.monotonic(), self._worker, version, step, incarnation)
        )

    def _take_fresh(self) -> tuple[GlobalModel, int]:
        assert self._fresh is not None
        fresh = self._fresh
        self._base_from = fresh[1]
        self._base_digest = self._fresh_digest
        if not self._adopts_again:
            self._fresh = None
        return fresh

    def _train(self, wanted: int, known: int | None) -> int:
        assert self._state is not None
        start_s = due_s = told_s = time.monotonic()
        done = 0
        while done < wanted:
            self._state, metrics = self._trainer.advance(self._state, self._shard)
            done += 1
            # The device first, the clock and the mailbox after it: nothing runs ahead.
            jax.block_until_ready(metrics)
            if self._step_s:
                due_s += self._step_s
                self._mailbox.wait_stopped(due_s - time.monotonic())
            if self._mailbox.stopped is not None:
                break
            if time.monotonic() > told_s + self._settings.heartbeat_interval_s:
                self._report_progress("training")  # a slow worker is not a hanging one
                told_s = time.monotonic()
            if known is not None and self._mailbox.newest != known:
                break
        info = serialization.to_numbers(self._trainer.report(self._state).info)
        self._journal.write(
            trace.Trained(
                time_s=time.monotonic(),
                worker=self._worker,
                start_s=start_s,
                steps=done,
                step=info.step,
                base_version=info.base_version,
                loss=info.loss,
                metric=info.metric,
            )
        )
        self._report_progress("training", info)
        return done

    def _merge(self) -> None:
        assert self._state is not None
        model, incarnation = self._take_fresh()
        before, step = int(self._state.base_version), int(self._state.step)
        self._state, metrics = self._trainer.merge(self._state, model)
        share = float(metrics["share"])
        self._merges += 1
        self._merged_s = time.monotonic()
        self._journal.write(
            trace.Merged(
                time_s=self._merged_s,
                worker=self._worker,
                version=int(model.version),
                from_version=before,
                step=step,
                epoch_fraction=step % self._epoch_steps / self._epoch_steps,
                share=share,
                incarnation=incarnation,
            )
        )

    def _push(self) -> None:
        assert self._state is not None
        update, self._state = self._trainer.push(self._state)
        payload = serialization.encode_params(update.params)
        needs_base = self._experiment.update_needs_base
        self._link.post(
            p.UpdateReady(
                info=serialization.to_numbers(update.info),
                fingerprint=self._experiment.update_template.fingerprint,
                num_bytes=len(payload),
                digest=serialization.digest(payload),
                payload=wire_format.compress(payload)
                if self._settings.zstd
                else payload,
                time_s=time.monotonic(),
                base=self._base_digest if needs_base else "",
            )
        )

    def _report_progress(
        self, state: str, info: UpdateInfo[int, float] | None = None
    ) -> None:
        if self._state is None:
            return
        if info is None:
            info = serialization.to_numbers(self._trainer.report(self._state).info)
        self._link.post(
            p.WorkerProgress(
                state=state,
                step=info.step,
                epoch=info.step / self._epoch_steps,
                loss=info.loss,
                metric=info.metric,
                base_version=info.base_version,
                merges=self._merges,
                merged_s=self._merged_s,
            )
        )

    def _warm_up(self) -> None:
        """Runs every program once on zeros of the right shapes."""
        trainer, shard = self._trainer, self._shard
        header = messages.ModelHeader("-", 0, 0, 0.0, 0.0, 1.0, 0.0, "", 0, "")
        model = global_model(header, zero_params(self._experiment))
        state = trainer.start(model, self._worker, self._num_examples, self._quality)
        state, _ = trainer.advance(state, shard)
        state, _ = trainer.merge(state, model)
        jax.block_until_ready(trainer.report(trainer.adopt(state, model)))
