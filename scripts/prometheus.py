"""What scripts/prometheus does; the folder for what it writes is its argument."""

import json
import math
import os
import re
import sys
import time

from monitoring import DASHBOARDS, RETRAINED, Load, Prometheus, Servers, rules, together
from support import request, until

NAMES = ["overview", "swaps-and-lag", "fleet", "serving"]
# What Grafana puts in for its variables. All is .+, as the dashboards say.
VARIABLES = {"$job": ".+", "$instance": ".+", "$__rate_interval": "10s"}
# Series that are rightly not there, each with the reason.
ABSENT = {}

# Everything that shows on a panel has to happen once: passing faults of both services, and a bucket that cuts bodies.
PASSING = """
[[fault]]
on = ["kinesis:GetRecords"]
rate = 0.2
answer = "internal-failure"
[kinesis]
reads-per-second = 5
"""
# A few only, for they strike publishers too.
CUT = """
[[fault]]
on = ["s3:GetObject"]
rate = 0.5
times = 6
answer = "cut-body"
"""
# Of the stream that throttles, and of the one that answers nothing.
THROTTLED = "[kinesis]\nreads-per-second = 1\n"
DOWN = 'deny = ["kinesis:*"]\n'


def live_through(servers, folder):
    """The life of a week in a minute: publications, faults, a refused model, a rollback, pins, an outage, a restart."""
    step = lambda text: print(f"  {time.strftime('%H:%M:%S')} {text}", flush=True)
    step("publications, with faults that pass")
    servers.break_with(PASSING)
    for value in range(5):
        servers.publish("state", json.dumps({"price": value}), "--key", "pricing", attempts=8)
        servers.publish("state", str(value), attempts=8)
        time.sleep(1)
    servers.break_with(PASSING + CUT)
    time.sleep(1)
    for _ in range(2):
        servers.publish("model", RETRAINED, "--name", "iris", attempts=8)
        time.sleep(2)
    step("a model that is none is refused")
    bad = os.path.join(folder, "broken.json")
    with open(bad, "w") as file:
        file.write('{"learner": "none"}')
    servers.publish("model", bad, "--name", "iris", "--format", "xgboost", attempts=8)
    time.sleep(2)
    step("a pin on the second server alone, and a rollback for all")
    servers.command("pin", "--key", "pricing", server=1)
    servers.publish("state", json.dumps({"price": 99}), "--key", "pricing", attempts=8)
    servers.publish("control", "rollback", "--model", "iris", attempts=8)
    time.sleep(3)
    step("the stream throttles, and then answers nothing")
    servers.break_with(THROTTLED)
    time.sleep(6)
    servers.break_with(DOWN)
    time.sleep(4)
    step("the second server is killed, and starts again: it is not ready until the stream recovers")
    servers.second.kill()
    time.sleep(2)
    servers.second.start()
    time.sleep(3)
    servers.break_with("")
    servers.wait(1)
    # What it was told alone it has forgotten, for it has no folder that stays.
    servers.command("pin", "--key", "pricing", server=1)
    for value in range(4):
        servers.publish("state", json.dumps({"price": value}), "--key", "pricing")
        time.sleep(1)
    servers.publish("model", RETRAINED, "--name", "iris")
    time.sleep(6)


def substituted(expr):
    for name, value in VARIABLES.items():
        expr = expr.replace(name, value)
    return expr


SELECTOR = re.compile(r"\b(hotserve_\w+|process_\w+|job:\w+:\w+|ALERTS|up)\b(\{[^}]*\})?")


def selectors(expr):
    """Every selector of an expression, with its matchers."""
    return {name + (matchers or "") for name, matchers in SELECTOR.findall(expr)}


def unfiltered(expr):
    """The expression with comparisons that answer 0 or 1, where they would leave out: what is quiet answers 0."""
    parts = re.split(r"(\{[^}]*\}|\"[^\"]*\")", expr)
    outside = lambda text: re.sub(r"\bunless\b", "and", re.sub(r"([<>=!]=|[<>])(?! *bool)", r"\1 bool ", text))
    return "".join(part if at % 2 else outside(part) for at, part in enumerate(parts))


