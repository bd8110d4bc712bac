"""Watches a server: see scripts/soak."""

import argparse
import collections
import contextlib
import json
import os
import re
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

from endpoints import endpoints, inline_model, iris, model_at, now, server, state_message
from support import ROOT

SAMPLE_SECONDS = 10
WARM_SECONDS = 300
# Objects in the bucket: an older one is written over, long after it was fetched.
OBJECTS = 64
SLOPE_LIMIT = 0.01
# Of the heap, in bytes: of some 10 MB one step of an arena, or a history that fills, is more than 1 %. A leak is more than
# this before a night is over.
HEAP_LIMIT = 1 << 20


class Publisher(threading.Thread):
    """Publishes one update after another; each in turn of another kind."""

    def __init__(self, there, stop, warm):
        super().__init__(daemon=True)
        self.there, self.stop, self.warm = there, stop, warm
        self.published = 0
        self.error = None
        with open(os.path.join(ROOT, "models/samples/fraud/model.ubj"), "rb") as file:
            self.fraud = file.read()
        self.state = self.model = 0

    def run(self):
        try:
            # States alone, a call of 500 after another: the server folds each page, and serves its newest.
            for first in range(1, 4501, 500):
                self.there.put(*(state_message(version) for version in range(first, first + 500)))
            self.state = self.model = 4500
            begun = due = time.monotonic()
            while not self.stop.is_set():
                self.one()
                self.published += 1
                # Six a second at first: a server remembers what it measured of a thousand models.
                due += 1 / 6 if due - begun < self.warm else 1
                self.stop.wait(max(0, due - time.monotonic()))
        except Exception as error:
            self.error = repr(error)

    def one(self):
        turn = self.published % 5
        data = iris(self.model + 1)
        if turn in (0, 2, 4):
            self.model += 1
        if turn in (1, 3, 4):
            self.state += 1
        if turn == 0:
            self.model_message(inline_model(data, self.model))
        elif turn == 2 and self.published % 2 == 0:
            key = f"watched/{self.model % OBJECTS}"
            self.model_message(model_at(self.there.upload(key, data), data, self.model))
        elif turn == 2:
            # 200 kB, another slot. What a training leaves in base_weights is not used: other bytes, the same answers.
            data = bytearray(self.fraud)
            at = data.index(b"base_weights[$d#L") + len(b"base_weights[$d#L") + 8
            data[at : at + 4] = struct.pack(">f", self.model)
            uri = self.there.upload(f"watched/{self.model % OBJECTS}", bytes(data))
            self.model_message(model_at(uri, data, self.model, "fraud", "xgboost"))
        elif turn == 4:
            self.there.put(state_message(self.state) | {"model": inline_model(data, self.model)})
        else:
            self.there.put(state_message(self.state))

    def model_message(self, model):
        self.there.put({"message_id": f"model-{self.model}", "published_at": now(), "model": model})


class Log(threading.Thread):
    """Reads what the server writes; keeps the count of lines, and the first that ask for attention."""

    def __init__(self, pipe):
        super().__init__(daemon=True)
        self.pipe, self.levels, self.kept = pipe, collections.Counter(), []
        self.last = collections.deque(maxlen=50)

    def run(self):
        for line in self.pipe:
            text = line.decode(errors="replace").strip()
            level = re.search(r'"level":"(\w+)"', text)
            level = level.group(1) if level else "other"
            self.levels[level] += 1
            self.last.append(text)
            if level not in ("INFO", "DEBUG", "TRACE") and len(self.kept) < 100:
                self.kept.append(text)


class Load(threading.Thread):
    """The process that asks; sums up what it says."""

    def __init__(self, port, connections, rate):
        super().__init__(daemon=True)
        arguments = [sys.executable, os.path.join(ROOT, "scripts/soak_load.py"), str(port), str(connections), str(rate)]
        self.process = subprocess.Popen(arguments, stdout=subprocess.PIPE, start_new_session=True)
        self.counts = {"requests": 0, "failed": 0, "back": 0, "torn": 0, "model": 0, "state": 0}
        self.reasons, self.slowest = [], 0.0

    def run(self):
        for line in self.process.stdout:
            counts = json.loads(line)
            self.reasons += counts.pop("reasons")[: 100 - len(self.reasons)]
            self.slowest = max(self.slowest, counts.pop("slowest"))
            self.counts = counts

    def end(self):
        self.process.terminate()
        self.process.wait()


