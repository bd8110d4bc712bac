"""Records small ONNX models beside ONNX Runtime's own answers, for tests/onnx.rs to compare with.

    <venv with scikit-learn 1.9, skl2onnx 1.20, onnxmltools 1.16, xgboost 3.2, lightgbm 4.7, onnxruntime 1.32, pandas>/bin/python record_onnx.py

Each data/onnx/<name>.onnx has its <name>.golden.json. One thread, so that sums are made in one order.
"""

import json
import warnings
from pathlib import Path

import lightgbm
import numpy as np
import onnx
import onnxmltools
import onnxruntime
import pandas as pd
import xgboost
from onnx import TensorProto, helper
from onnxmltools.convert.common.data_types import FloatTensorType as MlFloat
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import *
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import SimpleImputer
from sklearn.linear_model import *
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import *
from sklearn.svm import SVC, SVR, LinearSVC
from sklearn.tree import DecisionTreeClassifier
from skl2onnx import to_onnx
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, Int64TensorType, StringTensorType

warnings.filterwarnings("ignore")
OUT = Path(__file__).parent / "data" / "onnx"
rng = np.random.default_rng(17)

X = rng.normal(size=(300, 4)).astype(np.float32)
signal = X[:, 0] + 0.5 * X[:, 1] ** 2 - X[:, 2] + 0.1 * rng.normal(size=300)
binary = (signal > np.median(signal)).astype(int)
three = np.digitize(signal, np.quantile(signal, [1 / 3, 2 / 3]))
words = np.array(["low", "mid", "high"])[three]
FAR = np.array(
    [[np.nan] * 4, [np.inf] * 4, [-np.inf] * 4, [0.0] * 4, [-0.0] * 4, [1e30, -0.5, 0.25, 2.0], [np.nan, 0.5, np.nan, -1.0]],
    dtype=np.float32,
)
DATA = 20


