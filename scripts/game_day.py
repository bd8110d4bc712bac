"""What scripts/game-day does; the folder for what it writes is its argument."""

import json
import os
import re
import sys
import textwrap
import time

from monitoring import RETRAINED, Load, Prometheus, Servers, rules, together
from support import IRIS, ROOT, request

# All times of the rules are divided by it, and so is the interval of 15 s between scrapes: an alert that takes 5 minutes
# takes 10 s here. The servers and their faults run at their own pace.
FACTOR = 30
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
# Numbers of seconds in the expressions, with the text around each that must be there.
THRESHOLDS = [
    ("process_start_time_seconds > {}", 900), ("* hotserve_stream_poll_interval_seconds, {})", 60),
    ("(hotserve_stream_lag_seconds) > {}", 60), ("(hotserve_stream_last_record_timestamp_seconds > 0) > {}\n", 300),
    (")) > {}\n", 60), ("> 7 * {}", 86400),
]


def accelerated(text):
    """The rules with every duration divided by FACTOR."""
    def shorter(match):
        seconds = int(match[2]) * SECONDS[match[3]] / FACTOR
        assert seconds == int(seconds), f"{match[0]} cannot be divided by {FACTOR}"
        return f"{match[1]}{int(seconds)}s"

    text = re.sub(r"(\bfor: |\[|\boffset )(\d+)([smhd])\b", shorter, text)
    if "- alert:" in text:
        for around, seconds in THRESHOLDS:
            before = around.format(seconds)
            assert before in text, f"{before!r} is not in the alerts"
            text = text.replace(before, around.format(seconds / FACTOR))
    return text


# Alerts whose windows of hours remember the errors of an incident for longer than a game day lasts.
LONG = {"HotserveErrorBudgetBurns", "HotserveErrorBudgetBurnsSlowly", "HotserveErrorBudgetLeaks", "HotserveLatencyBudgetBurns"}


class Story:
    """Tells what happens, waits for alerts, and remembers them."""

    def __init__(self, prometheus):
        self.prometheus, self.began = prometheus, time.monotonic()
        self.incidents = 0
        self.table = []

    def tell(self, text):
        lines = textwrap.wrap(text, 104)
        print(f"{time.strftime('%H:%M:%S')}  {lines[0]}", flush=True)
        for line in lines[1:]:
            print(f"          {line}", flush=True)

    def show(self, what, value):
        """What a person sees, as it is."""
        print(f"          {what}")
        for line in textwrap.wrap(value, 100, break_long_words=True, break_on_hyphens=False):
            print(f"            | {line}", flush=True)

    def incident(self, title, breaks):
        self.quiet()
        self.incidents += 1
        print(f"\n--- Incident {self.incidents}: {title}", flush=True)
        self.since = time.monotonic()
        breaks()

    def cure(self, text, cures=lambda: None):
        self.tell(f"Cure: {text}")
        self.since = time.monotonic()
        cures()

    def firing(self):
        """The alerts that fire, by name."""
        firing = {}
        for alert in self.prometheus.alerts():
            firing.setdefault(alert["labels"]["alertname"], []).append(alert)
        return firing

    def wait(self, names, fires, seconds=150):
        """Waits until all of these fire, or none does: each, with how long it took since the fault or the cure."""
        left = list(names)
        while left:
            firing = self.firing()
            for name in [name for name in left if (name in firing) == fires]:
                left.remove(name)
                yield name, time.monotonic() - self.since, firing.get(name)
            if time.monotonic() - self.since > seconds:
                what = "has not fired" if fires else "has not ended"
                others = ", ".join(sorted(firing)) or "none"
                raise SystemExit(f"FAILED: {', '.join(left)} {what} in {seconds} s; firing: {others}")
            time.sleep(0.2)

    def alerts(self, *names):
        for name, after, (alert, *more) in self.wait(names, True):
            annotations, severity = alert["annotations"], alert["labels"]["severity"]
            self.table.append([self.incidents, name, severity, after, None])
            also = f" And {len(more)} more of it." if more else ""
            self.tell(f"After {after:.1f} s {name} fires ({severity}): {annotations['summary']}.{also}")
            self.show("It says, and links its entry in the runbook:", annotations["description"])
        others = sorted(set(self.firing()) - {row[1] for row in self.table if row[4] is None})
        if others:
            self.tell(f"Beside it: {', '.join(others)}.")

    def ends(self):
        open_ = [row for row in self.table if row[4] is None]
        for name, after, _ in self.wait([row[1] for row in open_], False):
            next(row for row in open_ if row[1] == name)[4] = after
            self.tell(f"{after:.1f} s after the cure {name} has ended.")

    def quiet(self, seconds=150):
        """Waits until nothing fires but what looks back for hours, so that an incident begins in peace."""
        end = time.monotonic() + seconds
        while firing := set(self.firing()) - LONG:
            if time.monotonic() > end:
                raise SystemExit(f"FAILED: still firing after {seconds} s: {', '.join(sorted(firing))}")
            time.sleep(0.2)


