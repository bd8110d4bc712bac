"""Makes the KPL aggregates of this folder, with AWS's own encoder in Python.

    pip install aws-kinesis-agg==1.2.3 protobuf==7.36.2
    python make.py
"""

import gzip
import os

from aws_kinesis_agg.aggregator import RecordAggregator

HERE = os.path.dirname(os.path.abspath(__file__))


def write(name, messages, change=None):
    """An aggregate of (partition key, data, explicit hash key or none)."""
    aggregator = RecordAggregator()
    for message in messages:
        assert aggregator.add_user_record(*message) is None, "it is full"
    record = aggregator.clear_and_get()
    if change:
        change(record.agg_record)
    with open(os.path.join(HERE, name), "wb") as file:
        file.write(record.get_contents()[2])


def tag(aggregate):
    """Tags are in the format, though no producer is known to write them."""
    for number, record in enumerate(aggregate.records):
        record.tags.add(key=f"tag {number}", value="value")
        record.tags.add(key="without a value")


STATES = [("p1", '{"key":"one","state":1}'), ("p2", '{"key":"two","state":2}')]

write("one.bin", [("p", '{"state":1}')])
write("two.bin", STATES)
write("tags.bin", STATES, tag)
write("hash_keys.bin", [(f"p{n % 3}", f'{{"state":{n}}}', str(n % 2 * (2**128 - 1))) for n in range(6)])
# Lengths and indices of one, two and three bytes.
write("varints.bin", [(f"p{n}", "x" * n) for n in range(140)] + [("p" * 256, "y" * 16500)])
write("bytes.bin", [("p", b""), ("p", gzip.compress(b'{"state":1}', mtime=0)), ("p", b"\xf3\x89\x9a\xc2\x00\xff")])
