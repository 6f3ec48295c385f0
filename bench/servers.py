# SPDX-License-Identifier: GPL-2.0-or-later
"""The servers that are compared: Fleece, qemu-storage-daemon, nbdkit; each serves raw files over one NBD unix socket, and
the first two, when asked to, each file over a vhost-user-blk socket, too.

    with Fleece(work, {"vda": "disk.raw"}) as server:
        run_fio(server.uri("vda"))
        server.snapshot("s")        # from here on, writes pay for the snapshot
        run_nbdcopy(server.uri("vda@s"))

A server starts when the block is entered and is gone when it is left, together with the files that it needed besides."""
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = pathlib.Path(os.environ.get("FLEECE_BUILD", ROOT / "build"))
TICKS = os.sysconf("SC_CLK_TCK")


def version_of(program, argument="--version"):
    out = subprocess.run([program, argument], capture_output=True, text=True, check=False).stdout
    return re.sub(r"\s+", " ", out.splitlines()[0]).strip() if out else "unknown"


class Qmp:
    """A control connection; both daemons speak the same protocol."""

    def __init__(self, name, path):
        self.name, self.socket = name, socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.stream = self.socket.makefile("r")
        self.stream.readline()
        self("qmp_capabilities")

    def __call__(self, command, arguments=None):
        """Executes and returns; events on the way are dropped."""
        message = {"execute": command}
        if arguments:
            message["arguments"] = arguments
        self.socket.sendall(json.dumps(message).encode() + b"\n")
        while True:
            line = self.stream.readline()
            if not line:
                raise SystemExit(f"{self.name}: {command}: the control connection was lost")
            answer = json.loads(line)
            if "error" in answer:
                raise SystemExit(f"{self.name}: {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def close(self):
        self.stream.close()
        self.socket.close()


class Server:
    """What all have in common. `work` is the folder for files that a server needs besides the disks."""
    kind = "?"

    def __init__(self, work, disks, name=None):
        self.work, self.disks, self.name = pathlib.Path(work), disks, name or self.kind
        self.process = self.qmp = None

    def __enter__(self):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="s-", dir=self.work))
        self.log = open(self.dir / "log", "wb")
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.qmp:
            self.qmp.close()
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()
        if self.process and self.qmp and self.process.returncode not in (0, -signal.SIGTERM):
            last = (self.dir / "log").read_text().strip().splitlines()[-1:]
            print(f"  {self.name} ended with {self.process.returncode}: {last}")
        for path in self.dir.iterdir():
            path.unlink()
        self.dir.rmdir()

    def spawn(self, *arguments):
        self.process = subprocess.Popen([str(a) for a in arguments], stdin=subprocess.DEVNULL, stdout=self.log,
                                        stderr=self.log)

    def wait_for_socket(self, path):
        for _ in range(1500):
            if self.process.poll() is not None:
                raise SystemExit(f"{self.name} ended at start:\n{(self.dir / 'log').read_text()}")
            with socket.socket(socket.AF_UNIX) as s:
                try:
                    s.connect(str(path))
                    return
                except OSError:
                    time.sleep(0.02)
        raise SystemExit(f"{self.name} does not answer on {path}")

    def uri(self, export):
        return f"nbd+unix:///{export}?socket={self.dir}/n"

    def vhost_socket(self, disk):
        return self.dir / f"{disk}.v"

    def rss_bytes(self):
        """Resident memory without shared memory, which is where our RAM tier lies."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        kib = {line.split(":")[0]: int(line.split()[1]) for line in status.splitlines() if line.endswith(" kB")}
        return (kib["RssAnon"] + kib["RssFile"]) << 10

    def cpu_seconds(self):
        """User and system time of the process so far."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS


