"""A `hotserve dev` as the Kinesis and the S3 of a server that is watched from outside, and that server itself.

The stand-in keeps 24 hours of records in memory, as the service does on its disks. It is a process of its own, so that
what grows there rightly is not taken for what grows in the server.
"""

import base64
import contextlib
import datetime
import hashlib
import hmac
import http.client
import json
import os
import re
import subprocess
import tempfile
import time

from support import HOTSERVE, ROOT, clean_environment, free_port, process, ready

STREAM = "watched"
BUCKET = "hotserve-dev"


class Endpoints:
    """The two endpoints, and how to put records and objects there."""

    def __init__(self, printed):
        self.variables = dict(re.findall(r"(AWS_\w+)=(\S+)", printed))
        self.kinesis_address = self.variables["AWS_ENDPOINT_URL_KINESIS"].removeprefix("http://")
        self.s3_address = self.variables["AWS_ENDPOINT_URL_S3"].removeprefix("http://")
        self.connection = None

    def kinesis(self, action, **fields):
        """Calls the stream; its endpoint takes any credentials. One connection is kept."""
        head = {"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": f"Kinesis_20131202.{action}"}
        head["Authorization"] = "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/kinesis/aws4_request, "
        head["Authorization"] += "SignedHeaders=host, Signature=b"
        head["X-Amz-Date"] = "20260101T000000Z"
        for attempt in (1, 2):
            self.connection = self.connection or http.client.HTTPConnection(self.kinesis_address, timeout=10)
            try:
                self.connection.request("POST", "/", json.dumps(fields), head)
                answer = self.connection.getresponse()
                body = answer.read()
                break
            except (OSError, http.client.HTTPException):
                self.connection.close()
                self.connection = None
                if attempt == 2:
                    raise
        assert answer.status == 200, (action, answer.status, body)
        return json.loads(body) if body else None

    def create(self, stream=STREAM):
        """A stream that the `hotserve dev` itself does not follow: it has no work with what is put there."""
        self.kinesis("CreateStream", StreamName=stream, ShardCount=1)
        while self.kinesis("DescribeStreamSummary", StreamName=stream)["StreamDescriptionSummary"][
            "StreamStatus"
        ] != "ACTIVE":
            time.sleep(0.05)

    def put(self, *messages, stream=STREAM):
        """Puts messages in this order, in one call where they are several (500 at most)."""
        records = [
            {"PartitionKey": "all", "Data": base64.b64encode(json.dumps(message).encode()).decode()}
            for message in messages
        ]
        if len(records) == 1:
            self.kinesis("PutRecord", StreamName=stream, **records[0])
        else:
            answer = self.kinesis("PutRecords", StreamName=stream, Records=records)
            assert answer["FailedRecordCount"] == 0, answer

    def upload(self, key, data):
        """Puts an object into the bucket, signed as S3 wants it (SigV4). Answers its URI."""
        now = datetime.datetime.now(datetime.timezone.utc)
        day, moment = now.strftime("%Y%m%d"), now.strftime("%Y%m%dT%H%M%SZ")
        digest = hashlib.sha256(data).hexdigest()
        path, signed = f"/{BUCKET}/{key}", "host;x-amz-content-sha256;x-amz-date"
        head = {"host": self.s3_address, "x-amz-content-sha256": digest, "x-amz-date": moment}
        canonical = "\n".join(
            ["PUT", path, "", *(f"{name}:{value}" for name, value in head.items()), "", signed, digest]
        )
        scope = f"{day}/us-east-1/s3/aws4_request"
        text = "\n".join(["AWS4-HMAC-SHA256", moment, scope, hashlib.sha256(canonical.encode()).hexdigest()])
        secret = f"AWS4{self.variables['AWS_SECRET_ACCESS_KEY']}".encode()
        for part in (day, "us-east-1", "s3", "aws4_request", text):
            secret = hmac.new(secret, part.encode(), hashlib.sha256).digest()
        credential = f"{self.variables['AWS_ACCESS_KEY_ID']}/{scope}"
        head["Authorization"] = f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={signed}, "
        head["Authorization"] += f"Signature={secret.hex()}"
        connection = http.client.HTTPConnection(self.s3_address, timeout=10)
        try:
            connection.request("PUT", path, data, head)
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == 200, (answer.status, body)
        finally:
            connection.close()
        return f"s3://{BUCKET}/{key}"


@contextlib.contextmanager
def endpoints():
    """Starts them. In a session of their own, as the server is: Ctrl-C in the terminal is the script's to handle."""
    with tempfile.TemporaryDirectory(prefix="hotserve-endpoints-") as runtime:
        arguments = [HOTSERVE, "dev", "--port", "0", "--kinesis-port", "0", "--s3-port", "0"]
        env = clean_environment(XDG_RUNTIME_DIR=runtime, TMPDIR=runtime)
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "start_new_session": True}
        with process(arguments, env=env, cwd=ROOT, text=True, **options) as running:
            printed = ""
            while "--data-dir" not in printed:
                line = running.stdout.readline()
                assert line, printed
                printed += line
            there = Endpoints(printed)
            there.create()
            yield there


@contextlib.contextmanager
def server(there, folder, *arguments, stderr=subprocess.DEVNULL, wait=True, **variables):
    """Starts a server that follows the stream of the endpoints. Answers its process and its port."""
    port = free_port()
    command = [HOTSERVE, "serve", "--stream", STREAM, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--cache-dir", os.path.join(folder, "cache"), "--allow", f"s3://{BUCKET}", "--poll-interval", "200ms"]
    env = clean_environment(**there.variables) | variables
    options = {"env": env, "stdout": subprocess.DEVNULL, "stderr": stderr, "start_new_session": True}
    with process([*command, *arguments], **options) as running:
        if wait:
            ready(f"http://127.0.0.1:{port}")
        yield running, port


def iris(version):
    """The sample with other coefficients for each version, as bytes: each is a model of its own."""
    with open(os.path.join(ROOT, "models/samples/iris/model.json")) as file:
        model = json.load(file)
    model["intercepts"][0] += version % 1000 / 1000
    model["coefficients"][0][0] += version * 1e-7
    return json.dumps(model).encode()


def now():
    return datetime.datetime.now(datetime.timezone.utc).isoformat().replace("+00:00", "Z")


def state_message(version, key="default"):
    """A state that says its own version, so that a reader sees whether header and body belong together."""
    return {"message_id": f"{key}-{version}", "key": key, "version": version, "state": version, "published_at": now()}


def inline_model(data, version, name="iris"):
    return {"name": name, "version": version, "format": "linear", "inline": base64.b64encode(data).decode()}


def model_at(uri, data, version, name="iris", format="linear"):
    digest = hashlib.sha256(data).hexdigest()
    return {"name": name, "version": version, "format": format, "uri": uri, "sha256": digest, "size": len(data)}
