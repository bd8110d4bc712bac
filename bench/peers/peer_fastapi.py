"""FastAPI with ONNX Runtime, as its users are told to make it fast: no validation models, orjson, one thread a session,
as many workers as processors. MODELS names the folder."""

import os

import numpy as np
import onnxruntime
import orjson
from fastapi import FastAPI, Request, Response

app = FastAPI()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.inter_op_num_threads = 1
sessions = {
    name: onnxruntime.InferenceSession(f"{os.environ['MODELS']}/{name}.onnx", options, ["CPUExecutionProvider"])
    for name in ("trees", "iris")
}
OUTPUTS = {"trees": ["probabilities"], "iris": ["probabilities"]}
COLUMN = {"trees": 1, "iris": slice(None)}


@app.get("/state")
async def state():
    return Response(b'{"state":0}', media_type="application/json")


@app.post("/predict/{name}")
async def predict(name: str, request: Request):
    rows = np.array(orjson.loads(await request.body())["instances"], dtype=np.float32)
    answer = sessions[name].run(OUTPUTS[name], {"input": rows})[0][:, COLUMN[name]]
    body = {"predictions": np.ascontiguousarray(answer), "model": {"name": name, "version": 1}}
    return Response(orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")
