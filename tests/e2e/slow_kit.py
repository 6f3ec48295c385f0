# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of slow and failing targets share: a guest whose every write is timed, and targets on nbdkit."""
import random
import subprocess
import time

import nbd

import harness

KIB, MIB = 1 << 10, 1 << 20


class Guest:
    """A writer to a live disk, one request at a time, with a model of the disk."""

    def __init__(self, d, image, seed=1):
        self.handle = nbd.NBD()
        self.handle.connect_uri(d.uri("vda"))
        self.model = bytearray(image.read_bytes())
        self.chance = random.Random(seed)
        self.took = []  # seconds of each write since begin()

    def begin(self):
        self.took = []

    def write(self, offset, length):
        data = self.chance.randbytes(length)
        started = time.monotonic()
        self.handle.pwrite(data, offset)
        self.took.append(time.monotonic() - started)
        self.model[offset:offset + length] = data

    def write_for(self, seconds, length=4 * KIB):
        """At random places of the whole disk; the 99th percentile of what the writes took."""
        self.begin()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.write(self.chance.randrange(len(self.model) // length) * length, length)
        return self.p99()

    def p99(self):
        return sorted(self.took)[len(self.took) * 99 // 100]

    def end(self):
        self.handle.shutdown()


def target(t, name, size, *filters, **parameters):
    """nbdkit with so much memory behind filters; its process and URI."""
    path = t.path(f"{name}.sock")
    process = t.spawn_server("nbdkit", "-f", "-U", path, *(f"--filter={f}" for f in filters), "memory", size,
                             *(f"{key.replace('_', '-')}={value}" for key, value in parameters.items()),
                             stderr=subprocess.DEVNULL)
    return process, f"nbd+unix:///?socket={path}"


def content(uri, piece=MIB):
    handle = nbd.NBD()
    handle.connect_uri(uri)
    size = handle.get_size()
    data = b"".join(bytes(handle.pread(min(piece, size - at), at)) for at in range(0, size, piece))
    handle.shutdown()
    return data


def stop(t, *processes):
    for process in processes:
        process.kill()
        process.wait()
        t.processes.remove(process)
