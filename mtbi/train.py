"""Train a speech LLM: `deepspeed mtbi/train.py --deepspeed ds_configs/zero3.json [--recipe demo] [key=value …]`.

Other launchers: torchrun, srun (one task for each GPU), mpirun, or none (one process). A run whose folder has checkpoints goes
on from the newest one that is whole. SIGTERM and SIGUSR2 make the run write a checkpoint and end with status 75.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

REPOSITORY = str(Path(__file__).resolve().parents[1])
if REPOSITORY not in sys.path:  # started as a script, the repository may not be installed
    sys.path[0] = REPOSITORY

from launcher.ranks import MISTAKE, STOPPED, UNAVAILABLE, Ranks, StopFlag, find_ranks  # noqa: E402
from mtbi import recipe as recipes  # noqa: E402
from mtbi.errors import ElsewhereError, UnavailableError, UserError  # noqa: E402
from mtbi.recipe import Recipe  # noqa: E402
from mtbi.terminal import quiet_libraries  # noqa: E402

if TYPE_CHECKING:
    from mtbi.engine.checkpointing import Progress
    from mtbi.engine.engine import Engine
    from mtbi.engine.inputs import Inputs


def parse_arguments() -> tuple[argparse.Namespace, Recipe]:
    """The command line's options, and the recipe that they name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deepspeed", required=True, metavar="JSON", help="DeepSpeed configuration, one of ds_configs/")
    parser.add_argument("--recipe", default="demo", help="name of a shipped recipe or path of a YAML file (default: demo)")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # some launchers insist on passing it
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="fields of the recipe, such as train.steps=100")
    options = parser.parse_intermixed_args()
    return options, recipes.load(options.recipe, options.overrides)


def train(recipe: Recipe, ds_config: str, ranks: Ranks, stop_flag: StopFlag) -> int:
    """Train a run to its end, from its newest checkpoint if it has one; returns the exit status.

    `ds_config` is the path of DeepSpeed's configuration. Raises UserError for everything that the user can put right.
    """
    import torch.distributed as dist

    from launcher.distributed import start_distributed
    from launcher.watchdog import Watchdog
    from mtbi.batches.loader import Loader
    from mtbi.engine import agreement, inputs
    from mtbi.engine.checkpointing import Checkpointer
    from mtbi.engine.engine import Engine
    from mtbi.engine.guard import Guard
    from mtbi.engine.log import Metrics
    from mtbi.engine.schedule import learning_rate
    from mtbi.engine.solved_start import SolvedStart

    # 1. Open the shards and plan the first step. A mistake in the data is found here, before a model is read.
    began, config = time.perf_counter(), recipe.train
    opened = agreement.attempt(lambda: inputs.open_inputs(recipe))
    if ranks.world == 1:
        opened.get()  # raises the mistake

    # 2. Join the other processes.
    watchdog = Watchdog(ranks, config.hang_seconds)
    device = start_distributed(ranks)
    watchdog.connect()

    # 3. Agree on what must be the same everywhere (recipe, data, software), and on the checkpoint to go on from.
    start = inputs.agree(recipe, ds_config, ranks, device, opened)
    data, evaluation, progress = start.inputs, start.evaluation, start.progress
    tasks = data.shards.index.tasks

    def report_activity(activity: str) -> None:
        watchdog.report(progress.step + 1, activity)

    # 4. Build the speech LLM inside DeepSpeed, with the checkpoint's weights and optimizer state, or with a solved adapter.
    longest_tokens = inputs.longest_dialogue(data, evaluation)
    silence = data.chat.tokenizer.encode(config.start_silence, add_special_tokens=False)
    solve = None if start.snapshot else SolvedStart(recipe, silence, data.shards, data.plan, ranks, report_activity).run
    engine = Engine(recipe, ds_config, len(tasks), device, ranks, start.snapshot, longest_tokens, solve, silence)
    start.snapshot = None  # the engine has its values, and it may be as large as the LLM
    engine.count_sources([data.shards.index, *([evaluation.shards.index] if evaluation else [])])
    sources = data.shards.index.source_names
    metrics = Metrics(recipe, tasks, ranks.rank == 0, ranks.world, engine.llm_size, device, progress.counts, sources)
    checkpointer = Checkpointer(recipe, ranks, engine, metrics, start.lease, report_activity)
    guard, stopped = Guard(config, progress.guard), False
    metrics.write_line(opening(recipe, ranks, data, engine, start.newest))
    metrics.write_line(f"checkpoints: {engine.checkpoint_size}")
    if progress.step >= config.steps:
        checkpointer.copy_again()
    if recipe.interleave.share and data.coverage.possible < data.coverage.utterances:
        metrics.write_line(f"interleaving: {data.coverage}")
    if data.augmentation:
        metrics.write_line(f"augmentation: {data.augmentation}")

    # 5. Train, one global step at a time. The loader's threads read ahead.
    with Loader(
        data.shards, data.plan, ranks.rank, ranks.world, recipe.plan.rows_per_micro_batch, recipe.data.workers,
        recipe.data.prefetch, progress.position, recipe.data.unreadable == "skip", report_activity,
        data.augmentation, device,
    ) as loader:  # fmt: skip
        for step in loader:
            if progress.step >= config.steps or stopped:
                break

            # 5.1 Forward, backward and update. `sums` are over all processes, so all decide the same from here on.
            sums = engine.train_step(step, progress.step, stop_flag.set)
            if began:
                metrics.write_line(f"first step after {time.perf_counter() - began:.1f} s")
                began = 0.0
            if sums.failed:  # a process has no data, so no weight was changed
                checkpointer.end(progress, loader.failure or ElsewhereError())
            progress.advance(step.step, sums.unreadable)
            number, stopped = progress.step, sums.stop
            last = number == config.steps

            # 5.2 Restore the newest good checkpoint if the loss or the gradient shows that training went wrong.
            if number == config.alignment_steps + 1:
                guard.forget()  # this step has another loss than those before it
            rollback_reason = guard.judge(sums)
            progress.guard = guard.to_state()
            if rollback_reason:
                checkpointer.roll_back(progress, rollback_reason)

            # 5.3 Log.
            metrics.skipped(number, sums.skipped, step.micro_batch_count * ranks.world, guard.spikes)
            rate = learning_rate(number - 1, config)
            metrics.step(number, step.step, sums, step.data_wait_seconds, rate, config.log_every_steps)
            if message := progress.too_many_unreadable(recipe.data, len(data.shards)):
                checkpointer.end(progress, UserError(message))

            # 5.4 Evaluate on held-out dialogues.
            score = None
            if evaluation and not stopped and (last or number % config.eval_every_steps == 0):
                score = evaluation.run(engine, metrics, number, lambda: report_activity("evaluating"))
                if evaluation.failure:
                    checkpointer.end(progress, evaluation.failure)

            # 5.5 Write a checkpoint.
            if rollback_reason or last or stopped or number % config.checkpoint_every_steps == 0:
                checkpointer.save(progress, score, needed=last or stopped)

    # 6. End together: wait for the last copy, then leave the process group.
    metrics.close()
    uncopied = checkpointer.close()
    metrics.write_line(closing(recipe, progress, stopped))
    dist.destroy_process_group()
    watchdog.close()
    if stopped and progress.step < config.steps:
        return STOPPED
    if uncopied:
        raise UnavailableError(f"{config.copy_to}: {uncopied} is not copied, see above; it is in {recipe.run_dir}.")
    return 0