def main():
    # skl2onnx writes the attributes of some ensembles as arrays, which newer versions of onnx do not take.
    make_attribute = helper.make_attribute

    def lists(key, value, *more, **named):
        value = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
        if isinstance(value, list):
            value = [item.item() if isinstance(item, np.generic) else item for item in value]
            value = [int(item) if isinstance(item, bool) else item for item in value]
        return make_attribute(key, value, *more, **named)

    helper.make_attribute = lists
    OUT.mkdir(parents=True, exist_ok=True)
    sklearn("logistic", LogisticRegression(), binary)
    sklearn("logistic_words", LogisticRegression(), words)
    sklearn("logistic_three", LogisticRegression(), three, nozip=True)
    sklearn("one_vs_rest", SGDClassifier(loss="log_loss", random_state=1), three)
    sklearn("linear", LinearRegression(), signal)
    sklearn("linear_targets", LinearRegression(), np.c_[signal, -signal])
    sklearn("linear_svc", LinearSVC(), three)
    sklearn("tree_words", DecisionTreeClassifier(max_depth=4, random_state=1), words)
    sklearn("forest", RandomForestClassifier(6, max_depth=4, random_state=1), binary)
    sklearn("forest_old", RandomForestClassifier(6, max_depth=4, random_state=1), three, opset={"": 10, "ai.onnx.ml": 1})
    sklearn("forest_words", RandomForestClassifier(6, max_depth=4, random_state=1), words)
    sklearn("forest_regressor", RandomForestRegressor(6, max_depth=4, random_state=1), signal)
    sklearn("forest_targets", RandomForestRegressor(5, max_depth=3, random_state=1), np.c_[signal, -signal])
    sklearn("extra_trees", ExtraTreesClassifier(5, max_depth=4, random_state=1), three)
    sklearn("boosting", GradientBoostingClassifier(n_estimators=10, random_state=1), binary)
    sklearn("boosting_three", GradientBoostingClassifier(n_estimators=6, random_state=1), three)
    sklearn("boosting_regressor", GradientBoostingRegressor(n_estimators=10, random_state=1), signal)
    sklearn("linear_double", make_pipeline(StandardScaler(), Ridge()), signal, kind=DoubleTensorType)
    sklearn("hist", HistGradientBoostingClassifier(max_iter=8, random_state=1), binary, gaps=True)
    sklearn("hist_three", HistGradientBoostingClassifier(max_iter=5, random_state=1), three, gaps=True)
    sklearn("hist_regressor", HistGradientBoostingRegressor(max_iter=8, random_state=1), signal, gaps=True)
    sklearn("ada", AdaBoostClassifier(n_estimators=4, random_state=1), three)
    sklearn("bagging", BaggingClassifier(n_estimators=3, random_state=1), binary)
    both = [("a", LogisticRegression()), ("b", RandomForestClassifier(3, max_depth=3, random_state=1))]
    sklearn("voting", VotingClassifier(both, voting="soft", flatten_transform=False), words)
    sklearn("voting_hard", VotingClassifier(both, voting="hard", flatten_transform=False), three)
    sklearn("stacking", StackingClassifier(both), binary)
    sklearn("calibrated", CalibratedClassifierCV(LogisticRegression(), cv=2), binary)
    sklearn("svc", SVC(), binary)
    sklearn("svc_three", SVC(kernel="poly"), three)
    sklearn("svc_probability", SVC(probability=True, random_state=1), three)
    sklearn("svr", SVR(), signal)
    sklearn("mlp", MLPClassifier((8,), max_iter=60, random_state=1), three)
    sklearn("mlp_binary", MLPClassifier((6, 4), activation="tanh", max_iter=60, random_state=1), binary)
    sklearn("mlp_regressor", MLPRegressor(hidden_layer_sizes=(8,), activation="logistic", max_iter=60, random_state=1), signal)
    sklearn("scalers", make_pipeline(MinMaxScaler(clip=True), RobustScaler(), StandardScaler(), Ridge()), signal)
    sklearn("normalizer", make_pipeline(SimpleImputer(), Normalizer(), Ridge()), signal, gaps=True)
    sklearn("normalizer_l1", make_pipeline(MaxAbsScaler(), Normalizer("l1"), Ridge()), signal)
    sklearn("binarizer", make_pipeline(Binarizer(threshold=0.2), Ridge()), signal, far=FAR[1:6])
    sklearn("bins", make_pipeline(KBinsDiscretizer(4, encode="onehot-dense", quantile_method="averaged_inverted_cdf"), LogisticRegression()), binary)
    sklearn("polynomial", make_pipeline(PolynomialFeatures(2), Ridge()), signal)
    frames()
    boosters()
    by_hand()
    total = sum(path.stat().st_size for path in OUT.iterdir())
    print(len(list(OUT.glob("*.onnx"))), "models,", total, "bytes")


def sklearn(name, model, y, opset=None, kind=FloatTensorType, nozip=False, gaps=False, far=FAR):
    data = X.copy()
    if gaps:
        data[rng.random(X.shape) < 0.2] = np.nan
    model.fit(data, y)
    last = model.steps[-1][1] if isinstance(model, Pipeline) else model
    options = {id(last): {"zipmap": False}} if nozip else None
    exported = attempt(name, lambda: to_onnx(model, initial_types=[("X", kind([None, 4]))], options=options, target_opset=opset))
    if exported is not None:
        rows = np.vstack([data[:DATA], far])
        record(name, exported, {"X": rows.astype(np.float64) if kind is DoubleTensorType else rows})


