"""Fills a cache folder with models, then starts the server on it again and again with no endpoint within reach.

Two times are printed, each from the start of the process: until /predict answers from the last known good, and until
/readyz says that requests should be sent here. The system has the files in its memory: this measures the program.
"""

import concurrent.futures
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time

from support import HOTSERVE, ROOT, clean_environment, free_port, process, ready, request, until

SAMPLE = os.path.join(ROOT, "models/samples/fraud/model.ubj")
BODY = json.dumps({"instances": [[0] * 7]})
# Elsewhere than the samples of `hotserve dev`, which have no place in the folder.
MODELS = "s3://hotserve-dev/cold-start"
PATIENCE = 120


def variant(number):
    """The sample with other bytes and the same predictions: what a training leaves in base_weights is not used."""
    data = bytearray(open(SAMPLE, "rb").read())
    at = data.index(b"base_weights[$d#L") + len(b"base_weights[$d#L") + 8
    data[at : at + 4] = struct.pack(">f", number)
    return bytes(data)


def serve(folder, port, log, **variables):
    arguments = [HOTSERVE, "serve", "--stream", "hotserve-dev", "--host", "127.0.0.1", "--port", str(port)]
    arguments += ["--cache-dir", folder, "--allow", MODELS, "--poll-interval", "200ms"]
    env = clean_environment(AWS_REGION="us-east-1", AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b") | variables
    return subprocess.Popen(arguments, env=env, stderr=log)


def fill(folder, models):
    """Publishes the models to a `hotserve dev`, and has a server keep them."""
    dev = [HOTSERVE, "dev", "--port", "0", "--kinesis-port", "0", "--s3-port", "0"]
    with process(dev, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        printed = ""
        while "--data-dir" not in printed:
            line = running.stdout.readline()
            assert line, printed
            printed += line
        variables = dict(re.findall(r"(\w+)=(\S+)", printed))
        port, dev_port = free_port(), re.search(r"http://localhost:(\d+)", printed).group(1)
        with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory() as files:
            server = serve(folder, port, log, **variables)
            ready(f"http://127.0.0.1:{port}")

            def publish(number):
                file = os.path.join(files, f"{number}.ubj")
                with open(file, "wb") as out:
                    out.write(variant(number))
                arguments = ["publish", "model", file, "--name", f"m{number}", "--version", "1", "--to", MODELS]
                arguments += ["--dev", dev_port]
                subprocess.run([HOTSERVE, *arguments], env=clean_environment(), check=True, stdout=subprocess.DEVNULL)

            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                list(pool.map(publish, range(models)))
            kept = lambda: len(request(f"http://127.0.0.1:{port}/models")[2]["models"]) == models
            until(f"{models} models to be served", kept)
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=60) == 0
    kept = os.listdir(os.path.join(folder, "artifacts"))
    assert len(kept) == models, f"{len(kept)} artifacts for {models} models"


def answers(connection, method, path, body=None):
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        answer.read()
        return answer.status == 200
    except (OSError, http.client.HTTPException):
        connection.close()
        return False


def start(folder, models, endpoint):
    """Seconds from the start of the process until it predicts, and until it is ready."""
    port = free_port()
    with tempfile.TemporaryFile() as log:
        begun = time.perf_counter()
        server = serve(folder, port, log, AWS_ENDPOINT_URL=endpoint)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        predicts, is_ready = None, None
        try:
            while is_ready is None:
                if predicts is None and answers(connection, "POST", f"/predict/m{models - 1}", BODY):
                    predicts = time.perf_counter() - begun
                if answers(connection, "GET", "/readyz"):
                    is_ready = time.perf_counter() - begun
                if server.poll() is not None or time.perf_counter() - begun > PATIENCE:
                    log.seek(0)
                    raise SystemExit(f"FAILED: not ready after {PATIENCE} s: {log.read().decode()}")
                time.sleep(0.001)
            assert answers(connection, "POST", f"/predict/m{models - 1}", BODY), "ready, and it does not predict"
            # It may have been ready between the two questions.
            return predicts or is_ready, is_ready
        finally:
            server.kill()
            server.wait()


@contextlib.contextmanager
def black_hole():
    """An address that answers no packet: the queue of a socket that nobody accepts from is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        probe = stack.enter_context(socket.socket())
        probe.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            probe.connect(listener.getsockname())
            raise SystemExit("FAILED: this system's queue is not full: no black hole to measure with")
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def spread(seconds):
    return f"{statistics.median(seconds):7.3f} s ({min(seconds):.3f} to {max(seconds):.3f})"


runs = int(sys.argv[1]) if len(sys.argv) > 1 else 7
sizes = [int(text) for text in sys.argv[2:]] or [1, 10, 100]
print(f"{HOTSERVE}, models of {os.path.getsize(SAMPLE):,} bytes, {runs} runs each: median (least to most)")
print(f"{'models':>6}  {'endpoints':10}  {'predicts after':26}  ready after")
for models in sizes:
    with tempfile.TemporaryDirectory() as folder, black_hole() as hole:
        fill(folder, models)
        # Nobody listens on port 1.
        for name, endpoint in [("refuse", "http://127.0.0.1:1"), ("are silent", hole)]:
            times = [start(folder, models, endpoint) for _ in range(runs)]
            predicts, is_ready = (spread(column) for column in zip(*times))
            print(f"{models:6}  {name:10}  {predicts:26}  {is_ready}", flush=True)
