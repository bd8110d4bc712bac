"""What the servers make of what was published: GET /models says what is served, /history why something is not."""

from __future__ import annotations

import hashlib
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Optional, Union

from .errors import ConfigError, HotserveError, Rejected, WaitTimeout
from .messages import MAX_VERSION, Slot

#: What says nothing against a model, and is tried again until it is there or something newer is served.
_OF_THE_MOMENT = frozenset({"access_denied", "unavailable", "not_found", "disk", "slow", "redirect"})
#: How much of the history is read at each look.
_HISTORY = 100


@dataclass(frozen=True)
class Receipt:
    """Where a message went, and what a server needs to be asked about it."""

    slot: Slot
    version: Optional[int]
    published_at: datetime
    shard: str
    sequence_number: str
    #: What tells the content from another of the same version: the model's digest, or the state's ETag.
    sha256: Optional[str] = None
    etag: Optional[str] = None

    @property
    def rank(self) -> str:
        """What version headers say: the version, else the sequence number."""
        return str(self.version) if self.version is not None else self.sequence_number

    def __str__(self) -> str:
        version = f"version {self.version}" if self.version is not None else f"sequence number {self.sequence_number}"
        return f"{version} of {self.slot}"


@dataclass(frozen=True)
class Served:
    """What a server serves now: what was published, or something newer."""

    server: str
    #: A version, or the sequence number where there are no versions.
    version: str


def state_etag(text: str) -> str:
    """The ETag of GET /state: what a state's answer is told from another by."""
    return '"' + hashlib.sha256(b'{"state":' + text.encode() + b"}").hexdigest()[:32] + '"'


def get(url: str, timeout: float = 5.0) -> Any:
    """The JSON of an answer. Raises OSError or ValueError."""
    with urllib.request.urlopen(urllib.request.Request(url), timeout=timeout) as answer:
        return json.load(answer)


