"""Records small LightGBM models beside LightGBM's own answers, for tests/lightgbm.rs to compare with.

    <venv with lightgbm==4.7.0 and numpy>/bin/python record_lightgbm.py

Each data/lightgbm/<name>.txt has its <name>.golden.json. The same versions write the same bytes. Run with an older
LightGBM (3.3.5 was used), it records only a few models, under the version's name.
"""

import json
from pathlib import Path

import lightgbm as lgb
import numpy as np

OUT = Path(__file__).parent / "data" / "lightgbm"
# LightGBM's kZeroThreshold.
ZERO = float(np.float32(1e-35))
rng = np.random.default_rng(17)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    X = rng.normal(size=(500, 6))
    X[:, 3] = rng.integers(0, 12, 500)
    X[:, 4] = rng.integers(0, 90, 500)
    X[:, 5] = rng.integers(-3, 4, 500)
    X[:, 1] *= rng.random(500) < 0.7
    gaps = X.copy()
    gaps[rng.random(X.shape) < 0.2] = np.nan
    signal = np.where(X[:, 0] < 0.2, X[:, 1], -X[:, 2]) + 0.4 * np.isin(X[:, 3], [1, 4, 7, 8])
    signal = signal + 0.3 * np.sin(X[:, 4]) + 0.2 * X[:, 5] + rng.normal(scale=0.1, size=500)
    positive = np.exp(0.5 * signal)
    binary = (signal > np.median(signal)).astype(float)
    part = 1 / (1 + np.exp(-signal))
    three = np.digitize(signal, np.quantile(signal, [0.3, 0.6])).astype(float)
    counts = rng.poisson(positive).astype(float)

    if lgb.__version__ < "4":
        version = "_v" + lgb.__version__.replace(".", "_")
        record("binary" + version, gaps, binary, {"objective": "binary"}, cats=[3, 4])
        record("multiclass" + version, gaps, three, {"objective": "multiclass", "num_class": 3}, rounds=3)
        record("linear" + version, gaps, signal, {"objective": "regression", "linear_tree": True}, rounds=3)
        record("rf" + version, X, binary, {"objective": "binary"} | FOREST)
        return

    record("regression", X, signal, {"objective": "regression"})
    record("regression_sqrt", X, signal * 10, {"objective": "regression", "reg_sqrt": True})
    record("l1_sqrt", X, signal * 10, {"objective": "regression_l1", "reg_sqrt": True}, rounds=3)
    record("huber_sqrt", X, signal * 10, {"objective": "huber", "reg_sqrt": True}, rounds=3)
    for objective, y in [
        ("regression_l1", signal),
        ("fair", signal),
        ("quantile", signal),
        ("mape", signal + 9),
        ("poisson", counts),
        ("gamma", positive),
        ("tweedie", positive),
        ("cross_entropy", part),
        ("cross_entropy_lambda", part),
    ]:
        record(objective, X, y, {"objective": objective}, rounds=4)
    for objective in ["lambdarank", "rank_xendcg"]:
        record(objective, X, three, {"objective": objective}, rounds=4, groups=[100] * 5)
    record("binary", X, binary, {"objective": "binary"})
    # The file keeps six digits of it.
    record("binary_sigmoid", X, binary, {"objective": "binary", "sigmoid": 0.73185291}, rounds=4)
    record("multiclass", X, three, {"objective": "multiclass", "num_class": 3}, rounds=4)
    record("multiclassova", X, three, {"objective": "multiclassova", "num_class": 3, "sigmoid": 1.7}, rounds=4)
    record("custom", X, signal, {"objective": squares})
    record("custom_classes", X, three, {"objective": one_hot, "num_class": 3}, rounds=3)

    record("missing", gaps, signal, {"objective": "regression"})
    record("missing_binary", gaps, binary, {"objective": "binary"})
    record("zero_as_missing", gaps, signal, {"objective": "regression", "zero_as_missing": True})
    record("use_missing_false", gaps, signal, {"objective": "regression", "use_missing": False})
    continued = {"objective": "regression"}
    record("some_missing", X, signal, continued, more=(gaps, continued))

    record("categories", X, signal, {"objective": "regression"}, cats=[3, 4])
    record("categories_missing", gaps, signal, {"objective": "regression"}, cats=[3, 4])
    record("categories_zero", gaps, signal, {"objective": "regression", "zero_as_missing": True}, cats=[3, 4])
    record("categories_use_missing_false", gaps, binary, {"objective": "binary", "use_missing": False}, cats=[3, 4])
    one_hot_splits = {"objective": "multiclass", "num_class": 3, "max_cat_to_onehot": 100}
    record("categories_one_hot", gaps, three, one_hot_splits, rounds=3, cats=[3, 4])
    wide = X.copy()
    wide[:, 4] = wide[:, 4] ** 2 * 7
    record("categories_wide", wide, signal, {"objective": "regression"}, rounds=4, cats=[4])

    record("rf", X, signal, {"objective": "regression"} | FOREST)
    record("rf_multiclass", X, three, {"objective": "multiclass", "num_class": 3} | FOREST, rounds=4)
    record("dart", X, signal, {"objective": "regression", "boosting": "dart", "drop_rate": 0.4, "skip_drop": 0.1})
    record("goss", X, binary, {"objective": "binary", "boosting": "goss", "top_rate": 0.3, "learning_rate": 0.5})
    record("monotone", X, signal, {"objective": "regression", "monotone_constraints": [-1, 1, 0, 0, 0, 1]})
    record("extra_trees", X, signal, {"objective": "regression", "extra_trees": True, "path_smooth": 2.0})
    record("deep", X, signal, {"objective": "regression", "num_leaves": 60, "min_data_in_leaf": 2}, rounds=4)
    record("single_leaf", X, signal, {"objective": "regression", "min_gain_to_split": 1e9}, rounds=2)
    record("early_stopping", X, rng.normal(size=500), {"objective": "regression"}, rounds=50, stop=True)
    record("names", X, signal, {"objective": "regression"}, rounds=3, names=["a", "b=c", "größe", "d.e", "f_g", "h"])
    tiny = X * 2e-35
    record("tiny", tiny, signal, {"objective": "regression", "feature_pre_filter": False}, scale=2e-35)

    linear = {"objective": "regression", "linear_tree": True}
    record("linear", X, signal, linear)
    record("linear_missing", gaps, signal, linear)
    record("linear_binary", gaps, binary, linear | {"objective": "binary"}, cats=[3])
    record("linear_classes", X, three, {"objective": "multiclass", "num_class": 3, "linear_tree": True}, rounds=3)
    record("linear_single_leaf", X, signal, linear | {"min_gain_to_split": 1e9}, rounds=2)
    # Linear trees after others.
    record("linear_later", X, signal, {"objective": "regression"}, rounds=3, more=(X, linear))

    # What is refused by name.
    zero = {"objective": "regression", "zero_as_missing": True}
    record("zero_and_nan", gaps, signal, zero, rounds=3, more=(gaps, {"objective": "regression"}), refused=True)


