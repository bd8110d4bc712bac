"""The messages, as a server takes them: what it would refuse by its form is refused here, before it is published."""

from __future__ import annotations

import gzip
import json
import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, Optional, Union

from .errors import ConfigError, TooLarge

#: The largest record, with its partition key: Kinesis' own limit, unless a stream is set to allow more.
MAX_RECORD = 1 << 20
#: How deep a server lets a message be nested.
MAX_DEPTH = 32
#: What a server inflates at most, in bytes and in times the size.
MAX_INFLATED, MAX_RATIO = 10 << 20, 200
MAX_VERSION = (1 << 53) - 1

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
# The C0 and C1 controls, which Rust's `char::is_control` is about.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_DURATION = re.compile(r"\d+(\.\d+)?\s*(us|µs|ms|s|m|h|d)")
_DATATYPES = ("BOOL", "INT32", "INT64", "FP32", "FP64", "BYTES")


@dataclass(frozen=True)
class Slot:
    """A named place whose content is replaced."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"

    @property
    def partition_key(self) -> str:
        """Messages of one slot have one key, so that they keep their order."""
        return f"{self.kind}:{self.name}"

    @classmethod
    def state(cls, key: str) -> Slot:
        return cls("state", name(key, "state key"))

    @classmethod
    def model(cls, given: str) -> Slot:
        return cls("model", name(given, "model name"))


@dataclass(frozen=True)
class Message:
    """One message before it is put: its slot, its version, and its fields."""

    slot: Slot
    version: Optional[int]
    fields: Mapping[str, Any]
    message_id: str = field(default_factory=lambda: secrets.token_hex(16))
    published_at: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    expires_at: Optional[datetime] = None
    text: Optional[str] = None

    def render(self) -> bytes:
        """The message as JSON; refused if a server would refuse its form."""
        message: dict[str, Any] = {"message_id": _message_id(self.message_id)}
        if self.text is not None:
            message["text"] = self.text
        message.update(self.fields)
        message["published_at"] = timestamp(self.published_at)
        if self.expires_at is not None:
            message["expires_at"] = timestamp(self.expires_at)
        text = dumps(message, "the message")
        _check_structure(text)
        return text.encode()


def fit(slot: Slot, data: bytes, cure: str) -> bytes:
    """The record: the message as it is, or gzipped where it is too long and that helps."""
    room = MAX_RECORD - len(slot.partition_key)
    if len(data) <= room:
        return data
    packed = gzip.compress(data, mtime=0)
    if len(packed) <= room and len(data) <= min(MAX_INFLATED, len(packed) * MAX_RATIO):
        return packed
    raise TooLarge(
        f"the message has {len(data)} bytes ({len(packed)} gzipped), and a record holds {MAX_RECORD}: {cure}"
    )


def state_fields(slot: Slot, version: Optional[int], value: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {"key": slot.name}
    if version is not None:
        fields["version"] = version
    fields["state"] = value
    return fields


def control_fields(
    action: str, slot: Slot, version: Optional[int], from_version: Optional[int], sha256: Optional[str]
) -> dict[str, Any]:
    """A command about a slot: the same rules as a server has."""
    if action not in ("pin", "unpin", "rollback", "revoke"):
        raise ConfigError(f"no action {action!r}: there are 'pin', 'unpin', 'rollback' and 'revoke'")
    if action == "unpin" and version is not None:
        raise ConfigError("unpin takes no version")
    if from_version is not None and (action != "rollback" or version is None or version >= from_version):
        raise ConfigError("from_version belongs to a rollback, and is above its version")
    if action == "revoke" and (version is None) == (sha256 is None):
        raise ConfigError("revoke takes either a version or a sha256")
    if action != "revoke" and sha256 is not None:
        raise ConfigError(f"{action} takes no sha256: revoke does")
    if sha256 is not None and not _DIGEST.fullmatch(sha256):
        raise ConfigError(f"{sha256!r} is no SHA-256: 64 lower-case hex digits")
    control: dict[str, Any] = {"action": action, "model" if slot.kind == "model" else "key": slot.name}
    for key, given in (("version", version), ("from", from_version), ("sha256", sha256)):
        if given is not None:
            control[key] = given
    return {"control": control}


def dumps(value: Any, what: str) -> str:
    """JSON as compact as it gets; numbers and arrays of numpy are taken for what they hold."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain)
        text.encode()
        return text
    except UnicodeEncodeError as error:
        raise ConfigError(f"{what} has half of a surrogate pair, which is no text ({error})") from error
    except ValueError as error:
        if "JSON compliant" in str(error):
            raise ConfigError(f"{what} has NaN or an infinity, which JSON does not have: say None") from error
        raise ConfigError(f"{what} is not JSON: {error}") from error
    except (TypeError, RecursionError) as error:
        raise ConfigError(f"{what} is not JSON: {error}") from error


