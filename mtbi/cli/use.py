"""`mtbi chat`, `export` and `serve`: a trained run in use."""

from __future__ import annotations

import socket
from pathlib import Path

from mtbi.cli.arguments import Group, Options, above_zero, add_checkpoint, add_command, add_run, at_least
from mtbi.errors import UserError
from mtbi.use.layouts import LAYOUTS


def add_chat(commands: Group) -> None:
    """`mtbi chat`."""
    command = add_command(
        commands,
        "chat",
        run_chat,
        'mtbi chat runs/demo --audio digits.wav "say the digits backwards"',
        'echo "<digits.wav> count them" | mtbi chat runs/demo',
    )
    add_run(command)
    command.add_argument("prompt", nargs="*", help="a question; without one, lines are read from standard input")
    audio = "a recording to ask about (may be given more than once)"
    command.add_argument("--audio", type=Path, action="append", default=[], help=audio)
    command.add_argument("--max-new-tokens", type=at_least(1), default=256, help="longest answer (default: 256)")


def run_chat(options: Options) -> None:
    """Talk to a trained speech LLM about recordings."""
    from mtbi.use.conversation import Conversation, talk
    from mtbi.use.open_run import open_run

    conversation = Conversation(open_run(options.run, options.checkpoint, options.device), options.max_new_tokens)
    talk(conversation, options.audio, " ".join(options.prompt))


def add_export(commands: Group) -> None:
    """`mtbi export`."""
    command = add_command(commands, "export", run_export)
    command.add_argument("run", type=Path, help="the run's folder (run_dir of its recipe)")
    command.add_argument("out", type=Path, help="a new folder")
    add_checkpoint(command)
    default = next(iter(LAYOUTS))
    layouts = [f"{name}{' (default)' if name == default else ''}: {layout.summary}" for name, layout in LAYOUTS.items()]
    command.add_argument("--layout", choices=list(LAYOUTS), default=default, help="; ".join(layouts))


def run_export(options: Options) -> None:
    """Write a trained run as a folder that Hugging Face transformers loads."""
    from mtbi.use.export import export
    from mtbi.use.open_run import open_run

    export(open_run(options.run, options.checkpoint, "cpu", as_trained=True), options.out, options.layout)
    print(f"{options.out}: {options.out}/README.md says how to use it")


def add_serve(commands: Group) -> None:
    """`mtbi serve`."""
    command = add_command(commands, "serve", run_serve)
    add_run(command)
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    command.add_argument("--port", type=int, default=8000, help="(default: 8000)")
    aligner = "finds when each word is spoken: demo, or a Whisper or CTC model (default: demo with the demo's encoder)"
    command.add_argument("--aligner", default="", metavar="MODEL", help=aligner)
    command.add_argument("--max-new-tokens", type=at_least(1), default=512, help="longest answer (default: 512)")
    command.add_argument("--max-megabytes", type=above_zero, default=25, help="largest request (default: 25)")
    key = "clients must send the key in this file (or in MTBI_API_KEY; default: no key)"
    command.add_argument("--api-key-file", type=Path, metavar="FILE", help=key)
    origins = "a web site whose pages may use the API, such as http://localhost:3000; may be repeated; '*': any"
    command.add_argument("--allow-origin", action="append", default=[], metavar="ORIGIN", help=origins)
    command.add_argument("--max-waiting", type=at_least(1), default=64, help="requests at once, others get 429 (default: 64)")


def run_serve(options: Options) -> None:
    """Serve a trained run: the OpenAI chat API with speech, and a page to talk to it."""
    try:
        import uvicorn

        from mtbi.use.serve.limits import ServerLimits, read_api_key
        from mtbi.use.serve.mix import choose_aligner
        from mtbi.use.serve.server import make_app
    except ImportError as error:
        raise UserError(f"{error.name} is missing: pip install 'mtbi[serve]'") from error
    from mtbi.use.open_run import open_run

    check_address(options.host, options.port)
    api_key = read_api_key(options.api_key_file)
    run = open_run(options.run, options.checkpoint, options.device)
    aligner = choose_aligner(options.aligner, run)
    limits = ServerLimits(megabytes=options.max_megabytes, waiting=options.max_waiting, new_tokens=options.max_new_tokens)
    app = make_app(run, limits, aligner, api_key, options.allow_origin)
    address = f"http://{options.host}:{options.port}/"
    print(f"{run.recipe.name} ({run.checkpoint.name}) at {address}  API: …/v1/chat/completions", flush=True)
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning")


def check_address(host: str, port: int) -> None:
    """Raises UserError where no server can listen on the address, before a large model is loaded."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except (OSError, OverflowError) as error:
        reason = str(error).rstrip(".")
        raise UserError(f"--host {host} --port {port}: {reason}; choose another port, or an address of this machine") from error
