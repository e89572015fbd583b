"""Files on object storage (`s3://…`, any `S3_ENDPOINT_URL`) or in a local folder, through mosaicml-streaming's clients."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import random
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from mtbi import mds
from mtbi.errors import DamagedError, UnavailableError, UserError

REQUEST_TIMEOUT_SECONDS = 60.0
TURN_SECONDS = 60.0  #: that a process waits for another one to fetch a file
LOCK_FILES = 256
Answer = TypeVar("Answer")
_kept = threading.local()  # a client for each thread; making one takes longer than fetching a small shard


class NotFoundError(DamagedError):
    """The store answers, but it has no such file."""


def is_remote(address: str) -> bool:
    """Whether this is an address such as `s3://bucket/folder`, not a local path."""
    return "://" in address


def explain(address: str, error: Exception) -> UserError | None:
    """The error for the user, if another attempt would not help; None otherwise."""
    if isinstance(error, UserError):
        return error
    response = getattr(error, "response", None) or {}
    code = str(response.get("Error", {}).get("Code", ""))
    endpoint = os.environ.get("S3_ENDPOINT_URL", "the default endpoint")
    if code in ("400", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"):
        return UserError(  # without a text, 400 means an expired token
            f"{address}: {endpoint} refuses access ({code}). Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and your rights, "
            "and that no token has expired."
        )
    if code == "NoSuchBucket":
        return UserError(f"{address}: there is no such bucket at {endpoint}. Check the address and S3_ENDPOINT_URL.")
    if code in ("404", "NoSuchKey") or isinstance(error, FileNotFoundError):
        return NotFoundError(f"{address}: not found. Check the address; shards are made by `mtbi data shard`.")
    if type(error) is ValueError or isinstance(error, ImportError) or type(error).__name__ == "ParamValidationError":
        reason = str(error).strip().splitlines()[-1]
        return UserError(f"{address}: not an address that can be used ({reason}). Write s3://bucket/folder, or a local folder.")
    if type(error).__name__ == "NoCredentialsError":
        return UserError(f"{address}: no credentials for {endpoint}. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.")
    return None


def downloader(address: str) -> Any:
    """This thread's client for addresses of this kind. Changed `AWS_…` or `S3_…` variables make a new one."""
    settings = urlsplit(address).scheme, sorted(item for item in os.environ.items() if item[0].startswith(("AWS_", "S3_")))
    if getattr(_kept, "settings", None) != settings:
        _kept.settings, _kept.client = settings, mds.part("streaming.base.storage.download:CloudDownloader").get(address)
    return _kept.client


def request(address: str, retries: int, ask: Callable[[], Answer]) -> Answer:
    """What `ask` gets from the store, in up to `retries` attempts with growing pauses.

    Raises UserError at once if the address, the credentials or the rights are wrong (NotFoundError if there is no such file),
    and UnavailableError after the last attempt.
    """
    for attempt in range(1, retries + 1):
        try:
            return ask()
        except Exception as error:
            _kept.__dict__.clear()  # the next attempt has a fresh connection and fresh credentials
            if (known := explain(address, error)) is not None:
                raise known from error
            if attempt == retries:
                endpoint = os.environ.get("S3_ENDPOINT_URL", "the default endpoint")
                raise UnavailableError(f"{address}: {retries} attempts failed at {endpoint}, the last with: {error}") from error
            # Random, so that the processes of a large job do not all try again at the same moment.
            time.sleep(min(30.0, 0.5 * 2**attempt) * random.uniform(0.5, 1.5))
    raise ValueError("retries must be 1 or more")


def fetch(address: str, local: Path, retries: int = 5) -> None:
    """Download a file to `local`, whole or not at all. Raises as `request` does."""
    local.parent.mkdir(parents=True, exist_ok=True)
    # Some clients look at the file's suffix, so it is kept. Every process downloads under a name of its own.
    temporary = local.with_name(f".{uuid.uuid4().hex}.{local.name}")

    def download() -> None:
        try:
            downloader(address).download(address, str(temporary), REQUEST_TIMEOUT_SECONDS)
            temporary.replace(local)
        finally:
            temporary.unlink(missing_ok=True)

    request(address, retries, download)