def frames():
    frame = pd.DataFrame({"age": X[:, 0], "fare": X[:, 1]})
    frame["port"] = rng.choice(["Southampton", "Cherbourg", "Queenstown"], 300)
    frame["sex"] = rng.choice(["female", "male"], 300)
    frame["rooms"] = rng.integers(0, 5, 300)
    frame.loc[rng.random(300) < 0.1, "age"] = np.nan
    y = ((X[:, 1] > 0) ^ (frame.sex == "male")).astype(int)
    numbers = Pipeline([("impute", SimpleImputer(strategy="median")), ("scale", StandardScaler())])
    rows = {
        "age": np.r_[X[:DATA, 0], [np.nan, np.inf, 0.0]].astype(np.float32),
        "fare": np.r_[X[:DATA, 1], [0.5, -1.0, np.nan]].astype(np.float32),
        "port": np.r_[frame.port[:DATA].to_numpy(), ["Cherbourg", "nowhere", ""]].astype(object),
        "sex": np.r_[frame.sex[:DATA].to_numpy(), ["other", "male", "female"]].astype(object),
        "rooms": np.r_[frame.rooms[:DATA].to_numpy(), [99, -1, 2]].astype(np.int64),
    }
    kinds = {"age": FloatTensorType, "fare": FloatTensorType, "port": StringTensorType, "sex": StringTensorType, "rooms": Int64TensorType}

    def pipeline(name, texts, model, columns=("age", "fare", "port", "sex"), target=y, known=False):
        steps = [("numbers", numbers, ["age", "fare"]), ("texts", texts, ["port", "sex"])]
        if "rooms" in columns:
            steps.append(("rooms", OneHotEncoder(handle_unknown="ignore"), ["rooms"]))
        pipe = Pipeline([("columns", ColumnTransformer(steps)), ("model", model)]).fit(frame[list(columns)], target)
        types = [(column, kinds[column]([None, 1])) for column in columns]
        exported = attempt(name, lambda: to_onnx(pipe, initial_types=types))
        if exported is not None:
            count = DATA if known else None
            record(name, exported, {column: rows[column][:count].reshape(-1, 1) for column in columns})

    one_hot = OneHotEncoder(handle_unknown="ignore")
    pipeline("frame", one_hot, LogisticRegression())
    pipeline("frame_boosting", one_hot, GradientBoostingClassifier(n_estimators=8, random_state=1))
    pipeline("frame_rooms", one_hot, LogisticRegression(), columns=("age", "fare", "port", "sex", "rooms"))
    pipeline("frame_words", one_hot, LogisticRegression(), target=np.where(y, "yes", "no"))
    pipeline("frame_strict", OneHotEncoder(), LogisticRegression(), known=True)
    pipeline("frame_ordinal", OrdinalEncoder(), RandomForestClassifier(4, max_depth=4, random_state=1), known=True)
    ordinal = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    pipeline("frame_ordinal_unknown", ordinal, RandomForestClassifier(4, max_depth=4, random_state=1))
    imputed = Pipeline([("impute", SimpleImputer(strategy="most_frequent")), ("one_hot", one_hot)])
    pipeline("frame_imputed", imputed, LogisticRegression())


def boosters():
    gaps = X.copy()
    gaps[rng.random(X.shape) < 0.2] = np.nan
    types = [("X", MlFloat([None, 4]))]
    rows = np.vstack([gaps[:DATA], FAR])
    for name, model, y in [
        ("xgboost", xgboost.XGBClassifier(n_estimators=8, max_depth=4, n_jobs=1), binary),
        ("xgboost_three", xgboost.XGBClassifier(n_estimators=5, max_depth=3, n_jobs=1), three),
        ("xgboost_regressor", xgboost.XGBRegressor(n_estimators=8, max_depth=4, n_jobs=1), signal),
    ]:
        model.fit(gaps, y)
        exported = attempt(name, lambda: onnxmltools.convert_xgboost(model, initial_types=types, target_opset=15))
        if exported is not None:
            record(name, exported, {"X": rows})
    for name, model, y in [
        ("lightgbm", lightgbm.LGBMClassifier(n_estimators=8, n_jobs=1, verbose=-1), binary),
        ("lightgbm_three", lightgbm.LGBMClassifier(n_estimators=5, n_jobs=1, verbose=-1), three),
        ("lightgbm_regressor", lightgbm.LGBMRegressor(n_estimators=8, n_jobs=1, verbose=-1), signal),
    ]:
        model.fit(gaps, y)
        exported = attempt(name, lambda: onnxmltools.convert_lightgbm(model, initial_types=types, target_opset=15))
        if exported is not None:
            record(name, exported, {"X": rows})


