#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon is killed (SIGKILL) again and again under a guest that writes, and started again: the guest sees a pause, no
I/O error, and every write that was acknowledged to it. Snapshots of two disks are one instant, before a death and after
it. A client that pulls a snapshot through all of it reads on after each death; so does a push; backups that are interrupted
go on. A VM that is paused goes on, too."""
import json
import random
import signal
import subprocess
import threading
import time

import harness
import slow_kit
import vm
from vm import MIB

DEATHS = {vm.VHOST_USER: 60 if harness.LONG else 20, vm.NBD: 20 if harness.LONG else 4}
CUTS = 100 if harness.LONG else 8
PAUSES = 4
PULLED = "vdb"
PIECE = 64 << 10


class Pull(threading.Thread):
    """Reads a snapshot piece by piece, as far as it may; when the daemon is gone it connects again and goes on."""

    def __init__(self, t, uri):
        super().__init__(daemon=True)
        self.uri, self.content, self.connections, self.error = uri, b"", 0, None
        self.may, self.size = threading.Semaphore(0), t.path(f"{PULLED}.raw").stat().st_size

    def connect(self):
        import nbd  # not every Python has it
        handle = nbd.NBD()
        end = time.monotonic() + vm.WAIT * harness.FACTOR
        while True:
            try:
                handle.connect_uri(self.uri)
                self.connections += 1
                return handle
            except nbd.Error:
                assert time.monotonic() < end, "the snapshot is not served again"
                handle = nbd.NBD()
                time.sleep(0.05)

    def run(self):
        import nbd
        try:
            handle = self.connect()
            while len(self.content) < self.size:
                self.may.acquire()
                try:
                    self.content += handle.pread(PIECE, len(self.content))
                except nbd.Error:
                    self.may.release()
                    handle = self.connect()
        except BaseException as error:
            self.error = error

    def go(self, pieces):
        self.may.release(pieces)

    def finish(self):
        self.go(self.size // PIECE + 1)
        self.join(vm.WAIT * harness.FACTOR)
        assert not self.is_alive() and not self.error, f"the pull did not end: {self.error}"
        return self.content


def pair(t, d, snapshot):
    """The numbers of the two ordered disks in a snapshot, which must be one instant: vdc >= vdd >= vdc - 1."""
    found = []
    for disk in ("vdc", "vdd"):
        said = t.run("qemu-io", "-r", "-f", "raw", "-c", "read -v 0 512", d.uri(f"{disk}@{snapshot}")).stdout
        words = said.split()
        found.append(int.from_bytes(bytes.fromhex("".join(words[1:9])), "little"))
    assert found[1] <= found[0] <= found[1] + 1, f"vdc and vdd of {snapshot} are not of one instant: {found}"
    return found


def cut(t, d, guest, name):
    """Takes a snapshot while the guest writes; what the two ordered disks hold in it."""
    durable = guest.durable()
    d.fleece("snapshot", "create", name)
    found = pair(t, d, name)
    assert found[1] >= durable["ordered"], f"{durable} was durable before the cut of {name}, which holds {found}"
    return found


def go_on(guest):
    known = guest.durable()
    guest.wait_durable({name: known.get(name, 0) + 3 for name in ("ext4", "ordered")})


def death(t, guest, images, chance, number, pull):
    """Kills the daemon under load with a snapshot alive, starts it again, and lets the guest go on."""
    d = t.daemons[-1]
    name = f"kept{number}"
    before = cut(t, d, guest, name)
    backup = t.spawn(t.program("fleece"), "--control", d.control, "backup", t.path("set")) if number % 4 == 1 else None
    pull.go(3)
    time.sleep(chance.uniform(0, 0.3))
    if number % 2:  # requests that are done, of which nobody was told, and others that nobody has looked at
        d.process.send_signal(signal.SIGSTOP)
        time.sleep(0.05)
    d.kill()
    time.sleep(chance.choice([0, 0, 0.3, 1]))
    t.daemons.clear()
    d = vm.serve(t, guest.kind, images)
    assert pair(t, d, name) == before, f"{name} has changed with the death of the daemon"
    go_on(guest)
    d.fleece("snapshot", "delete", name)
    if number % 5 == 0:
        guest.check_calm()
    return backup is not None and goes_on(t, d, backup)


def goes_on(t, d, backup):
    """The interrupted backup is gone on with; False when it had been quicker than the death."""
    if backup.wait(vm.WAIT * harness.FACTOR) == 0:
        return False
    done = d.fleece("--json", "backup", t.path("set"), "--resume", status=None)
    assert done.returncode in (0, 3), done.stdout + done.stderr  # 3: it had not come so far that there was anything
    return bool(json.loads(done.stdout.splitlines()[0]).get("resumed"))


def pauses(guest):
    """The VM is paused under load and goes on, again and again: rings stop and start with requests under way."""
    for _ in range(PAUSES):
        guest.qmp.execute("stop")
        guest.qmp.execute("cont")
        go_on(guest)
    guest.check_calm()


def stalled_target(t, d, guest):
    """The target of a push stops in its middle, and ends: the guest goes on."""
    target, uri = slow_kit.target(t, "target", 4 * MIB)
    push = t.spawn(t.program("fleece"), "--control", d.control, "push", "--to", f"vdb={uri}", "--speed", "200000")
    released = d.status()["disks"][1]["blocks-released"]
    harness.wait_for("something is pushed", lambda: d.status()["disks"][1]["blocks-released"] > released, vm.WAIT)
    target.send_signal(signal.SIGSTOP)
    go_on(guest)
    go_on(guest)
    assert push.poll() is None, "the push has ended, its target has only stopped"
    slow_kit.stop(t, target)
    assert push.wait(vm.WAIT * harness.FACTOR) != 0
    go_on(guest)
    guest.check_calm()


class Push:
    """A push of the pulled disk and the two ordered ones that goes on through deaths, as does its client. So slow that the
    first daemon can't come to its end: what was over before it was killed is no job for the next."""

    def __init__(self, t, d, guest):
        self.t, self.images = t, {name: t.path(f"{name}.pushed") for name in (PULLED, "vdc", "vdd")}
        guest.qmp.execute("stop")  # so that it is known what the cut holds
        targets = [word for name, image in self.images.items() for word in ("--to", f"{name}={image}")]
        self.client = t.spawn(t.program("fleece"), "--control", d.control, "push", "--job", "through", *targets,
                              "--speed", "20000", stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        harness.wait_for("the push runs", lambda: self.job(d).get("status") == "running", vm.WAIT)
        for name in self.images:
            t.run("nbdcopy", d.uri(name), t.path(f"{name}.cut"))
        guest.qmp.execute("cont")

    def job(self, d):
        with d.qmp() as q:
            return next((job for job in q.execute("query-block-jobs") if job["device"] == "through"), {})

    def finish(self, d):
        with d.qmp() as q:
            if self.job(d).get("status") == "running":
                q.execute("block-job-set-speed", device="through", speed=0)
        said = self.client.communicate(timeout=vm.WAIT * harness.FACTOR)[1].decode()
        log = "".join(line for line in d.log().splitlines(True) if "job" in line)
        assert self.client.returncode == 0 and "waiting until it is back" in said, f"{said}; the daemons' logs:\n{log}"
        for name, image in self.images.items():
            self.t.run("cmp", image, self.t.path(f"{name}.cut"))


def deaths(t, kind):
    harness.need("qemu-io", "nbdcopy")
    chance, where = random.Random(5), t.path("set")
    images = {"vda": vm.root_disk(t, "vda.raw", 48 * MIB), "vdb": t.disk("vdb.raw", 4 * MIB),
              "vdc": t.disk("vdc.raw", MIB), "vdd": t.disk("vdd.raw", MIB)}
    d = vm.serve(t, kind, images)
    guest = vm.Vm(t, kind, images, d)
    guest.start("ext4", "exec guest_load files /data ext4 40")
    guest.start("blocks", "exec guest_load blocks blocks /dev/vdb 8")
    guest.start("ordered", "exec guest_load ordered ordered /dev/vdc /dev/vdd")
    go_on(guest)
    for n in range(CUTS):
        cut(t, d, guest, f"cut{n}")
        d.fleece("snapshot", "delete", f"cut{n}")
    pauses(guest)
    vm.backup(d, where)
    stalled_target(t, d, guest)
    d.fleece("snapshot", "create", "pulled")
    t.run("nbdcopy", d.uri(f"{PULLED}@pulled"), t.path("before.raw"))
    pull = Pull(t, d.uri(f"{PULLED}@pulled"))
    pull.start()
    push = Push(t, d, guest)
    resumed = sum(death(t, guest, images, chance, n, pull) for n in range(DEATHS[kind]))
    d = t.daemons[-1]
    assert pull.finish() == t.path("before.raw").read_bytes(), "what was pulled through the deaths is not the snapshot"
    push.finish(d)
    print(f"{pull.connections} connections for one pull, {resumed} backups resumed")
    assert pull.connections > 2, pull.connections
    d.fleece("snapshot", "delete", "pulled")

    guest.stop("blocks")
    guest.wait_durable({"blocks": 1})  # everything acknowledged is there
    durable = guest.durable()
    points = [vm.backup(d, where)]
    print("ext4", guest.run(f"echo 3 >/proc/sys/vm/drop_caches; guest_load check /data {durable['ext4']}").strip())
    guest.check_calm()
    guest.quit()
    points.append(vm.backup(d, where))  # nobody writes now
    assert all(disk["kind"] == "incremental" for _, disks in points for disk in disks.values()), points
    d.stop()
    folders = vm.restore(t, where, points)
    for name, image in images.items():
        t.run("cmp", image, folders[1] / f"{name}.raw")
    first, second = (vm.number_of(folders[0] / f"{name}.raw") for name in ("vdc", "vdd"))
    assert second <= first <= second + 1 and second >= durable["ordered"], (first, second, durable)
    t.run("/sbin/e2fsck", "-fy", "-E", "journal_only", folders[0] / "vda.raw", status=None)
    t.run("/sbin/e2fsck", "-fn", folders[0] / "vda.raw")


def test_the_daemon_dies_under_a_guest_on_nbd(t):
    deaths(t, vm.NBD)


def test_the_daemon_dies_under_a_guest_on_vhost_user(t):
    deaths(t, vm.VHOST_USER)


harness.main()
