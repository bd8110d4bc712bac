"""`hotserve dev` as its own output says to use it: each printed line is run as it is printed."""

import json
import os
import re
import subprocess

from support import HOTSERVE, ROOT, clean_environment, predict, process, request, until, until_state

dev = [HOTSERVE, "dev", "--port", "0", "--kinesis-port", "0", "--s3-port", "0"]
env = clean_environment()
with process(dev, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
    printed = []
    for line in running.stdout:
        printed.append(line.strip())
        if "--data-dir" in line:
            break
    url = re.search(r"http://localhost:\d+", printed[1]).group()
    lines = [line for line in printed if line.startswith(("curl", "export", HOTSERVE))]
    for line in lines:
        print(f"  {line}")

    def shell(line):
        done = subprocess.run(line, shell=True, env=env, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, (line, done.stderr)
        return done.stdout

    curls = [line for line in lines if line.startswith("curl")]
    assert json.loads(shell(curls[0])) == {"state": 0}
    for line in curls[1:]:
        answer = json.loads(shell(line))
        assert answer["model"]["version"] == 1 and len(answer["predictions"]) == 1, answer
    first = predict(url, 1)
    state, model, rollback = [line for line in lines if line.startswith(HOTSERVE)]
    shell(state)
    until_state(url, 42)
    shell(model)
    assert predict(url, 2) != first, "the retrained model answers as the first one did"
    shell(rollback)
    assert predict(url, 1) == first, "the way back is to another model"

    print("boto3 with only the printed variables")
    for line in lines:
        for name, value in re.findall(r"(\w+)=(\S+)", line) if line.startswith("export") else []:
            os.environ[name] = value
    import boto3

    message = {"message_id": "4142", "text": "some text", "state": 96}
    stream = os.environ["KINESIS_STREAM"]
    boto3.client("kinesis").put_record(StreamName=stream, PartitionKey="any", Data=json.dumps(message).encode())
    until_state(url, 96)
    bucket = boto3.client("s3").list_buckets()["Buckets"][0]["Name"]
    assert bucket == "hotserve-dev", bucket
    page = until("the page", lambda: subprocess.run(["curl", "-fs", url], capture_output=True).stdout)
    assert b"<html" in page.lower(), page[:200]
print("dev: passed")
