"""The load of scripts/soak, a process of its own: asks at a bounded rate, and says each second what it got, as JSON."""

import asyncio
import json
import sys
import time

PREDICT = b'{"instances":[[5.1,3.5,1.4,0.2]]}'
REQUESTS = [
    b"POST /predict/iris HTTP/1.1\r\nhost: soak\r\ncontent-length: %d\r\n\r\n%s" % (len(PREDICT), PREDICT),
    b"GET /state HTTP/1.1\r\nhost: soak\r\n\r\n",
]
VERSIONS = [b"x-model-version: ", b"x-state-version: "]
PATIENCE = 10


class Counts:
    def __init__(self):
        self.requests = self.failed = self.back = self.torn = 0
        self.slowest = 0.0
        self.model = self.state = 0
        self.reasons = []

    def fail(self, reason):
        self.failed += 1
        if len(self.reasons) < 100:
            self.reasons.append(f"{time.strftime('%F %T')} {reason}")


async def ask(reader, writer, what):
    """The status, the version in the header, and the one in the body."""
    writer.write(REQUESTS[what])
    head = await reader.readuntil(b"\r\n\r\n")
    lower = head.lower()
    status = int(head[9:12])
    at = lower.index(b"content-length: ") + 16
    body = await reader.readexactly(int(lower[at : lower.index(b"\r\n", at)]))
    if not 200 <= status < 300:
        return status, 0, body
    at = lower.find(VERSIONS[what])
    header = int(lower[at + len(VERSIONS[what]) : lower.index(b"\r\n", at)]) if at >= 0 else 0
    answer = json.loads(body)
    return status, header, answer["model"]["version"] if what == 0 else answer["state"]


async def client(port, counts, every, delay):
    await asyncio.sleep(delay)
    streams, turn = None, 0
    newest = [0, 0]
    due = time.monotonic()
    while True:
        # What is late is sent at once, but no queue builds up behind a pause of this machine.
        due = max(due + every, time.monotonic() - 1)
        await asyncio.sleep(max(0, due - time.monotonic()))
        turn, what = turn + 1, turn % 2
        begun = time.monotonic()
        try:
            streams = streams or await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), PATIENCE)
            status, header, body = await asyncio.wait_for(ask(*streams, what), PATIENCE)
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError, ValueError) as error:
            counts.fail(f"{('predict', 'state')[what]} after {time.monotonic() - begun:.3f} s: {error!r}")
            if streams:
                streams[1].close()
            streams = None
            continue
        finally:
            counts.requests += 1
            counts.slowest = max(counts.slowest, time.monotonic() - begun)
        if not 200 <= status < 300:
            counts.fail(f"{('predict', 'state')[what]}: {status} {body[:300]!r}")
            continue
        if header != body:
            counts.torn += 1
            counts.reasons.append(f"header {header}, body {body}")
        if header < newest[what]:
            counts.back += 1
            counts.reasons.append(f"version {header} after {newest[what]}")
        newest[what] = max(newest[what], header)
        counts.model, counts.state = max(counts.model, newest[0]), max(counts.state, newest[1])


async def main(port, connections, rate):
    counts = Counts()
    every = connections / rate
    clients = [
        asyncio.create_task(client(port, counts, every, every * number / connections)) for number in range(connections)
    ]
    while True:
        await asyncio.wait(clients, timeout=1, return_when=asyncio.FIRST_EXCEPTION)
        for task in clients:
            if task.done():
                task.result()
        print(json.dumps(vars(counts)), flush=True)
        counts.slowest = 0.0
        counts.reasons.clear()


asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