class Walk:
    """Asks Prometheus for expressions, over the time from the start until now."""

    def __init__(self, prometheus, start):
        self.prometheus, self.start, self.end = prometheus, start, time.time()
        self.known = {}

    def there(self, selector):
        if selector not in self.known:
            span = f"{int(self.end - self.start) + 1}s"
            self.known[selector] = bool(self.prometheus.query(f"count(last_over_time({selector}[{span}]))", self.end))
        return self.known[selector] or selector in ABSENT

    def wrong(self, expr):
        """What is wrong with an expression, or nothing."""
        expr = substituted(expr)
        missing = [selector for selector in sorted(selectors(expr)) if not self.there(selector)]
        if missing:
            return f"no series of {', '.join(missing)}"
        try:
            for asked in (expr, unfiltered(expr)):
                if self.prometheus.query_range(asked, self.start, self.end, 2):
                    return None
        except ValueError as error:
            return str(error)
        return "it answers nothing"


def dashboard(name):
    with open(os.path.join(DASHBOARDS, f"{name}.json")) as file:
        return json.load(file)


def expressions():
    """Everything that is asked, with the place where it stands."""
    for name in NAMES:
        board = dashboard(name)
        for panel in board["panels"]:
            for target in panel.get("targets", []):
                yield f"{name}.json: {panel['title']} ({target['refId']})", target["expr"]
        for annotation in board["annotations"]["list"]:
            yield f"{name}.json: annotation {annotation['name']}", annotation["expr"]
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                yield f"{name}.json: variable {variable['name']}", re.search(r"\((.*), *\w+\)", variable["query"])[1]


def check_all(prometheus, walk):
    asked = list(expressions())
    for group in prometheus.ask("rules")["groups"]:
        for rule in group["rules"]:
            if rule["health"] != "ok":
                raise SystemExit(f"FAILED: rule {rule['name']}: {rule['health']} {rule.get('lastError', '')}")
            asked.append((f"rule {rule['name']}", rule["query"]))
    wrong = [f"{place}: {what}\n    {expr}" for place, expr in asked if (what := walk.wrong(expr))]
    if wrong:
        raise SystemExit("FAILED: these answer nothing\n  " + "\n  ".join(wrong))
    print(f"  {len(asked)} expressions of {len(NAMES)} dashboards and of the rules answer with data")
    return asked


def check_the_check(walk, asked):
    """Breaks every metric name of every expression in turn: each time the walk has to say so."""
    broken = 0
    for place, expr in asked:
        for name in sorted({found[0] for found in SELECTOR.findall(expr)}):
            renamed = re.sub(rf"\b{re.escape(name)}\b", f"hotserve_{name}_renamed", expr)
            if not walk.wrong(renamed):
                raise SystemExit(f"FAILED: {name} renamed in {place} was not noticed")
            broken += 1
    print(f"  {broken} metric names, broken one at a time: each was noticed")


def drawn(prometheus, walk):
    """Every panel with its answers, for scripts/dashboards.cjs."""
    boards = []
    for name in NAMES:
        board = dashboard(name)
        for panel in board["panels"]:
            for target in panel.get("targets", []):
                expr = substituted(target["expr"])
                instant = panel["type"] == "table"
                series = prometheus.query(expr, walk.end) if instant else (
                    prometheus.query_range(expr, walk.start, walk.end, 1))
                target["result"] = [
                    {"metric": one["metric"], "values": [
                        [at, float(value) if math.isfinite(float(value)) else None]
                        for at, value in one.get("values") or [one["value"]]
                    ]} for one in series
                ]
        marks = []
        for annotation in board["annotations"]["list"]:
            expr = substituted(annotation["expr"]).replace("[2m]", "[3s]")
            for series in prometheus.query_range(expr, walk.start, walk.end, 2):
                marks += [{"at": at, "color": annotation["iconColor"]} for at, _ in series["values"]]
        boards.append({"name": name, "start": walk.start, "end": walk.end, "board": board, "marks": marks})
    return boards


def main(folder):
    servers = Servers(folder)
    prometheus = Prometheus(folder, servers.targets, rules(), "1s")
    load = Load(servers)
    with together(servers, prometheus, load):
        start = time.time()
        print(f"servers: {', '.join(servers.urls)}; Prometheus: http://127.0.0.1:{prometheus.port}")
        live_through(servers, folder)
        firing = sorted({alert["labels"]["alertname"] for alert in prometheus.alerts()})
        print(f"  clients got {dict(sorted(load.answers.items(), key=str))}; alerts that fire: {', '.join(firing)}")
        if "HotserveRejections" not in firing:
            raise SystemExit("FAILED: the refused model has raised no alert")
        walk = Walk(prometheus, start)
        asked = check_all(prometheus, walk)
        check_the_check(walk, asked)
        with open(os.path.join(folder, "drawn.json"), "w") as file:
            json.dump(drawn(prometheus, walk), file)
    print("prometheus: passed")


if __name__ == "__main__":
    main(sys.argv[1])