def minutes(seconds):
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


class Day:
    """The incidents, in their order."""

    def __init__(self, story, servers, folder):
        self.story, self.servers, self.folder = story, servers, folder

    def publish_iris(self):
        self.servers.publish("model", RETRAINED, "--name", "iris")

    def faults(self, name=None):
        """Lets the rules of a file in tests/faults hold, or none."""
        rules = ""
        if name:
            with open(os.path.join(ROOT, "tests/faults", name)) as file:
                rules = file.read()
        self.servers.break_with(rules)

    def history(self, which, outcome):
        """The newest entry of an outcome, as /history tells it."""
        entries = request(f"{self.servers.urls[which]}/history")[2]["entries"]
        entry = next(entry for entry in entries if entry["outcome"] == outcome)
        keep = ("at", "outcome", "slots", "versions", "reason", "detail", "by")
        return json.dumps({key: entry[key] for key in keep if entry.get(key)})

    def verbose(self, which, part):
        """What /readyz?verbose says of a part."""
        status, _, body = request(f"{self.servers.urls[which]}/readyz?verbose")
        seen = {"ready": body["ready"]}
        if part in body:
            seen[part] = body[part] if part == "reason" else {"trouble": body[part].get("trouble")}
        return f"{status} {json.dumps(seen)}"

    def broken_model(self):
        story, servers = self.story, self.servers
        bad = os.path.join(self.folder, "broken.json")
        with open(bad, "w") as file:
            file.write('{"learner": "torn"}')
        publish = lambda: servers.publish("model", bad, "--name", "iris", "--format", "xgboost")
        story.incident("a model that cannot be loaded is published", publish)
        story.tell("Somebody's training job wrote half a file, and published it as version 3 of iris.")
        story.alerts("HotserveRejections")
        story.show("/history of the first server:", self.history(0, "rejected"))
        version = request(f"{servers.urls[0]}/predict/iris", {"instances": [IRIS]})[1]["x-model-version"]
        story.tell(f"Clients notice nothing: /predict/iris answers from version {version}, as before.")
        story.cure("the job runs again, and its model is published under the next version.", self.publish_iris)
        story.ends()

    def rollback(self):
        story = self.story
        rollback = lambda: self.servers.publish("control", "rollback", "--model", "iris")
        story.incident("the new model is a bad one, and is taken back", rollback)
        story.tell("It loads and passes every gate, but sales fall. hotserve publish control rollback takes it back, on "
                   "all instances.")
        story.alerts("HotserveRolledBack")
        story.show("/history of the second server:", self.history(1, "rolled_back"))
        story.cure("none is needed, the alert tells the others. A better model is published.", self.publish_iris)
        story.ends()

    def forgotten_pin(self):
        story, servers = self.story, self.servers
        servers.command("pin", "--model", "iris", server=1)
        time.sleep(1)
        story.incident("a pin is forgotten", self.publish_iris)
        story.tell("Last week somebody pinned iris on the second server, to look at something. Today a new version is "
                   "published.")
        story.alerts("HotserveVersionSkew")
        served = story.prometheus.query('hotserve_model_version{model="iris"}')
        seen = [f"{one['metric']['instance']} serves version {one['value'][1]}" for one in served]
        held = [one["metric"] for one in story.prometheus.query("hotserve_held")]
        seen += [f"{one['slot']} is held on {one['instance']} by {one['by']}" for one in held]
        story.show("What the dashboard of the fleet shows of iris:", "; ".join(seen))
        unpin = lambda: servers.command("unpin", "--model", "iris", server=1)
        story.cure("hotserve unpin --model iris on the second server.", unpin)
        story.ends()

    def stream_denied(self):
        story = self.story
        story.incident("the stream cannot be read any more", lambda: self.faults("stream-denied.toml"))
        story.tell("A change of a policy takes the permissions on Kinesis from the instances "
                   "(tests/faults/stream-denied.toml).")
        story.alerts("HotserveStreamNoContact", "HotserveStreamLag")
        story.show("/readyz?verbose of the first server:", self.verbose(0, "stream"))
        story.tell("It is ready still: what was served is served on, and a load balancer takes nobody out.")
        story.cure("the policy is put right.", self.faults)
        story.ends()

    def bucket_denied(self):
        story = self.story
        story.incident("the bucket cannot be read any more", lambda: self.faults("bucket-denied.toml"))
        story.tell("Now it is the bucket's policy (tests/faults/bucket-denied.toml): the manifest is out of reach.")
        story.alerts("HotserveManifestUnread")
        story.show("/readyz?verbose of the second server:", self.verbose(1, "manifest"))
        story.cure("the policy is put right.", self.faults)
        story.ends()

    def killed(self):
        story, second = self.story, self.servers.second
        story.incident("an instance dies", second.kill)
        story.tell("The second server is killed, as the kernel does it when memory is short.")
        story.alerts("HotserveDown")
        story.cure("it is started again.", second.start)
        story.ends()

    def restart_in_the_dark(self):
        story, second = self.story, self.servers.second

        def breaks():
            self.faults("aws-denied.toml")
            time.sleep(1.5)
            second.kill()
            second.start()

        story.incident("an instance restarts while stream and bucket are away", breaks)
        story.tell("It has no folder that stays, so that it has nothing to serve; and its clients do not look at /readyz, "
                   "but ask it all the same (tests/faults/aws-denied.toml).")
        story.alerts("HotserveErrorBudgetBurnsFast", "HotserveStreamNeverContacted", "HotserveNotReady")
        story.show("/readyz?verbose of the second server:", self.verbose(1, "reason"))
        story.cure("stream and bucket are back. The server becomes ready by itself.", self.faults)
        story.ends()


