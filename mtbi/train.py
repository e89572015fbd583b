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

REPOSITORY = str(Path(__file__).resolve().parents[1])
if REPOSITORY not in sys.path:  # started as a script, the repository may not be installed
    sys.path[0] = REPOSITORY

from launcher.ranks import STOPPED, Ranks, StopFlag, find_ranks  # noqa: E402
from mtbi import recipe as recipes  # noqa: E402
from mtbi.errors import UserError  # noqa: E402
from mtbi.recipe import Recipe  # noqa: E402


def parse_arguments() -> tuple[argparse.Namespace, Recipe]:
    """Options and the recipe they name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deepspeed", required=True, metavar="JSON", help="DeepSpeed configuration, one of ds_configs/")
    parser.add_argument("--recipe", default="demo", help="name of a shipped recipe or path of a YAML file (default: demo)")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # some launchers insist on passing it
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="fields of the recipe, such as train.steps=100")
    options = parser.parse_intermixed_args()
    return options, recipes.load(options.recipe, options.overrides)


def train(recipe: Recipe, ds_config: str, ranks: Ranks) -> int:
    """The whole run; returns the exit status."""
    import torch.distributed as dist

    from mtbi.data.loader import Loader
    from mtbi.data.plan import Plan, Position
    from mtbi.engine import checkpoint
    from mtbi.engine.engine import Engine
    from mtbi.engine.evaluation import Evaluation
    from mtbi.engine.metrics import Metrics
    from mtbi.engine.schedule import learning_rate
    from mtbi.engine.start import check_same_plan, open_shards, start_distributed
    from mtbi.model.geometry import FrameGeometry
    from mtbi.tasks.chat import ChatFormat, load_llm_tokenizer

    # --- everything that can be wrong is looked at before a model is read -------------------------------------------
    run_dir, config, first = Path(recipe.run_dir), recipe.train, ranks.rank == 0
    chat = ChatFormat(load_llm_tokenizer(recipe.model.llm, recipe.model.trust_remote_code), recipe.behaviour.system_prompt)
    shards = open_shards(recipe.data.shards, recipe, chat)
    geometry = FrameGeometry.from_config(recipe.model)
    plan = Plan(shards.index, recipe, geometry)
    next(plan.steps())  # an empty plan is an error now, not later
    device = start_distributed(ranks)
    evaluation = None
    if recipe.data.eval_shards and config.eval_every_steps:
        eval_shards = open_shards(recipe.data.eval_shards, recipe, chat)
        evaluation = Evaluation(recipe, geometry, chat, eval_shards, ranks.rank, ranks.world)
    if first:
        run_dir.mkdir(parents=True, exist_ok=True)
        recipes.save(recipe, run_dir / "recipe.yaml")

    # --- model and state --------------------------------------------------------------------------------------------
    newest = checkpoint.latest_valid(run_dir)
    snapshot = checkpoint.load(newest) if newest else None
    if snapshot:
        check_same_plan(recipe, snapshot.state["recipe"])
    tasks = shards.index.tasks
    engine = Engine(recipe, ds_config, len(tasks), device, ranks.world, snapshot)
    number = int(snapshot.state["step"]) if snapshot else 0
    position = Position.from_json(snapshot.state["position"]) if snapshot else Position()
    audio_seconds = float(snapshot.state["audio_seconds"]) if snapshot else 0.0
    stop_flag = StopFlag()
    llm_parameters = sum(getattr(p, "ds_numel", p.numel()) for p in engine.model.llm.parameters())
    metrics = Metrics(run_dir, tasks, config.steps, first, ranks.world, llm_parameters, device)
    trainable = sum(getattr(p, "ds_numel", p.numel()) for p in engine.parameters.values())
    metrics.say(
        f"{recipe.name}: {len(shards)} utterances, {len(tasks)} tasks; {trainable:,} trainable parameters beside an LLM of "
        f"{llm_parameters:,}; {ranks.world} processes, ZeRO-{engine.stage}, {engine.dtype}, "
        + (f"going on from {newest}" if newest else "from the start")
    )

    def save(score: float | None) -> None:
        state = {"step": number, "position": position.to_json(), "world": ranks.world, "recipe": recipes.to_dict(recipe)}
        state["audio_seconds"] = audio_seconds  # heard so far, repetitions included
        snapshot = engine.snapshot(state)  # all processes gather, the first one writes
        if first:
            checkpoint.save(run_dir, number, snapshot)
            checkpoint.keep(run_dir, config.keep_last, score)
        dist.barrier()

    # --- the loop ---------------------------------------------------------------------------------------------------
    bad_steps, stopped = 0, False
    rows, workers, prefetch = recipe.plan.rows_per_micro_batch, recipe.data.workers, recipe.data.prefetch
    with Loader(shards, plan, ranks.rank, ranks.world, rows, workers, prefetch, position) as loader:
        for step in loader:
            if number >= config.steps or stopped:
                break
            sums = engine.train_step(step, number, stop_flag.set)
            number, position, stopped = number + 1, step.next_position, sums.stop
            audio_seconds += step.step.audio_seconds
            bad_steps = bad_steps + 1 if sums.skipped == step.parts else 0
            if sums.skipped:
                metrics.say(f"step {number}: {sums.skipped} of {step.parts} micro-batches left out, their loss is not finite")
            if bad_steps >= config.max_bad_steps:
                raise UserError(
                    f"the loss was not finite in {bad_steps} steps in a row; lower train.learning_rate or look at the data. "
                    f"The newest checkpoint in {run_dir / checkpoint.FOLDER} is from before."
                )
            rate = learning_rate(number - 1, config)
            metrics.step(number, step.step, sums, step.data_wait_seconds, rate, config.log_every_steps)
            last = number == config.steps
            score = None
            if evaluation and not stopped and (last or number % config.eval_every_steps == 0):
                score = evaluation.run(engine, metrics, number)
            # Weights that just gave a loss that is not finite are no place to go back to.
            if not bad_steps and (last or stopped or number % config.checkpoint_every_steps == 0):
                save(score)
    metrics.say(f"stopped after step {number}, as asked" if stopped else f"done: {number} steps, checkpoints in {run_dir}")
    metrics.close()
    dist.destroy_process_group()
    return STOPPED if stopped and number < config.steps else 0


def main() -> int:
    """Run, and answer mistakes with one message instead of a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    ranks = find_ranks()
    try:
        options, recipe = parse_arguments()
        return train(recipe, options.deepspeed, ranks)
    except UserError as error:
        # A mistake that all processes find is told once: the launcher ends the others before they speak.
        time.sleep(0 if ranks.rank == 0 else 5)
        print(f"mtbi: {error}" + (f" (process {ranks.rank})" if ranks.rank else ""), file=sys.stderr, flush=True)
        return 2


if __name__ == "__main__":
    exit_status = main()
    sys.stdout.flush()
    # At once: everything is written by now, and threads of torch's communication sometimes abort an orderly end
    # ("terminate called without an active exception"), which would count as a failure of the run.
    os._exit(exit_status)
