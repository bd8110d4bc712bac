"""The Open Inference Protocol over REST, as three clients speak it with their defaults."""

import asyncio

import numpy as np
import tritonclient.http as triton
from kserve import InferInput, InferRequest, InferenceRESTClient, RESTConfig
from open_inference.openapi.client import OpenInferenceClient
from open_inference.openapi.core.api_error import ApiError
from open_inference.openapi.errors import NotFoundError
from open_inference.openapi.types.inference_request import InferenceRequest
from tritonclient.utils import InferenceServerException

from oip_server import server
from support import IRIS, ROOT, until

ROWS = 3
# What each input of the mirror is given: the wire's datatype and numbers that it holds.
NUMBERS = {
    "BOOL": ("bool", np.bool_),
    "UINT8": ("int64", np.uint8),
    "UINT16": ("int32", np.uint16),
    "UINT32": ("int64", np.uint32),
    "UINT64": ("fp64", np.uint64),
    "INT8": ("int32", np.int8),
    "INT16": ("fp32", np.int16),
    "INT32": ("int32", np.int32),
    "INT64": ("int64", np.int64),
    "FP16": ("fp32", np.float16),
    "FP32": ("fp32", np.float32),
    "FP64": ("fp64", np.float64),
}
OUT = {"bool": np.bool_, "int32": np.int32, "int64": np.int64, "fp32": np.float32, "fp64": np.float64}


def defaults():
    """Every input of the mirror, with something in it."""
    values = {name: np.arange(ROWS * 2).reshape(ROWS, 2).astype(kind) for name, kind in OUT.items()}
    values["text"] = np.array([["a", "ü"], ["", "\n"], ["\U0001f33a", "x" * 1000]], dtype=np.object_)
    return values


WIRE = {"bool": "BOOL", "int32": "INT32", "int64": "INT64", "fp32": "FP32", "fp64": "FP64", "text": "BYTES"}


def inputs(values, binary, **others):
    """Triton's inputs; `others` are given in another datatype than the model's."""
    made = []
    for name, value in values.items():
        datatype = others.get(name, WIRE[name])
        one = triton.InferInput(name, value.shape, datatype)
        one.set_data_from_numpy(value, binary_data=binary)
        made.append(one)
    return made


def same(result, values):
    for name, value in values.items():
        got = result.as_numpy(f"{name}_out")
        if name == "text":
            got = np.array([[x.decode() if isinstance(x, bytes) else x for x in row] for row in got], dtype=np.object_)
        else:
            assert got.dtype == OUT[name], (name, got.dtype)
        assert np.array_equal(got, value.astype(got.dtype)), (name, got, value)


def fails(expected, call, *arguments, **options):
    """The client's own exception, with our message."""
    try:
        call(*arguments, **options)
    except InferenceServerException as error:
        assert expected in error.message(), error
        return
    raise AssertionError(f"no exception that says {expected!r}")


def with_triton(running):
    client = triton.InferenceServerClient(running.address)
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("mirror") and client.is_model_ready("mirror", "1")
    assert not client.is_model_ready("mirror", "2") and not client.is_model_ready("nobody")
    assert client.get_server_metadata()["name"] == "hotserve"
    metadata = client.get_model_metadata("mirror")
    assert metadata["versions"] == ["1"], metadata
    assert [one["datatype"] for one in metadata["inputs"]] == list(WIRE.values()), metadata
    assert {tuple(one["shape"]) for one in metadata["inputs"]} == {(-1, 2)}, metadata

    values = defaults()
    for binary in (True, False):
        same(client.infer("mirror", inputs(values, binary)), values)
        asked = [triton.InferRequestedOutput(f"{name}_out", binary_data=binary) for name in reversed(values)]
        same(client.infer("mirror", inputs(values, not binary), outputs=asked), values)
    for algorithm in ("gzip", "deflate"):
        options = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
        for binary in (True, False):
            same(client.infer("mirror", inputs(values, binary), **options), values)
    for datatype, (name, kind) in NUMBERS.items():
        for binary in (True, False):
            changed = values | {name: np.array([[0, 1], [1, 0], [1, 1]]).astype(kind)}
            same(client.infer("mirror", inputs(changed, binary, **{name: datatype})), changed)
    brain = triton.InferInput("fp32", [ROWS, 2], "BF16")
    brain.set_data_from_numpy(values["fp32"].astype(triton_bf16()))
    same(client.infer("mirror", inputs({k: v for k, v in values.items() if k != "fp32"}, True) + [brain]), values)
    result = client.infer("mirror", inputs(values, True), model_version="1", request_id="mine", priority=3, timeout=5)
    assert result.get_response()["id"] == "mine" and result.get_response()["model_version"] == "1"
    pending = [client.async_infer("mirror", inputs(values, True)) for _ in range(4)]
    for one in pending:
        same(one.get_result(), values)
    row = triton.InferInput("input", [1, 4], "FP32").set_data_from_numpy(np.array([IRIS], dtype=np.float32))
    assert client.infer("iris", [row]).as_numpy("label")[0] in (b"setosa", "setosa"), "the sample"

    fails("no model \"nobody\"", client.infer, "nobody", inputs(values, True))
    fails("no version \"7\" here", client.infer, "mirror", inputs(values, True), model_version="7")
    fails("input \"bool\" is missing", client.infer, "mirror", inputs(values, True)[1:])
    wrong = values | {"int32": np.array([[1, 2], [3, 4], [5, 2**40]], dtype=np.int64)}
    told = "input \"int32\": element 5: expected a whole number that INT32 can hold, got 1099511627776"
    fails(told, client.infer, "mirror", inputs(wrong, True, int32="INT64"))
    fails("sequence_id", client.infer, "mirror", inputs(values, True), sequence_id=7)
    fails("no output \"what\"", client.infer, "mirror", inputs(values, True), outputs=[triton.InferRequestedOutput("what")])
    fails("nothing at this path", client.get_model_config, "mirror")

    statistics = client.get_inference_statistics("mirror")["model_stats"][0]
    assert statistics["inference_count"] > 30 * ROWS and statistics["last_inference"] > 0, statistics
    assert statistics["inference_stats"]["success"]["ns"] > 0 and statistics["inference_stats"]["fail"]["count"] > 2
    assert len(client.get_inference_statistics()["model_stats"]) >= 3

    index = {row["name"]: row for row in client.get_model_repository_index()}
    assert index["mirror"] == {"name": "mirror", "version": "1", "state": "READY", "reason": ""}, index
    fails("Authorization: Bearer", client.unload_model, "mirror")
    fails("not the server's token", client.load_model, "mirror", headers={"Authorization": "Bearer wrong"})
    bearer = {"Authorization": f"Bearer {running.token}"}
    client.unload_model("mirror", headers=bearer)
    assert not client.is_model_ready("mirror")
    fails("no model \"mirror\"", client.infer, "mirror", inputs(values, True))
    index = {row["name"]: row for row in client.get_model_repository_index()}
    assert index["mirror"]["state"] == "UNAVAILABLE" and "load" in index["mirror"]["reason"], index
    fails("load takes no parameters", client.load_model, "mirror", headers=bearer, config="{}")
    client.load_model("mirror", headers=bearer)
    same(client.infer("mirror", inputs(values, True)), values)
    fails("no model nobody", client.load_model, "nobody", headers=bearer)
    client.close()


