"""Records small XGBoost models beside XGBoost's own answers, for tests/kinds.rs to compare with.

    <venv with ../samples/requirements.txt>/bin/python record.py

Each data/xgboost/<name>.json|.ubj has its <name>.golden.json. The same versions write the same bytes. Run with an older
XGBoost (1.7.6 and 2.1.4 were used), it records only a few models, under the version's name.
"""

import json
from pathlib import Path

import numpy as np
import xgboost as xgb

OUT = Path(__file__).parent / "data" / "xgboost"
rng = np.random.default_rng(11)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    X = rng.normal(size=(400, 5)).astype(np.float32)
    X[:, 4] = rng.integers(0, 6, 400)
    gaps = X.copy()
    gaps[rng.random(X.shape) < 0.2] = np.nan
    noise = rng.normal(scale=0.1, size=400)
    signal = np.where(X[:, 0] < 0.2, X[:, 1], -X[:, 2]) + 0.3 * X[:, 4] + noise
    positive = np.exp(0.4 * signal)
    binary = (signal > np.median(signal)).astype(float)
    three = np.digitize(signal, np.quantile(signal, [1 / 3, 2 / 3])).astype(float)
    counts = rng.poisson(positive).astype(float)

    if xgb.__version__ < "3":
        version = "_v" + xgb.__version__.replace(".", "_")
        record("binary" + version, gaps, binary, {"objective": "binary:logistic", "base_score": 0.3}, suffix="json")
        record("softprob" + version, gaps, three, {"objective": "multi:softprob", "num_class": 3}, rounds=5)
        record("poisson" + version, X, counts, {"objective": "count:poisson"}, rounds=8)
        record("logitraw" + version, X, binary, {"objective": "binary:logitraw", "base_score": 0.3}, rounds=8)
        return

    record("regression", X, signal, {"objective": "reg:squarederror"})
    record("regression_json", X, signal, {"objective": "reg:squarederror"}, suffix="json")
    record("binary", X, binary, {"objective": "binary:logistic"})
    record("binary_json", X, binary, {"objective": "binary:logistic"}, suffix="json")
    record("softprob", X, three, {"objective": "multi:softprob", "num_class": 3}, rounds=8)
    record("softprob_json", X, three, {"objective": "multi:softprob", "num_class": 3}, suffix="json", rounds=4)
    record("softmax", X, three, {"objective": "multi:softmax", "num_class": 3}, rounds=8)
    record("missing", gaps, signal, {"objective": "reg:squarederror"})
    record("missing_json", gaps, binary, {"objective": "binary:logistic"}, suffix="json")
    record("base_score", X, binary, {"objective": "binary:logistic", "base_score": 0.2})
    record("base_score_large", X, signal + 1000.0, {"objective": "reg:squarederror", "base_score": 990.0})
    record("poisson", X, counts, {"objective": "count:poisson"})
    record("poisson_json", X, counts, {"objective": "count:poisson", "base_score": 3.0}, suffix="json")
    record("names", X, signal, {"objective": "reg:squarederror"}, names=["a", "b c", "größe", "d", "e"], suffix="json")

    for objective, y in [
        ("reg:squaredlogerror", positive),
        ("reg:logistic", binary * 0.8 + 0.1),
        ("reg:pseudohubererror", signal),
        ("reg:absoluteerror", signal),
        ("reg:gamma", positive),
        ("reg:tweedie", positive),
        ("binary:logitraw", binary),
        ("binary:hinge", binary),
        ("survival:cox", positive),
    ]:
        record(objective.replace(":", "_"), X, y, {"objective": objective}, rounds=8)
    record("reg_quantileerror", X, signal, {"objective": "reg:quantileerror", "quantile_alpha": 0.7}, rounds=8)
    record("quantiles", X, signal, {"objective": "reg:quantileerror", "quantile_alpha": [0.1, 0.5, 0.9]}, rounds=4)
    for objective in ["rank:pairwise", "rank:ndcg", "rank:map"]:
        y = binary if objective == "rank:map" else three
        record(objective.replace(":", "_"), X, y, {"objective": objective}, rounds=8, groups=[100] * 4)
    record("survival_aft", X, None, {"objective": "survival:aft"}, rounds=8, bounds=(positive, positive * 1.5))

    dart = {"objective": "reg:squarederror", "booster": "dart", "rate_drop": 0.3, "skip_drop": 0.1}
    record("dart", X, signal, dart)
    categories = {"objective": "reg:squarederror", "max_cat_to_onehot": 1}
    types = ["q", "q", "q", "q", "c"]
    record("categories", gaps, signal + 2.0 * np.isin(X[:, 4], [1, 4]), categories, types=types)
    record("one_hot_json", X, binary, {"objective": "binary:logistic", "max_cat_to_onehot": 10}, types=types, suffix="json")
    record("pruned", X, signal, {"objective": "reg:squarederror", "tree_method": "exact", "gamma": 2.0}, pruned=True)
    record("deep", X, signal, {"objective": "reg:squarederror", "grow_policy": "lossguide", "max_depth": 0, "max_leaves": 40}, rounds=6)
    record("forest", X, signal, {"objective": "reg:squarederror", "num_parallel_tree": 4, "subsample": 0.5, "eta": 1.0}, rounds=2)
    record("targets", X, np.column_stack([signal, -signal]), {"objective": "reg:squarederror"}, rounds=6)

    # What is refused by name.
    refuse("gblinear", X, signal, {"objective": "reg:squarederror", "booster": "gblinear"})
    refuse("multi_output_trees", X, np.column_stack([signal, -signal]), {"multi_strategy": "multi_output_tree"})


