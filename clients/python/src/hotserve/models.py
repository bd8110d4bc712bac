"""Fitted models of the libraries → artifacts in the formats that a server takes, and golden cases from their answers.

No library is imported before a model of it is at hand: a model's own module has loaded it already.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

from . import artifacts
from .artifacts import Artifact
from .errors import ConfigError, HotserveError, MissingExtra, UnsupportedModel

#: How far a golden case may be off, in parts of max(1, |answer|). ONNX counts in FP32 where scikit-learn has FP64.
TOLERANCE = 1e-6
ONNX_TOLERANCE = 1e-4


def artifact(model: Any, format: Optional[str], sample: Any) -> Artifact:
    """What is to be published of a model, whatever it comes as."""
    if isinstance(model, (bytes, bytearray, memoryview)):
        return artifacts.of_bytes(bytes(model), format)
    if isinstance(model, str) and model.startswith(("runs:/", "models:/")):
        model = _from_mlflow(model)
    elif isinstance(model, (str, os.PathLike)):
        return artifacts.of_file(Path(model), format)
    made = _converted(model, sample)
    if format is not None and format != made.format:
        raise ConfigError(f"a {_name(model)} is published as {made.format}, not as {format}: leave format out")
    return made


def _converted(model: Any, sample: Any) -> Artifact:
    libraries = {parent.__module__.partition(".")[0] for parent in type(model).__mro__}
    if "xgboost" in libraries:
        return _xgboost(model)
    if "lightgbm" in libraries:
        return _lightgbm(model)
    if "sklearn" in libraries:
        return _sklearn(model, sample)
    if "onnx" in libraries or callable(getattr(model, "SerializeToString", None)):
        return Artifact(model.SerializeToString(), "onnx", "model.onnx")
    raise UnsupportedModel(
        f"a {_name(model)} cannot be published: give a path, bytes, 'runs:/…' or 'models:/…' of MLflow, or a fitted "
        "model of scikit-learn, XGBoost or LightGBM; what else can be saved as ONNX is published as its bytes"
    )


def _name(model: Any) -> str:
    return f"{type(model).__module__}.{type(model).__qualname__}"


# XGBoost


def _xgboost(model: Any) -> Artifact:
    wrapped = callable(getattr(model, "get_booster", None))
    if not wrapped and not callable(getattr(model, "save_raw", None)):
        raise UnsupportedModel(f"a {_name(model)} of XGBoost is no model: give a Booster, an XGBClassifier or the like")
    booster = model
    if wrapped:
        missing = getattr(model, "missing", math.nan)
        if missing is not None and not _is_nan(missing):
            raise UnsupportedModel(f"this model takes {missing!r} for a missing value, and a server NaN and null only")
        booster = _fitted(model, model.get_booster)
        best = _best_iteration(model)
        if best is not None:
            # The wrappers answer with the trees up to the best round; a server with all that it is given.
            booster = booster[: best + 1]

    def cases(sample: Any, tolerance: Optional[float]) -> dict[str, Any]:
        import xgboost

        rows = _rows(sample, "float32")
        names = booster.feature_names
        answers = booster.predict(xgboost.DMatrix(rows, feature_names=names))
        return _golden({"input": rows}, {"prediction": answers}, TOLERANCE if tolerance is None else tolerance)

    return Artifact(bytes(booster.save_raw("ubj")), "xgboost", "model.ubj", cases)


def _best_iteration(model: Any) -> Optional[int]:
    try:
        return int(model.best_iteration)
    except (AttributeError, TypeError):
        return None


def _is_nan(value: Any) -> bool:
    try:
        return math.isnan(value)
    except TypeError:
        return False


# LightGBM


def _lightgbm(model: Any) -> Artifact:
    booster = model
    if not callable(getattr(model, "model_to_string", None)):
        if not hasattr(type(model), "booster_"):
            raise UnsupportedModel(f"a {_name(model)} of LightGBM is no model: give a Booster or an LGBMClassifier")
        booster = _fitted(model, lambda: model.booster_)

    def cases(sample: Any, tolerance: Optional[float]) -> dict[str, Any]:
        rows = _rows(sample, "float64")
        answers = booster.predict(rows)
        return _golden({"input": rows}, {"prediction": answers}, TOLERANCE if tolerance is None else tolerance)

    return Artifact(str(booster.model_to_string()).encode(), "lightgbm", "model.txt", cases)


def _fitted(model: Any, booster: Callable[[], Any]) -> Any:
    try:
        return booster()
    except Exception as error:
        raise UnsupportedModel(f"this {_name(model)} is not fitted: {error}") from error


# scikit-learn


def _sklearn(model: Any, sample: Any) -> Artifact:
    try:
        import skl2onnx
    except ImportError as error:
        raise MissingExtra("a scikit-learn model, which is published as ONNX,", "sklearn", error) from error
    from sklearn.base import is_classifier
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(model)
    except (NotFittedError, TypeError) as error:
        raise UnsupportedModel(f"this {_name(model)} is not fitted: {error}") from error
    inputs = _onnx_inputs(model, sample)
    classifies = bool(is_classifier(model))
    try:
        # Scores as a tensor with a column for each class, not as a list of maps.
        options = {id(model): {"zipmap": False}} if classifies else None
        graph = skl2onnx.to_onnx(model, initial_types=inputs, options=options)
    except Exception as error:
        raise UnsupportedModel(
            f"this {_name(model)} cannot be converted to ONNX ({type(error).__name__}: {error}); what skl2onnx "
            "supports: https://onnx.ai/sklearn-onnx/supported.html. Publish an XGBoost or LightGBM model for "
            "itself, or bytes that you have converted"
        ) from error
    outputs = [(output.name, output.type.tensor_type.elem_type) for output in graph.graph.output]
    names = [name for name, _ in inputs]

    def cases(sample: Any, tolerance: Optional[float]) -> dict[str, Any]:
        if names == ["input"]:
            tensors = {"input": _rows(sample, "float32")}
            # As a server reads them: FP32 on the way in.
            seen = tensors["input"].astype("float64")
        else:
            tensors = {name: _column(sample[name]) for name in names}
            seen = sample
        answers = _sklearn_answers(model, seen, classifies, outputs)
        return _golden(tensors, answers, ONNX_TOLERANCE if tolerance is None else tolerance)

    return Artifact(graph.SerializeToString(), "onnx", "model.onnx", cases)


def _onnx_inputs(model: Any, sample: Any) -> list[tuple[str, Any]]:
    """One input of all features; one for each column where the model was fitted on a table of several kinds."""
    from skl2onnx.common import data_types as onnx_types

    columns = getattr(sample, "columns", None)
    if columns is not None and (_selects_columns(model) or not _is_numeric(sample)):
        kinds = {"b": onnx_types.BooleanTensorType, "i": onnx_types.Int64TensorType, "u": onnx_types.Int64TensorType}
        kinds["f"] = onnx_types.FloatTensorType
        types = [kinds.get(sample[column].dtype.kind, onnx_types.StringTensorType) for column in columns]
        return [(str(column), kind([None, 1])) for column, kind in zip(columns, types)]
    if _selects_columns(model):
        raise ConfigError("this model selects columns by name: give sample=, a DataFrame with some of its rows")
    width = getattr(model, "n_features_in_", None)
    if width is None and sample is not None:
        width = _rows(sample, "float32").shape[1]
    if width is None:
        raise ConfigError("this model does not say how many features it takes: give sample=, some of its rows")
    return [("input", onnx_types.FloatTensorType([None, int(width)]))]


def _selects_columns(model: Any) -> bool:
    """Whether a step is a ColumnTransformer that was fitted on names."""
    steps = [step for _, step in getattr(model, "steps", ())]
    if type(model).__name__ == "ColumnTransformer":
        chosen = [columns for _, _, columns in getattr(model, "transformers_", ())]
        return any(
            isinstance(columns, str)
            or (isinstance(columns, (list, tuple)) and any(isinstance(c, str) for c in columns))
            for columns in chosen
        )
    return any(_selects_columns(step) for step in steps)


def _is_numeric(sample: Any) -> bool:
    return all(sample[column].dtype.kind in "biuf" for column in sample.columns)


def _sklearn_answers(model: Any, rows: Any, classifies: bool, outputs: list[tuple[str, int]]) -> dict[str, Any]:
    """What the model says of the rows, by the names of the graph's outputs."""
    if not callable(getattr(model, "predict", None)):
        raise ConfigError(f"golden cases are made for what predicts, and a {_name(model)} does not: give golden=")
    predicted = _with_names(model, model.predict, rows)
    (first, kind), rest = outputs[0], outputs[1:]
    if not classifies:
        return {first: predicted.reshape(len(predicted), -1)}
    answers = {first: [str(label) if kind == _STRING else int(label) for label in predicted]}
    if rest and callable(getattr(model, "predict_proba", None)):
        answers[rest[0][0]] = _with_names(model, model.predict_proba, rows)
    return answers


