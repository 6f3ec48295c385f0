#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest with qemu-ga is frozen for snapshots while it writes: their ext4 file systems have clean journals, as after an
unmount; and it goes on writing, also when the daemon is killed while it is frozen."""
import contextlib
import json
import socket
import threading

import harness
import listener
import machine
import vm
from vm import MIB


class Gate(listener.Listener):
    """Between the daemon and the agent's socket: passes on everything, but holds back thaws while it is closed."""

    def __init__(self, path, agent):
        self.agent = agent
        self.closed, self.holds = threading.Event(), threading.Event()
        super().__init__(path)

    def serve(self, client):
        with socket.socket(socket.AF_UNIX) as agent:
            agent.connect(str(self.agent))
            back = threading.Thread(target=self.pass_on, args=(agent, client), daemon=True)
            back.start()
            self.pass_on(client, agent)
            agent.shutdown(socket.SHUT_RDWR)
            back.join(20)

    def pass_on(self, source, target):
        with contextlib.suppress(OSError):
            while not self.over and (data := source.recv(4096)):
                if b"guest-fsfreeze-thaw" in data and self.closed.is_set():
                    self.holds.set()
                    continue
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


def create(d, name, *options):
    snapshot = json.loads(d.fleece("--json", "snapshot", "create", name, *options, timeout=vm.WAIT).stdout)
    print(name, snapshot["consistent"], snapshot.get("frozen-us"), snapshot.get("consistent-reason"))
    return snapshot


def journal_is_clean(t, d, export):
    """Whether the file system needs no recovery; one that needs none must be without a fault, too."""
    image = t.path(f"{export}.raw")
    t.run("nbdcopy", d.uri(export), image)
    said = t.run("/sbin/dumpe2fs", "-h", image).stdout
    clean = "needs_recovery" not in said
    if clean:
        t.run("/sbin/e2fsck", "-fn", image)
    image.unlink()
    return clean


def more(guest, count):
    guest.wait_durable({"ext4": guest.durable().get("ext4", 0) + count})


def test_a_real_guest(t):
    harness.need("qemu-ga", "nbdcopy")
    images = {"vda": vm.root_disk(t, "vda.raw", 64 * MIB, "qemu-ga")}
    t.path("empty").mkdir()
    images["vdb"] = machine.ext4(t.path("vdb.raw"), 64 * MIB, t.path("empty"))
    with Gate(t.path("gate.sock"), t.path("agent.sock")) as gate:
        options = ["--guest-agent", gate.path, "--freeze-timeout", str(int(60 * harness.FACTOR))]
        d = vm.serve(t, vm.VHOST_USER, images, *options)
        guest = vm.Vm(t, vm.VHOST_USER, images, d, agent=t.path("agent.sock"))
        guest.run("mkdir -p /mnt/data && mount -t ext4 /dev/vdb /mnt/data && mkdir /mnt/data/files")
        guest.run("until [ -e /dev/vport0p3 ]; do sleep 0.1; done")
        guest.run("qemu-ga -m virtio-serial -p /dev/vport0p3 -t /tmp -l /tmp/qemu-ga.log >/dev/null 2>&1 &")
        guest.start("ext4", "exec guest_load files /mnt/data/files ext4 40")
        more(guest, 3)

        assert create(d, "plain", "--consistency", "crash")["consistent"] == "crash"
        assert not journal_is_clean(t, d, "vdb@plain")  # so that clean ones say something
        for name in ("one", "two"):
            more(guest, 2)
            snapshot = create(d, name, "--consistency", "required")
            assert snapshot["consistent"] == "guest-agent" and snapshot["frozen-us"] > 0, snapshot
            assert journal_is_clean(t, d, f"vdb@{name}") and journal_is_clean(t, d, f"vda@{name}")
        more(guest, 2)

        # Killed while the guest is frozen: the next daemon serves the disks, and thaws.
        gate.closed.set()
        with d.qmp() as qmp:
            qmp.send("fleece-snapshot-create", name="lost")
            assert gate.holds.wait(vm.WAIT), "no thaw has come"
            d.kill()
        gate.closed.clear()
        t.daemons.clear()  # the same sockets
        d = vm.serve(t, vm.VHOST_USER, images, *options)
        assert "was killed while it made snapshot 'lost': the guest is thawed" in d.log()
        harness.wait_for("the guest has thawed", lambda: d.status()["guest"]["state"] == "idle", vm.WAIT)
        more(guest, 3)
        assert create(d, "three", "--consistency", "required")["consistent"] == "guest-agent"
        assert journal_is_clean(t, d, "vdb@three")
        more(guest, 2)
        guest.stop("ext4")
        guest.check_calm()
        guest.power_off()
        d.stop()


harness.main()
