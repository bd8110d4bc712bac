"""What the scripts share: processes that end with the script, and an HTTP client that fails loudly."""

import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request

HOTSERVE = os.environ["HOTSERVE"]
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
IRIS = [5.1, 3.5, 1.4, 0.2]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def clean_environment(**variables):
    """Our environment without anybody's AWS or hotserve settings, and with these."""
    ours = ("AWS_", "HOTSERVE_", "KINESIS_STREAM", "PORT")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | {"AWS_EC2_METADATA_DISABLED": "true"} | variables


@contextlib.contextmanager
def process(arguments, **options):
    running = subprocess.Popen(arguments, **options)
    try:
        yield running
    finally:
        running.terminate()
        try:
            running.wait(timeout=40)
        except subprocess.TimeoutExpired:
            running.kill()
            raise


def request(url, body=None):
    """The status, the headers and the JSON of an answer."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=data), timeout=10) as answer:
            return answer.status, answer.headers, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.headers, json.load(error)


def until(what, check, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            value = check()
            if value:
                return value
        time.sleep(0.1)
    raise SystemExit(f"FAILED: waited {seconds} s for {what}")


def ready(url):
    until(f"{url} to be ready", lambda: request(f"{url}/readyz")[0] == 200)


def until_state(url, expected):
    until(f"the state to be {expected}", lambda: request(f"{url}/state")[2] == {"state": expected})
    print(f"  /state is {expected}")


def predict(url, version):
    def answer():
        status, headers, body = request(f"{url}/predict/iris", {"instances": [IRIS]})
        return body if status == 200 and headers["x-model-version"] == str(version) else None

    body = until(f"version {version} of iris", answer)
    assert body["model"] == {"name": "iris", "version": version}, body
    print(f"  /predict/iris answers from version {version}: {body['predictions'][0]}")
    return body["predictions"][0]


def publish(*arguments, env):
    done = subprocess.run([HOTSERVE, "publish", *arguments], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "sequence number" in done.stdout, done.stdout
    print(f"  {done.stdout.strip().splitlines()[-1]}")
