"""Triton by way of pytriton, with ONNX Runtime: peer_triton.py PORT MODELS."""

import socket
import sys

import numpy as np
import onnxruntime
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(f"{sys.argv[2]}/trees.onnx", options, ["CPUExecutionProvider"])


@batch
def infer(input):
    return [session.run(["probabilities"], {"input": input})[0][:, 1:]]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


ports = {"http_port": int(sys.argv[1]), "grpc_port": free_port(), "metrics_port": free_port()}
config = TritonConfig(**ports, http_address="127.0.0.1", grpc_address="127.0.0.1")
with Triton(config=config) as triton:
    triton.bind(
        model_name="trees",
        infer_func=infer,
        inputs=[Tensor(name="input", dtype=np.float32, shape=(28,))],
        outputs=[Tensor(name="prediction", dtype=np.float32, shape=(1,))],
        config=ModelConfig(max_batch_size=256, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
        strict=True,
    )
    triton.serve()
