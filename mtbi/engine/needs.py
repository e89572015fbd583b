"""What a recipe needs of its shards beyond answers: word times, the tokens of transcripts, and sound to distort."""

from __future__ import annotations

from mtbi.batches import distortions
from mtbi.batches.interleave import Coverage
from mtbi.errors import UserError
from mtbi.recipe import Recipe
from mtbi.shards.index import Index


def check(recipe: Recipe, index: Index) -> None:
    """Raises UserError for what the shards lack."""
    check_interleaving(recipe, Coverage.of(index.spoken_words))
    check_alignment(recipe, index)
    check_silence(recipe)
    check_augmentation(recipe, index)


def check_interleaving(recipe: Recipe, coverage: Coverage) -> None:
    """Raises UserError if the recipe interleaves, but no utterance can be interleaved."""
    if not recipe.interleave.share or coverage.possible:
        return
    asked = f"interleave.share is {recipe.interleave.share:g}, but no utterance of data.shards"
    if coverage.single:
        raise UserError(
            f"{asked} can be interleaved: {coverage.single} of {coverage.utterances} have one word only, the others no word "
            "times. Align transcripts of whole sentences with `mtbi data align`, or set interleave.share=0."
        )
    raise UserError(f"{asked} has word times: run `mtbi data align` and make the shards again, or set interleave.share=0.")


def check_alignment(recipe: Recipe, index: Index) -> None:
    """Raises UserError if the recipe has an alignment loss, but the tokens of some transcripts are not stored."""
    unknown = int((index.spoken_words == 0).sum())
    if (recipe.loss.alignment or recipe.train.alignment_steps) and unknown and not index.untimed_ids:
        raise UserError(
            f"loss.alignment or train.alignment_steps is set, but data.shards lacks the tokens of {unknown} transcripts "
            "without word times: make the shards again with this version, or set both to 0."
        )


def check_silence(recipe: Recipe) -> None:
    """Raises UserError if the LLM is not to read silence, but nothing trains the adapter to tell it."""
    if recipe.model.adapter.drop_silence and not (recipe.loss.alignment or recipe.train.alignment_steps):
        raise UserError(
            "model.adapter.drop_silence is set, but nothing teaches the adapter what silence is: set loss.alignment (or "
            "train.alignment_steps), or drop_silence=0."
        )


def check_augmentation(recipe: Recipe, index: Index) -> None:
    """Raises UserError if the recipe distorts sound, but the shards hold an encoder's output in its place."""
    if (on := distortions.switched_on(recipe.augment)) and index.encoded:
        fields = " and ".join(f"augment.{name}_probability" for name in on)
        raise UserError(
            f"{fields}: data.shards hold an encoder's output, so their sound cannot be distorted. Use the shards with audio, "
            "or set this to 0; augment.time_masks and augment.channel_masks work with both."
        )
