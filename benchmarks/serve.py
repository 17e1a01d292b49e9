"""A server under load: requests a second against what decoding and the network alone allow, waiting times, memory.

    python benchmarks/serve.py RUN PHOTOS [--clients 8] [--seconds 60]

One photo a request, connections kept alive. The bound is cores / (decode + inference), both measured in one thread on
the same photos, before and after each third of the load; the clients and the server share the machine's cores.
"""

import argparse
import itertools
import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from fieldmark.core import runtime
from fieldmark.data.image import preprocess
from fieldmark.data.locate import find_images
from fieldmark.inference.classifier import Classifier

THIRDS = 3


def bound(model: str, files: list[str]) -> tuple[float, float]:
    """Mean seconds of decoding and of judging one photo, in one thread."""
    classifier, decoding, judging = Classifier(model), [], []
    classifier.infer(preprocess(files[0], classifier.info.preprocessing))  # the first plans its memory
    for file in files:
        began = time.perf_counter()
        photo = preprocess(file, classifier.info.preprocessing)
        seen = time.perf_counter()
        classifier.infer(photo)
        decoding.append(seen - began)
        judging.append(time.perf_counter() - seen)
    return statistics.mean(decoding), statistics.mean(judging)


def request(file: str, host: str) -> bytes:
    """All bytes of a request with this photo."""
    line = "--b0undary"
    head = f'{line}\r\nContent-Disposition: form-data; name="photo"; filename="photo"\r\n\r\n'
    body = head.encode() + Path(file).read_bytes() + f"\r\n{line}--\r\n".encode()
    kind = "Content-Type: multipart/form-data; boundary=b0undary"
    return f"POST /predict HTTP/1.1\r\nHost: {host}\r\n{kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def answer(opened: socket.socket) -> int:
    """Reads one response with a length. -> its status."""
    head = b""
    while b"\r\n\r\n" not in head:
        if not (more := opened.recv(65536)):
            raise ConnectionError("closed")
        head += more
    head, _, body = head.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length:")[1].split()[0])
    while len(body) < length:
        if not (more := opened.recv(65536)):
            raise ConnectionError("closed")
        body += more
    return int(head.split()[1])


def resident(pid: int) -> float:
    """MiB that the process holds."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def load(address: tuple[str, int], requests: list[bytes], clients: int, seconds: float) -> tuple[list[float], int]:
    """Seconds of each answered request, and how many failed."""
    took: list[float] = []
    failed = itertools.count()
    ends = time.perf_counter() + seconds

    def client(first: int) -> None:
        with socket.create_connection(address) as opened:
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for k in itertools.count(first):
                if (began := time.perf_counter()) > ends:
                    return
                opened.sendall(requests[k % len(requests)])
                if answer(opened) == 200:
                    took.append(time.perf_counter() - began)
                else:
                    next(failed)

    threads = [threading.Thread(target=client, args=(k * 7,)) for k in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return took, next(failed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("photos")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--count", type=int, default=200, help="so many different photos")
    asked = parser.parse_args()
    files = [path for path, _ in find_images([asked.photos])]
    files = files[:: max(1, len(files) // asked.count)][: asked.count]
    command = [sys.executable, "-m", "fieldmark.cli", "serve", asked.run, "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        told = "".join(iter(process.stdout.readline, "}\n")) + "}"
        host = json.loads(told)["url"].removeprefix("http://")
        address = (host.partition(":")[0], int(host.partition(":")[2]))
        requests = [request(file, host) for file in files]
        took: list[float] = []
        failed, rates, bounds, memory = 0, list[float](), [bound(asked.run, files)], list[float]()
        try:
            alone, _ = load(address, requests, 1, 5)
            for _ in range(THIRDS):
                memory.append(resident(process.pid))
                began = time.perf_counter()
                answered, bad = load(address, requests, asked.clients, asked.seconds / THIRDS)
                rates.append(len(answered) / (time.perf_counter() - began))
                took, failed = took + answered, failed + bad
                bounds.append(bound(asked.run, files))
            memory.append(resident(process.pid))
        finally:
            process.terminate()
    most = [runtime.available_cpus() / statistics.mean(map(sum, pair)) for pair in itertools.pairwise(bounds)]
    shares = [rate / limit for rate, limit in zip(rates, most, strict=True)]
    decoding, judging = (1e3 * statistics.median(one[k] for one in bounds) for k in (0, 1))
    print(f"decode {decoding:.1f} ms, network {judging:.1f} ms: at most {statistics.median(most):.1f} photos/s")
    single, ordered = statistics.median(alone), sorted(took)
    p50, p99 = (ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.99))
    print(f"alone: {1e3 * single:.1f} ms a request")
    print(f"{asked.clients} clients: {statistics.median(rates):.1f} photos/s, {failed} of {len(took) + failed} failed")
    print(f"of the bound: {statistics.median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})")
    print(f"p50 {1e3 * p50:.0f} ms, p99 {1e3 * p99:.0f} ms ({p99 / single:.1f} x alone)")
    print(f"memory, MiB: {', '.join(f'{held:.0f}' for held in memory)}")


if __name__ == "__main__":
    main()
