"""Files on object storage (`s3://…`, any `S3_ENDPOINT_URL`) or in a local folder, through mosaicml-streaming's clients."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mtbi.errors import DamagedError, UnavailableError, UserError

PATIENCE_SECONDS = 60.0  # for one request
_kept = threading.local()  # each thread's client: making one takes longer than fetching a small shard


class NotFoundError(DamagedError):
    """The store answers, but there is no file at the place."""


def is_remote(place: str) -> bool:
    """Whether `place` is an address such as `s3://bucket/folder`."""
    return "://" in place


def explain(place: str, error: Exception) -> UserError | None:
    """What a failure of the object store means, where another attempt would not help."""
    response = getattr(error, "response", None) or {}
    code = str(response.get("Error", {}).get("Code", ""))
    endpoint = os.environ.get("S3_ENDPOINT_URL", "the default endpoint")
    if code in ("400", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"):
        return UserError(  # 400 is an expired token where the answer has no text
            f"{place}: {endpoint} refuses access ({code}). Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and your rights, and "
            "that no token has expired."
        )
    if code == "NoSuchBucket":
        return UserError(f"{place}: there is no such bucket at {endpoint}. Check the address and S3_ENDPOINT_URL.")
    if code in ("404", "NoSuchKey") or isinstance(error, FileNotFoundError):
        return NotFoundError(f"{place}: not found. Check the address; shards are made by `mtbi data shard`.")
    if type(error) is ValueError or isinstance(error, ImportError) or type(error).__name__ == "ParamValidationError":
        reason = str(error).strip().splitlines()[-1]
        return UserError(f"{place}: not an address that can be used ({reason}). Write s3://bucket/folder, or a local folder.")
    if type(error).__name__ == "NoCredentialsError":
        return UserError(f"{place}: no credentials for {endpoint}. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.")
    return None


def downloader(place: str) -> Any:
    """This thread's client for addresses of that kind; a new one where the environment's settings have changed."""
    from streaming.base.storage.download import CloudDownloader

    settings = urlsplit(place).scheme, sorted(item for item in os.environ.items() if item[0].startswith(("AWS_", "S3_")))
    if getattr(_kept, "settings", None) != settings:
        _kept.settings, _kept.client = settings, CloudDownloader.get(place)
    return _kept.client


def fetch(place: str, local: Path, retries: int = 5) -> None:
    """Copy a remote file to `local`, whole or not at all, with growing pauses between attempts.

    Raises UserError at once where the place, the credentials or the rights are wrong, and UnavailableError after `retries`
    attempts otherwise.
    """
    local.parent.mkdir(parents=True, exist_ok=True)
    # The name ends as the original does: some clients choose by the ending. Every process downloads under a name of its own.
    temporary = local.with_name(f".{uuid.uuid4().hex}.{local.name}")
    for attempt in range(1, retries + 1):
        try:
            downloader(place).download(place, str(temporary), PATIENCE_SECONDS)
            temporary.replace(local)
            return
        except Exception as error:
            temporary.unlink(missing_ok=True)
            _kept.__dict__.clear()  # the next attempt has a fresh connection and fresh credentials
            if (known := explain(place, error)) is not None:
                raise known from error
            if attempt == retries:
                endpoint = os.environ.get("S3_ENDPOINT_URL", "the default endpoint")
                raise UnavailableError(f"{place}: {retries} attempts failed at {endpoint}, the last with: {error}") from error
            # Drawn, so that the processes of a large job do not all come back at the same moment.
            time.sleep(min(30.0, 0.5 * 2**attempt) * random.uniform(0.5, 1.5))


def upload(folder: Path, names: list[str], place: str) -> None:
    """Copy files of a local folder to a remote one. Raises UserError where the store refuses."""
    from streaming.base.storage.upload import CloudUploader

    try:
        uploader = CloudUploader.get((str(folder), place), keep_local=True, exist_ok=True)
        for name in names:
            uploader.upload_file(name)
    except Exception as error:
        raise explain(place, error) or UserError(f"{place}: cannot write there: {error}") from error


def delete(place: str) -> None:
    """Remove an object below `s3://`, as well as one can; elsewhere it stays."""
    if not place.startswith("s3://"):
        return
    import boto3

    bucket, _, key = place.removeprefix("s3://").partition("/")
    with contextlib.suppress(Exception):
        boto3.client("s3", endpoint_url=os.environ.get("S3_ENDPOINT_URL")).delete_object(Bucket=bucket, Key=key)
