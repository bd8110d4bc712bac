"""What schemathesis is not to try."""

import schemathesis


@schemathesis.hook
def filter_case(context, case):
    # A header that nobody knows is no mistake: proxies and tracers add them.
    return not any(name.lower().startswith("x-schemathesis-unknown") for name in (case.headers or {}))
