"""Kinesis and S3, and what they say in plain words."""

from __future__ import annotations

import base64
import binascii
from typing import Any, Optional

import boto3
import botocore.exceptions
from botocore.config import Config

from .artifacts import Artifact
from .errors import ConfigError, PublishError
from .settings import Endpoints, environment

#: S3 takes no more in one piece.
MAX_UPLOAD = 5 << 30


class Aws:
    """The two clients. Each is made when it is first needed: who publishes states needs no S3."""

    def __init__(
        self,
        session: Any,
        region: Optional[str],
        endpoints: Endpoints,
        credentials: Optional[tuple[str, str]] = None,
    ) -> None:
        self._session = session if session is not None else boto3.session.Session()
        # boto3 itself reads AWS_DEFAULT_REGION only; a session that was given has its own.
        self._region = region or getattr(session, "region_name", None) or environment("AWS_REGION")
        self._endpoints = endpoints
        self._credentials = credentials
        self._clients: dict[str, Any] = {}

    def put_record(self, stream: str, partition_key: str, data: bytes) -> tuple[str, str]:
        """The shard, and the place there."""
        try:
            kinesis = self._client("kinesis", self._endpoints.kinesis)
            answer = kinesis.put_record(StreamName=stream, PartitionKey=partition_key, Data=data)
        except _FAULTS as error:
            raise _explained(error, f"put the message into stream {stream!r}", stream=stream) from error
        return str(answer["ShardId"]), str(answer["SequenceNumber"])

    def upload(self, bucket: str, key: str, artifact: Artifact, sha256: str, size: int) -> None:
        """Stores an artifact. S3 proves the digest too."""
        if size > MAX_UPLOAD:
            raise ConfigError(f"the model has {size} bytes, and S3 takes 5 GiB in one piece")
        doing = f"upload to s3://{bucket}/{key}"
        checksum = base64.b64encode(binascii.unhexlify(sha256)).decode()
        try:
            s3 = self._client("s3", self._endpoints.s3)
            if isinstance(artifact.content, bytes):
                s3.put_object(Bucket=bucket, Key=key, Body=artifact.content, ChecksumSHA256=checksum)
            else:
                with artifact.content.open("rb") as file:
                    s3.put_object(Bucket=bucket, Key=key, Body=file, ChecksumSHA256=checksum)
        except OSError as error:
            raise ConfigError(f"the model cannot be read: {error}") from error
        except _FAULTS as error:
            raise _explained(error, doing, bucket=bucket) from error

    def _client(self, service: str, endpoint: Optional[str]) -> Any:
        if service not in self._clients:
            settings: dict[str, Any] = {"retries": {"mode": "standard", "max_attempts": 4}, "connect_timeout": 5}
            if service == "s3" and endpoint is not None:
                # Stand-ins have no host name for each bucket.
                settings["s3"] = {"addressing_style": "path"}
            options: dict[str, Any] = {"config": Config(**settings), "region_name": self._region}
            if endpoint is not None:
                options["endpoint_url"] = endpoint
            if self._credentials is not None:
                options["aws_access_key_id"], options["aws_secret_access_key"] = self._credentials
            self._clients[service] = self._session.client(service, **options)
        return self._clients[service]


_FAULTS = (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError)

_THROTTLED = ("ProvisionedThroughputExceededException", "LimitExceededException", "ThrottlingException", "SlowDown")
_CREDENTIALS = "aws sso login, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or the machine's role give them"


def _explained(
    error: Exception, doing: str, *, stream: Optional[str] = None, bucket: Optional[str] = None
) -> Exception:
    """The same fault, with what to do about it."""
    exceptions = botocore.exceptions
    if isinstance(error, (exceptions.NoCredentialsError, exceptions.PartialCredentialsError)):
        return ConfigError(f"{doing}: no AWS credentials ({error}): {_CREDENTIALS}")
    if isinstance(error, exceptions.NoRegionError):
        return ConfigError(f"{doing}: no region: say Publisher(region='eu-central-1') or set AWS_REGION")
    if isinstance(error, exceptions.ProfileNotFound):
        return ConfigError(f"{doing}: {error}: AWS_PROFILE names it")
    if isinstance(error, (exceptions.HTTPClientError, exceptions.EndpointConnectionError)):
        return PublishError(f"{doing}: no answer ({error}): is the endpoint right, and the network there?")
    if not isinstance(error, exceptions.ClientError):
        return PublishError(f"{doing}: {error}")
    said = error.response.get("Error", {})
    code, text = str(said.get("Code", "")), str(said.get("Message", "")) or str(error)
    if code == "ResourceNotFoundException":
        cure = f"there is no stream {stream!r} in this account and region: is its name right, and AWS_REGION?"
    elif code == "NoSuchBucket":
        cure = f"there is no bucket {bucket!r}: make it, or name another with bucket= or HOTSERVE_PUBLISH_TO"
    elif code in ("AccessDenied", "AccessDeniedException", "403"):
        action = f"s3:PutObject on {bucket!r}" if bucket is not None else f"kinesis:PutRecord on {stream!r}"
        cure = f"the credentials may not: allow {action}"
    elif code in ("ExpiredToken", "ExpiredTokenException", "RequestExpired"):
        cure = f"the credentials are over: {_CREDENTIALS}"
    elif code in ("UnrecognizedClientException", "InvalidClientTokenId", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
        cure = f"the credentials are not this account's: {_CREDENTIALS}"
    elif code in _THROTTLED:
        cure = "it is throttled, and stays so: try again later, or give the stream more shards"
    else:
        return PublishError(f"{doing}: {code}: {text}")
    return PublishError(f"{doing}: {cure} ({code}: {text})")
