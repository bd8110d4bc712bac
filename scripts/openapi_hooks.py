"""What schemathesis is to try otherwise than it would."""

import re

import schemathesis

DURATION = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?(us|ms|s|m|h|d)")


@schemathesis.hook
def filter_case(context, case):
    headers = case.headers or {}
    # A header that nobody knows is no mistake: proxies and tracers add them. And who waits for no version does not wait.
    unknown = any(name.lower().startswith("x-schemathesis-unknown") for name in headers)
    # No text that is made up is a table: tests/predict_forms.rs has some.
    if case.media_type == "text/csv":
        return False
    return not unknown and not ("x-min-version-wait" in headers and "x-min-version" not in headers)


def integers(value):
    """1.0 is an integer to JSON Schema, and none to the server: it is written as 1."""
    if isinstance(value, dict):
        return {name: integers(field) for name, field in value.items()}
    if isinstance(value, list):
        return [integers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@schemathesis.hook
def map_case(context, case):
    # Waits are tried with short ones: a version that never comes takes ten seconds else, and a state a minute. What is
    # no duration stays as it is.
    for place, name in ((case.headers, "x-min-version-wait"), (case.query, "wait")):
        if place and DURATION.fullmatch(str(place.get(name, ""))):
            place[name] = "10ms"
    case.body = integers(case.body)
    if case.headers and "x-min-version" in case.headers and "x-min-version-wait" not in case.headers:
        case.headers["x-min-version-wait"] = "10ms"
    return case
