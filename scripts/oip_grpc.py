"""The Open Inference Protocol over gRPC, as clients that are not ours speak it: `python scripts/oip_grpc.py [ADDRESS]`.

Triton's client with its defaults, the client generated from the specification, the standard health client, and
reflection. ADDRESS is host:port of a running server with at least one model; without it one is started. Each model is
asked in every datatype that it takes. With HOTSERVE_ADMIN_TOKEN set to the server's token, a model is also unloaded and
loaded.
"""

import contextlib
import os
import subprocess
import sys
from concurrent.futures import Future

import ml_dtypes
import numpy as np

ROWS = 3
SERVICE = "inference.GRPCInferenceService"
# What carries numbers.
NUMBERS = {
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BF16": ml_dtypes.bfloat16,
}


def values(datatype, shape):
    """Elements that each datatype can hold, of a shape in which -1 is any length."""
    shape = [ROWS if length == -1 else length for length in shape]
    small = np.arange(np.prod(shape)).reshape(shape) % 5
    if datatype == "BOOL":
        return small % 2 == 1
    if datatype == "BYTES":
        return np.array([f"text {number} ä".encode() for number in small.flat], dtype=np.object_).reshape(shape)
    return small.astype(NUMBERS[datatype])


def alike(one, other):
    """Whether two answers are the same, to the bit."""
    return one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())


def triton(address, token):
    """Triton's own client, with its defaults."""
    import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException

    def refused(code, says, call):
        try:
            answer = call()
        except InferenceServerException as error:
            assert error.status() == f"StatusCode.{code}", error
            assert says in error.message(), f"{error.message()!r} does not say {says!r}"
        else:
            raise AssertionError(f"{says}: answered {answer}")

    client = triton.InferenceServerClient(address)
    assert client.is_server_live() and client.is_server_ready()
    about = client.get_server_metadata()
    assert about.name == "hotserve" and "statistics" in about.extensions, about
    index = client.get_model_repository_index().models
    assert any(model.state == "READY" for model in index), f"no model is ready: {index}"
    # The version before may be there too, behind the one that is served.
    served = list({model.name: model for model in reversed(index) if model.state == "READY"}.values())
    assert not client.is_model_ready("no-such-model")
    refused("NOT_FOUND", "no-such-model", lambda: client.get_model_metadata("no-such-model"))

    takes = set()
    for model in served:
        assert client.is_model_ready(model.name) and client.is_model_ready(model.name, model.version)
        metadata = client.get_model_metadata(model.name)
        assert model.version in metadata.versions, (model, metadata)
        inputs = {tensor.name: tensor for tensor in metadata.inputs}

        def question(datatypes, skip=()):
            asked = []
            for name, tensor in inputs.items():
                if name in skip:
                    continue
                datatype = datatypes.get(name, tensor.datatype)
                data = values(datatype, tensor.shape)
                asked.append(triton.InferInput(name, list(data.shape), datatype))
                asked[-1].set_data_from_numpy(data)
            return asked

        usual = client.infer(model.name, question({}), request_id="question 7")
        answer = usual.get_response()
        assert (answer.model_name, answer.model_version, answer.id) == (model.name, model.version, "question 7")
        names = [tensor.name for tensor in metadata.outputs]
        assert [output.name for output in answer.outputs] == names
        expected = {name: usual.as_numpy(name) for name in names}
        for tensor in metadata.outputs:
            assert expected[tensor.name].shape[0] == ROWS, (tensor, expected)

        for name, tensor in inputs.items():
            others = NUMBERS if tensor.datatype in NUMBERS else [tensor.datatype]
            for datatype in others:
                got = client.infer(model.name, question({name: datatype}))
                assert all(alike(got.as_numpy(output), expected[output]) for output in names), (model.name, datatype)
                takes.add(datatype)

        outputs = [triton.InferRequestedOutput(name) for name in reversed(names)]
        got = client.infer(model.name, question({}), outputs=outputs, model_version=model.version)
        assert [output.name for output in got.get_response().outputs] == names[::-1]
        for algorithm in ["gzip", "deflate"]:
            got = client.infer(model.name, question({}), compression_algorithm=algorithm)
            assert alike(got.as_numpy(names[0]), expected[names[0]]), algorithm
        later = Future()
        client.async_infer(
            model.name,
            question({}),
            callback=lambda result, error: later.set_exception(error) if error else later.set_result(result),
        )
        assert alike(later.result(timeout=30).as_numpy(names[0]), expected[names[0]])

        first = next(iter(inputs))
        wrong = "BYTES" if inputs[first].datatype != "BYTES" else "FP32"
        refused("NOT_FOUND", "no-such-model", lambda: client.infer("no-such-model", question({})))
        refused("NOT_FOUND", "9999999", lambda: client.infer(model.name, question({}), model_version="9999999"))
        refused("INVALID_ARGUMENT", wrong, lambda: client.infer(model.name, question({first: wrong})))
        refused("INVALID_ARGUMENT", "missing", lambda: client.infer(model.name, question({}, skip=[first])))
        nothing = [triton.InferRequestedOutput("no-such-output")]
        refused("INVALID_ARGUMENT", "no-such-output", lambda: client.infer(model.name, question({}), outputs=nothing))
        unshared = question({})
        unshared[0].set_shared_memory("region", 64)
        refused("UNIMPLEMENTED", "shared_memory", lambda: client.infer(model.name, unshared))
        refused("UNIMPLEMENTED", "sequence_id", lambda: client.infer(model.name, question({}), sequence_id=7))

        counted = client.get_inference_statistics(model.name).model_stats[0]
        assert counted.name == model.name and counted.inference_count >= ROWS, counted
        assert counted.inference_stats.success.count == counted.execution_count > 0, counted
        assert counted.inference_stats.fail.count > 0 and counted.last_inference > 0, counted

    assert len(client.get_inference_statistics().model_stats) >= len(served)
    refused("UNIMPLEMENTED", "ModelConfig", lambda: client.get_model_config(served[0].name))
    said = Future()
    client.start_stream(callback=lambda result, error: said.done() or said.set_result(error))
    # The stream may be refused before anything is asked on it.
    with contextlib.suppress(InferenceServerException):
        client.async_stream_infer(served[0].name, question({}))
    error = said.result(timeout=30)
    assert isinstance(error, InferenceServerException) and "ModelInfer" in error.message(), error
    client.stop_stream()

    name = served[0].name
    for command in [client.load_model, client.unload_model]:
        try:
            command(name)
        except InferenceServerException as error:
            assert error.status() in ["StatusCode.UNAUTHENTICATED", "StatusCode.PERMISSION_DENIED"], error
        else:
            raise AssertionError("anybody may load and unload")
    if token:
        headers = {"authorization": f"Bearer {token}"}
        client.unload_model(name, headers=headers)
        assert not client.is_model_ready(name)
        states = {model.name: model.state for model in client.get_model_repository_index().models}
        assert states.get(name) != "READY", states
        client.load_model(name, headers=headers)
        assert client.is_model_ready(name)
    client.close()
    print(f"tritonclient: passed, over {len(served)} models and {len(takes)} datatypes: {', '.join(sorted(takes))}")


