"""What one epoch of a plan holds: its steps, its utterances, and how full its rows are (`mtbi plan`)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mtbi.batches.interleave import Coverage
from mtbi.batches.plan import LeftOut, Plan, Position


@dataclass(frozen=True)
class EpochReport:
    """Counts over the first epoch of a plan."""

    steps: int
    utterances: int  #: in the rows of all steps
    utterances_in_shards: int
    left_out: LeftOut
    coverage: Coverage
    used_share: float  #: of `rows_per_step * row_tokens` slots, mean over the steps
    epochs: float  #: that the run's steps make

    def to_json(self) -> dict[str, Any]:
        """The document that `mtbi plan --json` prints."""
        return {
            "steps_per_epoch": self.steps,
            "utterances": self.utterances,
            "utterances_in_shards": self.utterances_in_shards,
            "left_out": asdict(self.left_out),
            "interleaving": asdict(self.coverage),
            "used_share": self.used_share,
            "epochs": self.epochs,
        }


def report(plan: Plan, train_steps: int) -> EpochReport:
    """Walk through the first epoch without reading any audio. Raises UserError where no utterance fits a row."""
    steps, utterances, used_shares = 0, 0, 0.0
    left_out = plan.left_out
    for step in plan.steps(Position(0, 0)):
        if step.position.epoch > 0:
            break
        left_out = plan.left_out
        steps += 1
        used_shares += step.used_share
        utterances += sum(len(row.groups) for row in step.rows)
    table = plan.index.utterances
    coverage = Coverage.of(plan.index.spoken_words)
    return EpochReport(steps, utterances, len(table), left_out, coverage, used_shares / steps, train_steps / steps)


def render(epoch: EpochReport, plan: Plan, train_steps: int) -> str:
    """The report as text, a fact a line."""
    left_out = epoch.left_out
    lines = [f"steps an epoch  {epoch.steps}", f"utterances      {epoch.utterances} of {epoch.utterances_in_shards}"]
    if left_out.too_long or left_out.too_big or left_out.unanswered:
        lines.append(
            f"left out        {left_out.too_long} too long, {left_out.too_big} too big for a row, "
            f"{left_out.unanswered} without an answer"
        )
    if plan.interleave.share:
        lines.append(f"interleaving    {epoch.coverage}")
    rows, tokens = plan.config.rows_per_step, plan.config.row_tokens
    lines.append(f"slots used      {epoch.used_share:.1%} of {rows} rows of {tokens} tokens")
    lines.append(f"epochs          {epoch.epochs:.2f} in {train_steps} steps")
    return "\n".join(lines)
