"""A Prometheus that watches servers, two servers on one stream, and clients that ask them: for scripts/prometheus and
scripts/game-day."""

import contextlib
import json
import os
import re
import signal
import struct
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

from support import HOTSERVE, IRIS, ROOT, clean_environment, free_port, request, until

DASHBOARDS = os.path.join(ROOT, "dashboards")
RETRAINED = os.path.join(ROOT, "models/samples/iris/retrained.json")


class Process:
    """A program whose output goes to a file, and that ends with the script."""

    def __init__(self, name, folder, arguments, env=None):
        self.name, self.log = name, os.path.join(folder, f"{name}.log")
        self.arguments, self.env = arguments, env
        self.running = None

    def start(self):
        with open(self.log, "ab") as log:
            self.running = subprocess.Popen(self.arguments, env=self.env, stdout=log, stderr=subprocess.STDOUT)

    def kill(self):
        """As the kernel does it when memory is short."""
        self.running.send_signal(signal.SIGKILL)
        self.running.wait()

    def stop(self):
        if self.running and self.running.poll() is None:
            self.running.terminate()
            try:
                self.running.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.running.kill()

    def tail(self, lines=15):
        with open(self.log, errors="replace") as log:
            return "".join(log.readlines()[-lines:])


class Prometheus(Process):
    """A real Prometheus. `rules` are texts; what it is asked for is what its HTTP interface answers."""

    def __init__(self, folder, targets, rules, interval):
        self.port = free_port()
        files = []
        for at, text in enumerate(rules):
            files.append(os.path.join(folder, f"rules-{at}.yaml"))
            with open(files[-1], "w") as file:
                file.write(text)
        config = {
            "global": {"scrape_interval": interval, "evaluation_interval": interval, "scrape_timeout": interval},
            "rule_files": files,
            "scrape_configs": [{"job_name": "hotserve", "static_configs": [{"targets": targets}]}],
        }
        path = os.path.join(folder, "prometheus.yaml")
        with open(path, "w") as file:
            json.dump(config, file)  # JSON is YAML.
        super().__init__("prometheus", folder, [
            os.environ["PROMETHEUS"], f"--config.file={path}", f"--storage.tsdb.path={folder}/tsdb",
            f"--web.listen-address=127.0.0.1:{self.port}", "--log.level=warn",
        ])

    def start(self):
        super().start()
        until("Prometheus to be ready", self.ready)

    def ready(self):
        return urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=5).status == 200

    def ask(self, path, **query):
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query, doseq=True)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise ValueError(json.load(error)["error"]) from None

    def query(self, expr, at=None):
        answer = self.ask("query", query=expr, **({"time": at} if at else {}))
        return [] if answer["resultType"] == "scalar" else answer["result"]

    def query_range(self, expr, start, end, step):
        return self.ask("query_range", query=expr, start=start, end=end, step=step)["result"]

    def alerts(self):
        """The alerts that fire now, by name, each with what Alertmanager would be sent."""
        return [alert for alert in self.ask("alerts")["alerts"] if alert["state"] == "firing"]


class Servers:
    """`hotserve dev` and a second server, `hotserve serve`, on the same stream and bucket."""

    def __init__(self, folder, faults=None):
        self.folder = folder
        self.faults = os.path.join(folder, "faults.toml")
        self.break_with(faults or "")
        self.ports = [free_port(), free_port()]
        self.targets = [f"127.0.0.1:{port}" for port in self.ports]
        self.urls = [f"http://{target}" for target in self.targets]
        self.token = "a-token-of-the-second-server"
        self.first = Process("first", folder, [
            HOTSERVE, "dev", "--port", str(self.ports[0]), "--kinesis-port", "0", "--s3-port", "0", "--shards", "2",
            "--manifest", "--data-dir", os.path.join(folder, "dev"), "--faults", self.faults,
        ], clean_environment())
        self.second = None

    def break_with(self, rules):
        """Rules of what goes wrong, as in tests/faults/gameday.toml; hotserve dev reads them within a second."""
        # A new file in one step: half of one would be refused.
        with open(f"{self.faults}.new", "w") as file:
            file.write(rules)
        os.replace(f"{self.faults}.new", self.faults)

    def start(self):
        self.first.start()
        self.wait(0)
        with open(self.first.log) as log:
            printed = dict(re.findall(r"([A-Z_0-9]+)=(\S+)", log.read()))
        env = clean_environment(**printed, HOTSERVE_ADMIN_TOKEN=self.token)
        self.second = Process("second", self.folder, [
            HOTSERVE, "serve", "--port", str(self.ports[1]), "--host", "127.0.0.1", "--default-model", "iris",
            "--poll-interval", "400ms", "--manifest-interval", "2s", "--memory-budget", "1GiB",
        ], env)
        self.second.start()
        self.wait(1)

    def wait(self, which):
        until(f"server {which} to be ready", lambda: request(f"{self.urls[which]}/readyz")[0] == 200, 90)

    def stop(self):
        for server in (self.second, self.first):
            if server:
                server.stop()

    def publish(self, *arguments, attempts=1):
        """Publishes; a publisher may meet faults of the bucket too, and then tries again."""
        for _ in range(attempts - 1):
            with contextlib.suppress(SystemExit):
                return self.run("publish", *arguments, "--dev", str(self.ports[0]))
        return self.run("publish", *arguments, "--dev", str(self.ports[0]))

    def command(self, *arguments, server):
        """A command to one server alone."""
        if server == 0:
            return self.run(*arguments, "--dev", str(self.ports[0]))
        return self.run(*arguments, "--server", self.urls[server], env={"HOTSERVE_ADMIN_TOKEN": self.token})

    def run(self, *arguments, env=None):
        done = subprocess.run(
            [HOTSERVE, *arguments], env=clean_environment(**(env or {})), capture_output=True, text=True, timeout=60
        )
        if done.returncode != 0:
            raise SystemExit(f"FAILED: hotserve {' '.join(arguments)}\n{done.stdout}{done.stderr}")
        return done.stdout.strip()


