"""Fitted models become artifacts. What a server says of them is in test_dev.py."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hotserve import ConfigError, MissingExtra, UnsupportedModel
from hotserve.artifacts import recognize
from hotserve.models import artifact

from .conftest import ROOT

SAMPLES = ROOT / "models/samples"


def data(rows: int = 200, classes: int = 2) -> tuple[Any, Any]:
    rng = np.random.default_rng(7)
    features = rng.normal(size=(rows, 4))
    return features, (features.sum(axis=1) * classes).astype(int) % classes


@pytest.mark.parametrize(
    ("head", "format"),
    [
        ((SAMPLES / "iris/model.json").read_bytes(), "linear"),
        ((SAMPLES / "fraud/model.ubj").read_bytes(), "xgboost"),
        (b'{"learner": {}}', "xgboost"),
        (b' {\n "version": [3, 2, 0]', "xgboost"),
        (b"tree\nversion=v4\n", "lightgbm"),
        (b"tree\r\nversion=v4\r\n", "lightgbm"),
        (b'{"features_info": {}}', "catboost"),
        (b"\x08\x0a\x12\x08skl2onnx", "onnx"),
        (b"", None),
        (b"tree", None),
        (b"\x08\x0a", None),
        (b'{"model": 1}', None),
        (b"pickle", None),
    ],
)
def test_the_format_is_told_from_the_first_bytes(head: bytes, format: Any) -> None:
    assert recognize(head) == format


def test_a_file_or_bytes_of_no_known_format_are_asked_about(tmp_path: Path) -> None:
    file = tmp_path / "model.pkl"
    file.write_bytes(b"pickle")
    for model in (file, str(file), b"pickle"):
        with pytest.raises(ConfigError, match="say format="):
            artifact(model, None, None)
        assert artifact(model, "onnx", None).format == "onnx"
    with pytest.raises(ConfigError, match="cannot be read"):
        artifact(tmp_path / "nothing.ubj", None, None)


def test_what_is_no_model_is_told_what_would_be_one() -> None:
    with pytest.raises(UnsupportedModel, match="dict cannot be published: give a path"):
        artifact({"a": 1}, None, None)


def test_xgboost_is_saved_as_ubj_with_what_it_answers() -> None:
    xgboost = pytest.importorskip("xgboost")
    X, y = data()
    model = xgboost.XGBClassifier(n_estimators=5, n_jobs=1).fit(X, y)
    for given in (model, model.get_booster()):
        made = artifact(given, None, None)
        assert (made.format, made.file_name, recognize(made.read())) == ("xgboost", "model.ubj", "xgboost")
        assert made.cases is not None
        (case,) = made.cases(X[:3], None)["cases"]
        assert np.allclose(case["outputs"]["prediction"], model.predict_proba(X[:3])[:, 1])
        assert np.array_equal(np.float32(case["inputs"]["input"]), X[:3].astype("float32"))
        assert case["tolerance"] == 1e-6
        digits = repr(case["inputs"]["input"][0][0])
        assert digits == str(X[0, 0].astype("float32")), "the fewest that give it back"
    assert artifact(model, "xgboost", None).format == "xgboost"
    with pytest.raises(ConfigError, match="is published as xgboost, not as onnx"):
        artifact(model, "onnx", None)


def test_after_early_stopping_the_wrapper_is_published_with_the_trees_that_it_answers_with() -> None:
    xgboost = pytest.importorskip("xgboost")
    X, y = data()
    model = xgboost.XGBClassifier(n_estimators=50, early_stopping_rounds=3, n_jobs=1)
    model.fit(X[:100], y[:100], eval_set=[(X[100:], 1 - y[100:])], verbose=False)
    assert model.get_booster().num_boosted_rounds() > model.best_iteration + 1
    made = artifact(model, None, None)
    saved = xgboost.Booster()
    saved.load_model(bytearray(made.read()))
    assert saved.num_boosted_rounds() == model.best_iteration + 1
    assert np.allclose(saved.predict(xgboost.DMatrix(X)), model.predict_proba(X)[:, 1])


def test_what_a_server_would_answer_otherwise_is_refused() -> None:
    xgboost = pytest.importorskip("xgboost")
    X, y = data()
    model = xgboost.XGBClassifier(n_estimators=2, missing=0.0, n_jobs=1).fit(X, y)
    with pytest.raises(UnsupportedModel, match=r"takes 0\.0 for a missing value"):
        artifact(model, None, None)


def test_a_model_that_is_not_fitted_is_refused() -> None:
    xgboost, lightgbm = pytest.importorskip("xgboost"), pytest.importorskip("lightgbm")
    linear_model = pytest.importorskip("sklearn.linear_model")
    pytest.importorskip("skl2onnx")
    for model in (xgboost.XGBClassifier(), lightgbm.LGBMClassifier(), linear_model.LogisticRegression()):
        with pytest.raises(UnsupportedModel, match="is not fitted"):
            artifact(model, None, None)
    for no_model in (xgboost.DMatrix(np.zeros((1, 1))), lightgbm.Dataset(np.zeros((1, 1)))):
        with pytest.raises(UnsupportedModel, match="is no model"):
            artifact(no_model, None, None)


def test_lightgbm_is_saved_as_text_with_what_it_answers() -> None:
    lightgbm = pytest.importorskip("lightgbm")
    X, y = data(classes=3)
    model = lightgbm.LGBMClassifier(n_estimators=5, n_jobs=1, verbose=-1).fit(X, y)
    for given in (model, model.booster_):
        made = artifact(given, None, None)
        assert (made.format, made.file_name, recognize(made.read())) == ("lightgbm", "model.txt", "lightgbm")
        assert made.cases is not None
        (case,) = made.cases(X[:3], 1e-9)["cases"]
        assert case["outputs"]["prediction"] == model.predict_proba(X[:3]).tolist()
        assert case["inputs"]["input"] == X[:3].tolist() and case["tolerance"] == 1e-9


def test_a_pipeline_becomes_onnx_with_scores_as_a_tensor() -> None:
    pytest.importorskip("skl2onnx")
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    X, y = data()
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, np.where(y == 1, "yes", "no"))
    made = artifact(model, None, None)
    assert (made.format, made.file_name, recognize(made.read())) == ("onnx", "model.onnx", "onnx")
    assert b"ZipMap" not in made.read()
    assert made.cases is not None
    (case,) = made.cases(X[:3], None)["cases"]
    assert case["outputs"]["label"] == model.predict(X[:3]).tolist()
    assert np.allclose(case["outputs"]["probabilities"], model.predict_proba(X[:3]))
    assert list(case["inputs"]) == ["input"]


def test_a_sample_that_is_no_rows_is_named() -> None:
    lightgbm = pytest.importorskip("lightgbm")
    X, y = data()
    made = artifact(lightgbm.LGBMClassifier(n_estimators=2, n_jobs=1, verbose=-1).fit(X, y), None, None)
    assert made.cases is not None
    for sample, says in [(X[0], "must be rows"), ([], "must be rows"), ([["a", "b", "c", "d"]], "no rows of numbers")]:
        with pytest.raises(ConfigError, match=says):
            made.cases(sample, None)


def test_columns_that_are_selected_by_name_need_a_sample() -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("skl2onnx")
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    table = pandas.DataFrame({"city": ["Bonn", "Köln", "Bonn"], "rooms": [1, 2, 3], "size": [20.5, 40.0, 61.0]})
    columns = make_column_transformer((OneHotEncoder(), ["city"]), remainder="passthrough")
    model = make_pipeline(columns, LinearRegression()).fit(table, [1.0, 2.0, 3.0])
    with pytest.raises(ConfigError, match="give sample=, a DataFrame"):
        artifact(model, None, None)
    made = artifact(model, None, table)
    assert made.cases is not None
    (case,) = made.cases(table, None)["cases"]
    assert case["inputs"] == {
        "city": [["Bonn"], ["Köln"], ["Bonn"]],
        "rooms": [[1], [2], [3]],
        "size": [[20.5], [40.0], [61.0]],
    }
    assert np.allclose(case["outputs"]["variable"], [[1.0], [2.0], [3.0]])


def test_what_cannot_be_converted_says_where_to_look() -> None:
    pytest.importorskip("skl2onnx")
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Ours(ClassifierMixin, BaseEstimator):  # type: ignore[misc, unused-ignore]
        n_features_in_ = 4

        def fit(self, X: Any, y: Any) -> Any:
            self.fitted_ = True
            return self

    with pytest.raises(UnsupportedModel, match="skl2onnx supports: https://"):
        artifact(Ours().fit(None, None), None, None)


def test_a_library_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setitem(sys.modules, "skl2onnx", None)
    for uri in ("runs:/0/model", "models:/fraud/3"):
        with pytest.raises(MissingExtra, match=r"pip install 'hotserve\[mlflow\]'"):
            artifact(uri, None, None)
    estimator = type("Estimator", (), {"__module__": "sklearn.linear_model"})()
    with pytest.raises(MissingExtra, match=r"pip install 'hotserve\[sklearn\]'") as told:
        artifact(estimator, None, None)
    assert isinstance(told.value, ImportError) and told.value.extra == "sklearn"


def test_an_onnx_graph_is_published_as_it_is() -> None:
    graph = types.SimpleNamespace(SerializeToString=lambda: b"\x08\x0a\x12")
    made = artifact(graph, None, None)
    assert (made.format, made.read(), made.cases) == ("onnx", b"\x08\x0a\x12", None)