def by_hand():
    """What no exporter at hand writes, or only an old one."""
    rows = np.array([[0.0], [0.5], [1.0], [np.nan], [np.inf], [-np.inf], [-0.0]], dtype=np.float32)
    transforms = ["NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO", "PROBIT"]
    stump = {
        "nodes_treeids": [0, 0, 0],
        "nodes_nodeids": [0, 1, 2],
        "nodes_featureids": [0, 0, 0],
        "nodes_values": [0.5, 0.0, 0.0],
        "nodes_truenodeids": [1, 0, 0],
        "nodes_falsenodeids": [2, 0, 0],
    }
    # Every mode, and both ways of missing values.
    for mode in ["LEQ", "LT", "GTE", "GT", "EQ", "NEQ"]:
        nodes, outputs = [], []
        for missing in [0, 1]:
            for at, threshold in enumerate([0.5, 0.0, np.inf]):
                more = {"nodes_values": [threshold, 0.0, 0.0], "nodes_missing_value_tracks_true": [missing, 0, 0]}
                tree = stump | more | {"nodes_modes": [f"BRANCH_{mode}", "LEAF", "LEAF"]}
                weights = {"target_treeids": [0, 0], "target_nodeids": [1, 2], "target_ids": [0, 0], "target_weights": [1.0, 2.0]}
                outputs.append((f"y{missing}{at}", TensorProto.FLOAT))
                nodes.append(ml("TreeEnsembleRegressor", ["X"], [outputs[-1][0]], n_targets=1, **tree, **weights))
        record(f"mode_{mode.lower()}", graph(nodes, outputs), {"X": rows})

    # Every transform of every kind of ensemble.
    for transform in transforms:
        nodes, outputs = [], []
        tree = stump | {"nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"]}
        for kind, ids, weights in [
            ("positive", [0], [0.3, 0.8]),
            ("mixed", [0], [-0.3, 0.8]),
            ("second", [1], [0.3, 0.8]),
            ("second_mixed", [1], [-0.3, 0.8]),
            ("both", [0, 1], [0.7, 0.3, 0.2, 0.8]),
            ("three", [0, 1, 2], [0.7, -0.3, 0.1, -0.2, 0.8, 0.3]),
            ("lonely", [1], [0.7, -0.2]),
        ]:
            labels = [5, 7, 9] if kind in ("three", "lonely") else [5, 7]
            if transform == "PROBIT" and len(labels) == 2:
                continue
            for base in [[], [0.1], [0.1, 0.2], [0.1, 0.2, 0.3]]:
                if len(base) not in (0, len(labels)) and not (len(base) == 1 and len(labels) == 2):
                    continue
                more = {"base_values": base} if base else {}
                name = f"{kind}{len(base)}"
                outputs += [(f"label_{name}", TensorProto.INT64), (f"scores_{name}", TensorProto.FLOAT)]
                entries = len(ids)
                more |= {"class_treeids": [0] * 2 * entries, "class_nodeids": [1] * entries + [2] * entries}
                more |= {"class_ids": ids * 2, "class_weights": weights, "classlabels_int64s": labels}
                nodes.append(ml("TreeEnsembleClassifier", ["X"], [outputs[-2][0], outputs[-1][0]], post_transform=transform, **tree, **more))
        two = {key: value + value[:1] for key, value in tree.items()} | {"nodes_treeids": [0, 0, 0, 1]}
        two |= {"nodes_nodeids": [0, 1, 2, 0], "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF", "LEAF"]}
        for aggregate in ["SUM", "AVERAGE", "MIN", "MAX"]:
            for base in [[], [0.1]]:
                more = {"target_treeids": [0, 0, 1], "target_nodeids": [1, 2, 0], "target_ids": [0] * 3}
                more |= {"target_weights": [0.2, 0.6, 0.3], "n_targets": 1}
                pair = {"target_treeids": [0, 0, 0, 1], "target_nodeids": [1, 1, 2, 0], "target_ids": [0, 1, 1, 0]}
                pair |= {"target_weights": [0.2, 0.5, 0.6, 0.3], "n_targets": 2}
                for targets in [more, pair]:
                    own = targets | ({"base_values": base * targets["n_targets"]} if base else {})
                    name = f"{aggregate}{len(base)}{targets['n_targets']}"
                    outputs.append((name, TensorProto.FLOAT))
                    nodes.append(ml("TreeEnsembleRegressor", ["X"], [name], post_transform=transform, aggregate_function=aggregate, **two, **own))
        for targets in [1, 2]:
            outputs.append((f"linear{targets}", TensorProto.FLOAT))
            weights = {"coefficients": [1.0, 2.0][:targets], "intercepts": [-0.3, 0.2][:targets], "targets": targets}
            nodes.append(ml("LinearRegressor", ["X"], [outputs[-1][0]], post_transform=transform, **weights))
        for count in [1, 3]:
            if transform == "PROBIT" and count == 1:
                continue
            outputs += [(f"class{count}", TensorProto.INT64), (f"score{count}", TensorProto.FLOAT)]
            weights = {"coefficients": [1.0, 2.0, -1.0][:count], "intercepts": [-0.3, 0.0, 0.2][:count]}
            labels = {"classlabels_ints": [3, 4, 5][: max(count, 2)]}
            nodes.append(ml("LinearClassifier", ["X"], [outputs[-2][0], outputs[-1][0]], post_transform=transform, **weights, **labels))
        # Infinity times a weight is no matter of the transforms.
        # PROBIT is the root of a difference of two numbers that are nearly the same: a rounding of either shows.
        tolerance = 1e-5 if transform == "PROBIT" else None
        record(f"transform_{transform.lower()}", graph(nodes, outputs), {"X": rows[:3]}, tolerance)

    # Doubles as tensors.
    tree = {key: value for key, value in stump.items() if key != "nodes_values"}
    values = helper.make_tensor("v", TensorProto.DOUBLE, [3], [0.1, 0.0, 0.0])
    weights = helper.make_tensor("w", TensorProto.DOUBLE, [2], [1 / 3, 2 / 3])
    node = ml("TreeEnsembleRegressor", ["X"], ["y"], n_targets=1, nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
              nodes_values_as_tensor=values, target_weights_as_tensor=weights, target_treeids=[0, 0],
              target_nodeids=[1, 2], target_ids=[0, 0], **tree)
    wide = np.array([[0.1], [np.nextafter(0.1, 1)], [np.nextafter(0.1, 0)], [np.float32(0.1)], [np.nan]])
    record("tree_doubles", graph([node], [("y", TensorProto.FLOAT)], inputs=[("X", TensorProto.DOUBLE, 1)]), {"X": wide})

    # All pairs of keys and values.
    keys = {"strings": ["a", "bb", "bb", "c"], "int64s": [1, 2, 2, -3], "floats": [0.5, 0.0, np.nan, 2.0]}
    values = {"strings": ["x", "y", "z", "größe"], "int64s": [7, 8, 9, 10], "floats": [0.5, 1.5, 2.5, 3.5]}
    types = {"strings": TensorProto.STRING, "int64s": TensorProto.INT64, "floats": TensorProto.FLOAT}
    nodes, outputs = [], []
    for key in keys:
        for value in values:
            if key == value == "int64s" or key == value == "floats":
                continue
            name = f"{key}_{value}"
            outputs.append((name, types[value]))
            nodes.append(ml("LabelEncoder", [key], [name], **{f"keys_{key}": keys[key], f"values_{value}": values[value]}))
    inputs = [(key, types[key], 1) for key in keys]
    data = {
        "strings": np.array([["a"], ["bb"], ["none"], [""], ["c"]], dtype=object),
        "int64s": np.array([[1], [2], [3], [-3], [0]]),
        "floats": np.array([[0.5], [-0.0], [np.nan], [2.0], [np.inf]], dtype=np.float32),
    }
    record("encoders", graph(nodes, outputs, inputs=inputs), data)

    # NaN is a key from version 4 on.
    keys = helper.make_tensor("k", TensorProto.FLOAT, [2], [0.5, float("nan")])
    default = helper.make_tensor("d", TensorProto.FLOAT, [1], [-1.0])
    values = helper.make_tensor("v", TensorProto.FLOAT, [2], [0.1, 0.2])
    node = ml("LabelEncoder", ["X"], ["y"], keys_tensor=keys, values_tensor=values, default_tensor=default)
    record("encoder_tensors", graph([node], [("y", TensorProto.FLOAT)], version=4), {"X": rows})

    # Old forms: a OneHotEncoder of numbers, casts to texts, clips, comparisons.
    nodes = [
        ml("OneHotEncoder", ["X"], ["hot"], cats_int64s=[0, 1, 5]),
        helper.make_node("Cast", ["X"], ["text"], to=TensorProto.STRING),
        helper.make_node("Cast", ["X"], ["whole"], to=TensorProto.INT64),
        ml("Imputer", ["X"], ["filled"], imputed_value_floats=[7.0], replaced_value_float=float("nan")),
        ml("Scaler", ["filled"], ["scaled"], offset=[0.5], scale=[3.0]),
        ml("Normalizer", ["filled"], ["max"], norm="MAX"),
        ml("Binarizer", ["filled"], ["bits"], threshold=0.5),
        ml("FeatureVectorizer", ["X", "filled"], ["joined"], inputdimensions=[1, 1]),
        helper.make_node("IsNaN", ["X"], ["nan"]),
        helper.make_node("Relu", ["X"], ["relu"]),
        helper.make_node("Sigmoid", ["X"], ["sigmoid"]),
        helper.make_node("Where", ["nan", "filled", "X"], ["where"]),
        helper.make_node("Less", ["X", "filled"], ["less"]),
    ]
    f, b = TensorProto.FLOAT, TensorProto.BOOL
    outputs = [("hot", f), ("text", TensorProto.STRING), ("scaled", f), ("max", f), ("bits", f), ("joined", f), ("nan", b),
               ("relu", f), ("sigmoid", f), ("where", f), ("less", b)]
    some = np.array([[0.0], [0.5], [1.0], [np.nan], [5.25], [-3.0], [1e10], [1.5e-5], [123456.789]], dtype=np.float32)
    record("glue", graph(nodes[:2] + nodes[3:], outputs), {"X": some})