#: ``TensorProto.STRING``
_STRING = 8


def _with_names(model: Any, predict: Callable[[Any], Any], rows: Any) -> Any:
    """A model that was fitted on a table warns when it is asked with an array: give it its names."""
    names = getattr(model, "feature_names_in_", None)
    if names is not None and not hasattr(rows, "columns"):
        import pandas

        rows = pandas.DataFrame(rows, columns=names)
    return predict(rows)


# MLflow


def _from_mlflow(uri: str) -> Any:
    """The native object of an MLflow model. MLflow unpickles what it loads: a registry is trusted as code is."""
    try:
        import mlflow
    except ImportError as error:
        raise MissingExtra(f"{uri}, a model of MLflow,", "mlflow", error) from error
    try:
        flavors = mlflow.models.get_model_info(uri).flavors
    except Exception as error:
        raise ConfigError(f"MLflow does not have {uri} at {mlflow.get_tracking_uri()}: {error}") from error
    for flavor, extra in (
        ("xgboost", "xgboost"),
        ("lightgbm", "lightgbm"),
        ("sklearn", "sklearn"),
        ("onnx", "sklearn"),
    ):
        if flavor not in flavors:
            continue
        try:
            return getattr(mlflow, flavor).load_model(uri)
        except ImportError as error:
            raise MissingExtra(f"{uri}, a model of the flavor {flavor},", extra, error) from error
        except Exception as error:
            raise HotserveError(f"MLflow cannot load {uri} as {flavor}: {error}") from error
    raise UnsupportedModel(
        f"{uri} has the flavors {', '.join(flavors)}, and of these none is xgboost, lightgbm, sklearn or onnx"
    )


