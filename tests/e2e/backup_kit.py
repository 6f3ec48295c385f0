# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of backups share: a backup that is held in its middle, and looks at sets and files."""
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading

import harness

MIB = 1 << 20
# For tests that look at the images as files.
RAW = ("--full", "--format", "raw")


def two_disks(t, data_mib=32):
    """vda: random data with a hole behind it and an odd size; vdb: a little data."""
    vda = t.disk("vda.raw", data_mib * MIB, fill=1)
    with open(vda, "r+b") as f:
        f.truncate((data_mib + 16) * MIB + 512)
    return {"vda": vda, "vdb": t.disk("vdb.raw", 8 * MIB, fill=harness.pattern(5000, 2))}


def points(t, where):
    """The points of a set as `list --json` gives them, by name."""
    lines = t.fleece("--json", "list", where).stdout.splitlines()
    return {line["point"]: line for line in map(json.loads, lines)}


def look(where):
    """Everything in a folder: {path: (size, content)}, to see that it is as it was."""
    found = {}
    for folder, folders, files in os.walk(where):
        for name in folders:
            found[os.path.relpath(os.path.join(folder, name), where)] = None
        for name in files:
            path = os.path.join(folder, name)
            with open(path, "rb") as f:
                found[os.path.relpath(path, where)] = hash(f.read())
    return found


def snapshots(d):
    return [s["name"] for s in d.status()["snapshots"]]


def forge(point, name):
    """A copy of a point with another name and time, as right as any."""
    copy = point.parent / name
    shutil.copytree(point, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["created"] = name[:20]
    del manifest["sha256"]
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    manifest["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


class StuckBackup:
    """`fleece --json backup` that gets no further than its snapshot, however quick it is: it wants to say that it has it,
    and the pipe that it says it to is full."""

    def __init__(self, t, d, where):
        self.pipe, full = os.pipe()
        os.write(full, b"\n" * fcntl.fcntl(full, fcntl.F_SETPIPE_SZ, 4096))
        with d.qmp() as qmp:
            self.process = t.spawn(t.program("fleece"), "--json", "--control", d.control, "backup", where, stdout=full,
                                   stderr=subprocess.PIPE)
            os.close(full)
            qmp.event("FLEECE_SNAPSHOT_CREATED", 240)

    def end(self, status):
        """Lets it run to its end; returns what it said of what is wrong."""
        self.process.stdout = os.fdopen(self.pipe, "rb")
        err = self.process.communicate(timeout=240 * harness.FACTOR)[1].decode()
        assert self.process.returncode == status, f"backup ended with {self.process.returncode}, not {status}: {err}"
        return err


class Gate:
    """Stands in the place of the NBD socket of a daemon, and lets so many bytes pass to clients: whoever reads is not done
    before the test likes, however quick it is and however slow the test."""

    def __init__(self, d):
        self.path, self.behind = d.nbd[5:], f"{d.nbd[5:]}.real"
        self.bytes, self.changed = 0, threading.Condition()
        os.rename(self.path, self.behind)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(16)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, server = self.listener.accept()[0], socket.socket(socket.AF_UNIX)
                threading.Thread(target=self.forward, args=(client, server, False), daemon=True).start()
                server.connect(self.behind if os.path.exists(self.behind) else self.path)
                threading.Thread(target=self.forward, args=(server, client, True), daemon=True).start()

    def forward(self, source, sink, counted):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if counted:
                    with self.changed:
                        self.changed.wait_for(lambda: self.bytes > 0)
                        self.bytes -= len(data)
                sink.sendall(data)
        for end in source, sink:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def allow(self, count):
        with self.changed:
            self.bytes += count
            self.changed.notify_all()

    def leave(self):
        """Everything may pass now; clients that come meet the daemon itself."""
        os.rename(self.behind, self.path)
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.allow(1 << 60)


class HeldBackup:
    """`fleece --json backup` that is stopped (SIGSTOP) as soon as it has its snapshot. until: called with the gate when it
    has, returns when it may be stopped."""

    def __init__(self, t, d, where, *options, until=None):
        gate = Gate(d)
        self.process = t.spawn(t.program("fleece"), "--json", "--control", d.control, "backup", where, *options,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        line = self.process.stdout.readline()
        if line and until:
            until(gate)
        self.process.send_signal(signal.SIGSTOP)
        gate.leave()
        assert line, self.process.stderr.read().decode()
        self.snapshot = json.loads(line)
        assert self.snapshot["event"] == "snapshot", line

    def go_on(self):
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)

    def end(self, status):
        """Lets it run to its end; returns its lines and what it said."""
        self.go_on()
        out, err = self.process.communicate(timeout=harness.SOON)
        err = err.decode()
        assert self.process.returncode == status, f"backup ended with {self.process.returncode}, not {status}: {err}"
        assert not harness.SANITIZER.search(err), err
        return [json.loads(line) for line in out.splitlines()], err