class Fleece(Server):
    kind = "fleece"

    def __init__(self, work, disks, ram="256M", disk_tier="", options=(), name=None, vhost=False):
        """disk_tier: the size of cache files, in the work folder; none by default."""
        super().__init__(work, disks, name)
        self.vhost = vhost
        self.cache = f"ram={ram}" + (f",max={disk_tier},dir={work}" if disk_tier else "")
        self.options = options

    @staticmethod
    def version():
        return version_of(BUILD / "fleeced")

    def start(self):
        arguments = [BUILD / "fleeced", "--name", f"bench-{os.getpid()}", "--nbd", f"unix:{self.dir}/n", "--control",
                     f"{self.dir}/c", "--fleece", self.cache, *self.options]
        for name, path in self.disks.items():
            arguments += ["--disk", f"{name}={',driver=null,size=4G' if path is None else path}"]
            arguments += ["--vhost-user", f"{name}={self.vhost_socket(name)}"] if self.vhost else []
        self.spawn(*arguments)
        self.wait_for_socket(self.dir / "c")
        self.wait_for_socket(self.dir / "n")
        self.qmp = Qmp(self.name, self.dir / "c")

    def cli(self, *arguments):
        done = subprocess.run([str(BUILD / "fleece"), "--control", f"{self.dir}/c", *map(str, arguments)],
                              capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"fleece {' '.join(map(str, arguments))}: {done.stderr}{(self.dir / 'log').read_text()}")
        return done.stdout

    def snapshot(self, name):
        """The longest time for which a disk was held, in nanoseconds."""
        return self.qmp("fleece-snapshot-create", {"name": name})["hold-ns"]

    def snapshot_delete(self, name):
        self.qmp("fleece-snapshot-delete", {"name": name})

    def push(self, target, *options):
        """The whole disk by a job of the daemon, into a new file or to SlowTarget; returns when it is done."""
        (disk, _), = self.disks.items()
        self.cli("push", "--to", f"{disk}={target.uri('') if isinstance(target, SlowTarget) else target}", *options)

    def begin_backup(self, target):
        """The same, but returns at once."""
        (disk, _), = self.disks.items()
        self.qmp("fleece-push", {"job-id": "full", "targets": [{"disk": disk, "target": target.uri("")}]})

    def end_backup(self):
        """Long before it is done."""
        self.qmp("block-job-cancel", {"device": "full", "force": True})

    def track(self, disk, granularity):
        """A dirty bitmap."""
        self.qmp("block-dirty-bitmap-add", {"node": disk, "name": "b0", "granularity": granularity})

    def backup(self, folder, *options):
        """One more point of a set; what the client says of it at its end."""
        lines = [json.loads(line) for line in self.cli("--json", "backup", folder, *options).splitlines()]
        return next(line for line in lines if line.get("event") == "done")

    def checkpoint(self, name):
        self.qmp("fleece-checkpoint-create", {"name": name})

    def tracking(self, disk):
        """The counters of its change tracking."""
        return next(d for d in self.qmp("fleece-query-status")["disks"] if d["name"] == disk)["tracking"]

    def kill(self):
        """kill -9; the block can be entered again."""
        self.process.kill()
        self.process.wait()
        self.qmp.close()
        self.qmp = None

    def cache_peak_bytes(self):
        """Of both tiers."""
        cache = self.qmp("fleece-query-status")["cache"]
        return cache["bytes-peak"] + cache.get("file-bytes-peak", 0)

    def spilled_bytes(self):
        """What the cache files take on the disk now."""
        return sum(path.stat().st_blocks * 512 for path in self.work.glob("*.fleece-cache"))