def family(pid):
    """A process, its children and theirs. A probe is a child of whichever thread started it."""
    found = [pid]
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{task}/children") as file:
                for child in file.read().split():
                    found += family(int(child))
    return found


def memory(pid):
    """RSS, PSS and anonymous memory in bytes."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        fields = dict(re.findall(r"^(\w+): +(\d+) kB", file.read(), re.MULTILINE))
    return [int(fields[name]) * 1024 for name in ("Rss", "Pss", "Anonymous")]


def size(folder):
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.path.getsize(os.path.join(path, name))
    return total


def metrics(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    named = {
        "swaps": "hotserve_swaps_total",
        "live_generations": "hotserve_live_generations",
        "model_memory": "hotserve_memory_used_bytes",
    }
    found = {name: float(re.search(rf"^{metric} (\S+)", text, re.MULTILINE).group(1)) for name, metric in named.items()}
    found["rejections"] = sum(map(float, re.findall(r"^hotserve_rejections_total{[^}]*} (\S+)", text, re.MULTILINE)))
    return found


def sample(pid, port, load, publisher, folder, begun):
    rss, pss, anonymous = memory(pid)
    family_pss = pss
    for child in family(pid)[1:]:
        with contextlib.suppress(OSError, KeyError):
            family_pss += memory(child)[1]
    slowest, load.slowest = load.slowest, 0.0
    return {
        "seconds": round(time.monotonic() - begun, 1),
        "rss": rss,
        "pss": pss,
        "anonymous": anonymous,
        "family_pss": family_pss,
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": len(os.listdir(f"/proc/{pid}/task")),
        "disk": size(folder),
        "published": publisher.published,
        "slowest": round(slowest, 4),
        **load.counts,
        **metrics(port),
    }


def minute(last, before):
    slowest = max(one["slowest"] for one in before)
    print(
        f"{last['seconds'] / 60:7.1f} min  rss {last['rss'] / 1e6:6.2f} MB"
        f"  of it anonymous {last['anonymous'] / 1e6:6.2f} MB"
        f"  pss {last['family_pss'] / 1e6:6.2f} MB"
        f"  descriptors {last['descriptors']:3}  threads {last['threads']:3}  snapshots {last['live_generations']:.0f}"
        f"  requests {last['requests']:9,}  failed {last['failed']}  swaps {last['swaps']:.0f}"
        f"  slowest {1000 * slowest:6.1f} ms  disk {last['disk'] / 1e6:5.2f} MB",
        flush=True,
    )


def rise(samples, name):
    """By how much a straight line through the samples rises from the first to the last, as a share of the mean."""
    if len(samples) < 3:
        return None
    times, values = [one["seconds"] for one in samples], [one[name] for one in samples]
    middle, mean = statistics.fmean(times), statistics.fmean(values)
    slope = sum((t - middle) * (v - mean) for t, v in zip(times, values)) / sum((t - middle) ** 2 for t in times)
    return slope * (times[-1] - times[0]) / mean


def verdict(samples, load, log, publisher, warm):
    """Each condition with what was found, and whether it holds."""
    counted = [one for one in samples if one["seconds"] >= warm]
    if len(counted) < 12:
        return [("time", f"it takes {warm} s and two minutes more to say something", False)]
    first, last = (statistics.median(one["descriptors"] for one in part) for part in (counted[:6], counted[-6:]))
    grown = rise(counted, "rss")
    heap = rise(counted, "anonymous") * statistics.mean(one["anonymous"] for one in counted)
    failures = {name: load.counts[name] for name in ("failed", "torn", "back")}
    swaps, published = counted[-1]["swaps"] - counted[0]["swaps"], counted[-1]["published"] - counted[0]["published"]
    loud = sum(count for level, count in log.levels.items() if level not in ("INFO", "DEBUG", "TRACE"))
    minutes = (counted[-1]["seconds"] - counted[0]["seconds"]) / 60
    return [
        (
            "memory",
            f"RSS rises by {100 * grown:+.2f} % (limit 1 %), its anonymous part by {heap / 2**20:+.2f} MiB (limit 1 MiB),"
            f" in {minutes:.1f} min",
            grown < SLOPE_LIMIT and heap < HEAP_LIMIT,
        ),
        ("descriptors", f"{first:.0f}, then {last:.0f}", abs(last - first) <= 2),
        ("requests", f"{load.counts['requests']:,}, of these {failures}", not any(failures.values())),
        ("swaps", f"{swaps:.0f} of {published} published", swaps >= 0.9 * published and not publisher.error),
        ("log", f"{loud} lines at WARN or ERROR, {sum(log.levels.values())} in all", loud == 0),
    ]


def main():
    parser = argparse.ArgumentParser(description="Watches a server's memory, descriptors and requests")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--rate", type=float, default=400, help="requests a second in all")
    parser.add_argument("--warm", type=float, default=WARM_SECONDS, help="seconds that do not count for memory")
    parser.add_argument("--json", default="soak.json", help="the file with every sample")
    options = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())

    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="hotserve-soak-"))
        there = stack.enter_context(endpoints())
        # Ready is who has something to serve.
        there.put({"message_id": "first", "model": inline_model(iris(1), 1)}, state_message(1, "first"))
        log_pipe, log_end = os.pipe()
        watched, port = stack.enter_context(server(there, folder, "--lookback", "1h", stderr=log_end))
        os.close(log_end)
        log = Log(os.fdopen(log_pipe, "rb"))
        log.start()
        publisher = Publisher(there, stop, options.warm)
        publisher.start()
        load = Load(port, options.connections, options.rate)
        stack.callback(load.end)
        load.start()
        print(f"server {watched.pid} on port {port}, {options.minutes:g} min; Ctrl-C ends it with the verdict so far")

        samples, begun, shown = [], time.monotonic(), 0
        end = begun + 60 * options.minutes
        while not stop.wait(min(SAMPLE_SECONDS, max(0.0, end - time.monotonic()))):
            if watched.poll() is not None:
                print(f"FAILED: the server ended with {watched.returncode}", *log.last, sep="\n")
                break
            if load.process.poll() is not None:
                print(f"FAILED: the load ended with {load.process.returncode}")
                break
            samples.append(sample(watched.pid, port, load, publisher, folder, begun))
            if len(samples) % (60 // SAMPLE_SECONDS) == 0:
                minute(samples[-1], samples[shown:])
                shown = len(samples)
            if time.monotonic() >= end:
                break
        stop.set()
        alive = watched.poll() is None and load.process.poll() is None
        found = verdict(samples, load, log, publisher, options.warm)
        load.end()

    report = {
        "verdict": [{"what": what, "found": text, "holds": holds} for what, text, holds in found],
        "failures": load.reasons,
        "publisher": publisher.error,
        "log": {"levels": log.levels, "kept": log.kept},
        "rise": {
            name: rise([one for one in samples if one["seconds"] >= options.warm], name)
            for name in ("rss", "pss", "anonymous", "family_pss", "threads", "disk")
        },
        "samples": samples,
    }
    with open(options.json, "w") as file:
        json.dump(report, file, indent=1)
    print(f"\nevery sample: {options.json}")
    for what, text, holds in found:
        print(f"{what:12} {'ok' if holds else 'FAILED':7} {text}")
    for reason in [*load.reasons[:10], *log.kept[:10], *([publisher.error] if publisher.error else [])]:
        print(f"  {reason}")
    return 0 if alive and all(holds for _, _, holds in found) else 1


sys.exit(main())
