"""The messages, against a recorder in place of AWS: each is what a server's decoder takes."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pytest

from hotserve import ConfigError, Publisher, TooLarge
from hotserve.artifacts import inline_fields
from hotserve.messages import MAX_RECORD

from .conftest import ROOT, Recorder

LINEAR = (ROOT / "models/samples/iris/model.json").read_bytes()


def publisher(recorder: Recorder, **settings: Any) -> Publisher:
    return Publisher(stream="updates", session=recorder, **settings)


def test_a_state_is_announced_under_its_key(recorder: Recorder) -> None:
    before = datetime.now(timezone.utc)
    published = publisher(recorder).publish_state({"eur": 1.08, "text": "grün"}, key="pricing", version=7)
    record = recorder.record()
    assert (record["StreamName"], record["PartitionKey"]) == ("updates", "state:pricing")
    message = json.loads(record["Data"])
    assert list(message) == ["message_id", "key", "version", "state", "published_at"]
    assert message["state"] == {"eur": 1.08, "text": "grün"}
    assert (message["key"], message["version"]) == ("pricing", 7)
    assert message["message_id"] == published.message_id and len(published.message_id) == 32
    assert message["published_at"].endswith("Z")
    assert before <= published.published_at <= datetime.now(timezone.utc)
    assert str(published).startswith("state pricing version 7: sequence number 4959")
    assert published.message.encode() == record["Data"]


def test_a_state_without_a_version_says_none(recorder: Recorder) -> None:
    publisher(recorder).publish_state(None)
    message = recorder.message()
    assert "version" not in message
    assert message["key"] == "default" and message["state"] is None


def test_the_form_that_the_project_began_with_is_a_call(recorder: Recorder) -> None:
    publisher(recorder).publish_state(96, message_id="4142", text="some text")
    message = recorder.message()
    assert (message["message_id"], message["text"], message["state"]) == ("4142", "some text", 96)


def test_two_messages_are_never_taken_for_one(recorder: Recorder) -> None:
    ours = publisher(recorder)
    assert ours.publish_state(1).message_id != ours.publish_state(1).message_id


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(7), 7),
        (np.array([[1.5, 2.5]]), [[1.5, 2.5]]),
        ({"weights": np.arange(3), "on": np.bool_(True)}, {"weights": [0, 1, 2], "on": True}),
        ((1, 2), [1, 2]),
    ],
)
def test_what_numpy_holds_is_published_as_what_it_is(recorder: Recorder, value: Any, expected: Any) -> None:
    publisher(recorder).publish_state(value)
    assert recorder.message()["state"] == expected


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (float("nan"), "NaN"),
        ([1, float("inf")], "NaN or an infinity"),
        ({1: "a", "1": "b"}, "twice"),
        ("\ud800", "surrogate"),
        (10**400, "digits"),
        (nested(32), "nested too deep"),
        ({"at": datetime(2026, 1, 1)}, "datetime has no form in JSON"),
        ({(1, 2): 3}, "not JSON"),
    ],
)
def test_what_a_server_would_refuse_is_never_published(recorder: Recorder, value: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        publisher(recorder).publish_state(value)
    assert recorder.sent == []


def test_the_deepest_state_that_a_server_takes_is_published(recorder: Recorder) -> None:
    publisher(recorder).publish_state(nested(31))
    assert recorder.message()["state"] == nested(31)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"key": "../../etc"}, "is no state key: 1 to 64 letters"),
        ({"key": "x" * 65}, "is no state key"),
        ({"key": ""}, "is no state key"),
        ({"version": 0}, "is no version: an integer from 1"),
        ({"version": 1 << 53}, "is no version"),
        ({"version": "7"}, "is no version"),
        ({"version": 7.0}, "is no version"),
        ({"version": True}, "is no version"),
        ({"message_id": ""}, "a message id is"),
        ({"message_id": "a\nb"}, "a message id is"),
        ({"expires_at": datetime(2026, 1, 1)}, "no time zone"),
        ({"wait": 1}, "HOTSERVE_SERVER"),
        ({"version": "next"}, "HOTSERVE_SERVER"),
    ],
)
def test_a_wrong_argument_is_named(recorder: Recorder, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        publisher(recorder).publish_state(1, **arguments)
    assert recorder.sent == []


def test_a_version_may_be_a_number_of_numpy(recorder: Recorder) -> None:
    publisher(recorder).publish_state(1, version=np.int64(7))  # type: ignore[arg-type]
    assert recorder.message()["version"] == 7


def test_a_time_is_said_in_utc(recorder: Recorder) -> None:
    at = datetime(2026, 1, 1, 1, 30, tzinfo=timezone(timedelta(hours=1)))
    publisher(recorder).publish_state(1, expires_at=at)
    assert recorder.message()["expires_at"] == "2026-01-01T00:30:00Z"


def test_a_state_that_is_too_long_is_packed_and_one_that_stays_so_is_not_sent(recorder: Recorder) -> None:
    ours = publisher(recorder)
    words = [f"word {number % 1000}" for number in range(120_000)]
    ours.publish_state(words)
    data = recorder.record()["Data"]
    assert len(data) < MAX_RECORD
    assert json.loads(gzip.decompress(data))["state"] == words
    noise = base64.b64encode(np.random.default_rng(7).bytes(1_200_000)).decode()
    with pytest.raises(TooLarge, match=r"1048576: split it over several keys"):
        ours.publish_state(noise)
    # A server would take it for a bomb.
    with pytest.raises(TooLarge):
        ours.publish_state("0" * 9_000_000)


def test_a_model_is_uploaded_before_it_is_announced(recorder: Recorder, tmp_path: Path) -> None:
    file = tmp_path / "iris#1.json"
    file.write_bytes(LINEAR)
    ours = publisher(recorder, bucket="my-models", prefix="/prod/")
    published = ours.publish_model(file, name="iris", version=3, label="from the test")
    assert [operation for operation, _ in recorder.sent] == ["put_object", "put_record"]
    stored, record = (params for _, params in recorder.sent)
    digest = hashlib.sha256(LINEAR)
    key = f"prod/iris/{digest.hexdigest()}/iris_1.json"
    assert (stored["Bucket"], stored["Key"], stored["Body"]) == ("my-models", key, LINEAR)
    assert stored["ChecksumSHA256"] == base64.b64encode(digest.digest()).decode()
    assert record["PartitionKey"] == "model:iris"
    assert json.loads(record["Data"])["model"] == {
        "name": "iris",
        "version": 3,
        "label": "from the test",
        "format": "linear",
        "uri": f"s3://my-models/{key}",
        "sha256": digest.hexdigest(),
        "size": len(LINEAR),
    }
    assert published.uri == f"s3://my-models/{key}" and published.sha256 == digest.hexdigest()
    ours.publish_model(LINEAR, name="iris", version=3)
    stored = recorder.sent[-2][1]
    assert stored["Key"] == f"prod/iris/{digest.hexdigest()}/model"
    assert (stored["Body"], stored["ChecksumSHA256"]) == (LINEAR, base64.b64encode(digest.digest()).decode())


def test_without_a_bucket_a_small_model_travels_in_the_message(recorder: Recorder) -> None:
    published = publisher(recorder).publish_model(LINEAR, name="iris")
    model = recorder.message()["model"]
    packed = base64.b64decode(model["inline"])
    assert model["encoding"] in ("zstd", "gzip") and len(packed) < len(LINEAR)
    assert (model["size"], model["sha256"]) == (len(packed), hashlib.sha256(packed).hexdigest())
    assert published.uri is None
    assert [operation for operation, _ in recorder.sent] == ["put_record"]


def test_what_compresses_too_well_is_left_as_it_is() -> None:
    assert inline_fields(bytes(1 << 20))["encoding"] == "none"
    assert inline_fields(bytes(32 << 10))["encoding"] != "none", "a server takes a small one for no bomb"
    assert inline_fields(b"abc") == {
        "inline": "YWJj",
        "encoding": "none",
        "sha256": hashlib.sha256(b"abc").hexdigest(),
        "size": 3,
    }


def test_a_model_that_is_too_large_for_a_message_says_what_to_do(recorder: Recorder) -> None:
    noise = b"tree\nversion=v4\n" + np.random.default_rng(7).bytes(1_200_000)
    with pytest.raises(TooLarge, match=r"to have it uploaded say Publisher\(bucket='…'\) or set HOTSERVE_PUBLISH_TO"):
        publisher(recorder).publish_model(noise, name="m")
    with pytest.raises(TooLarge, match="to have it uploaded leave inline out"):
        publisher(recorder, bucket="my-models").publish_model(noise, name="m", inline=True)
    with pytest.raises(ConfigError, match="no bucket: say"):
        publisher(recorder).publish_model(noise, name="m", inline=False)
    assert recorder.sent == []


def test_with_golden_cases_that_do_not_fit_nothing_is_uploaded(recorder: Recorder) -> None:
    rows = np.random.default_rng(7).normal(size=(80_000, 2))
    golden = {"cases": [{"inputs": {"input": rows}, "outputs": {"prediction": rows[:, 0]}}]}
    with pytest.raises(TooLarge, match="too many golden cases"):
        publisher(recorder, bucket="my-models").publish_model(LINEAR, name="m", golden=golden)
    assert recorder.sent == []


GOLDEN = {"cases": [{"inputs": {"input": [[1.0, float("nan")]]}, "outputs": {"prediction": np.array([0.5])}}]}


def test_golden_cases_limits_and_a_signature_come_as_a_server_reads_them(recorder: Recorder) -> None:
    spec = {"name": "input", "datatype": "FP32", "shape": [-1, 2]}
    signature = {"inputs": [spec], "outputs": [{"name": "prediction", "datatype": "FP32", "shape": [-1]}]}
    given: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"row_time": "5ms", "memory_bytes": 1000}, {"row_time": "5ms", "memory_bytes": 1000}),
        ({"row_time": 0.0005}, {"row_time": "500us"}),
        ({"row_time": timedelta(milliseconds=2)}, {"row_time": "2000us"}),
    ]
    for limits, expected in given:
        publisher(recorder).publish_model(LINEAR, name="m", golden=GOLDEN, signature=signature, limits=limits)
        model = recorder.message()["model"]
        assert model["golden"] == {
            "cases": [{"inputs": {"input": [[1.0, "NaN"]]}, "outputs": {"prediction": [0.5]}}],
        }
        assert (model["signature"], model["limits"]) == (signature, expected)


def test_golden_cases_may_be_a_file(recorder: Recorder) -> None:
    file = ROOT / "models/samples/iris/golden.json"
    publisher(recorder).publish_model(LINEAR, name="m", golden=file)
    assert recorder.message()["model"]["golden"] == json.loads(file.read_text())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name": "a/b"}, "is no model name"),
        ({"golden": {"case": []}}, "golden is"),
        ({"golden": {"cases": [{"inputs": [1]}]}}, "golden is"),
        ({"golden": "/nowhere/golden.json"}, "cannot be read"),
        ({"limits": {"row_tiem": "5ms"}}, "limits has row_tiem"),
        ({"limits": {"row_time": "soon"}}, "is no duration"),
        ({"limits": {"memory_bytes": -1}}, "a number of bytes"),
        ({"signature": {"inputs": [{"name": "input"}], "outputs": []}}, "a signature is"),
        ({"label": "x" * 129}, "a label has at most 128 bytes"),
        ({"format": "on nx"}, "is no model format"),
        ({"sample": [[1.0]]}, "give golden="),
    ],
)
def test_a_model_with_a_wrong_argument_is_not_even_uploaded(
    recorder: Recorder, arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        publisher(recorder, bucket="my-models").publish_model(LINEAR, **{"name": "m", **arguments})
    assert recorder.sent == []


@pytest.mark.parametrize(
    ("arguments", "control"),
    [
        (("pin", {"model": "fraud", "version": 11}), {"action": "pin", "model": "fraud", "version": 11}),
        (("pin", {"key": "pricing"}), {"action": "pin", "key": "pricing"}),
        (("unpin", {"model": "fraud"}), {"action": "unpin", "model": "fraud"}),
        (
            ("rollback", {"model": "fraud", "version": 11, "from_version": 12}),
            {"action": "rollback", "model": "fraud", "version": 11, "from": 12},
        ),
        (("revoke", {"key": "pricing", "version": 3}), {"action": "revoke", "key": "pricing", "version": 3}),
        (
            ("revoke", {"model": "fraud", "sha256": "a" * 64}),
            {"action": "revoke", "model": "fraud", "sha256": "a" * 64},
        ),
        (("promote", {"model": "m"}), None),
        (("pin", {}), None),
        (("pin", {"model": "m", "key": "k"}), None),
        (("revoke", {"model": "m"}), None),
        (("revoke", {"model": "m", "version": 1, "sha256": "a" * 64}), None),
        (("revoke", {"model": "m", "sha256": "A" * 64}), None),
        (("pin", {"model": "m", "sha256": "a" * 64}), None),
        (("unpin", {"model": "m", "version": 1}), None),
        (("rollback", {"model": "m", "version": 2, "from_version": 2}), None),
        (("rollback", {"model": "m", "from_version": 2}), None),
        (("pin", {"model": "m", "version": 2, "from_version": 3}), None),
    ],
)
def test_commands_are_those_that_a_server_knows(
    recorder: Recorder, arguments: tuple[str, dict[str, Any]], control: Optional[dict[str, Any]]
) -> None:
    ours, (action, slot) = publisher(recorder), arguments
    if control is None:
        with pytest.raises(ConfigError):
            ours.control(action, **slot)
        assert recorder.sent == []
        return
    published = ours.control(action, **slot)
    message = recorder.message()
    assert message["control"] == control and "state" not in message and "model" not in message
    assert recorder.record()["PartitionKey"] == f"{published.kind}:{published.name}"
    with pytest.raises(ConfigError, match="a command is not served"):
        ours.wait(published, server="http://localhost:1")