class Piece(NamedTuple):
    """Bytes of a remote file."""

    data: bytes
    total: int  #: bytes of the whole file
    tag: str  #: the store's mark for this version of the file


def read_range(address: str, first: int, size: int, tag: str = "", retries: int = 5) -> Piece:
    """Up to `size` bytes of an `s3://` file from byte `first` on, fewer at its end. Raises as `request` does.

    With the `tag` of an earlier piece, also raises UserError where the file has changed since.
    """
    scheme, _, path = address.partition("://")
    bucket, _, key = path.partition("/")
    if scheme != "s3" or not bucket or not key:
        raise UserError(f"{address}: not an address that can be used; write s3://bucket/file")

    def ask() -> Piece:
        from botocore.exceptions import ClientError

        same = {"IfMatch": tag} if tag else {}
        try:
            answer = s3_client().get_object(Bucket=bucket, Key=key, Range=f"bytes={first}-{first + size - 1}", **same)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in ("416", "InvalidRange") and first == 0:  # no byte is in an empty file
                return Piece(b"", 0, "")
            if code in ("412", "PreconditionFailed"):
                raise UserError(f"{address}: the file has changed while it was read") from error
            raise
        data, total = answer["Body"].read(), int(answer["ContentRange"].rpartition("/")[2])
        if len(data) != min(size, total - first):
            raise OSError(f"{len(data)} bytes came, {min(size, total - first)} were asked for")
        return Piece(data, total, answer["ETag"])

    return request(address, retries, ask)


def s3_client() -> Any:
    """This thread's client for ranges of S3 files. Changed `AWS_…` or `S3_…` variables make a new one."""
    settings = sorted(item for item in os.environ.items() if item[0].startswith(("AWS_", "S3_")))
    if getattr(_kept, "s3_settings", None) != settings:
        from boto3.session import Session
        from botocore.config import Config

        config = Config(read_timeout=REQUEST_TIMEOUT_SECONDS, retries={"mode": "adaptive"})
        _kept.s3_settings = settings
        _kept.s3 = Session().client("s3", config=config, endpoint_url=os.environ.get("S3_ENDPOINT_URL"))
    return _kept.s3


@contextlib.contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Wait while another process of this machine holds the turn for `path`, so that one fetches a file for all.

    The wait ends when the file is there, or after TURN_SECONDS: a process that cannot fetch must not hold up all others. It is
    also none where the file system has no locks.
    """
    folder = path.parent / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{zlib.crc32(path.name.encode()) % LOCK_FILES:02x}").open("w") as lock:
        deadline = time.monotonic() + TURN_SECONDS
        while time.monotonic() < deadline and not path.exists():
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:
                break
        yield


def upload(folder: Path, names: list[str], address: str, attempts: int = 2) -> None:
    """Upload files of a local folder to a remote folder, each in up to `attempts` attempts with growing pauses.

    Raises UserError if the store refuses or fails.
    """
    # Its warning that the folder is not empty, and stays as it is, is no news.
    logging.getLogger("streaming.base.storage.upload").setLevel(logging.ERROR)
    try:
        uploader = mds.part("streaming.base.storage.upload:CloudUploader").get(
            (str(folder), address), keep_local=True, exist_ok=True, retry=attempts
        )
        for name in names:
            uploader.upload_file(name)
    except Exception as error:
        raise explain(address, error) or UserError(f"{address}: cannot write there: {error}") from error


def delete(address: str) -> None:
    """Delete an object at an `s3://` address; a failure is ignored. At other addresses nothing is deleted."""
    if not address.startswith("s3://"):
        return
    import boto3

    bucket, _, key = address.removeprefix("s3://").partition("/")
    with contextlib.suppress(Exception):
        boto3.client("s3", endpoint_url=os.environ.get("S3_ENDPOINT_URL")).delete_object(Bucket=bucket, Key=key)
