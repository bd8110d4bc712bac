"""Waiting, against servers that say what the test wants. A real one is in test_dev.py."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Optional

import pytest

from hotserve import ConfigError, HotserveError, Published, Publisher, Rejected, WaitTimeout
from hotserve.servers import state_etag

from .conftest import SEQUENCE, Recorder
from .test_messages import LINEAR


class Server:
    """A server that says what it is told to."""

    def __init__(self) -> None:
        self.models: list[dict[str, Any]] = []
        self.states: list[dict[str, Any]] = []
        self.history: list[dict[str, Any]] = []
        self.garbage: Optional[bytes] = None
        self.asked = 0
        told = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                told.asked += 1
                answer: Any = {"models": told.models, "states": told.states}
                if self.path.startswith("/history"):
                    answer = {"entries": told.history}
                body = told.garbage if told.garbage is not None else json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture
def ours(recorder: Recorder, server: Server) -> Publisher:
    return Publisher("updates", session=recorder, server=server.url)


def state_row(version: Any, published: Optional[Published] = None, **more: Any) -> dict[str, Any]:
    at = published.published_at if published is not None else None
    return {"key": "default", "version": version, "published_at": at and at.isoformat().replace("+00:00", "Z"), **more}


def rejection(reason: str, **more: Any) -> dict[str, Any]:
    entry = {"outcome": "rejected", "slots": ["state default"], "versions": ["7"], "reason": reason}
    return {**entry, "detail": "its words", "sequence_number": SEQUENCE, **more}


def test_it_returns_when_the_version_is_served(ours: Publisher, server: Server) -> None:
    published = ours.publish_state(96, version=7)
    threading.Timer(0.1, lambda: server.states.append(state_row(7, etag=state_etag("96")))).start()
    (served,) = ours.wait(published, timeout=30)
    assert (served.server, served.version) == (server.url, "7")


def test_another_content_of_the_same_version_is_not_ours(ours: Publisher, server: Server) -> None:
    published = ours.publish_state(96, version=7)
    server.states = [state_row(7, etag=state_etag("95"))]
    with pytest.raises(WaitTimeout, match=r"serves version 7 of state default, not 7"):
        ours.wait(published, timeout=0.1)
    server.history = [rejection("conflict")]
    with pytest.raises(Rejected, match=r"refuses version 7 of state default \(conflict\): its words"):
        ours.wait(published, timeout=30)
    model = ours.publish_model(LINEAR, name="iris", version=1)
    server.models = [{"name": "iris", "version": 1, "digest": "a" * 64, "published_at": None}]
    with pytest.raises(WaitTimeout):
        ours.wait(model, timeout=0.1)
    server.models[0]["digest"] = model.sha256
    assert ours.wait(model, timeout=30)[0].version == "1"


def test_a_rejection_is_the_servers_reason(ours: Publisher, server: Server) -> None:
    published = ours.publish_state(96, version=7)
    others = [rejection("schema", sequence_number="1"), rejection("golden", slots=["model iris"])]
    server.history = [*others, rejection("unversioned", slots=[], versions=[])]
    with pytest.raises(Rejected) as told:
        ours.wait(published, timeout=30)
    assert (told.value.reason, told.value.detail, told.value.server) == ("unversioned", "its words", server.url)
    assert told.value.entry["sequence_number"] == SEQUENCE


def test_what_cannot_be_had_for_now_is_waited_for_and_then_told(ours: Publisher, server: Server) -> None:
    published = ours.publish_state(96, version=7)
    server.history = [rejection("access_denied")]
    with pytest.raises(WaitTimeout, match=r"what it needs cannot be had \(access_denied: its words\)") as told:
        ours.wait(published, timeout=0.1)
    assert isinstance(told.value, TimeoutError)


def test_a_newer_version_that_came_later_is_as_good(ours: Publisher, server: Server) -> None:
    published = ours.publish_state(96, version=7)
    server.states = [state_row(8, ours.publish_state(97, version=8))]
    assert ours.wait(published, timeout=30)[0].version == "8"


def test_a_version_below_what_was_served_already_is_never_served(ours: Publisher, server: Server) -> None:
    before = ours.publish_state(97, version=8)
    published = ours.publish_state(96, version=7)
    server.states = [state_row(8, before)]
    with pytest.raises(Rejected, match=r"\(stale\): version 8 is served.*publish a higher version"):
        ours.wait(published, timeout=30)
    # Of another message it says nothing that its version was served.
    applied = {"outcome": "applied", "slots": ["state default"], "versions": ["7"], "sequence_number": "1"}
    server.history = [applied]
    with pytest.raises(Rejected):
        ours.wait(published, timeout=30)
    # It was served for a while: the clocks of two publishers need not agree.
    server.history = [{**applied, "sequence_number": SEQUENCE}]
    assert ours.wait(published, timeout=30)[0].version == "8"


def test_without_versions_the_sequence_number_tells(ours: Publisher, server: Server) -> None:
    published = ours.publish_state(96)
    server.states = [state_row(str(int(SEQUENCE) - 1), etag=None)]
    with pytest.raises(WaitTimeout):
        ours.wait(published, timeout=0.1)
    server.states = [state_row(SEQUENCE, etag=state_etag("96"))]
    assert ours.wait(published, timeout=30)[0].version == SEQUENCE
    later = str(int(SEQUENCE) + 1)
    at = (published.published_at + timedelta(seconds=1)).isoformat().replace("+00:00", "123Z")
    server.states = [{"key": "default", "version": later, "published_at": at}]
    assert ours.wait(published, timeout=30)[0].version == later


def test_every_server_must_serve_it(ours: Publisher, server: Server) -> None:
    published = ours.publish_state(96, version=7)
    server.states = [state_row(7, etag=state_etag("96"))]
    nobody = "http://127.0.0.1:1"
    with pytest.raises(WaitTimeout, match=r"^not served within 0.1 s: http://127.0.0.1:1 does not answer \(.*refused"):
        ours.wait(published, timeout=0.1, server=[server.url, nobody])
    asked = server.asked
    with pytest.raises(WaitTimeout):
        ours.wait(published, timeout=1, server=[server.url, nobody])
    assert server.asked == asked + 1, "who serves it is not asked again"


def test_what_answers_and_is_no_hotserve_is_told(ours: Publisher, server: Server) -> None:
    published = ours.publish_state(96, version=7)
    for garbage in (b"<html>", b"[]", b"{}"):
        server.garbage = garbage
        with pytest.raises(WaitTimeout, match="what it answers is none of hotserve's"):
            ours.wait(published, timeout=0.1)


def test_a_pin_is_told(ours: Publisher, server: Server) -> None:
    published = ours.publish_state(96, version=7)
    server.states = [state_row(5, held={"by": "admin", "version": 5})]
    with pytest.raises(WaitTimeout, match=r"is pinned to version 5 \(admin\): unpin it"):
        ours.wait(published, timeout=0.1)


def test_publishing_may_wait_at_once(ours: Publisher, server: Server, recorder: Recorder) -> None:
    server.history = [rejection("unversioned")]
    with pytest.raises(Rejected):
        ours.publish_state(96, version=7, wait=30)
    assert len(recorder.sent) == 1


def test_with_nobody_to_ask_it_says_so(recorder: Recorder) -> None:
    ours = Publisher("updates", session=recorder)
    published = ours.publish_state(1)
    with pytest.raises(ConfigError, match=r"nobody to ask: say Publisher\(server="):
        ours.wait(published)


def test_the_next_version_is_above_all_that_is_served_or_was_heard_of(
    ours: Publisher, server: Server, recorder: Recorder
) -> None:
    assert ours.publish_state(1, version="next").version == 1
    server.states = [state_row(SEQUENCE)]
    assert ours.publish_state(1, version="next").version == 1
    server.states = [state_row(7), {"key": "other", "version": 30}]
    assert ours.publish_state(1, version="next").version == 8
    # Refused ones are taken too: another content of the same version would be in conflict.
    server.history = [
        rejection("golden", versions=["9"]),
        rejection("golden", slots=["model iris"], versions=["20"]),
        rejection("schema", versions=[SEQUENCE]),
    ]
    assert ours.publish_state(1, version="next").version == 10
    assert recorder.message()["version"] == 10
    server.garbage = b"<html>"
    with pytest.raises(HotserveError, match=r"version='next': http.* does not say what it serves"):
        ours.publish_state(1, version="next")