class Load:
    """Clients that ask every server at a gentle pace, and count what they get."""

    def __init__(self, servers, pause=0.02):
        self.servers, self.pause = servers, pause
        self.answers = {}
        self.stopping = threading.Event()
        self.threads = []

    def start(self):
        for url in self.servers.urls:
            self.threads.append(threading.Thread(target=self.ask, args=(url,), daemon=True))
            self.threads.append(threading.Thread(target=self.call, args=(url,), daemon=True))
        for thread in self.threads:
            thread.start()

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join(timeout=30)

    def ask(self, url):
        v2 = {"inputs": [{"name": input_of(url), "datatype": "FP32", "shape": [1, 4], "data": IRIS}]}
        asked = [
            ("/predict/iris", {"instances": [IRIS]}), ("/state", None), ("/predict/iris", {"instances": [IRIS] * 8}),
            ("/v2/models/iris/infer", v2), ("/state", None), ("/readyz", None),
        ]
        # What clients do wrong: rarely, for it is not what the errors are about.
        wrong = [("/predict/iris", {"instances": [["long"]]}), ("/predict/nobody", {"instances": [[1]]}), ("/nowhere", None)]
        at = 0
        while not self.stopping.wait(self.pause):
            at += 1
            path, body = wrong[at // 50 % len(wrong)] if at % 50 == 0 else asked[at % len(asked)]
            try:
                status = request(url + path, body)[0]
            except (OSError, ValueError):
                status = "nothing"
            self.answers[status] = self.answers.get(status, 0) + 1

    def call(self, url):
        """gRPC by curl: what it answers does not matter, only that it was asked."""
        message = infer_request("iris", input_of(url), IRIS)
        asked = [(message, "ModelInfer"), (b"", "ServerLive")]
        at = 0
        while not self.stopping.wait(0.5):
            at += 1
            body, method = asked[at % len(asked)]
            subprocess.run([
                "curl", "--silent", "--max-time", "5", "--output", os.devnull, "--http2-prior-knowledge",
                "--header", "content-type: application/grpc", "--header", "te: trailers", "--data-binary", "@-",
                f"{url}/inference.GRPCInferenceService/{method}",
            ], input=b"\0" + struct.pack(">I", len(body)) + body, check=False)


def input_of(url):
    return request(f"{url}/v2/models/iris")[2]["inputs"][0]["name"]


def infer_request(model, name, values):
    """A ModelInferRequest of one row of FP32, by hand: no library is needed for six fields."""
    field = lambda number, data: bytes([number << 3 | 2, len(data)]) + data
    tensor = field(1, name.encode()) + field(2, b"FP32") + field(3, bytes([1, len(values)]))
    contents = field(6, struct.pack(f"<{len(values)}f", *values))
    return field(1, model.encode()) + field(5, tensor + field(5, contents))


@contextlib.contextmanager
def together(*parts):
    """Starts the parts in turn, and stops all of them whatever happens."""
    started = []
    try:
        for part in parts:
            started.append(part)
            part.start()
        yield
    except BaseException:
        for part in started:
            if isinstance(part, Process) and part.running and part.running.poll() is not None:
                print(f"{part.name} has ended:\n{part.tail()}")
        raise
    finally:
        for part in reversed(started):
            part.stop()


def rules():
    """The texts of rules.yaml and alerts.yaml."""
    texts = []
    for name in ("rules.yaml", "alerts.yaml"):
        with open(os.path.join(DASHBOARDS, name)) as file:
            texts.append(file.read())
    return texts