class Qsd(Server):
    """qemu-storage-daemon at its best: O_DIRECT, io_uring, an iothread (not with 7.2: it is unstable there)."""
    kind = "qsd"

    def __init__(self, work, disks, program, iothread=True, target_dir=None, name=None, vhost=False, image_format="raw"):
        super().__init__(work, disks, name)
        self.vhost, self.image_format = vhost, image_format
        self.program, self.iothread = program, iothread
        self.target_dir = pathlib.Path(target_dir or work)
        self.targets = []

    def start(self):
        self.spawn(self.program, "--object", "iothread,id=io0", "--chardev",
                   f"socket,id=c,path={self.dir}/q,server=on,wait=off", "--monitor", "chardev=c",
                   "--pidfile", f"{self.dir}/pid")
        while not (self.dir / "pid").exists():  # who connects during the start may never get an answer
            if self.process.poll() is not None:
                raise SystemExit(f"{self.name} ended at start:\n{(self.dir / 'log').read_text()}")
            time.sleep(0.02)
        self.qmp = Qmp(self.name, self.dir / "q")
        self.qmp("nbd-server-start", {"addr": {"type": "unix", "data": {"path": f"{self.dir}/n"}},
                                      "max-connections": 0})
        for name, path in self.disks.items():
            if path is None:
                self.qmp("blockdev-add", {"driver": "null-co", "node-name": f"{name}-disk", "size": 4 << 30,
                                          "read-zeroes": False})
            else:
                self.add_file(f"{name}-disk", path)
            self.qmp("blockdev-add", {"driver": self.image_format, "node-name": f"{name}-live", "file": f"{name}-disk"})
            self.export(name, f"{name}-live", True)
            if self.vhost:
                self.export_vhost(name, f"{name}-live")

    def __exit__(self, *_):
        super().__exit__()
        for path in self.targets:
            path.unlink()
        if self.targets:
            os.sync()  # a file system with `discard` is busy with it for a while: not during the next run

    def add_file(self, node, path):
        """Caching is said for the protocol node, where it is decided."""
        direct = not str(path).startswith("/dev/shm/")
        self.qmp("blockdev-add", {"driver": "file", "node-name": node, "filename": str(path),
                                  "aio": "io_uring" if direct else "threads",
                                  "cache": {"direct": direct, "no-flush": False}})

    def export(self, name, node, writable):
        arguments = {"type": "nbd", "id": name.replace("@", "-"), "node-name": node, "name": name, "writable": writable}
        if self.iothread:
            arguments["iothread"] = "io0"
        self.qmp("block-export-add", arguments)

    def export_vhost(self, name, node):
        arguments = {"type": "vhost-user-blk", "id": f"{name}-vhost", "node-name": node, "writable": True,
                     "addr": {"type": "unix", "path": str(self.vhost_socket(name))}}
        if self.iothread:
            arguments["iothread"] = "io0"
        self.qmp("block-export-add", arguments)

    def target(self, size):
        """A sparse raw file for old data."""
        handle, path = tempfile.mkstemp(prefix="target-", dir=self.target_dir)
        os.ftruncate(handle, size)
        os.close(handle)
        self.targets.append(pathlib.Path(path))
        return self.targets[-1]

    def snapshot(self, name):
        """The fleecing chain of QEMU's documentation, for one disk."""
        (disk, path), = self.disks.items()
        size = os.path.getsize(path)
        self.add_file("temp", self.target(size))
        self.qmp("blockdev-add", {"driver": "copy-before-write", "node-name": "cbw", "file": f"{disk}-disk",
                                  "target": "temp"})
        self.qmp("blockdev-reopen", {"options": [{"driver": "raw", "node-name": f"{disk}-live", "file": "cbw"}]})
        self.qmp("blockdev-add", {"driver": "snapshot-access", "node-name": "snap", "file": "cbw"})
        self.export(f"{disk}@{name}", "snap", False)

    def track(self, disk, granularity):
        """A dirty bitmap."""
        self.qmp("block-dirty-bitmap-add", {"node": f"{disk}-live", "name": "b0", "granularity": granularity})

    def backup_transaction(self):
        """Snapshots of all disks at one instant, with backup jobs that only preserve: the way before copy-before-write
        could be inserted by hand. The targets are made before."""
        actions = []
        for name, path in self.disks.items():
            self.add_file(f"{name}-temp", self.target(os.path.getsize(path)))
            actions.append({"type": "blockdev-backup", "data": {
                "job-id": f"j-{name}", "device": f"{name}-live", "target": f"{name}-temp", "sync": "none"}})
        return lambda: self.qmp("transaction", {"actions": actions})

    def backup_cancel(self):
        for name in self.disks:
            self.qmp("block-job-cancel", {"device": f"j-{name}"})
        while self.qmp("query-jobs"):
            time.sleep(0.02)
        for name in self.disks:
            self.qmp("blockdev-del", {"node-name": f"{name}-temp"})

    def begin_backup(self, target):
        """A push of the whole disk by QEMU's job, into a raw file or to SlowTarget."""
        (disk, path), = self.disks.items()
        if isinstance(target, SlowTarget):
            self.qmp("blockdev-add", {"driver": "nbd", "node-name": "full",
                                      "server": {"type": "unix", "path": f"{target.dir}/n"}})
        else:
            with open(target, "wb") as f:
                f.truncate(os.path.getsize(path))
            self.add_file("full", target)
        self.qmp("blockdev-backup", {"job-id": "full", "device": f"{disk}-live", "target": "full", "sync": "full",
                                     "auto-dismiss": False})

    def end_backup(self):
        """Long before it is done."""
        self.qmp("job-cancel", {"id": "full"})

    def incremental_backup(self, target):
        """What is dirty in the bitmap of track(), into a sparse raw file; returns when it is done."""
        (disk, path), = self.disks.items()
        with open(target, "wb") as f:
            f.truncate(os.path.getsize(path))
        self.add_file("inc", target)
        self.qmp("blockdev-backup", {"job-id": "full", "device": f"{disk}-live", "target": "inc", "sync": "incremental",
                                     "bitmap": "b0", "auto-dismiss": False})
        self.await_backup()

    def full_backup(self, target):
        """Into a raw file; returns when it is done."""
        self.begin_backup(target)
        self.await_backup()

    def await_backup(self):
        while True:
            job, = self.qmp("query-jobs")
            if job["status"] == "concluded":
                break
            time.sleep(0.005)
        if "error" in job:
            raise SystemExit(f"{self.name}: backup: {job['error']}")
        self.qmp("job-dismiss", {"id": "full"})


class SlowTarget(Server):
    """nbdkit with so much memory, far away and behind a narrow line: the target of a backup."""
    kind = "target"

    def __init__(self, work, size, rate="80M", delay="50ms"):
        """rate: bits a second."""
        super().__init__(work, {})
        self.arguments = ["--filter=delay", "--filter=rate", "memory", str(size), f"rate={rate}", f"rdelay={delay}",
                          f"wdelay={delay}"]

    def start(self):
        self.spawn("nbdkit", "-f", "-U", f"{self.dir}/n", *self.arguments)
        self.wait_for_socket(self.dir / "n")


class Nbdkit(Server):
    """nbdkit's file plugin (page cache: it has no direct I/O) or, for path None, its null plugin. One disk."""
    kind = "nbdkit"

    @staticmethod
    def version():
        return version_of("nbdkit")

    def start(self):
        (_, path), = self.disks.items()
        plugin = ["null", "4G"] if path is None else ["file", path]
        self.spawn("nbdkit", "-f", "-U", f"{self.dir}/n", *plugin)
        self.wait_for_socket(self.dir / "n")