def train(X, y, parameters, rounds, names=None, types=None, groups=None, bounds=None):
    data = xgb.DMatrix(X, y, feature_names=names, feature_types=types, enable_categorical=True, nthread=1)
    if groups:
        data.set_group(groups)
    if bounds:
        data.set_float_info("label_lower_bound", bounds[0])
        data.set_float_info("label_upper_bound", bounds[1])
    defaults = {"max_depth": 4, "eta": 0.3, "seed": 11, "nthread": 1}
    return xgb.train(defaults | parameters, data, rounds)


def record(name, X, y, parameters, rounds=12, suffix="ubj", pruned=False, **more):
    booster = train(X, y, parameters, rounds, **more)
    booster.save_model(OUT / f"{name}.{suffix}")
    if pruned:
        trees = json.loads(booster.save_raw("json"))["learner"]["gradient_booster"]["model"]["trees"]
        assert any(int(tree["tree_param"]["num_deleted"]) for tree in trees), "nothing was pruned"

    # Rows of training, rows on the thresholds themselves, rows with gaps, and rows far out.
    thresholds = np.array(
        [list(split) for split in splits(booster)][:15] or np.zeros((0, 2)), dtype=np.float64
    )
    edges = X[: len(thresholds)].copy()
    for row, (feature, threshold) in zip(edges, thresholds):
        row[int(feature)] = threshold
    holes = X[20:32].copy()
    holes[rng.random(holes.shape) < 0.4] = np.nan
    far = np.array([[np.nan] * 5, [0.0] * 5, [1e30] * 5, [-1e30] * 5, [-0.5] * 5, [7.9] * 5], dtype=np.float32)
    if more.get("types"):
        far, edges = far[:2], edges[:0]
    rows = np.vstack([X[:20], edges, holes, far])
    data = xgb.DMatrix(rows, feature_names=more.get("names"), feature_types=more.get("types"), enable_categorical=True)
    case = {"inputs": {"input": numbers(rows)}, "outputs": {"prediction": numbers(booster.predict(data))}}
    (OUT / f"{name}.golden.json").write_text(json.dumps({"cases": [case]}, separators=(",", ":")) + "\n")


def splits(booster):
    """Feature and threshold of each numeric split, from the saved model."""
    learner = json.loads(booster.save_raw("json"))["learner"]["gradient_booster"]
    for tree in learner.get("gbtree", learner)["model"]["trees"]:
        nodes = zip(tree["left_children"], tree["split_indices"], tree["split_conditions"], tree["split_type"])
        for left, feature, threshold, categorical in nodes:
            if left != -1 and not categorical:
                yield feature, threshold


def refuse(name, X, y, parameters):
    train(X, y, parameters, 2).save_model(OUT / f"{name}.refused.ubj")


def numbers(array):
    if isinstance(array, np.ndarray):
        return [numbers(item) for item in array]
    return None if np.isnan(array) else float(str(np.float32(array)))


if __name__ == "__main__":
    main()
