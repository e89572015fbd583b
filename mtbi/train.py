"""Train a speech LLM: `deepspeed mtbi/train.py --deepspeed ds_configs/zero3.json [--recipe demo] [key=value …]`.

Also runs under torchrun, srun (one task for each GPU), or alone as one process. A run whose folder holds checkpoints
goes on from the newest whole one. SIGTERM and SIGUSR2 end it after a checkpoint, with status 75.
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

if TYPE_CHECKING:
    from mtbi.engine.checkpointing import Progress


def parse_arguments() -> tuple[argparse.Namespace, Recipe]:
    """Options and the recipe they name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deepspeed", required=True, metavar="JSON", help="DeepSpeed configuration, one of ds_configs/")
    parser.add_argument("--recipe", default="demo", help="name of a shipped recipe or path of a YAML file (default: demo)")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # some launchers insist on passing it
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="fields of the recipe, such as train.steps=100")
    options = parser.parse_intermixed_args()
    return options, recipes.load(options.recipe, options.overrides)


def train(recipe: Recipe, ds_config: str, ranks: Ranks, stop_flag: StopFlag) -> int:
    """The whole run; returns the exit status."""
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

    # --- everything that can be wrong is looked at before a model is read -------------------------------------------
    began, config = time.perf_counter(), recipe.train
    opened = agreement.attempt(lambda: inputs.open_inputs(recipe))
    if ranks.world == 1:
        opened.get()
    watchdog = Watchdog(ranks, config.hang_seconds)
    device = start_distributed(ranks)
    watchdog.meet()
    begin = inputs.agree(recipe, ds_config, ranks, device, opened)
    data, evaluation, newest, snapshot = begin.inputs, begin.evaluation, begin.newest, begin.snapshot

    # --- model and state --------------------------------------------------------------------------------------------
    tasks, progress = data.shards.index.tasks, begin.progress

    def doing(what: str) -> None:
        watchdog.at(progress.step + 1, what)

    longest = inputs.longest_dialogue(data, evaluation)
    engine = Engine(recipe, ds_config, len(tasks), device, ranks, snapshot, longest)
    metrics = Metrics(recipe, tasks, ranks.rank == 0, ranks.world, engine.llm_size, device, progress.counts)
    checkpointer = Checkpointer(recipe, ranks, engine, metrics, begin.lease, doing)
    guard, stopped = Guard(config, progress.guard), False
    metrics.write_line(
        f"{recipe.name}: {len(data.shards)} utterances, {len(tasks)} tasks; {engine.trainable_size:,} trainable parameters "
        f"beside an LLM of {engine.llm_size.all:,}; {ranks.world} processes, ZeRO-{engine.stage}, {engine.dtype}, "
        + (f"going on from {newest}" if newest else "from the start")
    )
    if progress.step >= config.steps:
        checkpointer.copy_again()
    if recipe.interleave.share and data.coverage.possible < data.coverage.utterances:
        metrics.write_line(f"interleaving: {data.coverage}")

    # --- the loop ---------------------------------------------------------------------------------------------------
    with Loader(
        data.shards, data.plan, ranks.rank, ranks.world, recipe.plan.rows_per_micro_batch, recipe.data.workers,
        recipe.data.prefetch, progress.position, recipe.data.unreadable == "skip", doing,
    ) as loader:  # fmt: skip
        for step in loader:
            if progress.step >= config.steps or stopped:
                break
            sums = engine.train_step(step, progress.step, stop_flag.set)
            if began:
                metrics.write_line(f"first step after {time.perf_counter() - began:.1f} s")
                began = 0.0
            if sums.failed:  # some process has no data: no weight was changed
                checkpointer.end(progress, loader.failure or ElsewhereError())
            progress.advance(step.step, sums.unreadable)
            number, stopped = progress.step, sums.stop
            last = number == config.steps
            why = guard.judge(sums, step.micro_batch_count)
            progress.guard = guard.to_state()
            if why:
                checkpointer.roll_back(progress, why)
            metrics.skipped(number, sums.skipped, step.micro_batch_count, guard.spikes)
            rate = learning_rate(number - 1, config)
            metrics.step(number, step.step, sums, step.data_wait_seconds, rate, config.log_every_steps)
            if lost := progress.too_many_unreadable(recipe.data, len(data.shards)):
                checkpointer.end(progress, UserError(lost))
            score = None
            if evaluation and not stopped and (last or number % config.eval_every_steps == 0):
                score = evaluation.run(engine, metrics, number, lambda: doing("evaluating"))
                if evaluation.failure:
                    checkpointer.end(progress, evaluation.failure)
            if why or last or stopped or number % config.checkpoint_every_steps == 0:
                checkpointer.save(progress, score, needed=last or stopped)

    metrics.close()
    uncopied = checkpointer.close()
    metrics.write_line(ending(recipe, progress, stopped))
    dist.destroy_process_group()
    watchdog.close()
    if stopped and progress.step < config.steps:
        return STOPPED
    if uncopied:
        raise UnavailableError(f"{config.copy_to}: {uncopied} is not copied, see above; it is in {recipe.run_dir}.")
    return 0


def ending(recipe: Recipe, progress: Progress, stopped: bool) -> str:
    """The last line of a run that ended as it should."""
    what = (
        f"stopped after step {progress.step}, as asked"
        if stopped
        else f"done: {progress.step} steps, checkpoints in {recipe.run_dir}"
    )
    if not progress.bad_steps:
        return what
    return (
        f"{what}. The last checkpoint follows {progress.bad_steps} bad step(s): with a sudden high loss, or without any. A run "
        "goes on from it; `mtbi` commands take the newest checkpoint that follows a good step, if there is one"
    )


def main() -> int:
    """Run, and answer mistakes with one message instead of a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    stop_flag, rank = StopFlag(), 0  # a signal may come while models are read
    try:
        ranks = find_ranks()
        rank = ranks.rank
        options, recipe = parse_arguments()
        return train(recipe, options.deepspeed, ranks, stop_flag)
    except UserError as error:
        # A mistake that all processes find is told once: the launcher ends the others before they speak. One that a single
        # process finds is told by that one.
        time.sleep(10 if isinstance(error, ElsewhereError) else 5 if rank else 0)
        print(f"mtbi: {error}" + (f" (process {rank})" if rank else ""), file=sys.stderr, flush=True)
        return UNAVAILABLE if isinstance(error, UnavailableError) else MISTAKE


if __name__ == "__main__":
    exit_status = main()
    sys.stdout.flush()
    # At once: everything is written by now, and threads of torch's communication sometimes abort an orderly end
    # ("terminate called without an active exception"), which would count as a failure of the run.
    os._exit(exit_status)
