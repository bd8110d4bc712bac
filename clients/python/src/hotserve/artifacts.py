"""A model's bytes: what format they are, and where they go."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

from .errors import ConfigError
from .messages import MAX_RATIO

#: The first bytes tell; a model can have gigabytes.
_HEAD = 64 << 10


@dataclass(frozen=True)
class Artifact:
    """A model as a file: its bytes, or where they are."""

    content: Union[bytes, Path]
    format: str
    file_name: str
    #: Golden cases for these rows, from the library that trained it.
    cases: Optional[Callable[[Any, Optional[float]], dict[str, Any]]] = None

    def read(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else read(self.content)

    def digest(self) -> tuple[str, int]:
        """SHA-256 in hex, and the size."""
        if isinstance(self.content, bytes):
            return hashlib.sha256(self.content).hexdigest(), len(self.content)
        hasher, size = hashlib.sha256(), 0
        try:
            with self.content.open("rb") as file:
                while chunk := file.read(1 << 20):
                    hasher.update(chunk)
                    size += len(chunk)
        except OSError as error:
            raise ConfigError(f"the model cannot be read: {error}") from error
        return hasher.hexdigest(), size


def of_bytes(content: bytes, format: Optional[str], file_name: str = "model") -> Artifact:
    return Artifact(content, format or _recognized(content[:_HEAD], "these bytes do"), file_name)


def of_file(path: Path, format: Optional[str]) -> Artifact:
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise ConfigError(f"the model cannot be read: {error}") from error
    # A key of S3 that a server takes has none of these.
    file_name = re.sub(r"[\x00-\x1f\x7f-\x9f\\?#%]", "_", path.name) or "model"
    return Artifact(path, format or _recognized(head, f"{path} does"), file_name)


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"it cannot be read: {error}") from error


def _recognized(head: bytes, what: str) -> str:
    found = recognize(head)
    if found is None:
        raise ConfigError(
            f"{what} not look like just one of catboost, lightgbm, linear, onnx and xgboost: say format='…'"
        )
    return found


def recognize(head: bytes) -> Optional[str]:
    """The format that the first bytes look like, as a server's loaders tell it."""
    if len(head) > 2 and head[0] == 0x08 and 3 <= head[1] <= 20 and head[2] in b"\x12\x1a\x22\x32\x3a\x42":
        return "onnx"
    if re.match(rb"tree\r?\nversion=", head):
        return "lightgbm"
    text = head.lstrip()
    if not text.startswith(b"{"):
        return None
    # Of UBJ the length of the first key comes before it, in one, two, four or eight bytes.
    if re.match(rb'\{(L.{8}|l.{4}|I.{2}|[iU].|\s*")(learner|version)', text, re.DOTALL):
        return "xgboost"
    key = re.match(rb'\{\s*"([^"]*)"', text)
    if key is None:
        return None
    if key[1] in (b"features_info", b"oblivious_trees", b"model_info", b"ctr_data"):
        return "catboost"
    if key[1] in (b"kind", b"features", b"coefficients", b"intercepts", b"classes", b"input"):
        return "linear"
    return None


def inline_fields(content: bytes) -> dict[str, Any]:
    """The bytes in the message itself, compressed where that helps. Digest and size are of them as they lie there."""
    encoding, packed = _compress(content)
    # A server stops inflating there, and takes small ones for no bomb in any case.
    if len(packed) >= len(content) or len(content) > max(len(packed) * MAX_RATIO, 64 << 10):
        encoding, packed = "none", content
    return {
        "inline": base64.b64encode(packed).decode(),
        "encoding": encoding,
        "sha256": hashlib.sha256(packed).hexdigest(),
        "size": len(packed),
    }


def _compress(content: bytes) -> tuple[str, bytes]:
    """zstd where this Python has it, from 3.14 on or by the package zstandard; else gzip. A server takes both."""
    try:
        from compression import zstd

        return "zstd", bytes(zstd.compress(content, level=19))
    except ImportError:
        pass
    try:
        import zstandard

        return "zstd", bytes(zstandard.ZstdCompressor(level=19).compress(content))
    except ImportError:
        return "gzip", gzip.compress(content, mtime=0)
