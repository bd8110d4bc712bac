"""Trains the samples. The same versions of the libraries write the same bytes.

    python -m venv /tmp/samples && /tmp/samples/bin/pip install -r requirements.txt
    /tmp/samples/bin/python train.py
"""

import json
import re
from pathlib import Path

import numpy as np
import xgboost as xgb
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

HERE = Path(__file__).parent


def main():
    iris(HERE / "iris")
    fraud(HERE / "fraud")


def iris(folder):
    folder.mkdir(exist_ok=True)
    data = load_iris()
    X, y = data.data, data.target
    rng = np.random.default_rng(7)
    order = rng.permutation(len(X))
    train, held_out = order[:120], order[120:]

    model = LogisticRegression(C=1.0, max_iter=2000, tol=1e-8).fit(X[train], y[train])
    # The other training has all the flowers and hardly any regularisation: the same winners, far surer of themselves.
    retrained = LogisticRegression(C=100.0, max_iter=5000, tol=1e-8).fit(X, y)
    accuracy = model.score(X[held_out], y[held_out])

    features = ["sepal_length", "sepal_width", "petal_length", "petal_width"]
    for name, fitted in [("model.json", model), ("retrained.json", retrained)]:
        write(
            folder / name,
            {
                "kind": "softmax",
                "features": features,
                # Eight decimals: what differs from one machine's arithmetic to the next lies beyond.
                "coefficients": [[round(float(c), 8) for c in row] for row in fitted.coef_],
                "intercepts": [round(float(c), 8) for c in fitted.intercept_],
                "classes": [str(name) for name in data.target_names],
            },
        )

    rows = np.vstack([X[held_out][:12], [[5.1, 3.5, 1.4, 0.2], [0.0, 0.0, 0.0, 0.0], [10.0, 10.0, 10.0, 10.0]]])
    rows = rows.astype(np.float32)
    write(
        folder / "golden.json",
        {
            "cases": [
                {
                    "inputs": {"input": numbers(rows)},
                    "outputs": {
                        "probabilities": numbers(model.predict_proba(rows.astype(np.float64)).astype(np.float32)),
                        "label": [str(data.target_names[i]) for i in model.predict(rows.astype(np.float64))],
                    },
                    "tolerance": 1e-6,
                }
            ]
        },
    )
    write(
        folder / "metadata.json",
        {
            "name": "iris",
            "format": "linear",
            "file": "model.json",
            "retrained": "retrained.json",
            "description": "The species of an iris flower from four lengths in centimetres; softmax regression",
            "example": {"instances": [[5.1, 3.5, 1.4, 0.2]]},
            "training": {
                "script": "train.py",
                "model": "LogisticRegression(C=1) of scikit-learn on 120 flowers drawn with seed 7; "
                f"{accuracy:.1%} of the other 30 are named rightly",
                "retrained": "LogisticRegression(C=100) on all 150 flowers",
            },
            "data": {
                "source": "Iris, R. A. Fisher 1936, as bundled with scikit-learn (UCI Machine Learning Repository, "
                "https://doi.org/10.24432/C56C76)",
                "licence": "CC BY 4.0",
            },
        },
    )
    print(f"iris: accuracy {accuracy:.3f}")


FRAUD = ["amount", "hour", "distance_km", "minutes_since_last", "merchant_risk", "account_age_days", "is_online"]


