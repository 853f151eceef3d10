"""Requests to apps at a steady rate, for scenarios in which none of them may fail."""

import asyncio
import http.client
import io
import os
import threading
import time

from harness import percentile


class Wire:
    """What has come over a connection, for `http.client` to read an answer out of."""

    def __init__(self, data):
        self.data = data

    def makefile(self, _mode):
        return io.BytesIO(self.data)


def whole_body(data):
    """The body of an answer, all of it: an answer that is not 200, is cut off, or does not say how long it is, is an OSError."""
    answer = http.client.HTTPResponse(Wire(data))
    try:
        answer.begin()
        body = answer.read()
    except http.client.HTTPException as error:
        raise OSError(f"no whole answer: {error!r}: {data[-200:]!r}") from error
    if answer.status != 200:
        raise OSError(f"status {answer.status}: {data[-200:]!r}")
    if not answer.chunked and answer.getheader("Content-Length") is None:
        raise OSError(f"an answer of unknown length: {data[-200:]!r}")
    return body.decode(errors="replace")


def go_first():
    """From now on this thread is not kept waiting for a core, so that it measures others' waits and not its own; what it starts is as ever."""
    os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))


class Load:
    """Requests to apps in turn at a steady rate, whatever the answers do; each on a connection of its own. An answer counts when it is whole, and
    the app's own. With `first` it goes before everything else on the machine. `end` gives the report, and looks whether there were as many
    requests as there should have been."""

    # Of the requests that the rate asks for. They are sent by the clock whatever becomes of them, and those that were late are made up for;
    # what is missing at the end is what a busy machine was late with then, which is never half of a run. A sender that has died is.
    SENT_AT_LEAST = 0.5

    def __init__(self, platform, apps, rate=20, timeout=10, limit=36000, path="/", first=False):
        self.platform, self.apps, self.rate, self.timeout, self.limit, self.path = platform, apps, rate, timeout, limit, path
        self.times, self.failures, self.moments = [], [], []
        self.stopping, self.began = threading.Event(), time.monotonic()
        self.thread = threading.Thread(target=self._work, args=(first,), daemon=True)
        self.thread.start()

    def _work(self, first):
        if first:
            go_first()
        asyncio.run(self._send())

    async def _request(self, app):
        began = time.monotonic()
        try:
            async with asyncio.timeout(self.timeout):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.platform.http_port)
                try:
                    writer.write(f"GET {self.path} HTTP/1.1\r\nHost: {app.host}\r\nAccept: text/plain\r\nConnection: close\r\n\r\n".encode())
                    answer = await reader.read(-1)
                finally:
                    writer.close()
            body = whole_body(answer)
            if app.mark not in body:
                raise OSError(f"somebody else's answer: {body[-200:]!r}")
            self.times.append(time.monotonic() - began)
            self.moments.append(began)
        except (OSError, TimeoutError, IndexError, ValueError) as error:
            self.failures.append(f"{time.strftime('%H:%M:%S')} {app.host}: {error!r} after {time.monotonic() - began:.2f} s")

    async def _send(self):
        tasks, begin = set(), time.monotonic()
        for turn in range(self.limit):
            pause = begin + turn / self.rate - time.monotonic()
            if pause > 0:
                await asyncio.sleep(pause)
            if self.stopping.is_set():
                break
            task = asyncio.create_task(self._request(self.apps[turn % len(self.apps)]))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.wait(tasks, timeout=self.timeout + 1)

    def end(self):
        wanted = (time.monotonic() - self.began) * self.rate
        self.stopping.set()
        self.thread.join(self.timeout + 5)
        check = self.platform.chaos.check
        check(not self.thread.is_alive(), "the requests did not come to an end")
        check(self.asked() < self.limit, f"the requests ended early, after {self.limit}")
        # The first two may not have been sent yet.
        check(self.asked() >= self.SENT_AT_LEAST * wanted - 2, f"only {self.asked()} requests were made of {wanted:.0f}")
        return self

    def asked(self):
        return len(self.times) + len(self.failures)

    def text(self):
        return (f"{self.asked()} requests, {len(self.failures)} failed, "
                f"p50 {percentile(self.times, 50) * 1000:.1f} ms, p99 {percentile(self.times, 99) * 1000:.1f} ms")
