"""The README's way to a model of one's own, command by command: see scripts/own-model."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time

from support import HOTSERVE, ROOT, clean_environment, process

MOST = 6
START = "cargo run --release -- dev"


def section(path):
    """The blocks of shell under the heading."""
    with open(path) as file:
        text = file.read()
    found = re.search(r"^#+ Your own model.*?\n(.*?)(?=^#+ [^\n]*\n|\Z)", without_code(text), re.DOTALL | re.MULTILINE)
    if not found:
        raise SystemExit(f"FAILED: {path} has no section 'Your own model'")
    return re.findall(r"^```sh\n(.*?)^```$", text[found.start() : found.end()], re.DOTALL | re.MULTILINE)


def without_code(text):
    """The same text with every comment in a block made no heading, at the same places."""
    return re.sub(r"^```.*?^```$", lambda block: block.group().replace("#", "."), text, flags=re.DOTALL | re.MULTILINE)


def commands(block):
    """The commands of a block; one with a here-document is one."""
    lines, found = iter(block.splitlines()), []
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        command = [line]
        document = re.search(r"<<-?\s*'?(\w+)'?", line)
        while command[-1].endswith("\\") or (document and command[-1].strip() != document.group(1)):
            command.append(next(lines))
        found.append("\n".join(command))
    return found


def main():
    path = sys.argv[1] if len(sys.argv) > 1 else os.path.join(ROOT, "README.md")
    all_of_them = [command for block in section(path) for command in commands(block)]
    print(f"{len(all_of_them)} commands")
    assert len(all_of_them) <= MOST, f"more than {MOST}"
    first, *others = all_of_them
    assert first.split("#")[0].strip() == START, f"the first is not {START!r}: {first}"

    with tempfile.TemporaryDirectory(prefix="hotserve-own-model-") as folder:
        checkout, runtime = os.path.join(folder, "hotserve"), os.path.join(folder, "run")
        os.mkdir(runtime, 0o700)
        ignore = shutil.ignore_patterns("target", ".git", ".venv", "node_modules")
        shutil.copytree(ROOT, checkout, ignore=ignore)
        env = clean_environment(XDG_RUNTIME_DIR=runtime)
        env.pop("VIRTUAL_ENV", None)
        begun = time.monotonic()
        dev = [HOTSERVE, "dev", "--port", "0", "--kinesis-port", "0", "--s3-port", "0"]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        with process(dev, cwd=checkout, env=env, **options) as running:
            printed = ""
            while "--data-dir" not in printed:
                line = running.stdout.readline()
                assert line, printed
                printed += line
            print(f"{time.monotonic() - begun:6.1f} s  {first}   (built before)")
            port = re.search(r"http://localhost:(\d+)", printed).group(1)
            for command in others:
                begun = time.monotonic()
                here = command.replace("localhost:8000", f"localhost:{port}")
                here = here.replace("cargo run --release --", shlex.quote(HOTSERVE))
                shell = ["bash", "-euo", "pipefail", "-c", here]
                done = subprocess.run(shell, cwd=checkout, env=env, capture_output=True, text=True, timeout=500)
                shown = command.splitlines()[0]
                print(f"{time.monotonic() - begun:6.1f} s  {shown}{' …' if shown != command else ''}", flush=True)
                if done.returncode:
                    raise SystemExit(f"FAILED: {command}\n{done.stdout}{done.stderr}")
            answer = json.loads(done.stdout)
            print(f"          {done.stdout.strip()}")
            name = answer["model"]["name"]
            assert answer["predictions"], answer
            assert name not in ("iris", "fraud"), f"{name} is a sample, not the reader's own"
    print("ok")


main()