def generated(address):
    """The client that is generated from the specification, with typed contents."""
    import grpc
    from open_inference.grpc import protocol
    from open_inference.grpc.service import GRPCInferenceServiceStub

    fields = {
        "BOOL": "bool_contents",
        "INT32": "int_contents",
        "INT64": "int64_contents",
        "FP32": "fp32_contents",
        "FP64": "fp64_contents",
        "BYTES": "bytes_contents",
    }
    with grpc.insecure_channel(address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        assert stub.ServerLive(protocol.ServerLiveRequest()).live
        assert stub.ServerReady(protocol.ServerReadyRequest()).ready
        assert stub.ServerMetadata(protocol.ServerMetadataRequest()).name == "hotserve"
        for name in sys.argv[3:]:
            assert stub.ModelReady(protocol.ModelReadyRequest(name=name)).ready
            metadata = stub.ModelMetadata(protocol.ModelMetadataRequest(name=name))
            request = protocol.ModelInferRequest(model_name=name, id="question 7")
            for tensor in metadata.inputs:
                data = values(tensor.datatype, tensor.shape)
                asked = request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=data.shape)
                getattr(asked.contents, fields[tensor.datatype]).extend(data.flatten().tolist())
            answer = stub.ModelInfer(request)
            assert (answer.model_name, answer.id) == (name, "question 7")
            assert not answer.raw_output_contents
            for output in answer.outputs:
                elements = getattr(output.contents, fields[output.datatype])
                assert len(elements) == np.prod(output.shape), (output, elements)
            try:
                stub.ModelInfer(protocol.ModelInferRequest(model_name=name))
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.INVALID_ARGUMENT and "missing" in error.details(), error
            else:
                raise AssertionError("inputs may be missing")
    print("open-inference-grpc: passed")


def standard(address):
    """The health service and reflection, of which clients know nothing but their names."""
    import grpc
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message_factory import GetMessageClass
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    with grpc.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ["", SERVICE]:
            asked = health_pb2.HealthCheckRequest(service=name)
            assert health.Check(asked).status == health_pb2.HealthCheckResponse.SERVING
            watch = health.Watch(asked)
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            watch.cancel()
        try:
            health.Check(health_pb2.HealthCheckRequest(service="no.Such"))
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.NOT_FOUND, error
        else:
            raise AssertionError("there is no such service")

        database = ProtoReflectionDescriptorDatabase(channel)
        services = database.get_services()
        assert SERVICE in services and "grpc.health.v1.Health" in services, services
        service = DescriptorPool(database).FindServiceByName(SERVICE)
        method = service.FindMethodByName("ServerMetadata")
        ask = channel.unary_unary(
            f"/{SERVICE}/{method.name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        assert ask(GetMessageClass(method.input_type)()).name == "hotserve"
    print("health and reflection: passed")


def models(address):
    """The names of the models that are ready."""
    import tritonclient.grpc as triton

    index = triton.InferenceServerClient(address).get_model_repository_index().models
    return sorted({model.name for model in index if model.state == "READY"})


def everything(address, token):
    """Each client in turn."""
    standard(address)
    triton(address, token)
    # Both clients bring the same messages, and Python takes them once a process.
    subprocess.run([sys.executable, __file__, address, "generated", *models(address)], check=True)


if __name__ == "__main__":
    if sys.argv[2:3] == ["generated"]:
        generated(sys.argv[1])
    elif sys.argv[1:]:
        everything(sys.argv[1].removeprefix("http://"), os.environ.get("HOTSERVE_ADMIN_TOKEN"))
    else:
        from oip_server import server

        with server() as running:
            everything(running.address, running.token)
