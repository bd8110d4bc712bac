"""Stops a loaded server again and again: see scripts/sigterm."""

import argparse
import asyncio
import json
import random
import signal
import sys
import tempfile
import time

from endpoints import endpoints, inline_model, iris, server, state_message

ROW = [5.1, 3.5, 1.4, 0.2]
MODES = ["load", "idle", "slow", "stuck"]
DRAIN = {"load": 25, "idle": 25, "slow": 25, "stuck": 3}


def predict_request(rows=1, head=""):
    body = json.dumps({"instances": [ROW] * rows}).encode()
    return b"POST /predict/iris HTTP/1.1\r\nhost: x\r\n%scontent-length: %d\r\n\r\n%s" % (head.encode(), len(body), body)


PREDICT, STATE = predict_request(), b"GET /state HTTP/1.1\r\nhost: x\r\n\r\n"


async def answer(reader):
    """The status and whether the connection closes after it; an error if the answer is not whole."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if b"transfer-encoding: chunked" in head:
        while length := int(await reader.readuntil(b"\r\n"), 16):
            await reader.readexactly(length + 2)
        await reader.readexactly(2)
    elif b"content-length: " in head:
        at = head.index(b"content-length: ") + 16
        await reader.readexactly(int(head[at : head.index(b"\r\n", at)]))
    return int(head[9:12]), b"connection: close" in head


class Round:
    def __init__(self, port, connections, mode):
        self.port, self.connections, self.mode = port, connections, mode
        self.stopping = asyncio.Event()
        self.answered = self.kept_lost = self.new_lost = 0
        self.reasons = []
        self.slow_failed = []

    async def open(self):
        return await asyncio.wait_for(asyncio.open_connection("127.0.0.1", self.port, limit=1 << 24), 10)

    async def keep_alive(self):
        """Asks without a pause, or nearly: until the server says that it closes."""
        reader, writer = await self.open()
        first = True
        while not reader.at_eof():
            request = random.choice((PREDICT, STATE))
            # Only what was sent whole before the close was seen is a request that the server may have accepted.
            try:
                writer.write(request)
                status, closes = await answer(reader)
                assert 200 <= status < 300, status
                self.answered += 1
            except Exception as error:
                if first:
                    self.new_lost += 1
                else:
                    self.kept_lost += 1
                self.reasons.append(f"keep-alive: {error!r}, {'after' if self.stopping.is_set() else 'before'} SIGTERM")
                break
            first = False
            if closes:
                break
            if random.random() < 0.5:
                await asyncio.sleep(random.random() * 0.002)
        writer.close()

    async def new_each_time(self):
        while True:
            try:
                reader, writer = await self.open()
            except OSError:
                # Refused: the client knows that nothing was accepted, and goes elsewhere.
                assert self.stopping.is_set(), "refused before the SIGTERM"
                return
            try:
                writer.write(STATE)
                status, _ = await answer(reader)
                assert status == 200, status
                self.answered += 1
            except Exception as error:
                self.new_lost += 1
                self.reasons.append(f"new: {error!r}, {'after' if self.stopping.is_set() else 'before'} SIGTERM")
            writer.close()
            await asyncio.sleep(0.002)

    async def idle(self, asks):
        reader, writer = await self.open()
        if asks:
            writer.write(STATE)
            await answer(reader)
        self.idle_ready.release()
        await reader.read()
        writer.close()

    async def slow(self, what, request, rest=b"", wait=0.5):
        """A request under way at the SIGTERM; the rest of it comes later."""
        try:
            reader, writer = await self.open()
            writer.write(request)
            self.idle_ready.release()
            await self.stopping.wait()
            if rest:
                await asyncio.sleep(wait)
                writer.write(rest)
            status, _ = await asyncio.wait_for(answer(reader), 30)
            assert 200 <= status < 400, status
            writer.close()
        except Exception as error:
            self.slow_failed.append(f"{what}: {error!r}")

    async def stuck(self):
        reader, writer = await self.open()
        writer.write(PREDICT[:-10])
        self.idle_ready.release()
        # It may be cut off in any way, or told that it was too slow.
        try:
            await reader.read()
        except OSError:
            pass
        writer.close()

    async def run(self, watched):
        self.idle_ready = asyncio.Semaphore(0)
        beside = []
        if self.mode == "idle":
            beside = [self.idle(number % 2 == 0) for number in range(100)]
        elif self.mode == "slow":
            poll = b"GET /state?wait=30s HTTP/1.1\r\nhost: x\r\nif-none-match: %s\r\n\r\n" % await self.etag()
            beside = [
                self.slow("half a body", PREDICT[:-10], PREDICT[-10:]),
                self.slow("a long-poll", poll),
                self.slow("/events", b"GET /events HTTP/1.1\r\nhost: x\r\n\r\n"),
                self.slow("50,000 rows", predict_request(50_000)),
            ]
        elif self.mode == "stuck":
            beside = [self.stuck()]
        beside = [asyncio.create_task(one) for one in beside]
        for _ in beside:
            await asyncio.wait_for(self.idle_ready.acquire(), 10)
        load = [asyncio.create_task(self.keep_alive()) for _ in range(self.connections)]
        load += [asyncio.create_task(self.new_each_time()) for _ in range(2)]
        await asyncio.sleep(0.4 + random.random() * 0.2)
        assert not any(task.done() for task in load), self.reasons
        begun = time.monotonic()
        watched.send_signal(signal.SIGTERM)
        self.stopping.set()
        while watched.poll() is None:
            await asyncio.sleep(0.005)
            if time.monotonic() - begun > DRAIN[self.mode] + 10:
                self.reasons.append("it does not end: killed")
                watched.kill()
                watched.wait()
        took = time.monotonic() - begun
        await asyncio.wait_for(asyncio.gather(*load, *beside), 60)
        return took, watched.returncode

    async def etag(self):
        reader, writer = await self.open()
        writer.write(STATE)
        head = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        at = head.lower().index(b"etag: ") + 6
        return head[at : head.index(b"\r\n", at)]


def main():
    parser = argparse.ArgumentParser(description="Stops a loaded server, and counts what was lost")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--mode", choices=MODES, help="only this one")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--forgive-new", action="store_true", help="losses on new connections do not fail the verdict")
    parser.add_argument("--serve", action="append", default=[], metavar="FLAG", help="one more argument for the server")
    options = parser.parse_args()
    random.seed(options.seed)
    failed, kept, new, slow = 0, 0, 0, 0
    print(f"seed {options.seed}\nround  mode   answered  lost: kept  new  slow   end after  code")
    with endpoints() as there:
        there.put({"message_id": "first", "model": inline_model(iris(1), 1)}, state_message(1))
        for number in range(options.rounds):
            mode = options.mode or MODES[number % len(MODES)]
            arguments = ["--lookback", "1h", "--drain", f"{DRAIN[mode]}s", *options.serve]
            with tempfile.TemporaryDirectory() as folder, server(there, folder, *arguments) as (watched, port):
                one = Round(port, options.connections, mode)
                took, code = asyncio.run(one.run(watched))
            print(
                f"{number + 1:5}  {mode:5}  {one.answered:8}  {one.kept_lost:10}  {one.new_lost:3}  "
                f"{len(one.slow_failed):4}  {took:8.2f} s  {code:4}",
                flush=True,
            )
            for reason in [*one.reasons[:3], *one.slow_failed]:
                print(f"         {reason}")
            kept, new, slow = kept + one.kept_lost, new + one.new_lost, slow + len(one.slow_failed)
            failed += code != 0 or took > DRAIN[mode] + 2
    lost = kept + slow + (0 if options.forgive_new else new)
    print(f"\nlost: {kept} on keep-alive connections, {new} on new ones, {slow} slow; {failed} bad ends")
    print("ok" if not lost and not failed else "FAILED")
    return 1 if lost or failed else 0


sys.exit(main())
