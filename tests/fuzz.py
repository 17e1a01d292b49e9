"""Damaged photos -> does the decoder live? Each is decoded in a child process with limits on memory and time.

    python tests/fuzz.py ../shared/data/trashnet --inputs 10000

prints how many ended as a photo and as a reason, the slowest, and the child's memory.
"""

import argparse
import contextlib
import io
import random
import resource
import select
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

SECONDS, MEMORY = 1.0, 1536 << 20  # of a decode on a processor; of the child's address space beyond what it starts with
CHILD = """
import resource, struct, sys, time
from pathlib import Path
from fieldmark.data.image import UnreadableImageError, decode
start = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (start + %d,) * 2)
stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
while head := stdin.read(4):
    content = stdin.read(struct.unpack("<I", head)[0])
    began, reason = time.process_time(), ""
    try:
        decode(content, 256)
    except UnreadableImageError as error:
        reason = str(error)
    answer = f"{time.process_time() - began} {reason}".encode("utf-8", "replace")
    stdout.write(struct.pack("<I", len(answer)) + answer)
    stdout.flush()
"""
KINDS = (("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("GIF", {}), ("TIFF", {}))
KINDS += (("TIFF", {"compression": "tiff_lzw"}), ("BMP", {}), ("AVIF", {}), ("JPEG2000", {}), ("PPM", {}))


class Decoder:
    """The child; `decode` gives its seconds and its reason (empty for a photo), and raises where it crashed or hung."""

    def __init__(self) -> None:
        # libtiff remarks on every damaged file, on stderr.
        words = [sys.executable, "-W", "error", "-c", CHILD % MEMORY]
        self.child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def decode(self, content: bytes) -> tuple[float, str]:
        assert self.child.stdin is not None and self.child.stdout is not None
        try:
            self.child.stdin.write(struct.pack("<I", len(content)) + content)
            self.child.stdin.flush()
            if not select.select([self.child.stdout], [], [], 20 * SECONDS)[0]:
                raise AssertionError("the decoder hangs")
            (size,) = struct.unpack("<I", self.child.stdout.read(4))
        except (BrokenPipeError, struct.error):
            raise AssertionError(f"the decoder died with {self.child.wait()}") from None
        seconds, _, reason = self.child.stdout.read(size).decode().partition(" ")
        return float(seconds), reason

    def close(self) -> None:
        for stream in (self.child.stdin, self.child.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self.child.wait()


def seeds(photos: Path, each: int = 2) -> list[bytes]:
    """Real photos, packed in every format that can be read."""
    files = sorted(photos.rglob("*.jpg"))
    found = []
    for k, (kind, options) in enumerate(KINDS):
        for file in files[k :: max(1, len(files) // each)][:each]:
            with Image.open(file) as opened:
                image = opened.convert("RGB")
            image.thumbnail((160, 160))
            packed = io.BytesIO()
            image.save(packed, kind, **options)
            found.append(packed.getvalue())
    return found


def mutated(content: bytes, changes: list[tuple[int, int, int]]) -> bytes:
    """Changes are (kind, place, value): a byte set, a bit turned, a piece cut, doubled or overwritten, the end cut."""
    data = bytearray(content)
    for kind, place, value in changes:
        if not data:
            break
        at = place % len(data)
        length = 1 + value % 64
        match kind % 7:
            case 0:
                data[at] = value % 256
            case 1:
                data[at] ^= 1 << value % 8
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = data[at : at + length]
            case 4:
                data[at : at + length] = bytes([value % 256]) * length
            case 5:
                del data[max(1, at) :]
            case _:  # large numbers, where a header says how large
                data[at % 512 : at % 512 + 4] = (0xFFFFFFFF >> value % 24).to_bytes(4, "big" if value % 2 else "little")
    return bytes(data)


def changes(rng: random.Random) -> list[tuple[int, int, int]]:
    return [(rng.randrange(7), rng.randrange(1 << 20), rng.randrange(1 << 16)) for _ in range(rng.randint(1, 8))]


def run(photos: Path, inputs: int, seed: int = 0) -> Iterator[tuple[float, str]]:
    """Seconds and reason of each of so many damaged photos."""
    rng, originals, decoder = random.Random(seed), seeds(photos), Decoder()
    try:
        for k in range(inputs):
            yield decoder.decode(mutated(originals[k % len(originals)], changes(rng)))
    finally:
        decoder.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = list(run(options.photos, options.inputs, options.seed))
    kinds = Counter(reason.split(":")[0] or "a photo" for _, reason in found)
    print(f"{len(found):,} inputs: slowest {max(seconds for seconds, _ in found):.2f} s")
    print(f"most memory of the child {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024:.0f} MiB")
    for kind, n in kinds.most_common(12):
        print(f"{n:7,}  {kind}")


if __name__ == "__main__":
    main()
