"""Attacks a server while good clients ask it: see scripts/hostile."""

import argparse
import collections
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time

from endpoints import endpoints, inline_model, iris, server, state_message
from support import ROOT, free_port, process, request, until

PROGRAM = os.path.join(ROOT, "scripts/hostile_attacks.py")
ATTACKS = [
    "idle", "slow-head", "slow-body", "headers", "bodies", "stalled-bodies", "garbage", "broken", "pipelined",
    "h2-reset", "h2-continuation", "h2-ping", "h2-stalled", "storm", "slow-readers",
]  # fmt: skip
RATE = 500
TICKS = os.sysconf("SC_CLK_TCK")


def start(name, port, seconds, scale):
    arguments = [sys.executable, PROGRAM, name, str(port), str(seconds), str(scale)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def result(running, seconds):
    said, _ = running.communicate(timeout=seconds + 60)
    assert running.returncode == 0, f"{running.args[2]} ended with {running.returncode}"
    return json.loads(said)


def rss(pid):
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def processor(pid):
    """Seconds of the processor that a process has had."""
    with open(f"/proc/{pid}/stat") as file:
        after = file.read().rpartition(")")[2].split()
    return (int(after[11]) + int(after[12])) / TICKS


class Peak(threading.Thread):
    """The most memory that a process has, looked at every 20 ms."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.most, self.ended = pid, 0, threading.Event()

    def run(self):
        while not self.ended.wait(0.02):
            with contextlib.suppress(OSError):
                self.most = max(self.most, rss(self.pid))

    def end(self):
        self.ended.set()
        self.join()
        return self.most


def measure(attacks, attacked, good, seconds, scale):
    """The good client while the attacks run against a port; the attackers begin a moment before."""
    attackers = [start(name, attacked, seconds + 1, scale) for name in attacks]
    time.sleep(0.3)
    client = start("good", good, seconds, RATE)
    measured = result(client, seconds)
    got, cpu = collections.Counter(), 0.0
    for attacker in attackers:
        one = result(attacker, seconds)
        got.update(one["got"])
        cpu += one["cpu"]
    return measured, got, cpu / (seconds + 1)


def quantile(times, share):
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


class Result:
    """What was measured of one attack, over all rounds."""

    def __init__(self, name):
        self.name = name
        self.times = {"alone": [], "control": [], "beside": []}
        self.fresh = {"alone": [], "control": [], "beside": []}
        self.failures, self.got = [], collections.Counter()
        self.attacker, self.server = [], []
        self.before, self.peak, self.after = 0, 0, 0

    def add(self, where, measured):
        self.times[where] += measured["times"]
        self.fresh[where] += measured["fresh"]
        if where == "beside":
            self.failures += measured["failures"]
        else:
            assert not measured["failures"], (where, measured["failures"][:3])

    def summary(self):
        p50, p99 = ({where: quantile(times, share) for where, times in self.times.items()} for share in (0.5, 0.99))
        fresh = {where: quantile(times, 0.99) for where, times in self.fresh.items()}
        return {
            "attack": self.name,
            "p50": p50,
            "p99": p99,
            "p99_of_new_connections": fresh,
            "ratio": p99["beside"] / p99["alone"],
            "ratio_to_control": p99["beside"] / max(p99["alone"], p99["control"]),
            "attacker_cpu": max(self.attacker),
            "server_cpu": max(self.server),
            "rss_before": self.before,
            "rss_peak": self.peak,
            "rss_after": self.after,
            "failed": len(self.failures),
            "failures": self.failures[:5],
            "got": dict(self.got.most_common()),
        }


def run(name, watched, port, sink, options, result):
    names = ATTACKS if name == "together" else [name]
    scale = 0.25 if name == "together" else 1
    seconds = options.seconds
    alone, _, _ = measure([], 0, port, seconds, scale)
    result.add("alone", alone)
    control, _, _ = measure(names, sink, port, seconds, scale)
    result.add("control", control)
    result.before = result.before or rss(watched.pid)
    peak = Peak(watched.pid)
    peak.start()
    used = processor(watched.pid)
    beside, got, cpu = measure(names, port, port, seconds, scale)
    result.server.append((processor(watched.pid) - used) / (seconds + 1))
    result.attacker.append(cpu)
    result.add("beside", beside)
    result.got.update(got)
    time.sleep(2)
    result.peak = max(result.peak, peak.end())
    result.after = rss(watched.pid)


HEAD = (
    f"{'attack':16} {'p50':>17} {'p99 alone':>10} {'control':>8} {'beside':>8} {'ratio':>6} {'to ctl':>6}"
    f" {'new conn':>9} {'cpu a/s':>10} {'RSS MB':>15} {'failed':>6}  got"
)


def row(one):
    def ms(seconds):
        return f"{1000 * seconds:.2f}"

    p50, p99 = one["p50"], one["p99"]
    got = ", ".join(f"{what} {count:,}" for what, count in list(one["got"].items())[:5])
    return (
        f"{one['attack']:16} {ms(p50['alone']):>8}/{ms(p50['beside']):>8} {ms(p99['alone']):>10} {ms(p99['control']):>8}"
        f" {ms(p99['beside']):>8} {one['ratio']:6.2f} {one['ratio_to_control']:6.2f}"
        f" {ms(one['p99_of_new_connections']['beside']):>9}"
        f" {one['attacker_cpu']:5.2f}/{one['server_cpu']:4.2f}"
        f" {one['rss_before'] / 1e6:4.0f}/{one['rss_peak'] / 1e6:4.0f}/{one['rss_after'] / 1e6:4.0f}"
        f" {one['failed']:6}  {got}"
    )


def holds(one, memory):
    """What does not hold of one attack, in words."""
    wrong = []
    if one["ratio_to_control"] > 2:
        wrong.append(f"p99 is {one['ratio_to_control']:.1f} times as long")
    if one["failed"]:
        wrong.append(f"{one['failed']} good requests failed: {one['failures'][0]}")
    if one["rss_peak"] - one["rss_before"] > memory * 1_000_000:
        wrong.append(f"memory grew by {(one['rss_peak'] - one['rss_before']) / 1e6:.0f} MB")
    return wrong


class Swapper(threading.Thread):
    """A new state each second."""

    def __init__(self, there):
        super().__init__(daemon=True)
        self.there, self.version, self.ended = there, 1, threading.Event()

    def run(self):
        while not self.ended.wait(1):
            self.version += 1
            self.there.put(state_message(self.version))

    def end(self):
        self.ended.set()
        self.join()


def main():
    parser = argparse.ArgumentParser(description="Attacks a server while good clients ask it")
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help=f"of {', '.join([*ATTACKS, 'together'])}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--memory", type=float, default=512, help="MB that an attack may take")
    parser.add_argument("--serve", action="append", default=[], metavar="FLAG", help="one more argument for the server")
    parser.add_argument("--json", help="a file for the table")
    options = parser.parse_args()
    names = options.attacks or [*ATTACKS, "together"]
    unknown = set(names) - {*ATTACKS, "together"}
    if unknown:
        parser.error(f"no attack {', '.join(sorted(unknown))}")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(most, 40_000), max(most, 40_000)))
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 12_000:
        raise SystemExit("FAILED: 10,000 connections need more descriptors: ulimit -n 20000")

    results = {name: Result(name) for name in names}
    with contextlib.ExitStack() as stack:
        there = stack.enter_context(endpoints())
        there.put({"message_id": "first", "model": inline_model(iris(1), 1)}, state_message(1))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        watched, port = stack.enter_context(server(there, folder, "--lookback", "1h", *options.serve))
        sink = free_port()
        stack.enter_context(process([sys.executable, PROGRAM, "sink", str(sink), "0", "0"]))
        swapper = Swapper(there)
        swapper.start()
        measure([], 0, port, 1, 1)
        for number in range(options.rounds):
            for name in names:
                run(name, watched, port, sink, options, results[name])
                if watched.poll() is not None:
                    raise SystemExit(f"FAILED: the server ended with {watched.returncode} in {name}")
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
        swapper.end()
        until("the last state", lambda: request(f"http://127.0.0.1:{port}/state")[2]["state"] == swapper.version)

    table = [one.summary() for one in results.values()]
    print(f"milliseconds; p50 alone/beside; cpu attacker/server; RSS before/peak/after; {options.rounds} rounds\n{HEAD}")
    failed = 0
    for one in table:
        print(row(one))
        for wrong in holds(one, options.memory):
            failed += 1
            print(f"{'':16} FAILED: {wrong}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(table, file, indent=1)
    print("ok" if not failed else "FAILED")
    return 1 if failed else 0


sys.exit(main())
