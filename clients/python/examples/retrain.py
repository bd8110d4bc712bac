"""Retrains a model while it is being served, and watches the answers change.

    hotserve dev                                      # in one terminal
    python clients/python/examples/retrain.py         # in another

It publishes to the running `hotserve dev`, or to where KINESIS_STREAM, HOTSERVE_PUBLISH_TO and HOTSERVE_SERVER say.
"""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.request
from typing import Any

from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hotserve import Publisher, Rejected

NAME = "flowers"
FLOWER = [6.1, 2.9, 4.7, 1.4]


def main() -> None:
    publisher = Publisher() if os.environ.get("KINESIS_STREAM") else Publisher.dev()
    X, y = load_iris(return_X_y=True)

    print("train on every fifth flower, and publish")
    first = publisher.publish_model(train(X[::5], y[::5]), NAME, "next", sample=X[:10], label="every fifth flower")
    publisher.wait(first)
    print(f"  {first}")

    with Watch(publisher.servers[0]) as watch:
        print("retrain on all of them, and publish, while somebody asks all the time")
        second = publisher.publish_model(train(X, y), NAME, "next", sample=X[::10], label="all flowers")
        publisher.wait(second)
        watch.until(second.version)

        print("a column is forgotten: what a server is told to expect keeps such a model out")
        try:
            narrow = train(X[:, :3], y)
            refused = publisher.publish_model(narrow, NAME, "next", signature=signature(publisher.servers[0]))
            publisher.wait(refused)
        except Rejected as error:
            print(f"  {error}")

        print("take the second one back, on every server that follows the stream")
        publisher.control("rollback", model=NAME, version=first.version, from_version=second.version)
        watch.until(first.version)
    print(f"asked {watch.answers} times, and every time there was an answer")


def train(X: Any, y: Any) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(X, y)


def signature(server: str) -> dict[str, Any]:
    """What the served model takes and gives."""
    with urllib.request.urlopen(f"{server}/models", timeout=10) as answer:
        model = next(model for model in json.load(answer)["models"] if model["name"] == NAME)
    return {"inputs": model["inputs"], "outputs": model["outputs"]}


class Watch:
    """Asks about one flower all the time, and says when the answer changes."""

    def __init__(self, server: str) -> None:
        self.url = f"{server}/predict/{NAME}"
        self.answers = 0
        self.version: Any = None
        self._fault: Any = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def until(self, version: Any) -> None:
        deadline = time.monotonic() + 60
        while self.version != version and time.monotonic() < deadline:
            if self._fault is not None:
                raise self._fault
            time.sleep(0.01)
        assert self.version == version, f"version {version} does not answer, but {self.version}"

    def _run(self) -> None:
        body = json.dumps({"instances": [FLOWER]}).encode()
        try:
            while not self._over.is_set():
                with urllib.request.urlopen(self.url, body, timeout=10) as answer:
                    said = json.load(answer)
                self.answers += 1
                if said["model"]["version"] != self.version:
                    self.version = said["model"]["version"]
                    print(f"  version {self.version} answers {json.dumps(said['predictions'][0])}")
                time.sleep(0.005)
        except Exception as error:
            self._fault = error


if __name__ == "__main__":
    main()
