"""Runs `hotserve dev` within what a systemd unit allows, as nobody, on a system that cannot be written.

Its sample models must be tried in probes that lower their priority and seal themselves with Landlock. It is not systemd
itself, which CI does not have, but its list of system calls, its user, its read-only system and its /proc. As root;
wants strace and libseccomp.
"""

import ctypes
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import urllib.request

NOBODY = 65532
NO_NEW_PRIVILEGES, DENY_WRITE_EXECUTE = 38, 65
EPERM = 1


def system_calls(name):
    """A set of systemd's, as system calls."""
    listed = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True)
    words = [line.strip() for line in listed.stdout.splitlines()[1:]]
    return set().union(*(of_word(word) for word in words if word and not word.startswith("#")))


def of_word(word):
    return system_calls(word) if word.startswith("@") else {word}


def allowed(unit):
    calls = set()
    for line in re.findall(r"^SystemCallFilter=(.*)$", unit.read_text(), re.M):
        named = set().union(*(of_word(word) for word in line.lstrip("~").split()))
        calls = calls - named if line.startswith("~") else calls | named
    return calls


def inside(unit, arguments):
    """In namespaces of its own: builds the walls and becomes the program."""
    import seccomp

    calls = allowed(unit)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    libc = ctypes.CDLL(None)
    libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    walls = seccomp.SyscallFilter(defaction=seccomp.ERRNO(EPERM))
    for call in calls:
        try:
            walls.add_rule(seccomp.ALLOW, call)
        except (RuntimeError, ValueError):
            pass  # One of another architecture.
    walls.load()
    libc.prctl(DENY_WRITE_EXECUTE, 1, 0, 0, 0)
    os.execv(arguments[0], arguments)


SETUP = """set -e
mount --make-rprivate /
mount --bind "$STATE" /mnt
mount -t proc -o hidepid=invisible proc /proc
mount -o remount,ro,bind /
cd /
export HOME=/mnt TMPDIR=/mnt
exec strace --follow-forks --quiet=all --trace=landlock_restrict_self,sched_setscheduler --output=/mnt/trace \
    /usr/bin/python3 "$@"
"""


def outside(unit):
    with tempfile.TemporaryDirectory() as folder:
        state = pathlib.Path(folder) / "state"
        state.mkdir()
        os.chmod(folder, 0o755)
        program = pathlib.Path(folder) / "hotserve"
        subprocess.run(["cp", os.environ["HOTSERVE"], program], check=True)
        os.chmod(program, 0o755)
        os.chown(state, NOBODY, NOBODY)
        here = pathlib.Path(__file__).resolve()
        try:
            trial = ["unshare", "--mount", "--pid", "--fork", "bash", "-c", "mount -t proc proc /proc"]
            subprocess.run(trial, check=True, capture_output=True)
        except subprocess.CalledProcessError:
            return "not tried: this machine allows no namespaces"
        command = [here, "--inside", unit, program, "dev", "--port", "0", "--kinesis-port", "0", "--s3-port", "0"]
        command += ["--data-dir", "/mnt/data"]
        wrapped = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-c", SETUP, "bash"]
        with open(pathlib.Path(folder) / "out", "w+") as out:
            environment = {"PATH": os.environ["PATH"], "STATE": str(state), "AWS_EC2_METADATA_DISABLED": "true"}
            running = subprocess.Popen([*wrapped, *map(str, command)], stdout=out, stderr=out, env=environment)
            try:
                metrics = wait_for_models(running, pathlib.Path(out.name))
            finally:
                running.kill()
                running.wait()
        trace = (state / "trace").read_text()
        passed = int(re.search(r'^hotserve_probes_total{outcome="passed"} (\d+)', metrics, re.M)[1])
        sealed = len(re.findall(r"landlock_restrict_self\(.*= 0", trace))
        idle = len(re.findall(r"SCHED_IDLE.*= 0", trace))
        assert 'hotserve_isolation_info{mode="process"} 1' in metrics, "models are not tried in a child process"
        found = f"passed {passed}, sealed {sealed}, idle {idle}"
        assert passed >= 2 and idle >= 1 and (sealed >= passed or not has_landlock()), found
        return f"within the walls of {unit.name} {passed} models were tried in probes, {sealed} sealed by Landlock"


def has_landlock():
    """Whether this kernel knows it: a machine of CI may not."""
    create_ruleset, version = 444, 1
    return ctypes.CDLL(None).syscall(create_ruleset, None, 0, version) > 0


def wait_for_models(running, out):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and running.poll() is None:
        time.sleep(0.2)
        said = re.search(r"hotserve is ready: http://localhost:(\d+)", out.read_text())
        if said:
            metrics = urllib.request.urlopen(f"http://localhost:{said[1]}/metrics", timeout=5).read().decode()
            if len(re.findall(r"^hotserve_model_info{", metrics, re.M)) >= 2:
                return metrics
    raise SystemExit(f"FAILED: no model is served within the walls\n{out.read_text()[-2000:]}")


if sys.argv[1] == "--inside":
    inside(pathlib.Path(sys.argv[2]), sys.argv[3:])
else:
    print(outside(pathlib.Path(sys.argv[1])))