# Rows


def _rows(sample: Any, dtype: str) -> Any:
    """Rows of numbers, as a two-dimensional array."""
    import numpy

    if hasattr(sample, "columns") and not _is_numeric(sample):
        texts = [str(column) for column in sample.columns if sample[column].dtype.kind not in "biuf"]
        raise ConfigError(
            f"the columns {', '.join(texts)} of the sample are no numbers: give the categories' codes, or golden="
        )
    try:
        rows = numpy.asarray(sample, dtype=dtype)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the sample is no rows of numbers: {error}") from error
    if rows.ndim != 2 or not len(rows):
        raise ConfigError(f"the sample has the shape {rows.shape}, and must be rows of features: [[5.1, 3.5], …]")
    return rows


def _column(column: Any) -> Any:
    """A column of a table as a tensor of one element a row."""
    kind = column.dtype.kind
    if kind in "biu":
        return [[value] for value in column.tolist()]
    if kind == "f":
        return column.to_numpy(dtype="float32").reshape(-1, 1)
    return [[str(value)] for value in column.tolist()]


def _golden(inputs: dict[str, Any], outputs: dict[str, Any], tolerance: float) -> dict[str, Any]:
    shortest = {name: _shortest(tensor) for name, tensor in inputs.items()}
    answers = {name: _shortest(tensor) for name, tensor in outputs.items()}
    return {"cases": [{"inputs": shortest, "outputs": answers, "tolerance": tolerance}]}


def _shortest(tensor: Any) -> Any:
    """Lists; each FP32 in the fewest digits that give it back, not as the FP64 next to it."""
    if not hasattr(tensor, "dtype"):
        return tensor
    if tensor.dtype.name != "float32":
        return tensor.tolist()

    def short(value: Any) -> Any:
        return [short(inner) for inner in value] if getattr(value, "ndim", 0) else float(str(value))

    return short(tensor)
