"""Records small neural nets beside ONNX Runtime's answers, for tests/neural.rs to compare with.

    <venv with numpy, onnx and onnxruntime>/bin/python record_neural.py

Each data/neural/<name>.onnx has its <name>.golden.json; <name>.refused.onnx are refused by name. Recorded with onnx 1.23
and onnxruntime 1.32; the weights are random, but the same in every run.
"""

import json
import math
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import TensorProto, checker, helper, numpy_helper

OUT = Path(__file__).parent / "data" / "neural"
OPSET = 17
rng = np.random.default_rng(23)
FLOAT, DOUBLE, INT64, INT32, BOOL = (getattr(TensorProto, name) for name in ("FLOAT", "DOUBLE", "INT64", "INT32", "BOOL"))


class Graph:
    """Nodes and weights as they are made; every call answers the name of its output."""

    def __init__(self):
        self.nodes, self.weights = [], []

    def weight(self, *shape, value=None, scale=None):
        if value is None:
            scale = scale if scale is not None else 1 / math.sqrt(shape[-2] if len(shape) > 1 else 4)
            value = (rng.normal(size=shape) * scale).astype(np.float32)
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def ints(self, *values):
        return self.weight(value=np.array(values, dtype=np.int64))

    def __call__(self, operator, *inputs, output=None, outputs=1, **attributes):
        names = [output or f"{operator.lower()}_{len(self.nodes)}_{i}" for i in range(outputs)]
        node = helper.make_node(operator, list(inputs), names, name=f"{operator}_{len(self.nodes)}", **attributes)
        self.nodes.append(node)
        return names[0] if outputs == 1 else names

    def save(self, name, inputs, outputs, check=True):
        values = lambda specs: [helper.make_tensor_value_info(n, kind, shape) for n, kind, shape in specs]
        graph = helper.make_graph(self.nodes, name, values(inputs), values(outputs), self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
        if check:
            checker.check_model(model, full_check=True)
        path = OUT / f"{name}.onnx"
        path.write_bytes(model.SerializeToString())
        return path


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    record(mlp("mlp", "N"), x=normal(12, 8))
    record(mlp("mlp_one_row", 1), x=normal(5, 8))
    record(cnn(), image=normal(6, 1, 12, 12))
    record(transformer(), tokens=rng.integers(0, 20, (6, 7)))
    record(gru(), x=normal(6, 5, 4))
    record(heads(), a=normal(6, 3), b=rng.integers(-9, 9, (6, 2)).astype(np.int32), keep=rng.random((6, 3)) < 0.5)
    refused()


def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)


def mlp(name, rows):
    g = Graph()
    x = g("Relu", g("Gemm", "x", g.weight(8, 32), g.weight(32)))
    x = g("Tanh", g("Add", g("MatMul", x, g.weight(32, 32)), g.weight(32)))
    x = g("LayerNormalization", x, g.weight(32), g.weight(32), axis=-1)
    g("Softmax", g("Gemm", x, g.weight(3, 32, scale=0.3), g.weight(3), transB=1), output="probabilities", axis=-1)
    return g.save(name, [("x", FLOAT, [rows, 8])], [("probabilities", FLOAT, [rows, 3])])