def payments(rng, rows):
    """Made-up card payments. What makes one a fraud is a plain formula with noise; some values are missing."""
    amount = np.round(np.exp(rng.normal(3.4, 1.2, rows)), 2)
    hour = rng.integers(0, 24, rows).astype(float)
    distance = np.round(rng.gamma(0.7, 60.0, rows), 1)
    minutes = np.round(rng.exponential(600.0, rows), 1)
    risk = np.round(rng.beta(2.0, 8.0, rows), 3)
    age = rng.integers(1, 4000, rows).astype(float)
    online = rng.integers(0, 2, rows).astype(float)
    night = (hour < 5) | (hour > 22)
    score = (
        -4.4
        + 0.8 * np.log1p(amount / 60.0)
        + 1.1 * night
        + 0.9 * np.log1p(distance / 80.0) * (1 - 0.7 * online)
        + 1.6 * (minutes < 10)
        + 5.0 * risk
        - 0.5 * np.log1p(age / 200.0)
        + 0.8 * online * (risk > 0.3)
    )
    fraud = rng.random(rows) < 1.0 / (1.0 + np.exp(-score))
    X = np.column_stack([amount, hour, distance, minutes, risk, age, online])
    # A payment online has no distance most of the time; the other gaps say nothing.
    X[(rng.random(rows) < 0.8) & (online == 1), 2] = np.nan
    for column, share in [(3, 0.05), (4, 0.08), (5, 0.02)]:
        X[rng.random(rows) < share, column] = np.nan
    return X.astype(np.float32), fraud.astype(np.float32)


def fraud(folder):
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(2024)
    X, y = payments(rng, 30_000)
    held_out, answers = payments(rng, 10_000)
    parameters = {
        "objective": "binary:logistic",
        "max_depth": 5,
        "eta": 0.08,
        "min_child_weight": 4,
        "subsample": 0.8,
        "colsample_bytree": 0.9,
        "tree_method": "hist",
        "seed": 2024,
        "nthread": 1,
    }
    booster = xgb.train(parameters, xgb.DMatrix(X, y, feature_names=FRAUD, nthread=1), 100)
    auc = roc_auc_score(answers, booster.predict(xgb.DMatrix(held_out, feature_names=FRAUD)))
    booster.save_model(folder / "model.ubj")

    example = {
        "amount": 912.5, "hour": 3, "distance_km": 840.0, "minutes_since_last": 2.5,
        "merchant_risk": 0.71, "account_age_days": 40, "is_online": 1,
    }  # fmt: skip
    edges = [
        [example[name] for name in FRAUD],
        [np.nan] * 7,
        [0.0] * 7,
        [1e6] * 7,
        [-1e6] * 7,
    ]
    rows = np.vstack([held_out[:20], np.array(edges, dtype=np.float32)])
    expected = booster.predict(xgb.DMatrix(rows, feature_names=FRAUD))
    write(
        folder / "golden.json",
        {"cases": [{"inputs": {"input": numbers(rows)}, "outputs": {"prediction": numbers(expected)}, "tolerance": 1e-6}]},
    )
    write(
        folder / "metadata.json",
        {
            "name": "fraud",
            "format": "xgboost",
            "file": "model.ubj",
            "description": "The probability that a card payment is fraud, on made-up data; 100 boosted trees",
            "example": {"instances": [example]},
            "training": {
                "script": "train.py",
                "model": "XGBoost binary:logistic, 100 trees of depth 5, on 30000 payments made up with seed 2024; "
                f"AUC {auc:.3f} on 10000 others; {y.mean():.1%} are fraud",
                "parameters": parameters,
            },
            "data": {
                "source": "made up by train.py (payments); resembles no real payments",
                "licence": "the project's own",
            },
        },
    )
    print(f"fraud: AUC {auc:.3f}, {y.mean():.3f} fraud, {(folder / 'model.ubj').stat().st_size} bytes")


def numbers(array):
    """A nested list; NaN becomes null. Each FP32 is written in the fewest digits that give it back."""
    if isinstance(array, np.ndarray):
        return [numbers(item) for item in array]
    return None if np.isnan(array) else float(str(np.float32(array)))


def write(path, value):
    text = json.dumps(value, indent=1, allow_nan=False)
    # Lists of numbers on one line each.

    text = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: "[" + re.sub(r"\s*\n\s*", " ", m.group(1)) + "]", text)
    path.write_text(text + "\n")


if __name__ == "__main__":
    main()
