"""What the tests share: a recorder in place of AWS, and a `hotserve dev` of their own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import boto3
import pytest
from botocore.stub import Stubber

from hotserve import Publisher

ROOT = Path(__file__).resolve().parents[3]
OURS = ("AWS_", "HOTSERVE_", "KINESIS_STREAM", "MLFLOW_", "PORT", "XDG_RUNTIME_DIR")
SEQUENCE = "49590338271490256608559692538361571095921575989136588898"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody's settings but those of the test."""
    for name in os.environ:
        if name.startswith(OURS):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))


class Recorder:
    """In place of a boto3 session: its clients send nothing, and what they would send is kept."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.options: dict[str, dict[str, Any]] = {}
        self.errors: dict[str, str] = {}

    def client(self, service: str, **options: Any) -> Any:
        self.options[service] = options
        given = {"region_name": "eu-central-1", "aws_access_key_id": "x", "aws_secret_access_key": "y"}
        client = boto3.session.Session().client(service, **given)
        stub = Stubber(client)
        operation = "put_record" if service == "kinesis" else "put_object"
        answer = {"ShardId": "shardId-000000000000", "SequenceNumber": SEQUENCE} if service == "kinesis" else {}
        for _ in range(10):
            if service in self.errors:
                stub.add_client_error(operation, self.errors[service], "no")
            else:
                stub.add_response(operation, answer)
        stub.activate()

        def keep(params: dict[str, Any], **_: Any) -> None:
            kept = dict(params)
            if hasattr(kept.get("Body"), "read"):
                kept["Body"] = kept["Body"].read()
            self.sent.append((operation, kept))

        client.meta.events.register("provide-client-params", keep)
        return client

    def record(self) -> dict[str, Any]:
        """What was put last."""
        return next(params for operation, params in reversed(self.sent) if operation == "put_record")

    def message(self) -> Any:
        return json.loads(self.record()["Data"])


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@dataclass(frozen=True)
class Dev:
    """A running `hotserve dev`."""

    url: str
    environment: dict[str, str]

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def publisher(self) -> Publisher:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_RUNTIME_DIR", self.environment["XDG_RUNTIME_DIR"])
            return Publisher.dev(self.port)

    def ask(self, path: str, body: Any = None, headers: Optional[dict[str, str]] = None) -> tuple[int, Any, Any]:
        """The status, the headers and the JSON of an answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=headers or {})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.headers, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, error.headers, json.load(error)

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [os.environ["HOTSERVE"], *arguments], env=self.environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextlib.contextmanager
def hotserve_dev(runtime: Path, *arguments: str) -> Iterator[Dev]:
    """Starts one on free ports, and ends it. Its note for publishers lies in a folder of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    environment = {**kept, "AWS_EC2_METADATA_DISABLED": "true", "XDG_RUNTIME_DIR": str(runtime)}
    command = [os.environ["HOTSERVE"], "dev", "--port", "0", "--kinesis-port", "0", "--s3-port", "0", *arguments]
    log = (runtime / "log").open("w")
    running = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert running.stdout is not None
        for line in running.stdout:
            found = re.search(r"hotserve is ready: http://localhost:(\d+)/", line)
            if found:
                break
        else:
            raise AssertionError(f"hotserve dev ends at once: {(runtime / 'log').read_text()}")
        yield Dev(f"http://127.0.0.1:{found[1]}", environment)
    finally:
        running.terminate()
        try:
            running.wait(timeout=40)
        except subprocess.TimeoutExpired:
            running.kill()
        log.close()


@pytest.fixture(scope="session")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    if not os.environ.get("HOTSERVE"):
        pytest.skip("HOTSERVE names no program to publish to: scripts/python-publisher does")
    with hotserve_dev(tmp_path_factory.mktemp("runtime")) as running:
        yield running


def until(what: str, check: Any, seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = check()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds} s for {what}")
