"""Pushes, and tells when the new version answers first.

usage: first_answer.py PORT HOST MARKER COMMAND...

Runs the command (a git push) and meanwhile asks http://127.0.0.1:PORT/ with that Host until the answer contains the marker. Prints the seconds from the
command's start to that answer, and to the command's end.
"""
import http.client
import subprocess
import sys
import threading
import time

LIMIT = 300


def watch(port, host, marker, begun, found):
    while time.monotonic() < begun + LIMIT:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/", headers={"Host": host, "Connection": "close"})
            if marker in connection.getresponse().read().decode("utf-8", "replace"):
                found.append(time.monotonic() - begun)
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.005)


def main():
    port, host, marker, command = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]
    found = []
    begun = time.monotonic()
    watcher = threading.Thread(target=watch, args=(port, host, marker, begun, found))
    watcher.start()
    pushed = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    ended = time.monotonic() - begun
    if pushed.returncode != 0:
        sys.stderr.write(pushed.stdout.decode("utf-8", "replace"))
        sys.exit("the push failed")
    watcher.join()
    if not found:
        sys.exit("the new version did not answer")
    print(f"{found[0]:.3f} {ended:.3f}")


main()