def triton_bf16():
    import ml_dtypes

    return ml_dtypes.bfloat16


async def with_kserve(running):
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    assert await client.is_server_live(running.url) and await client.is_server_ready(running.url)
    assert await client.is_model_ready(running.url, "iris") and not await client.is_model_ready(running.url, "nobody")
    answers = []
    for binary in (False, True):
        one = InferInput(name="input", shape=[1, 4], datatype="FP32")
        one.set_data_from_numpy(np.array([IRIS], dtype=np.float32), binary_data=binary)
        asked = InferRequest(model_name="iris", infer_inputs=[one], request_id="mine")
        answer = await client.infer(running.url, asked, model_name="iris")
        assert answer.id == "mine" and answer.model_name == "iris"
        answers.append({output.name: output.as_numpy().tolist() for output in answer.outputs})
    assert answers[0] == answers[1] and len(answers[0]) == 2, answers
    bare = InferRequest(model_name="iris", infer_inputs=[one])
    assert (await client.infer(running.url, bare, model_name="iris")).id
    try:
        await client.infer(running.url, InferRequest(model_name="nobody", infer_inputs=[one]), model_name="nobody")
    except Exception as error:
        assert "404" in str(error), error
    else:
        raise AssertionError("a model that is not there answers")
    await client.close()


def with_generated(running):
    client = OpenInferenceClient(base_url=running.url)
    client.check_server_liveness()
    client.check_server_readiness()
    client.check_model_version_readiness("iris", "1")
    client.check_model_readiness("iris")
    assert client.read_server_metadata().name == "hotserve"
    assert client.read_model_version_metadata("mirror", "1").inputs[0].datatype == "BOOL"

    def ask(model, version, **values):
        given = [
            {"name": name, "shape": [len(value), len(value[0])], "datatype": WIRE.get(name, "FP32"), "data": value}
            for name, value in values.items()
        ]
        return client.model_version_infer(model, version, request=InferenceRequest.parse_obj({"id": "mine", "inputs": given}))

    answer = ask("iris", "1", input=[IRIS])
    assert answer.id == "mine" and answer.outputs[1].data.__root__ == ["setosa"], answer
    # This client has no whole numbers and no booleans: it sends them as floats.
    values = {"bool": [[True, False]], "int32": [[1, 2]], "int64": [[3, 4]], "fp32": [[0.5, 6]], "fp64": [[7, 8]]}
    answer = ask("mirror", "1", **values, text=[["a", "b"]])
    data = {output.name: output.data.__root__ for output in answer.outputs}
    assert data["int64_out"] == [3, 4] and data["text_out"] == ["a", "b"], data
    for wrong, status, expected in (("nobody", 404, "no model"), ("mirror", 400, "no input \"input\"")):
        try:
            ask(wrong, "1", input=[IRIS])
        except ApiError as told:
            message = told.body["error"] if isinstance(told.body, dict) else told.body.error
            assert told.status_code == status and expected in message, told
        else:
            raise AssertionError(f"no error {status}")
    try:
        client.check_model_version_readiness("iris", "9")
    except NotFoundError:
        return
    raise AssertionError("a version that is not there is ready")


with server() as running:
    with_triton(running)
    print("  tritonclient.http: passed")
    asyncio.run(with_kserve(running))
    print("  kserve: passed")
    with_generated(running)
    print("  open-inference-openapi: passed")
    running.publish("model", f"{ROOT}/models/samples/iris/retrained.json", "--name", "iris", "--version", "2")
    client = triton.InferenceServerClient(running.address)
    until("version 2", lambda: client.get_model_metadata("iris")["versions"] == ["2", "1"])
    row = triton.InferInput("input", [1, 4], "FP32").set_data_from_numpy(np.array([IRIS], dtype=np.float32))
    old, new = (client.infer("iris", [row], model_version=version) for version in ("1", "2"))
    assert (old.get_response()["model_version"], new.get_response()["model_version"]) == ("1", "2")
    assert old.as_numpy("probabilities").tolist() != new.as_numpy("probabilities").tolist(), "the retrained one"
    print("  the version before, while it is warm: passed")
print("oip: passed")
