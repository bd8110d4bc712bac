"""Where things go: arguments first, then the environment variables that ``hotserve publish`` reads too."""

from __future__ import annotations

import json
import os
import re
import socket
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

from .errors import ConfigError

_STREAM = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{2,62}")


def environment(name: str) -> Optional[str]:
    """A variable; an empty one is none."""
    return os.environ.get(name) or None


def stream_name(given: Optional[str]) -> str:
    name = given or environment("KINESIS_STREAM")
    if name is None:
        raise ConfigError(
            "no stream: say Publisher(stream='…') or set KINESIS_STREAM; Publisher.dev() means a running hotserve dev"
        )
    if not _STREAM.fullmatch(name):
        raise ConfigError(f"{name!r} is no stream name: 1 to 128 letters, digits, '_', '.' and '-'")
    return name


def upload_place(bucket: Optional[str], prefix: Optional[str]) -> Optional[tuple[str, str]]:
    """The bucket and the prefix below which models go; nothing if there is no bucket."""
    if bucket is None:
        where = environment("HOTSERVE_PUBLISH_TO")
        if where is None:
            if prefix is not None:
                raise ConfigError(f"prefix={prefix!r} without a bucket: give bucket= too")
            return None
        if not where.startswith("s3://"):
            raise ConfigError(f"HOTSERVE_PUBLISH_TO is {where!r}, and must be s3://bucket/prefix")
        bucket = where
    if bucket.startswith("s3://"):
        bucket, _, below = bucket[len("s3://") :].partition("/")
        prefix = below if prefix is None else prefix
    if not _BUCKET.fullmatch(bucket) or ".." in bucket:
        raise ConfigError(f"{bucket!r} is no bucket: 3 to 63 lower-case letters, digits, '.' and '-'")
    prefix = (prefix or "").strip("/")
    segments = prefix.split("/") if prefix else []
    if any(segment in ("", ".", "..") or re.search(r"[\x00-\x1f\x7f-\x9f\\?#%]", segment) for segment in segments):
        raise ConfigError(f"{prefix!r} is no prefix: no empty, '.' or '..' segment, and no '\\', '?', '#' or '%'")
    return bucket, prefix


def refuse_manifest(given: Union[str, bool, None]) -> None:
    """A manifest is written with compare-and-swap, byte for byte, by the program alone."""
    if given is False:
        return
    where = given if isinstance(given, str) and given else environment("HOTSERVE_MANIFEST")
    if given is True or where is not None:
        source = "manifest=" if given else "HOTSERVE_MANIFEST"
        raise ConfigError(
            f"this package does not write a manifest ({source} is set): publish with the command `hotserve publish … "
            "--manifest`, or say Publisher(manifest=False) to announce on the stream alone, with versions of your own; "
            "an instance that starts later then does not find it in the manifest"
        )


def server_urls(given: Union[str, Iterable[str], None]) -> tuple[str, ...]:
    """The servers to ask, without a slash at the end."""
    if given is None:
        given = environment("HOTSERVE_SERVER") or ()
    urls = given.split(",") if isinstance(given, str) else list(given)
    urls = [url.strip().rstrip("/") for url in urls if url.strip()]
    for url in urls:
        if not re.fullmatch(r"https?://[^/@?#\s]+(/[^?#\s]*)?", url):
            raise ConfigError(f"{url!r} is no address of a server: write http://host:8000")
    return tuple(urls)


@dataclass(frozen=True)
class Endpoints:
    """Where the services are, if not where AWS has them."""

    kinesis: Optional[str] = None
    s3: Optional[str] = None

    @classmethod
    def of(cls, given: Union[str, Mapping[str, str], None]) -> Endpoints:
        if given is None:
            return cls()
        if isinstance(given, str):
            return cls(given, given)
        unknown = set(given) - {"kinesis", "s3"}
        if unknown:
            raise ConfigError(f"endpoint_url has {', '.join(sorted(unknown))}, and knows 'kinesis' and 's3'")
        return cls(given.get("kinesis"), given.get("s3"))


def running_dev(port: Optional[int]) -> dict[str, Any]:
    """What a running ``hotserve dev`` says of itself: that of this HTTP port, or the one that was started last."""
    start = "start one with: hotserve dev" + (f" --port {port}" if port is not None else "")
    found = sorted(_dev_folder().glob("*.json"), key=_modified, reverse=True)
    for path in found:
        try:
            running = json.loads(path.read_bytes())
            at, kinesis = _address(running["http"]), _address(running["kinesis"])
            if port is not None and at[1] != port:
                continue
            # A process that was killed leaves its file behind.
            with socket.create_connection(kinesis, timeout=1):
                return dict(running)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    on = f" on port {port}" if port is not None else ""
    raise ConfigError(f"no hotserve dev is running{on}; {start}")


def _dev_folder() -> Path:
    runtime = environment("XDG_RUNTIME_DIR")
    if runtime is not None and Path(runtime).is_dir():
        return Path(runtime) / "hotserve-dev"
    return Path(tempfile.gettempdir()) / f"hotserve-dev-{os.getuid()}"


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)
