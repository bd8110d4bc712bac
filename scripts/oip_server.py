"""A `hotserve dev` for clients of the Open Inference Protocol, with a model that gives back what it is given."""

import contextlib
import json
import os
import re
import subprocess
import tempfile
import types

import onnx
from onnx import TensorProto, helper

from support import HOTSERVE, ROOT, clean_environment, process, request, until

# Each input has an output of its name and "_out".
MIRROR = {
    "bool": TensorProto.BOOL,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "fp32": TensorProto.FLOAT,
    "fp64": TensorProto.DOUBLE,
    "text": TensorProto.STRING,
}


def mirror():
    """The model, as ONNX: two columns of every datatype."""

    def value(name, kind):
        return helper.make_tensor_value_info(name, kind, [None, 2])

    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in MIRROR]
    inputs = [value(name, kind) for name, kind in MIRROR.items()]
    outputs = [value(f"{name}_out", kind) for name, kind in MIRROR.items()]
    graph = helper.make_graph(nodes, "mirror", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


@contextlib.contextmanager
def server():
    """The running server: `address` is host:port, `token` gives commands, `publish(*arguments)` announces."""
    with tempfile.TemporaryDirectory() as folder:
        env = clean_environment(XDG_RUNTIME_DIR=folder)
        dev = [HOTSERVE, "dev", "--port", "0", "--kinesis-port", "0", "--s3-port", "0"]
        with process(dev, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
            for line in running.stdout:
                found = re.search(r"http://localhost:(\d+)/", line)
                if found:
                    break
            port = found.group(1)
            with open(os.path.join(folder, "hotserve-dev", f"{port}.json")) as note:
                token = json.load(note)["admin_token"]

            def publish(*arguments):
                command = [HOTSERVE, "publish", *arguments, "--dev", port]
                done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
                assert done.returncode == 0, (done.stdout, done.stderr)

            path = os.path.join(folder, "mirror.onnx")
            with open(path, "wb") as file:
                file.write(mirror())
            publish("model", path, "--name", "mirror", "--version", "1")
            url = f"http://127.0.0.1:{port}"
            for model in ("mirror", "iris"):
                until(model, lambda model=model: request(f"{url}/v2/models/{model}/ready")[0] == 200)
            yield types.SimpleNamespace(address=f"127.0.0.1:{port}", url=url, token=token, publish=publish)