def _plain(value: Any) -> Any:
    if callable(getattr(value, "tolist", None)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no form in JSON; make it numbers, text, lists and dicts")


def _check_structure(text: str) -> None:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            names = [name for name, _ in pairs]
            again = next(name for name in names if names.count(name) > 1)
            raise ConfigError(f"{again!r} is a key twice in one object: 1 and '1' are the same in JSON")
        return fields

    def integer(digits: str) -> int:
        if math.isinf(float(digits)):
            raise ConfigError(f"the number {digits[:12]}… has {len(digits)} digits, more than a server reads")
        return 0

    document = json.loads(text, object_pairs_hook=once, parse_int=integer)
    level: list[Any] = [document]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for value in level
            if isinstance(value, (dict, list))
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
    if any(isinstance(value, (dict, list)) for value in level):
        raise ConfigError(f"nested too deep: a message may have {MAX_DEPTH} levels, its own included")


def name(given: str, what: str) -> str:
    if not isinstance(given, str) or not _NAME.fullmatch(given):
        raise ConfigError(
            f"{given!r} is no {what}: 1 to 64 letters, digits, '-', '_' and '.', the first a letter or digit"
        )
    return given


def version_number(given: Any, what: str = "version") -> Optional[int]:
    if given is None:
        return None
    if isinstance(given, bool) or not hasattr(given, "__index__") or not 1 <= given.__index__() <= MAX_VERSION:
        raise ConfigError(f"{what} {given!r} is no version: an integer from 1 to 2^53 - 1")
    return int(given.__index__())


def label(given: Optional[str]) -> Optional[str]:
    if given is not None and (len(given.encode()) > 128 or _CONTROL.search(given)):
        raise ConfigError("a label has at most 128 bytes and no control characters")
    return given


def _message_id(given: str) -> str:
    if not 1 <= len(given.encode()) <= 256 or _CONTROL.search(given):
        raise ConfigError("a message id is 1 to 256 bytes of text without control characters")
    return given


def timestamp(at: datetime) -> str:
    if at.tzinfo is None:
        raise ConfigError(f"{at} says no time zone: datetime.now(timezone.utc) does")
    return at.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")


def limits_fields(given: Optional[Mapping[str, Any]]) -> Optional[dict[str, Any]]:
    """``row_time`` as text, a timedelta or seconds, and ``memory_bytes``."""
    if given is None:
        return None
    unknown = set(given) - {"row_time", "memory_bytes"}
    if unknown:
        # A server passes over what it does not know: a misspelt limit would be none.
        raise ConfigError(f"limits has {', '.join(sorted(unknown))}, and knows 'row_time' and 'memory_bytes'")
    limits: dict[str, Any] = {}
    if given.get("row_time") is not None:
        limits["row_time"] = _duration(given["row_time"])
    if given.get("memory_bytes") is not None:
        memory = given["memory_bytes"]
        if isinstance(memory, bool) or not isinstance(memory, int) or not 0 <= memory < 1 << 64:
            raise ConfigError(f"limits: memory_bytes is {memory!r}, and must be a number of bytes")
        limits["memory_bytes"] = memory
    return limits


def _duration(given: Union[str, float, timedelta]) -> str:
    if isinstance(given, str):
        if not _DURATION.fullmatch(given):
            raise ConfigError(f"{given!r} is no duration: write 500us, 200ms or 5s")
        return given
    seconds = given.total_seconds() if isinstance(given, timedelta) else float(given)
    if not 0 <= seconds < 1e9:
        raise ConfigError(f"{given!r} is no duration: seconds, a timedelta or '5ms'")
    return f"{seconds * 1e6:.0f}us"


def signature_fields(given: Optional[Mapping[str, Any]]) -> Optional[Mapping[str, Any]]:
    if given is None:
        return None
    for side in ("inputs", "outputs"):
        specs = given.get(side)
        if not isinstance(specs, (list, tuple)) or not all(_is_spec(spec) for spec in specs):
            raise ConfigError(
                'a signature is {"inputs": […], "outputs": […]}, each {"name": "input", "datatype": "FP32", "shape": '
                f"[-1, 4]}} with a datatype of {', '.join(_DATATYPES)}; GET /models shows them"
            )
    return given


def _is_spec(spec: Any) -> bool:
    if not isinstance(spec, Mapping):
        return False
    shape = spec.get("shape")
    lengths = isinstance(shape, (list, tuple)) and all(type(x) is int and x >= -1 for x in shape)
    return isinstance(spec.get("name"), str) and spec.get("datatype") in _DATATYPES and lengths


def golden_fields(given: Optional[Mapping[str, Any]]) -> Optional[dict[str, Any]]:
    """Golden cases with NaN and the infinities as a server reads them."""
    if given is None:
        return None
    cases = given.get("cases")
    shaped = isinstance(cases, (list, tuple)) and all(
        isinstance(case, Mapping)
        and isinstance(case.get("inputs"), Mapping)
        and isinstance(case.get("outputs"), Mapping)
        for case in cases
    )
    if not shaped:
        raise ConfigError('golden is {"cases": [{"inputs": {"input": [[…]]}, "outputs": {"prediction": […]}}]}')
    return {"cases": [_finite(case) for case in cases or ()]}


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if callable(getattr(value, "tolist", None)):
        return _finite(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
