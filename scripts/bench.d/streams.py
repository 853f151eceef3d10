"""Clients of server-sent events: many sockets, one thread. For `scripts/bench api`."""

import selectors
import socket
import threading
import time

CONNECT = 30


class Stream:
    """One request whose answer goes on. What comes is handed to `take(block, moment)`, one event of the stream after the other."""

    def __init__(self, port, path, bearer, take, lazy=False):
        self.take, self.pending, self.head, self.status, self.over = take, b"", b"", None, False
        self.socket = socket.socket()
        if lazy:
            # Little room here, and small segments, by which the kernel sizes the server's side: it is full soon.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        self.socket.settimeout(CONNECT)
        self.socket.connect(("127.0.0.1", port))
        # HTTP/1.0: the answer comes as it is, not in chunks, which are dear to take apart in Python.
        self.socket.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\nAccept: text/event-stream\r\nAuthorization: {bearer}\r\n\r\n".encode())

    def read_head(self):
        """Waits for the head; the status."""
        while b"\r\n\r\n" not in self.head:
            data = self.socket.recv(1 if self.head else 12)
            if not data:
                break
            self.head += data
        self.status = int(self.head.split(b" ", 2)[1]) if self.head else 0
        return self.status

    def local_port(self):
        return self.socket.getsockname()[1]

    def read(self):
        """What is there; the end of it, too."""
        try:
            data = self.socket.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        moment = time.monotonic()
        if not data:
            self.over = True
            return
        *whole, self.pending = (self.pending + data).split(b"\n\n")
        for block in whole:
            self.take(block, moment)

    def close(self):
        self.over = True
        self.socket.close()


class Crowd:
    """Reads many streams in one thread until `close`."""

    def __init__(self, streams):
        self.streams, self.stopping = streams, threading.Event()
        self.selector = selectors.DefaultSelector()
        for stream in streams:
            stream.socket.setblocking(False)
            self.selector.register(stream.socket, selectors.EVENT_READ, stream)
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        while not self.stopping.is_set():
            for key, _ in self.selector.select(0.1):
                key.data.read()
                if key.data.over:
                    self.selector.unregister(key.fileobj)

    def close(self):
        self.stopping.set()
        self.thread.join(30)
        self.selector.close()
        for stream in self.streams:
            stream.close()


def fields(block):
    """The fields of one event: {name: value}; comments have the name ``."""
    found = {}
    for line in block.split(b"\n"):
        name, _, value = line.partition(b":")
        found[name.decode()] = value.removeprefix(b" ")
    return found
