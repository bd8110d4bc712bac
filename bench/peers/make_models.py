"""The models and the rows of the bench, into the folder that is the argument.

trees.ubj and retrained.ubj: XGBoost, 500 trees of depth 6 over 28 features. trees.onnx: the first of them as ONNX, for
peers that run ONNX Runtime. iris.onnx: the linear sample of hotserve as ONNX. net.onnx: a neural net of three layers,
2048 wide. rows.json: rows to ask for.
"""

import json
import sys
from pathlib import Path

import numpy as np
import xgboost as xgb
from onnx import TensorProto, helper, numpy_helper
from onnxmltools.convert import convert_xgboost
from onnxmltools.convert.common.data_types import FloatTensorType

OUT = Path(sys.argv[1])
SAMPLE = Path(__file__).resolve().parents[2] / "models" / "samples" / "iris" / "model.json"
rng = np.random.default_rng(5)


def main():
    X = rng.normal(size=(20_000, 28)).astype(np.float32)
    score = X[:, 0] * X[:, 1] + np.sin(X[:, 2]) + 0.5 * (X[:, 3] > 0.3) * X[:, 4] + rng.normal(scale=0.7, size=len(X))
    y = (score > 0).astype(int)
    for name, seed in [("retrained", 2), ("trees", 1)]:
        # One thread: it is as fast on a small machine, and on a busy one far faster.
        shape = dict(n_estimators=500, max_depth=6, learning_rate=0.05, subsample=0.8)
        booster = xgb.XGBClassifier(**shape, random_state=seed, n_jobs=1)
        path = OUT / f"{name}.ubj"
        if path.exists():
            booster.load_model(path)
        else:
            booster.fit(X, y)
            booster.save_model(path)
    onnx = convert_xgboost(booster, initial_types=[("input", FloatTensorType([None, 28]))], target_opset=15)
    (OUT / "trees.onnx").write_bytes(onnx.SerializeToString())

    sample = json.loads(SAMPLE.read_text())
    weights = np.array(sample["coefficients"], dtype=np.float32).T
    save("net", net())
    nodes = [
        helper.make_node("Gemm", ["input", "weights", "intercepts"], ["margins"]),
        helper.make_node("Softmax", ["margins"], ["probabilities"], axis=-1),
    ]
    constants = [
        numpy_helper.from_array(weights, "weights"),
        numpy_helper.from_array(np.array(sample["intercepts"], dtype=np.float32), "intercepts"),
    ]
    save("iris", helper.make_graph(nodes, "iris", [value("input", len(weights))], [value("probabilities", 3)], constants))

    rows = rng.normal(size=(512, 28)).astype(np.float32).round(4)
    iris = rng.uniform(0.5, 7.5, size=(512, 4)).astype(np.float32).round(1)
    lists = lambda rows: [[float(str(x)) for x in row] for row in rows]
    expected = booster.predict_proba(rows[:1])[0, 1]
    answers = {"trees": lists(rows), "iris": lists(iris), "expected": float(expected)}
    (OUT / "rows.json").write_text(json.dumps(answers))


def net(width=2048):
    nodes, constants, layer = [], [], "input"
    for at, (inputs, outputs) in enumerate([(28, width), (width, width), (width, 1)]):
        weights = (rng.normal(size=(inputs, outputs)) / np.sqrt(inputs)).astype(np.float32)
        constants.append(numpy_helper.from_array(weights, f"weights{at}"))
        nodes.append(helper.make_node("MatMul", [layer, f"weights{at}"], [f"sum{at}"]))
        layer = f"layer{at}" if outputs > 1 else "score"
        nodes.append(helper.make_node("Relu" if outputs > 1 else "Sigmoid", [f"sum{at}"], [layer]))
        if at == 0:
            # What hotserve has no step of its own for: the net goes to its engine for nets.
            constants += [numpy_helper.from_array(np.full(outputs, x, np.float32), name) for name, x in (("scale", 1), ("shift", 0))]
            nodes.append(helper.make_node("LayerNormalization", [layer, "scale", "shift"], ["normal"]))
            layer = "normal"
    return helper.make_graph(nodes, "net", [value("input", 28)], [value("score", 1)], constants)


def value(name, width):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, width])


def save(name, graph):
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (OUT / f"{name}.onnx").write_bytes(model.SerializeToString())


main()
