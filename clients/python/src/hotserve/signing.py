"""Signatures: a message in a DSSE envelope, signed with Ed25519 keys that ``hotserve keygen`` made."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Union

from .errors import ConfigError, MissingExtra
from .settings import environment

PAYLOAD_TYPE = "application/vnd.hotserve.notification+json"

Paths = Union[str, "os.PathLike[str]", Iterable[Union[str, "os.PathLike[str]"]], None]


class SigningKey:
    """One private key."""

    def __init__(self, path: Path) -> None:
        try:
            from cryptography.hazmat.primitives import serialization
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        except ImportError as error:
            raise MissingExtra("a signature", "sign", error) from error
        try:
            pem = path.read_bytes()
            mode = path.stat().st_mode
        except OSError as error:
            raise ConfigError(f"the signing key cannot be read: {error}") from error
        if os.name == "posix" and mode & 0o027:
            raise ConfigError(f"{path}: others can open the key file, so that it is theirs too: chmod 600 it")
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path} is no private key in PEM, as hotserve keygen writes it: {error}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(f"{path} is no Ed25519 key: make one with hotserve keygen")
        self._key: Any = key
        public = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        self.id: str = hashlib.sha256(public).hexdigest()[:16]

    def sign(self, message: bytes) -> bytes:
        return bytes(self._key.sign(message))


def keys(given: Paths) -> tuple[SigningKey, ...]:
    if given is None:
        given = (environment("HOTSERVE_SIGNING_KEY_FILE") or "").split(",")
    paths = [given] if isinstance(given, (str, os.PathLike)) else list(given)
    return tuple(SigningKey(Path(path)) for path in paths if path)


def seal(message: bytes, signing_keys: Iterable[SigningKey]) -> bytes:
    """The envelope. The signatures are over DSSE's pre-authentication encoding of the message's bytes."""
    signed = b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(message), message)
    signatures = [{"keyid": key.id, "sig": base64.b64encode(key.sign(signed)).decode()} for key in signing_keys]
    envelope = {"payloadType": PAYLOAD_TYPE, "payload": base64.b64encode(message).decode(), "signatures": signatures}
    return json.dumps(envelope, separators=(",", ":")).encode()