def cnn():
    g = Graph()
    conv = dict(kernel_shape=[3, 3], strides=[1, 1])
    x = g("Conv", "image", g.weight(4, 1, 3, 3, scale=0.4), g.weight(4), pads=[1, 1, 1, 1], **conv)
    mean, spread = g.weight(value=np.zeros(4, np.float32)), g.weight(value=np.ones(4, np.float32))
    x = g("Relu", g("BatchNormalization", x, g.weight(4), g.weight(4), mean, spread))
    x = g("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = g("Relu", g("Conv", x, g.weight(8, 4, 3, 3, scale=0.2), g.weight(8), **conv))
    x = g("Flatten", g("GlobalAveragePool", x))
    g("Gemm", x, g.weight(8, 5), g.weight(5), output="scores")
    return g.save("cnn", [("image", FLOAT, ["N", 1, 12, 12])], [("scores", FLOAT, ["N", 5])])


def transformer():
    """Tokens of any length, an embedding, one block of two heads, and the mean over the sequence."""
    g, width, heads = Graph(), 16, 2
    x = g("Gather", g.weight(20, width, scale=1.0), "tokens")
    normed = g("LayerNormalization", x, g.weight(width), g.weight(width), axis=-1)

    def split(transpose):
        projected = g("Add", g("MatMul", normed, g.weight(width, width)), g.weight(width))
        shape = g.ints(0, 0, heads, width // heads)
        return g("Transpose", g("Reshape", projected, shape), perm=transpose)

    query, key, value = split([0, 2, 1, 3]), split([0, 2, 3, 1]), split([0, 2, 1, 3])
    scores = g("Div", g("MatMul", query, key), g.weight(value=np.float32(math.sqrt(width // heads))))
    mixed = g("Transpose", g("MatMul", g("Softmax", scores, axis=-1), value), perm=[0, 2, 1, 3])
    x = g("Add", x, g("MatMul", g("Reshape", mixed, g.ints(0, 0, width)), g.weight(width, width)))
    normed = g("LayerNormalization", x, g.weight(width), g.weight(width), axis=-1)
    inner = g("MatMul", normed, g.weight(width, 32))
    # GELU, spelt out as exporters spell it.
    half, one = g.weight(value=np.float32(0.5)), g.weight(value=np.float32(1.0))
    erf = g("Erf", g("Div", inner, g.weight(value=np.float32(math.sqrt(2)))))
    inner = g("Mul", g("Mul", inner, g("Add", erf, one)), half)
    x = g("Add", x, g("MatMul", inner, g.weight(32, width)))
    pooled = g("ReduceMean", x, axes=[1], keepdims=0)
    g("Sigmoid", g("MatMul", pooled, g.weight(width, 2)), output="scores")
    return g.save("transformer", [("tokens", INT64, ["N", "length"])], [("scores", FLOAT, ["N", 2])])


def gru():
    g, hidden = Graph(), 6
    x = g("Transpose", "x", perm=[1, 0, 2])
    weights = g.weight(1, 3 * hidden, 4, scale=0.5), g.weight(1, 3 * hidden, hidden, scale=0.5), g.weight(1, 6 * hidden)
    _, last = g("GRU", x, *weights, hidden_size=hidden, linear_before_reset=1, outputs=2)
    g("MatMul", g("Squeeze", last, g.ints(0)), g.weight(hidden, 2), output="y")
    return g.save("gru", [("x", FLOAT, ["N", 5, 4])], [("y", FLOAT, ["N", 2])])


def heads():
    """Several inputs and outputs of several datatypes."""
    g = Graph()
    both = g("Concat", g("Where", "keep", "a", g.weight(value=np.zeros(3, np.float32))), g("Cast", "b", to=FLOAT), axis=1)
    hidden = g("LeakyRelu", g("MatMul", both, g.weight(5, 4)))
    g("ReduceSum", hidden, g.ints(1), output="sum", keepdims=0)
    g("ArgMax", hidden, output="class", axis=1, keepdims=0)
    g("Greater", hidden, g.weight(value=np.zeros(4, np.float32)), output="positive")
    return g.save(
        "heads",
        [("a", FLOAT, ["N", 3]), ("b", INT32, ["N", 2]), ("keep", BOOL, ["N", 3])],
        [("sum", FLOAT, ["N"]), ("class", INT64, ["N"]), ("positive", BOOL, ["N", 4])],
    )


def refused():
    x, y = [("x", FLOAT, ["N", 3])], [("y", FLOAT, ["N", 3])]

    def one(name, inputs, outputs, *node, check=True, **attributes):
        g = Graph()
        g(*node, output=outputs[0][0], **attributes)
        g.save(f"{name}.refused", inputs, outputs, check=check)

    one("rows_mixed", x, y, "Softmax", "x", axis=0)
    one("rows_lost", x, [("y", FLOAT, [1, 3])], "ReduceMean", "x", axes=[0])
    one("four_rows", [("x", FLOAT, [4, 3])], [("y", FLOAT, [4, 3])], "Relu", "x")
    one("double", [("x", DOUBLE, ["N", 3])], [("y", DOUBLE, ["N", 3])], "Sqrt", "x")
    one("text", [("x", TensorProto.STRING, ["N", 3])], [("y", TensorProto.STRING, ["N", 3])], "Identity", "x")
    one("scalar", [("x", FLOAT, [])], [("y", FLOAT, [])], "Relu", "x")
    one("operator", x, y, "Det", "x", check=False)
    one("random", x, y, "RandomNormalLike", "x")

    # rten wants the strides that PyTorch writes; the standard's default is 1.
    g = Graph()
    g("Conv", "x", g.weight(1, 1, 3, 3), output="y")
    g.save("conv.refused", [("x", FLOAT, ["N", 1, 5, 5])], [("y", FLOAT, ["N", 1, 3, 3])])

    g = Graph()
    weight = g.weight(3, 3)
    g("MatMul", "x", weight, output="y")
    tensor = g.weights[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "weights.bin"
    g.save("external.refused", x, y, check=False)


def record(path, **inputs):
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    if session.get_inputs()[0].shape[0] == 1:
        rows = len(next(iter(inputs.values())))
        answers = [session.run(None, {name: x[i : i + 1] for name, x in inputs.items()}) for i in range(rows)]
        answers = [np.concatenate(parts) for parts in zip(*answers)]
    else:
        answers = session.run(None, inputs)
    outputs = dict(zip((output.name for output in session.get_outputs()), answers))
    case = {"inputs": lists(inputs), "outputs": lists(outputs), "tolerance": 1e-5}
    path.with_suffix(".golden.json").write_text(json.dumps({"cases": [case]}, separators=(",", ":")) + "\n")


def lists(tensors):
    # The shortest digits that are the same float: str of a float32.
    one = lambda x: float(str(x)) if isinstance(x, np.floating) else x.item()
    every = lambda x: [every(item) for item in x] if isinstance(x, np.ndarray) else one(x)
    return {name: every(tensor) for name, tensor in tensors.items()}


if __name__ == "__main__":
    main()
