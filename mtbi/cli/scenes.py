"""`mtbi score`, `mtbi data convert` and `mtbi data mix`: recordings with several speakers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mtbi.cli.arguments import Group, Options, above_zero, add_command, add_json, at_least, at_least_zero, print_json
from mtbi.errors import UserError

if TYPE_CHECKING:
    from mtbi.scenes import SpeakerSegment


def add_score(commands: Group) -> None:
    """`mtbi score`."""
    command = add_command(
        commands,
        "score",
        run_score,
        "mtbi score hyp.json ref.stm --normalise words",
        "mtbi score hyp.rttm ref.rttm --der-collar 0.25",
        "mtbi score hyp.stm ref.stm --json | jq .total.cpWER.rate",
    )
    command.add_argument("hypothesis", type=Path, metavar="HYP", help="what a system found: SegLST (JSON), STM or RTTM")
    command.add_argument("reference", type=Path, metavar="REF", help="what is right, in any of these formats")
    collar = "of tcpWER and tcORC-WER: words further apart do not match (default: 5)"
    command.add_argument("--collar", type=at_least_zero, default=5.0, metavar="SECONDS", help=collar)
    der_collar = "of DER: not scored on each side of a reference segment's start and end (default: 0)"
    command.add_argument("--der-collar", type=at_least_zero, default=0.0, metavar="SECONDS", help=der_collar)
    forms = "none (default), plain (no case and punctuation), words (and no remarks in brackets), english (Whisper's)"
    command.add_argument(
        "--normalise", "--normalize", choices=("none", "plain", "words", "english"), default="none", help=f"texts: {forms}"
    )
    command.add_argument("--missing-is-empty", action="store_true", help="in sessions that HYP lacks, nothing was found")
    add_json(command)


def run_score(options: Options) -> None:
    """Score transcripts with speakers: cpWER, tcpWER, ORC-WER, tcORC-WER, SA-WER, DER, numbers of speakers."""
    from mtbi.scenes import ScoreSettings, read_segments, score_files, table

    settings = ScoreSettings(options.collar, options.der_collar, options.normalise, options.missing_is_empty)
    report = score_files(read_segments(options.hypothesis), read_segments(options.reference), settings)
    if options.json:
        files = {"hypothesis": str(options.hypothesis), "reference": str(options.reference)}
        print_json({**files, **report.to_json()})
    else:
        print(table.render(report))


def add_convert(group: Group) -> None:
    """`mtbi data convert`."""
    command = add_command(
        group,
        "convert",
        run_convert,
        "mtbi data convert ref.json ref.stm",
        "mtbi data convert hyp.json meeting.srt --session meeting1",
        "mtbi data convert RUN/evaluation/step-00001000/answers.jsonl hyp.json --task all_talkers",
    )
    command.add_argument("segments", type=Path, help="SegLST (JSON), STM or RTTM, or an evaluation's answers.jsonl")
    command.add_argument("out", type=Path, help="a name that ends in .json, .stm, .rttm or .srt")
    command.add_argument("--session", default="", metavar="ID", help="only this session")
    answers = command.add_argument_group("answers of an evaluation")
    answers.add_argument("--task", metavar="NAME", help="the task whose answers are cut into talkers, such as all_talkers")
    answers.add_argument("--separator", default="<sc>", metavar="TEXT", help="stands between talkers (default: <sc>)")
    answers.add_argument("--one-stream", action="store_true", help="all parts are one talker's, for ORC-WER of all_turns")
    answers.add_argument("--group", default="", metavar="NAME", help="the name of the shards, where there are several")
    answers.add_argument("--source", default="speech LLM", metavar="NAME", help="who answered (default: speech LLM)")


def run_convert(options: Options) -> None:
    """Write the segments of speakers in another format: SegLST, STM, RTTM or SRT."""
    from mtbi.scenes import write_segments
    from mtbi.scenes.segments import by_session

    segments, note = cut_answers(options) if options.task else read_file(options)
    sessions = by_session(segments)
    if options.session and options.session not in sessions:
        some = ", ".join([*sessions][:3]) + (", …" if len(sessions) > 3 else "")
        raise UserError(f"--session {options.session}: {options.segments} has no such session; there are {some}")
    chosen = sessions[options.session] if options.session else segments
    write_segments(options.out, chosen)
    print(f"{options.out}: {len(chosen)} segments{note}")


def read_file(options: Options) -> tuple[list[SpeakerSegment], str]:
    """The segments of a file, and what of it was skipped."""
    from mtbi.scenes import read_segments

    if options.segments.suffix == ".jsonl":
        raise UserError(f"{options.segments}: for the answers of an evaluation, name a task with --task, such as all_talkers")
    found = read_segments(options.segments)
    return found.segments, "".join(f", {count} {name} lines skipped" for name, count in found.skipped.items())


def cut_answers(options: Options) -> tuple[list[SpeakerSegment], str]:
    """The answers of an evaluation to one task as segments, and how many answers there are."""
    from mtbi.benchmark.serialised_answers import WantedAnswers, read_answers
    from mtbi.scenes.serialised import parse_separator

    separator = parse_separator(options.separator)
    wanted = WantedAnswers(options.task, separator, options.source, options.group, options.one_stream)
    found = read_answers(options.segments, wanted)
    counts = {"of them empty": found.empty, "further answers to the same utterances left out": found.further}
    notes = "".join(f", {count} {what}" for what, count in counts.items() if count)
    return found.segments, f" of {found.utterances} answers{notes}"


def add_mix(group: Group) -> None:
    """`mtbi data mix`."""
    command = add_command(
        group,
        "mix",
        run_mix,
        "mtbi data mix work/train/manifest.jsonl work/scenes --scenes 1000 --speakers 2 4",
        "mtbi data mix a/manifest.jsonl b/manifest.jsonl work/scenes --scenes 1000 --like meetings.json",
    )
    command.add_argument("manifests", nargs="+", type=Path, metavar="manifest", help="utterances with their speakers")
    command.add_argument("out", type=Path, help="a new folder for audio/, manifest.jsonl and ref.json (SegLST)")
    command.add_argument("--scenes", type=at_least(1), required=True, metavar="N", help="how many")
    command.add_argument("--seed", type=at_least(0), default=0, help="another seed has other scenes (default: 0)")
    speakers = "fewest and most in a scene (default: 2 3)"
    command.add_argument("--speakers", type=at_least(1), nargs=2, default=[2, 3], metavar="N", help=speakers)
    command.add_argument("--turns", type=at_least(1), default=6, metavar="N", help="utterances in a scene (default: 6)")
    longest = "a turn that would end later is left out (default: 30)"
    command.add_argument("--longest", type=above_zero, default=30.0, metavar="SECONDS", help=longest)
    separator = "stands between talkers in the right answers (default: <sc>)"
    command.add_argument("--separator", default="<sc>", metavar="TEXT", help=separator)
    like = "segments whose pauses, gaps and overlaps are imitated (default: those of AMI's meetings)"
    command.add_argument("--like", type=Path, metavar="SEGMENTS", help=like)


def run_mix(options: Options) -> None:
    """Simulate recordings with several speakers from single utterances, with gaps and overlaps as in meetings."""
    from mtbi.corpus.mix import MixSettings, mix
    from mtbi.scenes import read_segments
    from mtbi.scenes.serialised import parse_separator
    from mtbi.scenes.turns import MEETINGS, fit

    statistics = fit(read_segments(options.like).segments) if options.like else MEETINGS
    speakers = options.speakers[0], options.speakers[1]
    settings = MixSettings(
        options.scenes, options.seed, speakers, options.turns, options.longest,
        statistics=statistics, separator=parse_separator(options.separator),
    )  # fmt: skip
    voices, too_long = mix(options.manifests, options.out, settings)
    note = f" ({too_long} utterances longer than {options.longest:g} s left out)" if too_long else ""
    print(f"{options.out}: {options.scenes} scenes of {voices} speakers{note}: manifest.jsonl, ref.json, audio/")
