"""Against a `hotserve dev`: what is published is decoded, proved and served, or refused with a reason."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hotserve import Publisher, PublishError, Rejected, WaitTimeout
from hotserve.signing import keys

from .conftest import ROOT, Dev, hotserve_dev, until

PATIENCE = 60
SAMPLES = ROOT / "models/samples"


@pytest.fixture
def publisher(dev: Dev) -> Publisher:
    return dev.publisher()


def flowers() -> tuple[Any, Any]:
    datasets = pytest.importorskip("sklearn.datasets")
    X, y = datasets.load_iris(return_X_y=True)
    return X, y


def predict(dev: Dev, name: str, rows: Any, version: int) -> Any:
    """The answer, which comes from this version."""
    headers = {"x-min-version": str(version)}
    status, answered, body = dev.ask(f"/predict/{name}", {"instances": np.asarray(rows).tolist()}, headers)
    assert status == 200, body
    assert (answered["x-model-version"], body["model"]["version"]) == (str(version), version)
    return body["predictions"]


def test_a_state_is_served(dev: Dev, publisher: Publisher) -> None:
    value = {"eur": 1.08, "text": "grün", "rows": np.arange(3), "nothing": None}
    published = publisher.publish_state(value, key="pricing", version=7)
    (served,) = publisher.wait(published, PATIENCE)
    assert (served.server, served.version) == (dev.url, "7")
    status, headers, body = dev.ask("/state/pricing")
    assert (status, body) == (200, {"state": {**value, "rows": [0, 1, 2]}})
    assert headers["x-state-version"] == "7"


def test_a_state_without_a_version_is_served_in_the_order_of_the_stream(dev: Dev, publisher: Publisher) -> None:
    first = publisher.publish_state(41, text="some text", message_id="4141")
    second = publisher.publish_state(42, text="some text", message_id="4142")
    assert publisher.wait(second, PATIENCE)[0].version == second.sequence_number
    assert dev.ask("/state")[2] == {"state": 42}
    assert publisher.wait(first, PATIENCE)[0].version == second.sequence_number, "replaced on the way, or served"


def test_a_state_that_only_fits_when_packed_is_served(dev: Dev, publisher: Publisher) -> None:
    words = [f"word {number % 1000}" for number in range(120_000)]
    publisher.publish_state(words, key="words", version=1, wait=PATIENCE)
    assert dev.ask("/state/words")[2] == {"state": words}


def test_the_same_version_of_another_content_is_refused(publisher: Publisher) -> None:
    publisher.publish_state(1, key="conflict", version=1, wait=PATIENCE)
    publisher.publish_state(1, key="conflict", version=1, wait=PATIENCE)
    with pytest.raises(Rejected, match="publish a higher version") as told:
        publisher.publish_state(2, key="conflict", version=1, wait=PATIENCE)
    assert told.value.reason == "conflict"


def test_an_older_version_and_one_left_out_are_refused(publisher: Publisher) -> None:
    publisher.publish_state(5, key="order", version=5, wait=PATIENCE)
    with pytest.raises(Rejected) as told:
        publisher.publish_state(4, key="order", version=4, wait=PATIENCE)
    assert told.value.reason == "stale"
    with pytest.raises(Rejected, match="has had versions") as told:
        publisher.publish_state(6, key="order", wait=PATIENCE)
    assert told.value.reason == "unversioned"
    assert publisher.publish_state(6, key="order", version="next", wait=PATIENCE).version == 6


def test_what_has_expired_is_refused(publisher: Publisher) -> None:
    from datetime import datetime, timedelta, timezone

    yesterday = datetime.now(timezone.utc) - timedelta(days=1)
    with pytest.raises(Rejected) as told:
        publisher.publish_state(1, key="expired", version=1, expires_at=yesterday, wait=PATIENCE)
    assert told.value.reason == "expired"


def test_the_command_reads_the_messages_as_the_server_does(dev: Dev, publisher: Publisher) -> None:
    published = publisher.publish_state({"eur": 1.08}, key="tail", version=1)
    assert publisher.wait(published, PATIENCE)
    line = dev.run("tail", "--count", "1", "--json", "--dev", str(dev.port))
    assert published.sequence_number in line and '"rejected"' not in line, line


def test_a_signature_is_good_to_the_program(dev: Dev, publisher: Publisher, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    key, keyring = tmp_path / "key.pem", tmp_path / "keyring.toml"
    keyring.write_text(dev.run("keygen", "--out", str(key)))
    publisher._keys = keys(key)
    published = publisher.publish_state(1, key="signed", version=1, wait=PATIENCE)
    tail = ("tail", "--count", "1", "--json", "--dev", str(dev.port), "--trusted-keys", str(keyring))
    line = dev.run(*tail)
    assert published.sequence_number in line and publisher._keys[0].id in line, line
    # Of another key it is refused.
    keyring.write_text(dev.run("keygen", "--out", str(tmp_path / "other.pem")))
    assert "unknown_key" in dev.run(*tail)


def test_a_pipeline_of_scikit_learn_answers_as_it_does_in_python(dev: Dev, publisher: Publisher) -> None:
    pytest.importorskip("skl2onnx")
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    X, y = flowers()
    species = np.array(["setosa", "versicolor", "virginica"])[y]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(X, species)
    published = publisher.publish_model(model, "skl", 1, sample=X[::10], label="a pipeline", wait=PATIENCE)
    assert published.format == "onnx" and published.uri is not None
    for row, answer in zip(X[:5], predict(dev, "skl", X[:5], 1)):
        assert answer["label"] == model.predict([row])[0]
        assert np.allclose(answer["probabilities"], model.predict_proba([row])[0], atol=1e-5)
    row = next(row for row in dev.ask("/models")[2]["models"] if row["name"] == "skl")
    assert (row["label"], row["digest"], row["version"]) == ("a pipeline", published.sha256, 1)


def test_forests_and_regressions_of_scikit_learn_pass_their_own_golden_cases(publisher: Publisher) -> None:
    pytest.importorskip("skl2onnx")
    from sklearn.ensemble import GradientBoostingRegressor, RandomForestClassifier
    from sklearn.linear_model import LinearRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler

    X, y = flowers()
    models = [
        RandomForestClassifier(n_estimators=10, random_state=7),
        GradientBoostingRegressor(n_estimators=10, random_state=7),
        LinearRegression(),
        make_pipeline(MinMaxScaler(), Ridge()),
    ]
    for model in models:
        publisher.publish_model(model.fit(X, y), "skl-many", "next", sample=X, wait=PATIENCE)


def test_a_table_of_several_kinds_is_asked_by_its_columns(dev: Dev, publisher: Publisher) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("skl2onnx")
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    table = pandas.DataFrame(
        {"city": ["Bonn", "Ulm", "Bonn", "Trier"] * 5, "rooms": [1, 2, 3, 4] * 5, "size": [20.5, 40.0, 61.0, 80.0] * 5}
    )
    # It refuses what is no category, so a server learns from the sample alone whether the model is fit.
    encoder = OneHotEncoder()
    columns = make_column_transformer((encoder, ["city"]), (StandardScaler(), ["rooms", "size"]))
    model = make_pipeline(columns, LogisticRegression()).fit(table, [0, 1, 0, 1] * 5)
    publisher.publish_model(model, "table", 1, sample=table.head(8), wait=PATIENCE)
    body = {"inputs": {"city": [["Ulm"]], "rooms": [[2]], "size": [[40.0]]}}
    status, _, answer = dev.ask("/predict/table", body)
    assert status == 200, answer
    assert model.predict(table.iloc[[1]])[0] in [answer["predictions"][0]["label"]]


def test_xgboost_answers_as_it_does_in_python(dev: Dev, publisher: Publisher) -> None:
    xgboost = pytest.importorskip("xgboost")
    X, y = flowers()
    # The wrapper, of two classes and of three, and the Booster with names.
    two = xgboost.XGBClassifier(n_estimators=10, n_jobs=1).fit(X, y == 2)
    sample = X[::7].copy()
    sample[0, 1] = np.nan
    published = publisher.publish_model(two, "xgb", 1, sample=sample, wait=PATIENCE)
    assert published.format == "xgboost"
    assert np.allclose(predict(dev, "xgb", X[:5], 1), two.predict_proba(X[:5])[:, 1], atol=1e-6)
    three = xgboost.XGBClassifier(n_estimators=10, n_jobs=1).fit(X, y)
    publisher.publish_model(three, "xgb", 2, sample=sample, wait=PATIENCE)
    assert np.allclose(predict(dev, "xgb", X[:5], 2), three.predict_proba(X[:5]), atol=1e-6)
    names = ["a", "b", "c", "d"]
    booster = xgboost.train({"nthread": 1}, xgboost.DMatrix(X, y, feature_names=names), 5)
    publisher.publish_model(booster, "xgb", 3, sample=X[:9], inline=True, wait=PATIENCE)
    expected = booster.predict(xgboost.DMatrix(X[:1], feature_names=names))
    status, _, answer = dev.ask("/predict/xgb", {"instances": [dict(zip(names, X[0].tolist()))]})
    assert status == 200 and np.allclose(answer["predictions"], expected, atol=1e-6)


def test_lightgbm_answers_as_it_does_in_python(dev: Dev, publisher: Publisher) -> None:
    lightgbm = pytest.importorskip("lightgbm")
    X, y = flowers()
    wrapper = lightgbm.LGBMClassifier(n_estimators=10, n_jobs=1, verbose=-1).fit(X, y)
    published = publisher.publish_model(wrapper, "lgb", 1, sample=X[::7], wait=PATIENCE)
    assert published.format == "lightgbm"
    assert np.allclose(predict(dev, "lgb", X[:5], 1), wrapper.predict_proba(X[:5]))
    booster = lightgbm.train({"objective": "regression", "num_threads": 1, "verbose": -1}, lightgbm.Dataset(X, y), 5)
    publisher.publish_model(booster, "lgb", 2, sample=X[::7], wait=PATIENCE)
    assert np.allclose(predict(dev, "lgb", X[:5], 2), booster.predict(X[:5]))


def test_a_file_and_bytes_are_served_with_the_golden_cases_given(dev: Dev, publisher: Publisher) -> None:
    golden = SAMPLES / "iris/golden.json"
    file = SAMPLES / "iris/model.json"
    publisher.publish_model(file, "file", 1, golden=golden, limits={"row_time": 0.1}, wait=PATIENCE)
    retrained = (SAMPLES / "iris/retrained.json").read_bytes()
    publisher.publish_model(retrained, "file", 2, inline=True, wait=PATIENCE)
    with pytest.raises(Rejected, match="golden case 0: output") as told:
        publisher.publish_model(retrained, "file", 3, golden=golden, wait=PATIENCE)
    assert told.value.reason == "golden"
    predict(dev, "file", [[5.1, 3.5, 1.4, 0.2]], 2)


def test_a_model_of_almost_a_megabyte_travels_in_the_message(dev: Dev, publisher: Publisher) -> None:
    weights = np.random.default_rng(7).normal(size=60_000).tolist()
    model: dict[str, Any] = {"kind": "linear", "features": [f"f{at}" for at in range(60_000)]}
    model |= {"coefficients": [weights], "intercepts": [0.5]}
    content = json.dumps(model).encode()
    assert len(content) > 1_000_000
    published = publisher.publish_model(content, "wide", 1, inline=True, wait=PATIENCE)
    assert published.uri is None


def test_a_model_that_is_not_what_it_says_is_refused_with_the_servers_words(dev: Dev, publisher: Publisher) -> None:
    before = dev.ask("/models")[2]["generation"]
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (b"tree\nversion=v4\n", {}, "lightgbm"),
        (b"garbage", {"format": "onnx"}, "onnx"),
        (b"garbage", {"format": "pickle"}, "pickle"),
    ]
    for version, (content, more, says) in enumerate(cases, start=1):
        with pytest.raises(Rejected, match=says) as told:
            publisher.publish_model(content, "wrong", version, wait=PATIENCE, **more)
        assert told.value.reason and told.value.entry["slots"] == ["model wrong"]
    spec = {"name": "input", "datatype": "FP32", "shape": [-1, 5]}
    signature = {"inputs": [spec], "outputs": []}
    with pytest.raises(Rejected):
        publisher.publish_model(SAMPLES / "iris/model.json", "wrong", 9, signature=signature, wait=PATIENCE)
    assert dev.ask("/models")[2]["generation"] == before, "and nothing changes"


def test_a_run_and_a_registered_model_of_mlflow_are_served(
    dev: Dev, publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    xgboost, lightgbm = pytest.importorskip("xgboost"), pytest.importorskip("lightgbm")
    pytest.importorskip("skl2onnx")
    from sklearn.linear_model import LogisticRegression

    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    X, y = flowers()
    fitted = {
        "sklearn": LogisticRegression(max_iter=1000).fit(X, y),
        "xgboost": xgboost.XGBClassifier(n_estimators=5, n_jobs=1).fit(X, y),
        "lightgbm": lightgbm.LGBMClassifier(n_estimators=5, n_jobs=1, verbose=-1).fit(X, y),
    }
    for flavor, model in fitted.items():
        with mlflow.start_run() as run:
            getattr(mlflow, flavor).log_model(model, name="model", registered_model_name=f"our-{flavor}")
        for version, uri in enumerate((f"runs:/{run.info.run_id}/model", f"models:/our-{flavor}/1"), start=1):
            name = f"mlflow-{flavor}"
            publisher.publish_model(uri, name, version, sample=X[::10], wait=PATIENCE)
            row = next(row for row in dev.ask("/models")[2]["models"] if row["name"] == name)
            assert (row["version"], row["label"]) == (version, uri)
    with pytest.raises(ValueError, match="MLflow does not have models:/nothing/1 at sqlite"):
        publisher.publish_model("models:/nothing/1", "mlflow")

    class Own(mlflow.pyfunc.PythonModel):  # type: ignore[misc, name-defined, unused-ignore]
        def predict(self, context: Any, model_input: list[str]) -> list[str]:
            return model_input

    with mlflow.start_run() as run:
        mlflow.pyfunc.log_model(name="model", python_model=Own())
    with pytest.raises(TypeError, match="has the flavors python_function, and of these none"):
        publisher.publish_model(f"runs:/{run.info.run_id}/model", "mlflow")


def test_commands_are_obeyed(dev: Dev, publisher: Publisher) -> None:
    for version in (1, 2):
        publisher.publish_state(version, key="told", version=version, wait=PATIENCE)

    def serves(version: int) -> None:
        until(f"version {version}", lambda: dev.ask("/state/told")[1]["x-state-version"] == str(version))

    publisher.control("rollback", key="told", version=1, from_version=2)
    serves(1)
    publisher.publish_state(3, key="told", version=3, wait=PATIENCE)
    publisher.control("pin", key="told", version=1)
    serves(1)
    fourth = publisher.publish_state(4, key="told", version=4)
    with pytest.raises(WaitTimeout, match=r"is pinned to version 1 \(stream\): unpin it"):
        publisher.wait(fourth, 1)
    publisher.control("unpin", key="told")
    publisher.wait(fourth, PATIENCE)
    publisher.control("revoke", key="told", version=4)
    serves(3)


def test_whoever_waits_is_told_when_it_is_served_and_no_sooner(dev: Dev, publisher: Publisher) -> None:
    published = publisher.publish_state(1, key="later", version=2)
    publisher.wait(published, PATIENCE)
    assert dev.ask("/state/later", headers={"x-min-version": "2", "x-min-version-wait": "0s"})[0] == 200
    # Nobody has published it: somebody else does while it is waited for.
    other = dev.publisher()
    threading.Timer(0.3, lambda: other.publish_state(3, key="later", version=3)).start()
    status, _, body = dev.ask("/state/later", headers={"x-min-version": "3", "x-min-version-wait": "20s"})
    assert (status, body) == (200, {"state": 3})


def test_aws_variables_as_the_server_prints_them_are_enough(
    dev: Dev, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = json.loads((Path(dev.environment["XDG_RUNTIME_DIR"]) / f"hotserve-dev/{dev.port}.json").read_text())
    monkeypatch.setenv("AWS_ENDPOINT_URL_KINESIS", f"http://{note['kinesis']}")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://localhost:{note['s3'].rpartition(':')[2]}")
    monkeypatch.setenv("AWS_REGION", note["region"])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", note["access_key_id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", note["secret_access_key"])
    monkeypatch.setenv("KINESIS_STREAM", note["stream"])
    monkeypatch.setenv("HOTSERVE_PUBLISH_TO", f"s3://{note['bucket']}/ours")
    monkeypatch.setenv("HOTSERVE_SERVER", dev.url)
    published = Publisher().publish_model(SAMPLES / "iris/model.json", "env", 1, wait=PATIENCE)
    assert str(published.uri).startswith("s3://hotserve-dev/ours/env/")


def test_a_stream_that_is_not_there_is_named(publisher: Publisher) -> None:
    publisher.stream = "no-such-stream"
    with pytest.raises(PublishError, match="there is no stream 'no-such-stream'"):
        publisher.publish_state(1)


def test_a_dev_that_keeps_a_manifest_is_left_to_the_command(dev: Dev, tmp_path: Path) -> None:
    with hotserve_dev(tmp_path, "--manifest") as running, pytest.raises(ValueError, match="keeps a manifest"):
        running.publisher()
