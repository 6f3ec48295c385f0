# SPDX-License-Identifier: GPL-2.0-or-later
"""The clients: fio's NBD engine, fio on the file itself, our own vhost-user front-end, nbdcopy in a loop."""
import json
import os
import pathlib
import signal
import subprocess
import threading
import time

from servers import BUILD


def fio(kind, queue, seconds, ramp, uri=None, path=None, options=()):
    """4 KiB random I/O; {"iops", "p50_us", "p99_us", "p999_us", "requests"}. kind: randread, randwrite, or randrw: half
    reads, half writes, of which the writes are told. With `path`: plain fio on the file, O_DIRECT and io_uring. The
    clients of both sides are the same. seconds None: until the options say that it is done."""
    where = ["--ioengine=nbd", f"--uri={uri}"] if uri else ["--ioengine=io_uring", f"--filename={path}", "--direct=1"]
    times = ["--time_based", f"--runtime={seconds * 1000:.0f}ms", f"--ramp_time={ramp * 1000:.0f}ms"] if seconds else []
    done = subprocess.run(
        ["fio", "--name=b", "--thread", *where, f"--rw={kind}", "--bs=4k", f"--iodepth={queue}", *times, "--randrepeat=0",
         "--output-format=json", *options],
        capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"fio failed: {done.stderr}{done.stdout[-2000:]}")
    job = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]
    if job["error"]:
        raise SystemExit(f"fio: error {job['error']}")
    side = job["read" if kind == "randread" else "write"]
    percentiles = side["clat_ns"].get("percentile", {})
    return {"iops": side["iops"], "requests": side["total_ios"],
            **{f"{name}_us": percentiles.get(percent, 0) / 1000
               for name, percent in (("p50", "50.000000"), ("p99", "99.000000"), ("p999", "99.900000"))}}


def vhost(kind, queue, seconds, ramp, socket, options=()):
    """The same load by the front-end of tests/vhost, as a guest with one queue that sleeps until its interrupt."""
    done = subprocess.run(
        [str(BUILD / "tests/vhost/vhost_client"), "run", str(socket), "--rw", kind, "--bs", "4k", "--depth", str(queue),
         "--seconds", str(seconds), "--ramp", str(ramp), *options], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"vhost_client failed: {done.stderr}")
    return json.loads(done.stdout)


class Nbd:
    """A guest whose disk vda comes over NBD."""
    vhost = False

    @staticmethod
    def load(server, kind, queue, seconds, ramp=0, size=None):
        """`size`: of the part at the beginning that is used; None: all."""
        return fio(kind, queue, seconds, ramp, uri=server.uri("vda"), options=[f"--size={size}"] if size else [])


class Vhost:
    """The same over vhost-user-blk."""
    vhost = True

    @staticmethod
    def load(server, kind, queue, seconds, ramp=0, size=None):
        return vhost(kind, queue, seconds, ramp, server.vhost_socket("vda"), ["--size", str(size)] if size else [])


def floor(kind, queue, seconds, path, null):
    """What no server can pass: {"iops"}. Plain fio does what the disk has to do, and null(kind), with a server that does
    nothing, what the connection costs. One request at a time pays for both, one after the other; many at once for the
    slower of them."""
    disk = fio(kind, queue, seconds, 0, path=path)["iops"]
    connection = null("randread" if kind == "randread" else "randwrite")["iops"]
    return {"iops": 1 / (1 / disk + 1 / connection) if queue == 1 else min(disk, connection), "disk_iops": disk,
            "null_iops": connection}


class SteadyWriter:
    """A guest in the background: 4 KiB random writes at a steady rate, all over the disk, until the block is left. It ends
    in any case; `hung` then says whether it had to be killed, with a request that was never answered."""

    def __init__(self, uri, rate, queue, *options):
        self.arguments = ["fio", "--name=guest", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", "--bs=4k",
                          f"--iodepth={queue}", f"--rate_iops={rate}", "--time_based", "--runtime=3600", "--randrepeat=0",
                          "--output=/dev/null", *options]
        self.hung = False

    def __enter__(self):
        self.process = subprocess.Popen(self.arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL, start_new_session=True)
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.hung = True
        try:
            os.killpg(self.process.pid, signal.SIGKILL)  # fio's workers are processes of their own
        except ProcessLookupError:
            pass
        self.process.wait()


class Puller:
    """Pulls an export to nowhere at full speed, again and again, until the block is left; then .gib_per_second says how
    fast that went, the pull that was under way included."""

    def __init__(self, uri, size):
        self.uri, self.size = uri, size
        self.stop, self.pulled, self.error, self.process = threading.Event(), 0.0, None, None

    def pull(self):
        """One whole copy; nbdcopy tells its progress in steps of 1 %."""
        read_end, write_end = os.pipe()
        self.process = subprocess.Popen(["nbdcopy", f"--progress={write_end}", self.uri, "null:"], text=True,
                                        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, pass_fds=(write_end,))
        os.close(write_end)
        done = 0
        with open(read_end, encoding="ascii") as progress:
            for line in progress:
                done = int(line.split("/")[0])
        stderr = self.process.stderr.read()
        self.process.stderr.close()
        if self.process.wait() != 0 and not self.stop.is_set():
            self.error = stderr
        self.pulled += self.size * done / 100

    def run(self):
        while not self.stop.is_set() and not self.error:
            self.pull()

    def __enter__(self):
        self.started = time.monotonic()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        took = time.monotonic() - self.started
        while self.thread.is_alive():
            if self.process and self.process.poll() is None:
                self.process.terminate()
            self.thread.join(0.1)
        if self.error:
            raise SystemExit(f"the pull failed: {self.error}")
        self.gib_per_second = self.pulled / took / (1 << 30)


def timed(*arguments):
    """Seconds that a command took."""
    started = time.monotonic()
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{arguments[0]}: {done.stderr}")
    return time.monotonic() - started


def make_disk(path, size):
    """A disk full of random bytes, all of them allocated and on the disk."""
    path = pathlib.Path(path)
    if path.exists() and path.stat().st_size == size:
        return path
    subprocess.run(["dd", "if=/dev/urandom", f"of={path}", "bs=1M", f"count={size >> 20}", "oflag=direct", "iflag=fullblock",
                    "status=none"], check=True)
    return path
