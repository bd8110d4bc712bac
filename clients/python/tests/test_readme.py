"""The README's commands, word for word, against a `hotserve dev`; the example is one of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT, hotserve_dev

README = ROOT / "clients/python/README.md"


def blocks() -> list[tuple[str, str]]:
    """Each block of code with its language, in the order of the page."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)
    assert {language for language, _ in found} == {"sh", "python"}
    return found


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the server leaves its note, and MLflow what it keeps."""
    if not os.environ.get("HOTSERVE"):
        pytest.skip("HOTSERVE names no program to publish to: scripts/python-publisher does")
    for library in ("skl2onnx", "xgboost", "lightgbm", "mlflow"):
        pytest.importorskip(library)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shell(command: str) -> str:
    shell = ["bash", "-euo", "pipefail", "-c", command]
    done = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    print(done.stdout)
    return done.stdout


def test_the_readme_works_word_for_word(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = blocks()
    # This is the first terminal: but for its ports, which others may have.
    start = ("sh", "hotserve dev\n")
    assert steps.count(start) == 1
    session: dict[str, Any] = {}
    with hotserve_dev(own) as running:
        for language, text in steps:
            if (language, text) == start:
                continue
            if language == "python":
                exec(compile(text, "README.md", "exec"), session)
                continue
            answer = shell(text.replace("localhost:8000", f"localhost:{running.port}"))
            if "curl" in text:
                assert "predictions" in answer, answer
    printed = capsys.readouterr().out
    assert "stale version 3 is served, which is newer, so that this is never" in printed, printed
    # The example, which is one of the commands.
    assert "version 1 answers" in printed and "version 2 answers" in printed, printed
    assert "(contract):" in printed, printed
    assert "every time there was an answer" in printed, printed
