"""`serve` and `publish` against moto: a Kinesis and an S3 that are not ours."""

import json
import os
import socket
import subprocess
import sys

import boto3

from support import HOTSERVE, ROOT, clean_environment, free_port, predict, process, publish, ready, request
from support import until, until_state

moto_port, port = free_port(), free_port()
url = f"http://127.0.0.1:{port}"
env = clean_environment(
    AWS_ENDPOINT_URL=f"http://127.0.0.1:{moto_port}",
    AWS_REGION="eu-central-1",
    AWS_DEFAULT_REGION="eu-central-1",
    AWS_ACCESS_KEY_ID="test",
    AWS_SECRET_ACCESS_KEY="test",
    KINESIS_STREAM="updates",
)
os.environ.update(env)
moto_server = os.path.join(os.path.dirname(sys.executable), "moto_server")
serve = [HOTSERVE, "serve", "--host", "127.0.0.1", "--port", str(port), "--poll-interval", "200ms"]
iris = os.path.join(ROOT, "models", "samples", "iris")


def quiet(arguments, **options):
    return process(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)


with quiet([moto_server, "-H", "127.0.0.1", "-p", str(moto_port)], env=clean_environment()):
    until("moto to listen", lambda: socket.create_connection(("127.0.0.1", moto_port), 1))
    kinesis, s3 = boto3.client("kinesis"), boto3.client("s3")

    print("serve waits for a stream that is not there yet")
    with quiet(serve, env=env):
        until("the reason", lambda: "no stream" in request(f"{url}/readyz")[2].get("reason", ""))
        s3.create_bucket(Bucket="models", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
        kinesis.create_stream(StreamName="updates", ShardCount=2)
        ready(url)
        until_state(url, 0)

        print("publish changes state and model")
        publish("state", "42", env=env)
        until_state(url, 42)
        publish("model", f"{iris}/model.json", "--name", "iris", "--version", "1", "--to", "s3://models/prod", env=env)
        first = predict(url, 1)
        publish("model", f"{iris}/retrained.json", "--name", "iris", "--version", "2", "--inline", env=env)
        assert predict(url, 2) != first, "the retrained model answers as the first one did"

        print("the message that the project began with, put by boto3")
        message = {"message_id": "4142", "text": "some text", "state": 96}
        kinesis.put_record(StreamName="updates", PartitionKey="any", Data=json.dumps(message).encode())
        until_state(url, 96)

        print("a split while it is followed")
        shards = kinesis.list_shards(StreamName="updates")["Shards"]
        middle = str(int(shards[0]["HashKeyRange"]["EndingHashKey"]) // 2)
        kinesis.split_shard(StreamName="updates", ShardToSplit=shards[0]["ShardId"], NewStartingHashKey=middle)
        for shard in kinesis.list_shards(StreamName="updates")["Shards"]:
            if "EndingSequenceNumber" not in shard["SequenceNumberRange"]:
                key = shard["HashKeyRange"]["StartingHashKey"]
                data = json.dumps({"key": shard["ShardId"], "state": "after the split"}).encode()
                kinesis.put_record(StreamName="updates", PartitionKey="x", ExplicitHashKey=key, Data=data)
                # moto never ends a closed shard: the tailer learns of it when it lists the shards, every half a minute.
                until(f"a record of {shard['ShardId']}", lambda: request(f"{url}/state/{shard['ShardId']}")[0] == 200)
                print(f"  {shard['ShardId']} is followed")

    print("a second server finds the last message")
    publish("state", '"the last one"', env=env)
    with quiet(serve, env=env):
        ready(url)
        until_state(url, "the last one")
print("moto: passed")
