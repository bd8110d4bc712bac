"""Where things go, and what is said when that is not known or not allowed."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from hotserve import ConfigError, MissingExtra, Publisher, PublishError
from hotserve.signing import PAYLOAD_TYPE

from .conftest import Recorder
from .test_messages import LINEAR


def test_the_environment_says_what_the_arguments_leave_out(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINESIS_STREAM", "updates")
    monkeypatch.setenv("HOTSERVE_PUBLISH_TO", "s3://my-models/prod/eu")
    monkeypatch.setenv("HOTSERVE_SERVER", "http://one:8000/, https://two")
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    ours = Publisher(session=recorder)
    ours.publish_model(LINEAR, name="iris")
    assert ours.servers == ("http://one:8000", "https://two")
    assert recorder.record()["StreamName"] == "updates"
    assert recorder.message()["model"]["uri"].startswith("s3://my-models/prod/eu/iris/")
    assert {options["region_name"] for options in recorder.options.values()} == {"eu-north-1"}


def test_the_arguments_win(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINESIS_STREAM", "theirs")
    monkeypatch.setenv("HOTSERVE_PUBLISH_TO", "s3://theirs/prod")
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    ours = Publisher("ours", "ours-too", region="eu-west-1", server="http://here", session=recorder)
    ours.publish_model(LINEAR, name="iris")
    assert ours.servers == ("http://here",)
    assert recorder.record()["StreamName"] == "ours"
    assert recorder.message()["model"]["uri"].startswith("s3://ours-too/iris/")
    assert recorder.options["s3"]["region_name"] == "eu-west-1"
    Publisher("ours", "s3://ours-too/below", session=recorder).publish_model(LINEAR, name="iris")
    assert recorder.message()["model"]["uri"].startswith("s3://ours-too/below/iris/")


def test_an_endpoint_is_for_both_services_or_for_each(recorder: Recorder) -> None:
    Publisher("s", "bucket", endpoint_url="http://localhost:4566", session=recorder).publish_model(LINEAR, name="m")
    assert [options["endpoint_url"] for options in recorder.options.values()] == ["http://localhost:4566"] * 2
    two = {"kinesis": "http://k", "s3": "http://s"}
    Publisher("s", "bucket", endpoint_url=two, session=recorder).publish_model(LINEAR, name="m")
    assert {name: options["endpoint_url"] for name, options in recorder.options.items()} == two
    with pytest.raises(ConfigError, match="knows 'kinesis' and 's3'"):
        Publisher("s", endpoint_url={"sqs": "http://q"}, session=recorder)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, r"no stream: say Publisher\(stream='…'\) or set KINESIS_STREAM"),
        ({"stream": "a b"}, "is no stream name"),
        ({"stream": "s", "bucket": "My_Bucket"}, "is no bucket"),
        ({"stream": "s", "bucket": "b..b"}, "is no bucket"),
        ({"stream": "s", "bucket": "bucket", "prefix": "a//b"}, "is no prefix"),
        ({"stream": "s", "bucket": "bucket", "prefix": "../b"}, "is no prefix"),
        ({"stream": "s", "bucket": "bucket", "prefix": "a%20b"}, "is no prefix"),
        ({"stream": "s", "prefix": "a"}, "give bucket= too"),
        ({"stream": "s", "server": "localhost:8000"}, "write http://host:8000"),
        ({"stream": "s", "server": "http://u:p@host"}, "write http://host:8000"),
        ({"stream": "s", "manifest": "s3://b/m.json"}, "hotserve publish … --manifest"),
        ({"stream": "s", "sign": "/nowhere/key.pem"}, "cannot be read"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Publisher(**settings)


def test_a_manifest_in_the_environment_is_not_passed_over(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTSERVE_MANIFEST", "s3://bucket/manifest.json")
    with pytest.raises(ConfigError, match=r"HOTSERVE_MANIFEST is set.*hotserve publish … --manifest"):
        Publisher("s", session=recorder)
    Publisher("s", manifest=False, session=recorder).publish_state(1)
    assert recorder.message()["state"] == 1


def test_without_a_hotserve_dev_it_says_how_to_start_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match=r"no hotserve dev is running; start one with: hotserve dev$"):
        Publisher.dev()
    folder = tmp_path / "hotserve-dev"
    folder.mkdir()
    # Of one that was killed: nobody listens there.
    (folder / "8000.json").write_text('{"http": "127.0.0.1:8000", "kinesis": "127.0.0.1:1"}')
    (folder / "8001.json").write_text("torn")
    with pytest.raises(ConfigError, match=r"on port 8000; start one with: hotserve dev --port 8000$"):
        Publisher.dev(8000)


@pytest.mark.parametrize(
    ("service", "code", "says"),
    [
        ("kinesis", "ResourceNotFoundException", "there is no stream 'updates'"),
        ("kinesis", "AccessDeniedException", "allow kinesis:PutRecord on 'updates'"),
        ("kinesis", "ExpiredTokenException", "the credentials are over"),
        ("kinesis", "UnrecognizedClientException", "not this account's"),
        ("kinesis", "ProvisionedThroughputExceededException", "more shards"),
        ("kinesis", "InternalFailure", "put the message into stream 'updates': InternalFailure: no"),
        ("s3", "NoSuchBucket", "there is no bucket 'my-models'"),
        ("s3", "AccessDenied", "allow s3:PutObject on 'my-models'"),
    ],
)
def test_what_aws_refuses_is_told_with_its_cure(recorder: Recorder, service: str, code: str, says: str) -> None:
    recorder.errors[service] = code
    with pytest.raises(PublishError, match=says) as told:
        Publisher("updates", "my-models", session=recorder).publish_model(LINEAR, name="iris")
    assert told.value.__cause__ is not None
    announced = [operation for operation, _ in recorder.sent if operation == "put_record"]
    assert len(announced) == (1 if service == "kinesis" else 0), "what is not uploaded is not announced"


def test_without_credentials_or_a_region_it_says_which_are_looked_for() -> None:
    with pytest.raises(ConfigError, match=r"no AWS credentials .*AWS_ACCESS_KEY_ID"):
        Publisher("updates", region="eu-central-1").publish_state(1)
    with pytest.raises(ConfigError, match="set AWS_REGION"):
        Publisher("updates").publish_state(1)


def test_an_endpoint_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    ours = Publisher("updates", endpoint_url="http://127.0.0.1:1", region="eu-central-1")
    with pytest.raises(PublishError, match=r"no answer .*127\.0\.0\.1:1"):
        ours.publish_state(1)


# The first test vector of RFC 8032, 7.1: secret key, public key, and the signature of nothing.
SECRET = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    pytest.importorskip("cryptography")
    der = bytes.fromhex("302e020100300506032b657004220420") + SECRET
    path = tmp_path / "key.pem"
    path.write_text(f"-----BEGIN PRIVATE KEY-----\n{base64.b64encode(der).decode()}\n-----END PRIVATE KEY-----\n")
    path.chmod(0o600)
    return path


def test_a_signature_is_over_the_very_bytes_of_the_message(
    recorder: Recorder, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    monkeypatch.setenv("HOTSERVE_SIGNING_KEY_FILE", str(key))
    published = Publisher("s", session=recorder).publish_state(96, version=1)
    envelope = recorder.message()
    assert list(envelope) == ["payloadType", "payload", "signatures"]
    payload = base64.b64decode(envelope["payload"])
    assert payload.decode() == published.message and json.loads(payload)["state"] == 96
    (signature,) = envelope["signatures"]
    assert signature["keyid"] == hashlib.sha256(PUBLIC).hexdigest()[:16]
    signed = b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)
    Ed25519PublicKey.from_public_bytes(PUBLIC).verify(base64.b64decode(signature["sig"]), signed)


def test_what_is_signed_has_a_version(recorder: Recorder, key: Path) -> None:
    ours = Publisher("s", "bucket", sign=key, session=recorder)
    with pytest.raises(ConfigError, match="give version="):
        ours.publish_state(1)
    with pytest.raises(ConfigError, match="give version="):
        ours.publish_model(LINEAR, name="m")
    with pytest.raises(ConfigError, match="give version=, and from_version="):
        ours.control("rollback", model="m", version=1)
    assert recorder.sent == []
    ours.control("unpin", model="m")


def test_a_key_that_others_can_open_or_that_is_none_is_refused(key: Path) -> None:
    key.chmod(0o644)
    if os.name == "posix":
        with pytest.raises(ConfigError, match="chmod 600"):
            Publisher("s", sign=[key])
    key.chmod(0o600)
    key.write_text("no key")
    with pytest.raises(ConfigError, match="is no private key"):
        Publisher("s", sign=key)


def test_without_cryptography_it_says_what_to_install(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    with pytest.raises(MissingExtra, match=r"pip install 'hotserve\[sign\]'"):
        Publisher("s", sign=key)
