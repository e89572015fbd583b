"""`mtbi data import`, `check`, `describe` and `align`: from recordings to a checked manifest with word times."""

from __future__ import annotations

from pathlib import Path

from mtbi import plugins
from mtbi.cli.arguments import Group, Options, add_command, add_slice, chosen_slice
from mtbi.errors import UserError


def add_import(group: Group) -> None:
    """`mtbi data import`."""
    command = add_command(
        group,
        "import",
        run_import,
        "mtbi data import librispeech /corpora/LibriSpeech/train-clean-360 work/train --text-style sentence",
        "mtbi data import jsonl other/manifest.jsonl work/train --allow-outside",
        "mtbi data import gigaspeech /corpora/GigaSpeech work/train --part $SLURM_ARRAY_TASK_ID/64",
    )
    command.set_help(command.add_argument("kind"), kinds_help)
    command.add_argument("source", type=Path, help="the corpus")
    command.add_argument("out", type=Path, help="folder for manifest.jsonl and rejected.jsonl")
    command.set_help(command.add_argument("--text-style", default="none"), text_styles_help)
    command.add_argument("--allow-outside", action="store_true", help="accept recordings outside the source folder")
    command.add_argument("--split", action="append", default=[], help="keep only this split, such as train; may be repeated")
    command.add_argument("--strip-tags", action="store_true", help="remove tags such as [noise] and <unk> from transcripts")
    command.add_argument("--text-column", default="", help="the transcripts' column of Parquet files")
    command.add_argument("--audio-column", default="", help="the recordings' column of Parquet files")
    add_slice(command, "the corpus")


def kinds_help() -> str:
    """The names of the shipped importers."""
    return f"the corpus's layout: {', '.join(plugins.SHIPPED[plugins.IMPORTERS])}, or an installed one"


def text_styles_help() -> str:
    """The names of the shipped text styles."""
    from mtbi.corpus.text_style import STYLES

    return f"spelling of the transcripts: {', '.join(STYLES)}, or an installed one (default: none)"


def run_import(options: Options) -> None:
    """Make a checked manifest of a speech corpus."""
    from mtbi.corpus.importers import import_corpus

    summary = import_corpus(
        options.kind,
        options.source,
        options.out,
        options.text_style,
        allow_outside=options.allow_outside,
        splits=options.split,
        strip_tags=options.strip_tags,
        columns={"text_column": options.text_column, "audio_column": options.audio_column},
        part=chosen_slice(options),
    )
    print(summary)


def add_check(group: Group) -> None:
    """`mtbi data check`."""
    command = add_command(group, "check", run_check)
    command.add_argument("manifest", type=Path)


def run_check(options: Options) -> None:
    """Decode every recording of a manifest and list what cannot be used."""
    from mtbi.corpus import manifest
    from mtbi.corpus.check import check

    utterances, rejected = manifest.scan_manifest(options.manifest)
    good, unfit = check(utterances, options.manifest.parent)
    rejected = [*rejected, *unfit]
    for record in rejected:
        print(f"{record['id']}: {record['reason']}")
    print(f"{len(good)} good, {len(rejected)} rejected")
    if rejected:
        raise UserError(f"{options.manifest}: {len(rejected)} records cannot be used; `mtbi data import jsonl` leaves them out")


def add_describe(group: Group) -> None:
    """`mtbi data describe`."""
    command = add_command(
        group,
        "describe",
        run_describe,
        "mtbi data describe work/train/aligned.jsonl work/train/described.jsonl",
        "mtbi data describe work/train/aligned.jsonl work/train/described.jsonl --part $SLURM_ARRAY_TASK_ID/8",
    )
    command.add_argument("manifest", type=Path)
    command.add_argument("out", type=Path, help="the manifest with pitch_hz, words_per_s, level_db and snr_db")
    add_slice(command)


def run_describe(options: Options) -> None:
    """Measure pitch, pace, level and noise of every utterance."""
    from mtbi.corpus import describe, parts

    described = parts.rewrite(options.manifest, options.out, describe.describe, chosen_slice(options))
    counts = {name: sum(name in utterance.extra for utterance in described) for name in describe.FIELDS}
    measured = ", ".join(f"{name} of {count}" for name, count in counts.items())
    print(f"{options.out}: {len(described)} utterances; {measured}")


def add_align(group: Group) -> None:
    """`mtbi data align`."""
    command = add_command(
        group,
        "align",
        run_align,
        "mtbi data align work/train/manifest.jsonl work/train/aligned.jsonl --model openai/whisper-base",
        "mtbi data align work/train/manifest.jsonl work/train/aligned.jsonl --part $SLURM_ARRAY_TASK_ID/8",
    )
    command.add_argument("manifest", type=Path)
    command.add_argument("out", type=Path, help="the manifest with word times")
    command.add_argument(
        "--model", default="demo", help="demo (default), or a Whisper or CTC model of transformers (name or folder)"
    )
    add_slice(command)


def run_align(options: Options) -> None:
    """Add the time of every word, by Whisper's attention or by CTC forced alignment."""
    from mtbi.corpus import align

    part = chosen_slice(options)
    aligned, unaligned = align.align_manifest(options.manifest, options.out, align.open_aligner(options.model), part)
    print(f"{options.out}: {aligned} utterances aligned, {unaligned} kept without word times")
