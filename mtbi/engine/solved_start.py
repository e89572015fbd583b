"""The closed-form start of a new run: which utterances it reads, and how the processes share the work (`train.start`).

The utterances are cut into fixed blocks. Each process computes the sums of some blocks, and all add them in the order of the
blocks. So the start does not depend on the number of processes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from launcher.ranks import Ranks
from mtbi.batches.plan import Plan
from mtbi.engine.agreement import attempt, settle
from mtbi.errors import DamagedError, UserError
from mtbi.llm.load import gathered
from mtbi.model.adapter import output_layer
from mtbi.model.closed_form import Fit, OutputRegression, Spoken
from mtbi.recipe import Recipe
from mtbi.shards.read import Shards

START = 2  # distinguishes the draw of these utterances from the plan's draws
BLOCK_UTTERANCES = 8
TEST_UTTERANCES = 32  #: at most so many more tell how well the start fits
TEST_SHARE = 0.1  #: in a small corpus, at most this share of the utterances
log = logging.getLogger(__name__)

T = TypeVar("T")
Block = Sequence[int]  #: utterances by their numbers in the index


@dataclass(frozen=True)
class Drawn:
    """The utterances of a solved start, in blocks."""

    solved: list[Block]  #: summed
    tested: list[Block]  #: they tell how well the start fits


def draw(plan: Plan, utterances: int) -> Drawn:
    """Draw utterances with word times from the plan's seed, at most so many to be summed; none where none has word times.

    They are those of the first window or windows of the first epoch, because training fetches these shards first too.
    """
    chosen: list[int] = []
    for window in range(len(plan.windows(0))):
        numbers = np.unique(plan.window_utterances(0, window))
        rows = plan.index.utterances[numbers]
        usable = numbers[(rows["words"] > 0) & (rows["samples"] > 0) & (rows["samples"] <= plan.max_samples)]
        chosen += np.random.default_rng([plan.seed, window, START]).permutation(usable).tolist()
        if len(chosen) >= utterances + TEST_UTTERANCES:
            break
    tests = min(TEST_UTTERANCES, int(TEST_SHARE * len(chosen)), max(0, len(chosen) - 1))
    rest = chosen[tests:][:utterances]
    return Drawn(parts(rest, BLOCK_UTTERANCES), parts(chosen[:tests], BLOCK_UTTERANCES))


def parts(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """The items in stretches of `size`; the last one may be shorter."""
    return [items[start : start + size] for start in range(0, len(items), size)]


class SolvedStart:
    """Solves a new adapter's output layer, on all processes together."""

    def __init__(
        self,
        recipe: Recipe,
        silence: list[int],
        shards: Shards,
        plan: Plan,
        ranks: Ranks,
        report_activity: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`silence` are the token ids of `train.start_silence`.

        Raises UserError where the recipe asks for a solved start, and no utterance has word times or the adapter's frames do
        not follow time.
        """
        self.recipe, self.config, self.shards, self.plan, self.ranks = recipe, recipe.train, shards, plan, ranks
        self.silence = silence
        self.report_activity = report_activity
        self.drawn = draw(plan, self.config.start_utterances) if self.config.start != "random" else Drawn([], [])
        if not plan.geometry.follows_time and self.drawn.solved:
            self.drawn = Drawn([], [])
            self._stay_random(f"the frames of model.adapter.kind={recipe.model.adapter.kind} do not follow the words' times")
        if not self.drawn.solved and self.config.start == "solved":
            raise UserError(
                "train.start is solved, but no utterance of data.shards has word times: run `mtbi data align` and make the "
                "shards again, or set train.start=random."
            )

    def run(self, model: Any) -> Fit | None:
        """Solve and set the output layer of a SpeechLLMModule, the same on all processes; returns how well it fits.

        None: the layer stays random.
        Call it before DeepSpeed takes the parameters over. The first process prints what was done. Raises UserError on all
        processes if one of them cannot read its utterances, or where the recipe asks for `solved` and it cannot be done.
        """
        if not self.drawn.solved:
            return None
        began = time.perf_counter()
        layer = output_layer(model.adapter, model.encoder.width)
        if layer is None:
            return self._stay_random(f"the adapter {self.recipe.model.adapter.kind!r} does not end in an `Output` layer")
        with gathered(model.llm.get_input_embeddings().weight):
            spacing = self.plan.geometry.samples_per_frame
            weight = self.config.start_silence_weight
            regression = OutputRegression(model, layer, self.shards.index, spacing, self.silence, weight)
            solution: Tensor | None = None
            for _ in range(self.config.start_rounds):
                solution = self._solve(regression, self._add_up(regression, solution))
                if solution is None:
                    return self._stay_random("its equations have no solution; a larger train.start_penalty may help")
            assert solution is not None
            regression.put(solution)
            fit = self._test(regression, solution)
        utterances = sum(map(len, self.drawn.solved))
        self._print(f"train.start is solved: {utterances} utterances, {time.perf_counter() - began:.1f} s; {fit}")
        return fit

    def _stay_random(self, reason: str) -> Fit | None:
        """None. Raises UserError if the recipe asks for a solved start."""
        if self.config.start == "solved":
            raise UserError(f"train.start is solved, but {reason}. Set train.start=random.")
        self._print(f"train.start is random: {reason}")
        return None

    def _print(self, line: str) -> None:
        if self.ranks.rank == 0:
            print(line, flush=True)

    def _read(self, block: Block) -> list[Spoken]:
        """The utterances of a block. Damaged ones are left out where the recipe skips them."""
        spoken = []
        for number in block:
            try:
                stored = self.shards[number]
            except DamagedError as error:
                if self.recipe.data.unreadable != "skip":
                    raise
                log.warning("utterance %d left out of the adapter's start: %s", number, error)
                continue
            spoken.append(Spoken(stored, int(self.shards.index.utterances[number]["samples"])))
        return spoken

    def _work(self, blocks: Sequence[Block], compute: Callable[[list[Spoken]], Tensor], none: Tensor) -> Tensor:
        """What `compute` gives of this process's block of `blocks`; `none` where it has no block, or none of it can be read."""
        self.report_activity("solving the adapter's start")

        def work() -> Tensor:
            spoken = self._read(blocks[self.ranks.rank]) if self.ranks.rank < len(blocks) else []
            return compute(spoken) if spoken else none

        return settle(self.ranks, attempt(work))

    def _add_up(self, regression: OutputRegression, solution: Tensor | None) -> Tensor:
        """The sums over all blocks, added in their order, the same on all processes. An earlier solution places the tokens."""
        total = regression.empty()
        for blocks in parts(self.drawn.solved, self.ranks.world):
            own = self._work(blocks, lambda spoken: regression.sums(spoken, solution), regression.empty())
            for owner in range(len(blocks)):
                part = own if owner == self.ranks.rank else torch.empty_like(total)
                if self.ranks.world > 1:
                    dist.broadcast(part, src=owner)
                total += part
        return total

    def _solve(self, regression: OutputRegression, sums: Tensor) -> Tensor | None:
        """The solution of the first process, on all processes; None if there is none."""
        solution = regression.solve(sums, self.config.start_penalty) if self.ranks.rank == 0 else None
        shared = regression.mean.new_full((regression.inputs, len(regression.mean)), torch.nan)
        shared = shared if solution is None else solution
        if self.ranks.world > 1:
            dist.broadcast(shared, src=0)
        return shared if shared.isfinite().all() else None

    def _test(self, regression: OutputRegression, solution: Tensor) -> Fit:
        """How well the solution fits the words of the tested blocks, over all processes."""
        counts = torch.zeros(3, dtype=torch.int64, device=solution.device)

        def compute(spoken: list[Spoken]) -> Tensor:
            fit = regression.fit(solution, *regression.words(spoken, solution))
            return counts.new_tensor([fit.words, fit.first, fit.near])

        for blocks in parts(self.drawn.tested, self.ranks.world):
            counts = counts + self._work(blocks, compute, counts.new_zeros(3))
        if self.ranks.world > 1:
            dist.all_reduce(counts)
        return Fit(*counts.tolist())
