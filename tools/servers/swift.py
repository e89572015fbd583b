"""A real S3 server: OpenStack Swift with its S3 API, from Debian's packages, on free ports."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

SERVERS = ("account", "container", "object")
PROGRAMS = ("swift-proxy-server", "swift-ring-builder", "memcached", *(f"swift-{name}-server" for name in SERVERS))
PIPELINE = (
    "catch_errors gatekeeper healthcheck proxy-logging cache listing_formats bulk "
    "s3api tempauth slo dlo proxy-logging proxy-server"
)


def free_ports(count: int) -> list[int]:
    """Ports that are not in use."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def write_rings(folder: Path, ports: dict[str, int]) -> None:
    """Write Swift's rings, with one device each for accounts, containers and objects."""
    (folder / "devices" / "d1").mkdir(parents=True)
    for name in SERVERS:
        ring = str(folder / f"{name}.builder")
        for arguments in (["create", "4", "1", "1"], ["add", f"r1z1-127.0.0.1:{ports[name]}/d1", "1"], ["rebalance"]):
            subprocess.run(["swift-ring-builder", ring, *arguments], check=True, capture_output=True)


def write_configurations(folder: Path, ports: dict[str, int]) -> None:
    """Write the configuration files of the four servers."""
    (folder / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_prefix = p\nswift_hash_path_suffix = s\n"
        "[storage-policy:0]\nname = Policy-0\ndefault = yes\n"
    )
    common = f"bind_ip = 127.0.0.1\nuser = root\nswift_dir = {folder}\nworkers = 1\nlog_level = WARNING\n"
    for name in SERVERS:
        (folder / f"{name}.conf").write_text(
            f"[DEFAULT]\nbind_port = {ports[name]}\n{common}devices = {folder / 'devices'}\nmount_check = false\n"
            f"[pipeline:main]\npipeline = {name}-server\n[app:{name}-server]\nuse = egg:swift#{name}\n"
        )
    filters = {
        **{name: f"use = egg:swift#{name.replace('-', '_')}" for name in PIPELINE.split()[:-1]},
        "cache": f"use = egg:swift#memcache\nmemcache_servers = 127.0.0.1:{ports['memcached']}",
        "s3api": "use = egg:swift#s3api\nlocation = us-east-1\ns3_acl = no",
        "tempauth": "use = egg:swift#tempauth\nuser_test_tester = testing .admin",
    }
    sections = "".join(f"[filter:{name}]\n{content}\n" for name, content in filters.items())
    (folder / "proxy.conf").write_text(
        f"[DEFAULT]\nbind_port = {ports['proxy']}\n{common}[pipeline:main]\npipeline = {PIPELINE}\n"
        f"[app:proxy-server]\nuse = egg:swift#proxy\nallow_account_management = true\naccount_autocreate = true\n{sections}"
    )


def wait_for(port: int, process: subprocess.Popen, log: Path) -> None:
    """Wait until a process listens on the port. Raises RuntimeError if `process` does not start."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise RuntimeError(f"{process.args} did not start: {log.read_text()[-2000:]}")


@contextlib.contextmanager
def swift_server(folder: Path) -> Iterator[dict[str, str]]:
    """Run Swift in `folder`; yields the environment variables of S3 clients. Raises RuntimeError if packages are missing."""
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    if missing:
        raise RuntimeError(f"{', '.join(missing)} missing: run tools/install_servers.sh")
    ports = dict(zip(("proxy", "memcached", *SERVERS), free_ports(5), strict=True))
    write_rings(folder, ports)
    write_configurations(folder, ports)
    memcached = ["memcached", "-l", "127.0.0.1", "-p", str(ports["memcached"]), *(["-u", "root"] if os.getuid() == 0 else [])]
    commands = {"memcached": memcached}
    commands |= {name: [f"swift-{name}-server", str(folder / f"{name}.conf")] for name in (*SERVERS, "proxy")}
    with contextlib.ExitStack() as stack:
        for name, command in commands.items():
            log = folder / f"{name}.log"
            file = stack.enter_context(log.open("w"))
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
            stack.callback(process.wait, 30)
            stack.callback(process.terminate)
            wait_for(ports[name], process, log)
        yield {
            "S3_ENDPOINT_URL": f"http://127.0.0.1:{ports['proxy']}",
            "AWS_ACCESS_KEY_ID": "test:tester",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        }
