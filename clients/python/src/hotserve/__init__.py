"""Publish states and models to hotserve, the model server that swaps them while it serves.

>>> from hotserve import Publisher
>>> publisher = Publisher(stream="updates", bucket="my-models", server="http://localhost:8000")
>>> publisher.publish_state({"eur": 1.08}, key="pricing", version=7)
>>> published = publisher.publish_model(fitted, name="fraud", version=12, sample=rows)
>>> publisher.wait(published)
"""

from .errors import (
    ConfigError,
    HotserveError,
    MissingExtra,
    PublishError,
    Rejected,
    TooLarge,
    UnsupportedModel,
    WaitTimeout,
)
from .publisher import Published, Publisher
from .servers import Served

__all__ = [
    "ConfigError",
    "HotserveError",
    "MissingExtra",
    "PublishError",
    "Published",
    "Publisher",
    "Rejected",
    "Served",
    "TooLarge",
    "UnsupportedModel",
    "WaitTimeout",
]