def ml(operator, inputs, outputs, **attributes):
    return helper.make_node(operator, inputs, outputs, domain="ai.onnx.ml", **attributes)


def graph(nodes, outputs, inputs=(("X", TensorProto.FLOAT, 1),), version=3):
    given = [helper.make_tensor_value_info(name, kind, [None, width]) for name, kind, width in inputs]
    made = [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs]
    opsets = [helper.make_opsetid("", 15), helper.make_opsetid("ai.onnx.ml", version)]
    return helper.make_model(helper.make_graph(nodes, "by_hand", given, made), opset_imports=opsets, ir_version=9)


def attempt(name, export):
    try:
        return export()
    except Exception as error:  # noqa: BLE001
        print(f"{name} is not exported: {str(error)[-300:]}")
        return None


def record(name, model, inputs, tolerance=None):
    bytes_ = model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(bytes_, options, providers=["CPUExecutionProvider"])
        answers = session.run(None, inputs)
    except Exception as error:  # noqa: BLE001
        print(f"{name} does not run: {str(error)[-300:]}")
        return
    outputs = {}
    for output, answer in zip(session.get_outputs(), answers):
        if isinstance(answer, list):
            keys = list(answer[0])
            answer = np.array([[row[key] for key in keys] for row in answer], dtype=np.float32)
        outputs[output.name] = plain(answer)
    case = {"inputs": {key: plain(value) for key, value in inputs.items()}, "outputs": outputs}
    if tolerance:
        case["tolerance"] = tolerance
    (OUT / f"{name}.onnx").write_bytes(bytes_)
    (OUT / f"{name}.golden.json").write_text(json.dumps({"cases": [case]}, separators=(",", ":"), ensure_ascii=False) + "\n")


def plain(value):
    if isinstance(value, np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, (str, bool, np.bool_)):
        return value if isinstance(value, str) else bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if np.isnan(value):
        return None
    if np.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return float(value) if isinstance(value, np.float64) else float(str(np.float32(value)))


if __name__ == "__main__":
    main()
