"""The publisher: uploads a model to a key of its own, then announces it on the stream.

Upload first, announce after: whoever reads the message finds the object. The key holds the digest, so that an object is
never overwritten.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Optional, Union

from . import artifacts, messages, models, servers, settings, signing
from .artifacts import Artifact
from .aws import Aws
from .errors import ConfigError
from .messages import Message, Slot
from .servers import Receipt, Served

#: A version, ``"next"``, or nothing.
VersionLike = Union[int, str, None]
Servers = Union[str, Iterable[str], None]


@dataclass(frozen=True)
class Published:
    """What was published, and where it went."""

    #: ``state`` or ``model``, and its key or name.
    kind: str
    name: str
    #: Its version; without one the stream's own order decides.
    version: Optional[int]
    message_id: str
    published_at: datetime
    shard: str
    sequence_number: str
    #: Of a model: its format, where it was uploaded (nothing if it is in the message), and the digest there.
    format: Optional[str] = None
    uri: Optional[str] = None
    sha256: Optional[str] = None
    #: What was announced, as JSON text, before it was signed.
    message: str = field(default="", repr=False)
    _receipt: Optional[Receipt] = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        version = f" version {self.version}" if self.version is not None else ""
        return f"{self.kind} {self.name}{version}: sequence number {self.sequence_number} in {self.shard}"


class Publisher:
    """Publishes to one stream.

    What is not given is taken from the environment, as ``hotserve publish`` does: ``KINESIS_STREAM``,
    ``HOTSERVE_PUBLISH_TO`` (``s3://bucket/prefix``), ``HOTSERVE_SERVER``, ``HOTSERVE_SIGNING_KEY_FILE``, and ``AWS_*``
    as every AWS tool does.

    :param stream: the Kinesis stream.
    :param bucket: where models are uploaded, as a name or as ``s3://bucket/prefix``.
    :param prefix: the folder in it.
    :param endpoint_url: a stand-in for Kinesis and S3, or ``{"kinesis": …, "s3": …}``.
    :param region: the AWS region.
    :param server: the servers that :meth:`wait` asks: ``http://host:8000``, or several.
    :param sign: files of Ed25519 keys that sign everything.
    :param manifest: refused, for this package does not write one: use ``hotserve publish --manifest``. ``False``
        announces on the stream alone even where ``HOTSERVE_MANIFEST`` is set.
    :param session: a ``boto3.session.Session`` to use instead of a new one.
    """

    def __init__(
        self,
        stream: Optional[str] = None,
        bucket: Optional[str] = None,
        prefix: Optional[str] = None,
        *,
        endpoint_url: Union[str, Mapping[str, str], None] = None,
        region: Optional[str] = None,
        server: Servers = None,
        sign: signing.Paths = None,
        manifest: Union[str, bool, None] = None,
        session: Any = None,
    ) -> None:
        settings.refuse_manifest(manifest)
        self.stream = settings.stream_name(stream)
        self.servers = settings.server_urls(server)
        self._place = settings.upload_place(bucket, prefix)
        self._keys = signing.keys(sign)
        self._aws = Aws(session, region, settings.Endpoints.of(endpoint_url))

    @classmethod
    def dev(cls, port: Optional[int] = None, *, sign: signing.Paths = (), session: Any = None) -> Publisher:
        """A publisher to a running ``hotserve dev``: that of this HTTP port, or the one that was started last.

        What the environment says of streams, buckets and keys is not looked at.
        """
        running = settings.running_dev(port)
        manifest = running.get("manifest")
        if manifest:
            raise ConfigError("this hotserve dev keeps a manifest, which this package does not write: start it without")
        host, _, http_port = str(running["http"]).rpartition(":")
        made = cls(
            stream=running["stream"],
            bucket=running["bucket"],
            prefix="models",
            server=f"http://{host}:{http_port}",
            sign=sign,
            manifest=False,
            session=session,
        )
        endpoints = settings.Endpoints(f"http://{running['kinesis']}", f"http://{running['s3']}")
        credentials = (str(running["access_key_id"]), str(running["secret_access_key"]))
        made._aws = Aws(session, str(running["region"]), endpoints, credentials)
        return made

    def publish_state(
        self,
        value: Any,
        key: str = "default",
        version: VersionLike = None,
        *,
        message_id: Optional[str] = None,
        text: Optional[str] = None,
        expires_at: Optional[datetime] = None,
        wait: Optional[float] = None,
    ) -> Published:
        """Publishes a state: whatever JSON can say, numbers and arrays of numpy included.

        :param key: which state; ``default`` is the one of ``GET /state``.
        :param version: its order within its key, from 1 to 2^53 - 1. ``"next"`` is one above what the servers have;
            without one the stream's own order decides, which a key that has had a version refuses.
        :param message_id: what removes duplicates; made up if left out.
        :param text: for people who read the stream; no server looks at it.
        :param expires_at: after this moment it is not applied any more.
        :param wait: how many seconds to wait until it is served.
        """
        slot = Slot.state(key)
        number = self._version(version, slot)
        message = _message(slot, number, messages.state_fields(slot, number, value), message_id, text, expires_at)
        etag = servers.state_etag(messages.dumps(value, "the state"))
        return self._announce(message, wait, etag=etag)

    def publish_model(
        self,
        model: Any,
        name: str,
        version: VersionLike = None,
        *,
        format: Optional[str] = None,
        sample: Any = None,
        golden: Union[Mapping[str, Any], str, os.PathLike[str], None] = None,
        tolerance: Optional[float] = None,
        signature: Optional[Mapping[str, Any]] = None,
        limits: Optional[Mapping[str, Any]] = None,
        label: Optional[str] = None,
        inline: Optional[bool] = None,
        message_id: Optional[str] = None,
        expires_at: Optional[datetime] = None,
        wait: Optional[float] = None,
    ) -> Published:
        """Publishes a model: hashes it, uploads it, announces it.

        :param model: a path, bytes, a fitted model of scikit-learn, XGBoost or LightGBM, an ONNX graph, or
            ``runs:/…``, ``models:/name/version`` of MLflow.
        :param name: which model; ``POST /predict/{name}`` asks it.
        :param version: its order within its name, from 1 to 2^53 - 1. ``"next"`` is one above what the servers have.
        :param format: what a file or bytes are; told from their first bytes if left out.
        :param sample: some rows. The library's own answers to them become golden cases, which every server holds the
            model to before it serves it.
        :param golden: golden cases of your own, or the file with them.
        :param tolerance: how far the answers to ``sample`` may be off, in parts of ``max(1, |answer|)``: 1e-6, and 1e-4
            for scikit-learn, whose models a server runs in FP32.
        :param signature: what the model must take and give: ``{"inputs": […], "outputs": […]}``, as ``/models`` has it.
        :param limits: ``{"row_time": "5ms", "memory_bytes": 200_000_000}``: may only tighten what the server allows.
        :param label: a name for the version, for people.
        :param inline: whether to put it into the message itself, which has room for about a megabyte. Left out, it is
            uploaded where there is a bucket, and else put into the message.
        :param wait: how many seconds to wait until it is served.
        """
        slot = Slot.model(name)
        if label is None and isinstance(model, str) and model.startswith(("runs:/", "models:/")):
            label = model if len(model.encode()) <= 128 else None
        fields: dict[str, Any] = {"name": slot.name, "label": messages.label(label)}
        described = {
            "signature": messages.signature_fields(signature),
            "limits": messages.limits_fields(limits),
        }
        artifact = models.artifact(model, format, sample)
        described["golden"] = _golden(artifact, golden, sample, tolerance)
        fields["format"] = messages.name(artifact.format, "model format")
        number = self._version(version, slot)
        self._check_replay(slot, number)
        draft = _message(slot, number, {}, message_id, None, expires_at)

        def announced(place: Mapping[str, Any]) -> Message:
            # In the order in which the command writes them.
            parts = {"name": slot.name, "version": number, **fields, **place, **described}
            return replace(draft, fields={"model": {key: part for key, part in parts.items() if part is not None}})

        inlined = self._place is None if inline is None else inline
        if inlined:
            message = announced(artifacts.inline_fields(artifact.read()))
            self._check_inline(message)
            return self._announce(message, wait, artifact=artifact)
        place = self._upload(artifact, slot, announced)
        return self._announce(announced(place), wait, artifact=artifact)

    def control(
        self,
        action: str,
        *,
        model: Optional[str] = None,
        key: Optional[str] = None,
        version: Optional[int] = None,
        from_version: Optional[int] = None,
        sha256: Optional[str] = None,
    ) -> Published:
        """Tells every server what a slot may serve: ``pin``, ``unpin``, ``rollback`` or ``revoke``.

        :param version: what is pinned, gone back to, or revoked. Without one a pin holds what is served, and a rollback
            goes back to the one before.
        :param from_version: the newest version that a rollback takes back.
        :param sha256: the artifact to revoke, whatever version it comes as.
        """
        if (model is None) == (key is None):
            raise ConfigError("a command is about one slot: give either model= or the key= of a state")
        slot = Slot.model(model) if model is not None else Slot.state(str(key))
        number = messages.version_number(version)
        from_number = messages.version_number(from_version, "from_version")
        fields = messages.control_fields(action, slot, number, from_number, sha256)
        if self._keys and ((action == "pin" and number is None) or (action == "rollback" and from_number is None)):
            raise ConfigError(
                f"a signed {action} that leaves a version open could be played again by whoever can write to the "
                "stream: give version=, and from_version= for a rollback"
            )
        return self._announce(Message(slot, None, fields), None, told=True)

    def wait(self, published: Published, timeout: float = 60.0, *, server: Servers = None) -> list[Served]:
        """Returns when every server serves it, or something newer that has replaced it.

        :raises Rejected: when a server refuses it, with the server's reason.
        :raises WaitTimeout: a ``TimeoutError``, which says what each server serves instead.
        """
        if published._receipt is None:
            raise ConfigError("a command is not served: GET /history of a server says what became of it")
        asked = self.servers if server is None else settings.server_urls(server)
        return servers.wait(asked, published._receipt, timeout)

    def _version(self, given: VersionLike, slot: Slot) -> Optional[int]:
        if given == "next":
            return servers.next_version(self.servers, slot)
        return messages.version_number(given)

    def _check_replay(self, slot: Slot, version: Optional[int]) -> None:
        if self._keys and version is None:
            raise ConfigError(
                f"{slot} is to be signed, and has no version: whoever can write to the stream could publish it again; "
                "give version="
            )

    def _check_inline(self, message: Message) -> None:
        bucket = "say Publisher(bucket='…') or set HOTSERVE_PUBLISH_TO"
        cure = bucket if self._place is None else "leave inline out"
        self._record(message, f"the model is too large to be put into it; to have it uploaded {cure}")

    def _upload(self, artifact: Artifact, slot: Slot, announced: Any) -> dict[str, Any]:
        if self._place is None:
            raise ConfigError("no bucket: say Publisher(bucket='…', prefix='…') or set HOTSERVE_PUBLISH_TO")
        bucket, prefix = self._place
        sha256, size = artifact.digest()
        key = "/".join(filter(None, [prefix, slot.name, sha256, artifact.file_name]))
        place = {"uri": f"s3://{bucket}/{key}", "sha256": sha256, "size": size}
        # Before anything is uploaded: what cannot be announced need not be there.
        self._record(announced(place), "it has too many golden cases")
        if len(f"s3://{bucket}/{key}".encode()) > 2048:
            raise ConfigError("the object's uri has more than 2048 bytes: choose a shorter prefix or file name")
        self._aws.upload(bucket, key, artifact, sha256, size)
        return place

    def _record(self, message: Message, cure: str = "split it over several keys, or say less") -> bytes:
        data = message.render()
        return messages.fit(message.slot, signing.seal(data, self._keys) if self._keys else data, cure)

    def _announce(
        self,
        message: Message,
        wait: Optional[float],
        *,
        artifact: Optional[Artifact] = None,
        etag: Optional[str] = None,
        told: bool = False,
    ) -> Published:
        slot = message.slot
        if not told:
            self._check_replay(slot, message.version)
        if wait is not None and not self.servers:
            raise ConfigError("wait= asks the servers: say Publisher(server='http://host:8000') or set HOTSERVE_SERVER")
        record = self._record(message)
        shard, sequence_number = self._aws.put_record(self.stream, slot.partition_key, record)
        model = message.fields.get("model", {})
        sha256 = model.get("sha256")
        receipt = Receipt(slot, message.version, message.published_at, shard, sequence_number, sha256, etag)
        published = Published(
            kind=slot.kind,
            name=slot.name,
            version=message.version,
            message_id=message.message_id,
            published_at=message.published_at,
            shard=shard,
            sequence_number=sequence_number,
            format=artifact.format if artifact is not None else None,
            uri=model.get("uri"),
            sha256=sha256,
            message=message.render().decode(),
            _receipt=None if told else receipt,
        )
        if wait is not None:
            self.wait(published, wait)
        return published


def _message(
    slot: Slot,
    version: Optional[int],
    fields: Mapping[str, Any],
    message_id: Optional[str],
    text: Optional[str],
    expires_at: Optional[datetime],
) -> Message:
    message = Message(slot, version, fields, text=text, expires_at=expires_at)
    return message if message_id is None else replace(message, message_id=message_id)


def _golden(
    artifact: Artifact,
    golden: Union[Mapping[str, Any], str, os.PathLike[str], None],
    sample: Any,
    tolerance: Optional[float],
) -> Optional[dict[str, Any]]:
    if golden is not None:
        if isinstance(golden, (str, os.PathLike)):
            try:
                golden = json.loads(artifacts.read(Path(golden)))
            except ValueError as error:
                raise ConfigError(f"the golden cases are not JSON: {error}") from error
        if not isinstance(golden, Mapping):
            raise ConfigError('the golden cases are no object with "cases"')
        return messages.golden_fields(golden)
    if sample is None:
        return None
    if artifact.cases is None:
        raise ConfigError(
            "sample= makes golden cases from the answers of a fitted model, and this is a file, bytes or an ONNX "
            "graph: give golden="
        )
    return messages.golden_fields(artifact.cases(sample, tolerance))
