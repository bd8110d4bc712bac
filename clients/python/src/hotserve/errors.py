"""What can go wrong, and what to do about it: every message says both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional


class HotserveError(Exception):
    """Whatever this package raises."""


class ConfigError(HotserveError, ValueError):
    """Something is missing, or is not what it must be. Nothing was published."""


class MissingExtra(HotserveError, ImportError):
    """A library is needed that is not installed."""

    def __init__(self, what: str, extra: str, cause: Optional[BaseException] = None) -> None:
        detail = f" ({cause})" if cause is not None else ""
        super().__init__(f"{what} needs libraries that are not installed{detail}: pip install 'hotserve[{extra}]'")
        self.extra = extra


class UnsupportedModel(HotserveError, TypeError):
    """This model cannot be published as it is."""


class TooLarge(HotserveError, ValueError):
    """The message does not fit into a record of the stream."""


class PublishError(HotserveError):
    """AWS did not do as it was asked. The botocore error is the ``__cause__``."""


class Rejected(HotserveError):
    """A server refuses what was published, and goes on serving what it served before."""

    def __init__(self, server: str, what: str, entry: Mapping[str, Any]) -> None:
        #: Which server said so.
        self.server = server
        #: A stable name: ``golden``, ``schema``, ``conflict``, ….
        self.reason: str = str(entry.get("reason", ""))
        #: The server's words.
        self.detail: str = str(entry.get("detail", ""))
        #: The whole entry of the server's /history; of ``stale`` there is none.
        self.entry: Mapping[str, Any] = entry
        super().__init__(f"{server} refuses {what} ({self.reason}): {self.detail}")


class WaitTimeout(HotserveError, TimeoutError):
    """Not every server serves it yet. It may still come."""
