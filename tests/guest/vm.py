# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that obeys: its disks come from Fleece, whatever the kind of disk, and commands are run in it one by one.

The root disk is an ext4 image (root_disk()) whose init is the agent below. The agent takes commands from one virtio port and
answers each with its status and all that it printed; what runs in the background tells a second port, a line at a time, what
has become durable ("ext4 17": all up to 17). So the outside knows what a backup that begins now must hold. The kernel's own
messages have the serial console, a file, to themselves.

A kind of disk is how QEMU reaches it: NBD (QEMU's own driver, which waits for a server that is away), VHOST_USER (fleeced
itself looks into the guest's rings; QEMU connects again when it was away) or FILE (an image, without Fleece)."""
import base64
import contextlib
import json
import re
import shutil
import socket
import subprocess
import time

import harness
import machine

NBD, VHOST_USER, FILE = "nbd", "vhost-user", "file"
MIB = 1 << 20
WAIT = 240  # seconds; a guest starts in three when nothing else runs, and in a minute and more on a busy machine
PACKED = ("vdb", "vdd")  # the disks whose rings are of the packed kind, over vhost-user
RECONNECT = WAIT  # seconds that QEMU's NBD driver waits for a server that is away

AGENT = r"""#!/bin/sh
export PATH=/bin
mount -t proc none /proc; mount -t sysfs none /sys; mount -t tmpfs none /tmp
until ls /dev/vport?p2 >/dev/null 2>&1; do sleep 0.1; done
exec 3<>$(ls /dev/vport?p1) 4>$(ls /dev/vport?p2)
echo ready >&3
while IFS= read -r line <&3; do
    echo "$line" | base64 -d >/tmp/command
    sh /tmp/command >/tmp/said 2>&1 </dev/null
    echo "$? $(wc -c </tmp/said)" >&3
    cat /tmp/said >&3
done
"""
# What the kernel says when a disk has failed it, or kept it waiting for too long.
TROUBLE = re.compile(r"I/O error|[Bb]uffer I/O|EXT4-fs error|EXT4-fs warning|XFS.*(?:[Cc]orrupt|error|shut)|BTRFS.*(?:error|"
                     r"critical)|blocked for more than|kernel BUG|Oops|Kernel panic|aborted journal|remounting.*read-only")


def root_disk(t, name, size, *more):
    """An ext4 image with the agent, guest_load, sqlite3 and `more` programs."""
    tree = machine.disk_tree(t.path(f"{name}.tree"), AGENT)
    (tree / "mnt").mkdir()
    load = harness.BUILD / "tests/guest/guest_load"
    if not load.exists():
        raise harness.Skip(f"{load} is not built")
    shutil.copy(load, tree / "bin/guest_load")
    found = [shutil.which(program, path=t.environment["PATH"]) for program in ("sqlite3", *more)]
    for program in filter(None, found):
        files = {f"/bin/{program.rpartition('/')[2]}": program, **{path: path for path in machine.libraries(program)}}
        for inside, here in files.items():
            (tree / inside[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(here, tree / inside[1:])
    machine.ext4(t.path(name), size, tree)
    shutil.rmtree(tree)
    return t.path(name)


def file_system(t, name, size, kind):
    """An image with an empty file system of `kind`, xfs or btrfs."""
    harness.need(f"mkfs.{kind}")
    path = t.disk(name, size)
    options = {"xfs": ["-q"], "btrfs": ["-q", "-m", "single", "-d", "single"]}[kind]
    t.run(shutil.which(f"mkfs.{kind}", path=t.environment["PATH"]), *options, path)
    return path


def serve(t, kind, images, *more):
    """A daemon with these disks, reachable as `kind` wants them, and `more` options."""
    options = [f"{name}={vhost_socket(t, name)}" for name in images] if kind == VHOST_USER else []
    return t.daemon(images, *[word for option in options for word in ("--vhost-user", option)], *more)


def vhost_socket(t, name, suffix="vhost"):
    return t.path(f"{name}.{suffix}")


def memory_arguments(kind, size):
    """What gives the guest `size` MiB of memory, which the daemon must see when it looks into the guest's rings."""
    size = f"{int(size * 1024)}k"
    shared = ["-object", f"memory-backend-memfd,id=memory,share=on,size={size}", "-machine", "memory-backend=memory"]
    return ["-m", size, *(shared if kind == VHOST_USER else [])]


def disk_arguments(t, kind, name, daemon, image=None, suffix="vhost"):
    """What gives the guest one more disk; image: for FILE; suffix: of the socket for VHOST_USER."""
    if kind == VHOST_USER:
        return ["-chardev", f"socket,id={name},path={vhost_socket(t, name, suffix)},reconnect=1",
                "-device", f"vhost-user-blk-pci,chardev={name},num-queues=2,packed={'on' if name in PACKED else 'off'}"]
    if kind == NBD:
        block = {"driver": "nbd", "export": name, "reconnect-delay": RECONNECT,
                 "server": {"type": "unix", "path": daemon.nbd[5:]}}
    else:
        block = {"driver": "raw", "file": {"driver": "file", "filename": str(image)}}
    block.update({"node-name": name, "discard": "unmap"})
    return ["-blockdev", json.dumps(block), "-device", f"virtio-blk-pci,drive={name},num-queues=1"]


def backup(d, where):
    """Backs up; (name of the point, {disk: its line of the report})."""
    line = json.loads(d.fleece("--json", "backup", where).stdout.splitlines()[-1])
    return line["point"], {disk["name"]: disk for disk in line["disks"]}


def restore(t, where, points):
    """The folders with the raw images of the points, which begin with what backup() returned."""
    folders = [t.path(f"at-{point[0]}") for point in points]
    for point, folder in zip(points, folders):
        t.fleece("restore", f"{where}@{point[0]}", "--all", "--to-dir", folder, "--format", "raw")
    return folders


def number_of(image):
    """What `guest_load ordered` wrote to it."""
    with open(image, "rb") as f:
        return int.from_bytes(f.read(8), "little")


class Port:
    """One end of a virtio port: QEMU connects to a socket of ours, so that nothing that the guest says is lost."""

    def __init__(self, path):
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(1)
        self.path, self.stream, self.buffer = path, None, b""

    def accept(self):
        self.listener.settimeout(WAIT * harness.FACTOR)
        self.stream = self.listener.accept()[0]
        self.listener.close()

    def receive(self, timeout):
        """Adds to the buffer what comes within `timeout` seconds; False when nothing did."""
        self.stream.settimeout(timeout)
        with contextlib.suppress(TimeoutError, BlockingIOError):
            data = self.stream.recv(65536)
            if not data:
                raise AssertionError("QEMU has closed the port of the agent")
            self.buffer += data
            return True
        return False

    def take(self, length, end):
        """`length` bytes, or with None a line."""
        while (have := self.buffer.find(b"\n") + 1 if length is None else length) > len(self.buffer) or have == 0 != length:
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self.receive(min(left, 1))
        data, self.buffer = self.buffer[:have], self.buffer[have:]
        return data

    def close(self):
        self.stream.close()


class Vm:
    """A QEMU with its guest. disks: {name: image} for FILE, else names of a daemon's disks; the first is the root disk.
    launch: as t.spawn(), starts a QEMU that has its memory and disks by itself, with the arguments that make it obey.
    agent: where QEMU listens for clients of the guest's agent, whose port is /dev/vport0p3."""

    count = 0

    def __init__(self, t, kind, disks, daemon=None, modules=(), memory=192, launch=None, agent=None, incoming=None,
                 suffix="vhost", cpus=1):
        """incoming: a socket on which it waits for the state of another one; suffix: of the vhost-user sockets."""
        harness.need("qemu-system-x86_64")
        self.t, self.kind, self.daemon, self.known = t, kind, daemon, {}
        self.names = list(disks)
        Vm.count += 1
        self.mark = f"q{Vm.count}"
        self.console = t.path(f"{self.mark}.console")
        self.commands, self.events = (Port(t.path(f"{self.mark}.{n}")) for n in ("commands", "events"))
        qmp = t.path(f"{self.mark}.qmp")
        arguments = [*machine.qemu_arguments(machine.initramfs(modules=modules), serial=f"file:{self.console}"),
                     "-device", "virtio-serial-pci", "-qmp", f"unix:{qmp},server=on,wait=off"]
        for number, port in ((1, self.commands), (2, self.events)):
            arguments += ["-chardev", f"socket,id=port{number},path={port.path}",
                          "-device", f"virtserialport,nr={number},chardev=port{number}"]
        if agent:
            arguments += ["-chardev", f"socket,id=agent,path={agent},server=on,wait=off",
                          "-device", "virtserialport,nr=3,chardev=agent,name=org.qemu.guest_agent.0"]
        if not launch:
            arguments = ["qemu-system-x86_64", "-accel", "tcg,tb-size=128", *memory_arguments(kind, memory),
                         "-smp", str(cpus), *arguments]
            for name in self.names:
                arguments += disk_arguments(t, kind, name, daemon, disks[name] if kind == FILE else None, suffix)
        arguments += ["-incoming", f"unix:{incoming}"] if incoming else []
        with open(t.path(f"{self.mark}.log"), "wb") as log:
            self.process = (launch or t.spawn)(*arguments, stdout=log, stderr=log, cwd=t.dir)
        try:
            self.commands.accept()
            self.events.accept()
        except TimeoutError:
            raise AssertionError(f"QEMU did not start:\n{t.path(f'{self.mark}.log').read_text()}") from None
        self.qmp = harness.wait_for("QEMU answers", lambda: self.process.poll() is not None or self.connect(qmp), WAIT)
        assert self.process.poll() is None, f"QEMU did not start:\n{t.path(f'{self.mark}.log').read_text()}"
        if not incoming:
            self.wait_ready()

    @staticmethod
    def connect(path):
        with contextlib.suppress(OSError):
            return harness.Qmp(path)

    def text(self):
        return self.console.read_text(errors="replace")

    def wait_ready(self, timeout=WAIT):
        """Waits until the agent says that it is there; what was said before, by a guest that is gone, does not count."""
        try:
            end = time.monotonic() + timeout * harness.FACTOR
            while self.commands.take(None, end) != b"ready\n":
                pass
        except TimeoutError:
            raise AssertionError(f"the guest did not start; its console:\n{self.text()[-3000:]}") from None

    def run(self, script, status=0, timeout=WAIT):
        """Runs shell commands in the guest and returns what they said."""
        self.commands.stream.settimeout(WAIT * harness.FACTOR)
        self.commands.stream.sendall(base64.b64encode(script.encode()) + b"\n")
        end = time.monotonic() + timeout * harness.FACTOR
        try:
            found, length = map(int, self.commands.take(None, end).split())
            said = self.commands.take(length, end).decode(errors="replace")
        except TimeoutError:
            raise AssertionError(f"the guest has not run {script!r} within {timeout} s; its console:\n"
                                 f"{self.text()[-3000:]}") from None
        assert status is None or found == status, f"{script!r} in the guest: {found}, not {status}\n{said[-3000:]}"
        return said

    def start(self, name, script):
        """Runs a command in the background whose lines go to the second port."""
        self.run(f"{{ {script}\n}} >&4 2>/tmp/{name}.err &\necho $! >/tmp/{name}.pid")

    def stop(self, name):
        """Tells what start() has started to end; it must be running still."""
        self.run(f"kill $(cat /tmp/{name}.pid) || {{ cat /tmp/{name}.err; false; }}")

    def durable(self):
        """{name: number}: all that the guest has said until now to be durable."""
        while self.events.receive(0.001):
            pass
        return self.note_durable()

    def note_durable(self):
        whole, _, self.events.buffer = self.events.buffer.rpartition(b"\n")
        for line in whole.decode(errors="replace").splitlines():
            if found := re.fullmatch(r"(\w+) (\d+)", line):
                self.known[found[1]] = int(found[2])
        return dict(self.known)

    def wait_durable(self, more, timeout=WAIT):
        """Waits until each of the names in `more` ({name: number}) has got that far."""
        def far_enough():
            known = self.durable()
            return all(known.get(name, 0) >= number for name, number in more.items())
        try:
            harness.wait_for(f"the guest has written {more}", far_enough, timeout, 0.05)
        except AssertionError as error:
            said = self.run("cat /tmp/*.err; dmesg | tail -n 20", None)
            raise AssertionError(f"{error}; it has {self.durable()}\n{said}\n{self.text()[-2000:]}") from None

    def check_calm(self):
        """The kernel has nothing to complain of."""
        said = self.run("dmesg") + self.text()
        assert not TROUBLE.search(said), "the guest's kernel complains:\n" + "\n".join(
            line for line in said.splitlines() if TROUBLE.search(line))

    def reset(self):
        """The reset button: nothing is written back, and the guest starts anew."""
        self.qmp.execute("system_reset")
        self.commands.buffer = b""
        self.wait_ready()
        self.durable()

    def quit(self):
        """QEMU ends at once, as at a loss of power of the guest."""
        self.durable()
        self.qmp.execute("quit")
        self.gone()

    def crash(self):
        """QEMU is killed, as by a crash of its own."""
        self.process.kill()
        self.process.wait(WAIT * harness.FACTOR)
        with contextlib.suppress(AssertionError, ConnectionError):  # all that the guest has said
            while True:
                self.events.receive(1)
        self.note_durable()
        self.close()

    def power_off(self):
        """The guest ends in good order."""
        self.ask_power_off()
        self.gone()

    def ask_power_off(self, how="poweroff"):
        script = f"umount -a; mount -o remount,ro /; sync; {how} -f"
        self.commands.stream.sendall(base64.b64encode(script.encode()) + b"\n")

    def reboot(self):
        """The guest starts anew, in good order."""
        self.ask_power_off("reboot")
        self.wait_ready()

    def gone(self):
        try:
            code = self.process.wait(WAIT * harness.FACTOR)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the guest did not end:\n{self.text()[-3000:]}") from None
        assert code == 0, f"QEMU ended with {code}:\n{self.t.path(f'{self.mark}.log').read_text()}"
        self.close()

    def close(self):
        for end in (self.commands, self.events, self.qmp):
            end.close()