def main(folder):
    servers = Servers(folder)
    prometheus = Prometheus(folder, servers.targets, [accelerated(text) for text in rules()], "500ms")
    load = Load(servers, pause=0.03)
    story = Story(prometheus)
    day = Day(story, servers, folder)
    print(textwrap.dedent(f"""\
        A game day for hotserve. Two servers read one stream, clients ask both all the time, and Prometheus watches
        with the rules of dashboards/rules.yaml and dashboards/alerts.yaml. Their durations and limits in seconds are
        divided by {FACTOR}, and so is the time between scrapes (15 s, here 0.5 s): "for 5 minutes" is {300 // FACTOR} s here.
        Shares, such as the budget of errors, are as they are. Servers and faults run at their own pace.
        """), flush=True)
    with together(servers, prometheus, load):
        servers.publish("state", '{"price": 1}', "--key", "pricing")
        day.publish_iris()
        story.tell(f"The servers are {servers.targets[0]} (first) and {servers.targets[1]} (second). A state and a second "
                   "version of the model iris are published, and clients are answered.")
        time.sleep(5)
        story.quiet()
        story.tell("Nothing fires.")
        for incident in (
            day.broken_model, day.rollback, day.forgotten_pin, day.stream_denied, day.bucket_denied, day.killed,
            day.restart_in_the_dark,
        ):
            incident()
        story.quiet()
        if long := sorted(set(story.firing()) & LONG):
            story.tell(f"What looks back for hours still counts the errors, as it should: {', '.join(long)}.")
    took = (time.monotonic() - story.began) / 60
    answers = ", ".join(f"{count} of {status}" for status, count in sorted(load.answers.items(), key=str))
    print(f"\nNothing is broken any more after {took:.1f} minutes. Clients got {answers} (nothing: no connection).\n")
    print("incident  alert                           severity  fired after    of the real rules  ended after")
    for number, name, severity, fired, ended in story.table:
        real = f"about {minutes(fired * FACTOR)}"
        print(f"{number:8}  {name:30}  {severity:8}  {fired:9.1f} s  {real:>19}  {ended:9.1f} s")
    different = {row[1] for row in story.table}
    assert len(different) >= 5, different
    print(f"\ngame day: passed, {len(different)} different alerts fired and ended")


if __name__ == "__main__":
    main(sys.argv[1])
