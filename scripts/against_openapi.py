"""schemathesis over /openapi.json of a running `hotserve dev`, commands included."""

import glob
import json
import os
import subprocess
import sys
import tempfile

from support import HOTSERVE, ROOT, clean_environment, process, ready, request

with tempfile.TemporaryDirectory() as runtime:
    # `hotserve dev` leaves its token there.
    env = clean_environment(XDG_RUNTIME_DIR=runtime)
    port = ["--port", "0", "--kinesis-port", "0", "--s3-port", "0"]
    with process([HOTSERVE, "dev", *port], env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        for line in running.stdout:
            if "is ready" in line:
                break
        (note,) = glob.glob(f"{runtime}/hotserve-dev/*.json")
        with open(note) as file:
            note = json.load(file)
        url = f"http://{note['http']}"
        ready(url)
        paths = request(f"{url}/openapi.json")[2]["paths"]
        assert "/predict/iris" in paths and "/admin/control" in paths, list(paths)
        schemathesis = os.path.join(os.path.dirname(sys.executable), "schemathesis")
        configuration = ["--config-file", os.path.join(ROOT, "scripts", "schemathesis.toml")]
        command = [schemathesis, *configuration, "run", "--no-color", f"{url}/openapi.json", *sys.argv[1:]]
        more = {
            "HOTSERVE_TOKEN": note["admin_token"],
            "SCHEMATHESIS_HOOKS": "openapi_hooks",
            "PYTHONPATH": os.path.join(ROOT, "scripts"),
        }
        done = subprocess.run(command, cwd=runtime, env=env | more)
        assert running.poll() is None, "the server has ended"
        ready(url)
        if done.returncode != 0:
            raise SystemExit("openapi: FAILED")
print(f"openapi: passed, {len(paths)} paths")
