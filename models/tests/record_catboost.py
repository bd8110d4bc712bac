"""Records small CatBoost models beside CatBoost's own answers, for tests/catboost.rs to compare with.

    <venv with catboost==1.2.10 and numpy>/bin/python record_catboost.py

Each data/catboost/<name>.json has its <name>.golden.json; what is refused has none.
"""

import json
from pathlib import Path

import catboost
import numpy as np

OUT = Path(__file__).parent / "data" / "catboost"
rng = np.random.default_rng(23)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    X = rng.normal(size=(400, 5)).astype(np.float32)
    X[:, 4] = rng.integers(0, 6, 400)
    gaps = X.copy()
    gaps[rng.random(X.shape) < 0.2] = np.nan
    signal = np.where(X[:, 0] < 0.2, X[:, 1], -X[:, 2]) + 0.3 * X[:, 4] + rng.normal(scale=0.1, size=400)
    positive = np.exp(0.4 * signal)
    binary = (signal > np.median(signal)).astype(int)
    three = np.digitize(signal, np.quantile(signal, [1 / 3, 2 / 3]))

    for loss in [
        "RMSE",
        "MAE",
        "Quantile:alpha=0.3",
        "LogLinQuantile:alpha=0.3",
        "LogCosh",
        "Huber:delta=1",
        "Expectile:alpha=0.3",
        "MAPE",
        "Lq:q=3",
        "Poisson",
        "Tweedie:variance_power=1.5",
    ]:
        record(loss.split(":")[0].lower(), regressor(loss_function=loss), X, positive)
    record("multirmse", regressor(loss_function="MultiRMSE"), X, np.column_stack([signal, -signal]))
    record("multiquantile", regressor(loss_function="MultiQuantile:alpha=0.1,0.5,0.9"), X, signal)
    record("logloss", classifier(), X, binary)
    record("crossentropy", classifier(loss_function="CrossEntropy"), X, 1 / (1 + np.exp(-signal)))
    record("multiclass", classifier(loss_function="MultiClass"), X, three)
    record("multiclassonevsall", classifier(loss_function="MultiClassOneVsAll"), X, three)
    record("multilogloss", classifier(loss_function="MultiLogloss"), X, np.column_stack([binary, three > 1]) * 1)
    record("multicrossentropy", classifier(loss_function="MultiCrossEntropy"), X, rng.random((400, 2)))
    groups = np.repeat(np.arange(20), 20)
    for loss in ["YetiRank", "YetiRankPairwise", "PairLogit", "PairLogitPairwise", "QueryRMSE", "QuerySoftMax", "LambdaMart"]:
        labels = binary if loss == "QuerySoftMax" else three
        pool = catboost.Pool(X, labels, group_id=groups)
        record(loss.lower(), catboost.CatBoost(DEFAULTS | {"loss_function": loss, "iterations": 3}), pool, None, rows=X)

    record("nan_min", regressor(nan_mode="Min"), gaps, signal)
    record("nan_max", regressor(nan_mode="Max"), gaps, signal)
    record("nan_max_classes", classifier(loss_function="MultiClass", nan_mode="Max"), gaps, three)
    record("deep", regressor(depth=9, iterations=2), X, signal)
    record("stump", regressor(depth=1, iterations=5), X, signal)
    record("constant", regressor(iterations=3, allow_const_label=True, bootstrap_type="No"), X, np.full(400, 2.5))
    named = catboost.Pool(X, signal, feature_names=["a", "b c", "größe", "d", "e"])
    record("names", regressor(), named, None, rows=X)
    scaled = regressor()
    scaled.fit(X, signal)
    scaled.set_scale_and_bias(0.3, 7.25)
    write("scaled", scaled, X)
    models = [regressor(iterations=3).fit(X, signal), regressor(iterations=2, depth=2).fit(X, -signal)]
    write("sum", catboost.sum_models(models, weights=[0.4, 0.6]), X)

    # What is refused by name.
    for name, model in [
        ("lossguide", regressor(grow_policy="Lossguide", iterations=2)),
        ("depthwise", regressor(grow_policy="Depthwise", iterations=2)),
        ("uncertainty", regressor(loss_function="RMSEWithUncertainty", iterations=2)),
        ("categorical", regressor(cat_features=[4], iterations=2)),
    ]:
        rows = [[*row[:4], str(int(row[4]))] for row in X.tolist()] if name == "categorical" else X
        model.fit(rows, signal)
        save(f"{name}.refused", model)


DEFAULTS = {
    "iterations": 6,
    "depth": 4,
    "learning_rate": 0.3,
    "random_seed": 23,
    "thread_count": 1,
    "border_count": 24,
    "allow_writing_files": False,
    "verbose": False,
}


def regressor(**parameters):
    return catboost.CatBoostRegressor(**DEFAULTS | parameters)


def classifier(**parameters):
    return catboost.CatBoostClassifier(**DEFAULTS | parameters)


def record(name, model, X, y, rows=None):
    model.fit(X, y)
    write(name, model, X if rows is None else rows)


def save(name, model):
    path = OUT / f"{name}.json"
    model.save_model(path, format="json")
    document = json.loads(path.read_text())
    # It names the time of the training, and would never be the same twice.
    for key in list(document["model_info"]):
        if key.split(":")[-1] not in ("params", "loss_function"):
            del document["model_info"][key]
    path.write_text(json.dumps(document, separators=(",", ":")) + "\n")
    return document


def write(name, model, X):
    document = save(name, model)
    edges = []
    for tree in document.get("oblivious_trees", []):
        for split in tree["splits"] or []:
            border = np.float32(split["border"])
            for value in [border, np.nextafter(border, np.float32(np.inf), dtype=np.float32)]:
                row = X[len(edges)].copy()
                row[split["float_feature_index"]] = value
                edges.append(row)
    holes = X[20:32].copy()
    holes[rng.random(holes.shape) < 0.4] = np.nan
    far = [[value] * X.shape[1] for value in [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30, -1e30, 3.4028235e38, -3.4028235e38]]
    rows = np.vstack([X[:20], *edges[:30], holes, np.array(far, dtype=np.float32)])
    if isinstance(model, catboost.CatBoostClassifier):
        answer = model.predict_proba(rows)
        if document["model_info"]["params"]["loss_function"]["type"] in ("Logloss", "CrossEntropy"):
            answer = answer[:, 1]
    else:
        answer = model.predict(rows)
    case = {"inputs": {"input": numbers(rows)}, "outputs": {"prediction": numbers(np.asarray(answer))}}
    (OUT / f"{name}.golden.json").write_text(json.dumps({"cases": [case]}, separators=(",", ":")) + "\n")


def numbers(array):
    if array.ndim:
        return [numbers(item) for item in array]
    if np.isnan(array):
        return None
    if np.isinf(array):
        return "Infinity" if array > 0 else "-Infinity"
    return float(str(array)) if array.dtype == np.float32 else float(array)


if __name__ == "__main__":
    main()