FOREST = {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.6, "feature_fraction": 0.7}


def squares(predictions, data):
    return predictions - data.get_label(), np.ones_like(predictions)


def one_hot(predictions, data):
    difference = predictions - np.eye(3)[data.get_label().astype(int)]
    return difference, np.ones_like(difference)


def record(
    name, X, y, parameters, rounds=6, groups=None, cats=(), names="auto", more=None, stop=False, scale=1.0, refused=False
):
    defaults = {
        "num_leaves": 12,
        "min_data_in_leaf": 8,
        "learning_rate": 0.2,
        "min_data_per_group": 4,
        "cat_smooth": 1.0,
        "seed": 17,
        "num_threads": 1,
        "deterministic": True,
        "force_row_wise": True,
        "verbose": -1,
    }
    parameters = defaults | parameters

    def dataset(X, y, parameters):
        quiet = {key: value for key, value in parameters.items() if not callable(value)}
        return lgb.Dataset(
            X, y, group=groups, categorical_feature=list(cats) or "auto", feature_name=names, params=quiet
        )

    callbacks, valid = [], []
    if stop:
        callbacks, valid = [lgb.early_stopping(2, verbose=False)], [lgb.Dataset(X[:100], y[100:200])]
    if lgb.__version__ < "4" and callable(parameters["objective"]):
        raise ValueError("older versions take the function elsewhere")
    data = dataset(X, y, parameters)
    booster = lgb.train(parameters, data, rounds, callbacks=callbacks, valid_sets=valid)
    if more:
        first = OUT / "first.tmp"
        booster.save_model(first)
        parameters = defaults | more[1]
        booster = lgb.train(parameters, dataset(more[0], y, parameters), 4, init_model=str(first))
        first.unlink()
    path = OUT / f"{name}{'.refused' if refused else ''}.txt"
    booster.save_model(path)
    if refused:
        return

    rows = np.vstack([X[:20], edges(X, booster, cats), extremes(X, cats) * scale])
    if more:
        rows = np.vstack([rows, more[0][20:40]])
    served = lgb.Booster(model_file=str(path))
    case = {"inputs": {"input": numbers(rows)}, "outputs": {"prediction": numbers(served.predict(rows))}}
    (OUT / f"{name}.golden.json").write_text(json.dumps({"cases": [case]}, separators=(",", ":")) + "\n")


def edges(X, booster, cats):
    """Rows on the thresholds themselves, and on the numbers next to them."""
    rows = []

    def visit(node):
        if "split_feature" not in node:
            return
        if node["split_feature"] not in cats:
            threshold = float(node["threshold"])
            for value in [threshold, np.nextafter(threshold, np.inf)]:
                row = X[len(rows) % len(X)].copy()
                row[node["split_feature"]] = value
                rows.append(row)
        visit(node["left_child"])
        visit(node["right_child"])

    for tree in booster.dump_model()["tree_info"]:
        if len(rows) < 40:
            visit(tree["tree_structure"])
    return np.array(rows[:40] or np.zeros((0, X.shape[1])))


def extremes(X, cats):
    """Rows with gaps, far out, around zero, and with categories that are none."""
    holes = X[20:32].copy()
    holes[rng.random(holes.shape) < 0.4] = np.nan
    zeros = [0.0, -0.0, ZERO, -ZERO, np.nextafter(ZERO, 1), np.nextafter(-ZERO, -1), 1e-36, -1e-36, 1e-30, -1e-30]
    rows = [[value] * X.shape[1] for value in [np.nan, np.inf, -np.inf, 1e30, -1e30, *zeros]]
    for value in [*zeros, np.nan, np.inf, -np.inf]:
        for feature in range(3):
            row = X[len(rows)].copy()
            row[feature] = value
            rows.append(row)
    for value in [-0.5, -0.999, -1.0, -7.0, 1.7, 4.999, 11.0, 12.0, 88.0, 1000.0, 3e9, -3e9, 1e300, np.nan, np.inf, -np.inf]:
        for feature in cats:
            row = X[len(rows)].copy()
            row[feature] = value
            rows.append(row)
    return np.vstack([holes, np.array(rows)])


def numbers(array):
    if isinstance(array, np.ndarray):
        return [numbers(item) for item in array]
    if np.isnan(array):
        return None
    if np.isinf(array):
        return "Infinity" if array > 0 else "-Infinity"
    return float(array)


if __name__ == "__main__":
    main()
