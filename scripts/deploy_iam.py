"""The policies of deploy/aws are enough, and no more: with moto, which makes storage.yaml's stack and then obeys them.

moto judges the resources of S3 alone; for the other services its policies name all, so that their actions are judged.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

import boto3
from support import HOTSERVE, ROOT, clean_environment, free_port, process, request, until

AWS = pathlib.Path(ROOT) / "deploy/aws"
REGION = "eu-central-1"
MODEL = pathlib.Path(ROOT) / "models/samples/iris/model.json"
USERS = {
    "server": ["server-poll", "server-manifest"],
    "fan-out": ["server-poll", "server-manifest", "server-fan-out"],
    "publisher": ["publisher"],
    "nobody": [],
}


def policy(name):
    document = json.loads((AWS / f"policies/{name}.json").read_text())
    for statement in document["Statement"]:
        actions = statement["Action"]
        if not (actions if isinstance(actions, str) else actions[0]).startswith("s3:"):
            statement["Resource"] = "*"
    return json.dumps(document)


def make_stack(client):
    parameters = [{"ParameterKey": "BucketName", "ParameterValue": "my-models"}]
    template = (AWS / "storage.yaml").read_text()
    made = {
        "StackName": "storage",
        "TemplateBody": template,
        "Parameters": parameters,
        "Capabilities": ["CAPABILITY_IAM"],
    }
    client("cloudformation").create_stack(**made)
    stack = client("cloudformation").describe_stacks(StackName="storage")["Stacks"][0]
    assert stack["StackStatus"] == "CREATE_COMPLETE", stack
    return {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}


def make_users(iam):
    keys = {}
    for user, names in USERS.items():
        iam.create_user(UserName=user)
        for name in names:
            iam.put_user_policy(UserName=user, PolicyName=name, PolicyDocument=policy(name))
        key = iam.create_access_key(UserName=user)["AccessKey"]
        keys[user] = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
    return keys


def main():
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    moto = [os.path.join(os.path.dirname(sys.executable), "moto_server"), "--port", str(port)]
    # Until the stack is there, nobody is asked for a permission.
    environment = clean_environment(INITIAL_NO_AUTH_ACTION_COUNT="1000000")
    with process(moto, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        until("moto", lambda: urllib.request.urlopen(f"{url}/moto-api/data.json", timeout=5).status == 200)
        root = {
            "aws_access_key_id": "root",
            "aws_secret_access_key": "root",
            "region_name": REGION,
            "endpoint_url": url,
        }

        def client(service):
            return boto3.client(service, **root)

        outputs = make_stack(client)
        keys = make_users(client("iam"))
        plain = {"Content-Type": "text/plain"}
        urllib.request.urlopen(
            urllib.request.Request(f"{url}/moto-api/reset-auth", data=b"0", headers=plain), timeout=5
        )

        def settings(user):
            return clean_environment(
                AWS_ENDPOINT_URL=url,
                AWS_REGION=REGION,
                KINESIS_STREAM=outputs["StreamName"],
                HOTSERVE_MANIFEST=outputs["ManifestUri"],
                HOTSERVE_ALLOW=outputs["ArtifactsUri"],
                HOTSERVE_PUBLISH_TO=outputs["ArtifactsUri"],
                **keys[user],
            )

        def hotserve(user, *arguments, fails=False):
            done = subprocess.run(
                [HOTSERVE, *arguments], env=settings(user), capture_output=True, text=True, check=False, timeout=60
            )
            assert (done.returncode != 0) == fails, (
                f"{user}: hotserve {' '.join(arguments)}: {done.stdout}{done.stderr}"
            )

        hotserve("publisher", "publish", "state", "42")
        hotserve("publisher", "publish", "model", str(MODEL), "--name", "iris")
        hotserve("server", "tail", "--since", "1h", "--count", "2")
        hotserve("server", "manifest", "show")
        hotserve("fan-out", "consumers", "list")
        hotserve("server", "consumers", "list", fails=True)
        hotserve("server", "publish", "state", "43", fails=True)
        hotserve("nobody", "manifest", "show", fails=True)

        with tempfile.TemporaryFile("w+") as log, contextlib.ExitStack() as stack:
            served = free_port()
            command = [HOTSERVE, "serve", "--host", "127.0.0.1", "--port", str(served)]
            stack.enter_context(process(command, env=settings("server"), stdout=log, stderr=log))

            def serves_both():
                state = request(f"http://127.0.0.1:{served}/state")[2]
                return state == {"state": 42} and request(f"http://127.0.0.1:{served}/models")[2]["models"]

            until("the server to serve what was published", serves_both)
    users = ", ".join(user for user in USERS if user != "nobody")
    print(f"moto makes storage.yaml's stack; {users} can do what they must, and not each other's work")


main()