def next_version(servers: Sequence[str], slot: Slot) -> int:
    """One above all that the servers serve or have heard of; 1 where there is nothing with a version."""
    if not servers:
        raise ConfigError(
            "version='next' is one above what a server has: say Publisher(server='http://host:8000') or set "
            "HOTSERVE_SERVER"
        )
    newest = 0
    for server in servers:
        try:
            row = _row(get(f"{server}/models"), slot)
            entries = get(f"{server}/history")["entries"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise HotserveError(f"version='next': {server} does not say what it serves: {_why(error)}") from error
        heard = [row["version"]] if row is not None and isinstance(row["version"], int) else []
        for entry in entries:
            told = zip(entry.get("slots", ()), entry.get("versions", ()))
            # The sequence numbers of messages without a version are far longer.
            heard += [int(rank) for name, rank in told if name == str(slot) and rank.isdigit()]
        newest = max([newest, *(version for version in heard if version < MAX_VERSION)])
    return newest + 1


def wait(servers: Sequence[str], receipt: Receipt, timeout: float) -> list[Served]:
    """Until every server serves it, or something newer."""
    if not servers:
        raise ConfigError("nobody to ask: say Publisher(server='http://host:8000') or set HOTSERVE_SERVER")
    deadline = time.monotonic() + timeout
    watches = [_Watch(server, receipt) for server in servers]
    pause = 0.02
    while True:
        for watch in watches:
            if watch.served is None:
                watch.look(max(0.2, min(5.0, deadline - time.monotonic())))
        served = [watch.served for watch in watches if watch.served is not None]
        if len(served) == len(watches):
            return served
        left = deadline - time.monotonic()
        if left <= 0:
            late = "; ".join(watch.told() for watch in watches if watch.served is None)
            raise WaitTimeout(f"not served within {timeout:g} s: {late}. It may still come")
        time.sleep(min(pause, left))
        pause = min(pause * 1.5, 0.5)


class _Watch:
    """One server, as it comes to serve one message."""

    def __init__(self, server: str, receipt: Receipt) -> None:
        self.server = server
        self.receipt = receipt
        self.served: Optional[Served] = None
        self._silence: Optional[str] = None
        self._row: Optional[Mapping[str, Any]] = None
        self._deferred: Optional[str] = None

    def look(self, timeout: float) -> None:
        """Asks once. Raises Rejected."""
        try:
            catalog = get(f"{self.server}/models", timeout)
            self._row = _row(catalog, self.receipt.slot)
            if self._row is not None and self._is_ours(self._row):
                self.served = Served(self.server, str(self._row["version"]))
                return
            entries = get(f"{self.server}/history?limit={_HISTORY}", timeout)["entries"]
            self._silence = None
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._silence = _why(error)
            return
        self._judge(entries)

    def _judge(self, entries: Sequence[Mapping[str, Any]]) -> None:
        receipt, slot = self.receipt, str(self.receipt.slot)
        for entry in entries:
            about = entry.get("slots") or [slot]
            if entry.get("sequence_number") != receipt.sequence_number or slot not in about:
                continue
            if entry.get("outcome") == "applied":
                # And replaced since.
                now = self._row["version"] if self._row is not None else receipt.rank
                self.served = Served(self.server, str(now))
                return
            if entry.get("outcome") == "rejected" and entry.get("reason") not in _OF_THE_MOMENT:
                raise Rejected(self.server, str(receipt), entry)
            if entry.get("outcome") == "rejected":
                self._deferred = f"{entry.get('reason')}: {entry.get('detail')}"
        if self._row is None or not _is_newer(self._row["version"], receipt):
            return
        if self._came_later():
            self.served = Served(self.server, str(self._row["version"]))
            return
        serving = self._row["version"]
        detail = f"version {serving} is served, which is newer, so that this is never served: publish a higher version"
        raise Rejected(self.server, str(receipt), {"outcome": "rejected", "reason": "stale", "detail": detail})

    def _is_ours(self, row: Mapping[str, Any]) -> bool:
        if str(row["version"]) != self.receipt.rank:
            return False
        if self.receipt.slot.kind == "model":
            return self.receipt.sha256 is None or row.get("digest") == self.receipt.sha256
        return self.receipt.etag is None or row.get("etag") == self.receipt.etag

    def _came_later(self) -> bool:
        """Whether what is served was published after ours, which it then replaced on the way."""
        at = (self._row or {}).get("published_at") or (self._row or {}).get("applied_at")
        try:
            return at is not None and _time(str(at)) >= self.receipt.published_at
        except ValueError:
            return False

    def told(self) -> str:
        """Why it is not served there, as far as is known."""
        slot = self.receipt.slot
        if self._silence is not None:
            return f"{self.server} does not answer ({self._silence})"
        if self._row is None:
            now = f"{self.server} serves no {slot}"
        else:
            now = f"{self.server} serves version {self._row['version']} of {slot}, not {self.receipt.rank}"
        held = (self._row or {}).get("held")
        if isinstance(held, Mapping):
            return f"{now}, and is pinned to version {held.get('version')} ({held.get('by')}): unpin it"
        if self._deferred is not None:
            return f"{now}, for what it needs cannot be had ({self._deferred})"
        return f"{now}; does it follow the stream? {self.server}/readyz?verbose says"


def _row(catalog: Any, slot: Slot) -> Optional[Mapping[str, Any]]:
    rows, key = (catalog["models"], "name") if slot.kind == "model" else (catalog["states"], "key")
    return next((row for row in rows if row[key] == slot.name), None)


def _is_newer(served: Union[int, str], receipt: Receipt) -> bool:
    if receipt.version is not None:
        return isinstance(served, int) and served > receipt.version
    # Sequence numbers of one slot are of one shard, but for the time of a resharding. A version is refused by name.
    text = str(served)
    return isinstance(served, str) and text.isdigit() and int(text) > int(receipt.sequence_number)


def _time(text: str) -> datetime:
    # Python before 3.11 reads three or six digits of a second, and no Z.
    whole, dot, fraction = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{whole}{dot}{fraction[:6].ljust(6, '0') if dot else ''}+00:00")


def _why(error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"it answers {error.code}"
    if isinstance(error, urllib.error.URLError):
        return str(error.reason)
    if isinstance(error, OSError):
        return str(error) or type(error).__name__
    return "what it answers is none of hotserve's"