def opening(recipe: Recipe, ranks: Ranks, data: Inputs, engine: Engine, newest: Path | None) -> str:
    """The log's first line: what is trained, on how many processes, from where."""
    return (
        f"{recipe.name}: {len(data.shards)} utterances, {len(data.shards.index.tasks)} tasks; {engine.trainable_size:,} "
        f"trainable parameters beside an LLM of {engine.llm_size.all:,}; {ranks.world} processes, ZeRO-{engine.stage}, "
        f"{engine.dtype}, " + (f"going on from {newest}" if newest else "from the start")
    )


def closing(recipe: Recipe, progress: Progress, stopped: bool) -> str:
    """The log's last line, of a run that reached its end or was asked to stop."""
    outcome = (
        f"stopped after step {progress.step}, as asked"
        if stopped
        else f"done: {progress.step} steps, checkpoints in {recipe.run_dir}"
    )
    if not progress.bad_steps:
        return outcome
    return (
        f"{outcome}. The last checkpoint follows {progress.bad_steps} bad step(s): their loss was too high, or there was none. "
        "Training goes on from that checkpoint; other `mtbi` commands take the newest one that follows a good step, if any"
    )


def main() -> int:
    """Train; returns the exit status. A mistake of the user's is printed as one message, without a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    quiet_libraries()
    stop_flag, rank = StopFlag(), 0  # before anything else: a signal may come while models are read
    try:
        ranks = find_ranks()
        rank = ranks.rank
        options, recipe = parse_arguments()
        return train(recipe, options.deepspeed, ranks, stop_flag)
    except UserError as error:
        # The launcher ends all processes once one has ended. So the process that failed prints first, before the processes that
        # only know of a failure elsewhere. Of several with the same message, rank 0 prints first.
        time.sleep(10 if isinstance(error, ElsewhereError) else 5 if rank else 0)
        print(f"mtbi: {error}" + (f" (process {rank})" if rank else ""), file=sys.stderr, flush=True)
        return UNAVAILABLE if isinstance(error, UnavailableError) else MISTAKE


if __name__ == "__main__":
    exit_status = main()
    sys.stdout.flush()
    # All files are written by now. An orderly exit would sometimes be aborted by torch's communication threads ("terminate
    # called without an active exception"), and the run would count as failed.
    os._exit(exit_status)
