#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/vmm/qemu.md and docs/vmm/libvirt.md, run as they stand there, with a guest that writes: backups, a new version of the
daemon under the running guest, a daemon that is killed, a backup by increments, a restore."""
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
from xml.sax.saxutils import quoteattr

import harness
import machine
import page_kit
import vm
from vm import MIB

NOBODY = 65534
HANDED_OVER = 4  # fleeced's exit status


def go_on(guest):
    guest.wait_durable({"ext4": guest.durable().get("ext4", 0) + 3})


def qemu(t, command):
    """What starts the page's QEMU: without KVM, and with what makes the guest obey."""
    words = shlex.split(command)
    assert words[:3] == ["qemu-system-x86_64", "-accel", "kvm"], command
    return lambda *more, **options: t.spawn(words[0], "-accel", "tcg", *words[3:], *more, **options)


def check_restored(t, durable):
    """restored.raw is the disk, whose guest has left it in good order, and holds all files that are known to be durable."""
    t.run("cmp", t.path("restored.raw"), t.path("web1.raw"))
    t.run("/sbin/e2fsck", "-fn", t.path("restored.raw"))
    t.path("found").mkdir()
    t.run("/sbin/debugfs", "-R", f"rdump /data {t.path('found')}", t.path("restored.raw"))
    files = set(os.listdir(t.path("found/data")))
    assert {str(n) for n in range(1, durable["ext4"] + 1)} <= files, (durable, files)


def new_version(t):
    """Another fleeced, at another place, which says that it is one."""
    path, old = t.path("new/fleeced"), t.program("fleeced")
    version = t.run(old, "--version").stdout.split()[1]
    newer = f"{version[:-1]}{(int(version[-1]) + 1) % 10}"
    path.parent.mkdir()
    path.write_bytes(old.read_bytes().replace(f"fleeced {version}".encode(), f"fleeced {newer}".encode())
                     .replace(f"fleece {version}".encode(), f"fleece {newer}".encode()))
    path.chmod(0o755)
    assert newer in t.run(path, "--version").stdout
    return path, newer


def upgrade(t, serve, guest):
    """A new version of the daemon takes over, under a guest that writes: with its sockets and its snapshots."""
    path, newer = new_version(t)
    t.daemons[-1].fleece("snapshot", "create", "kept")
    kept = t.daemons[-1].status()["snapshots"]
    old = t.daemons.pop()
    old.process.send_signal(signal.SIGUSR2)
    old.wait(HANDED_OVER)
    d = serve(program=path)
    go_on(guest)
    with d.qmp() as qmp:
        assert newer in json.dumps(qmp.execute("query-version")), qmp.execute("query-version")
    assert [(s["uuid"], s["state"]) for s in d.status()["snapshots"]] == [(kept[0]["uuid"], "live")]
    d.fleece("snapshot", "delete", "kept")


def manifest(t):
    """Of the latest point: {disk: kind}."""
    point = sorted(p for p in t.path("web1-backups").iterdir() if (p / "manifest.json").exists())[-1]
    return {disk["name"]: disk["kind"] for disk in json.loads((point / "manifest.json").read_text())["disks"]}


def live(t, serve, page, launch, power_off=vm.Vm.power_off, reboots=False):
    """The life that a page tells, and a backup after the guest has powered itself off. serve(): starts its daemon, or
    serve(program=) another program as such."""
    vm.root_disk(t, "web1.raw", 48 * MIB)
    backup, listed = (page_kit.Page(page).pick("fleece"))[:2]
    serve()
    guest = vm.Vm(t, vm.VHOST_USER, ["vda"], launch=launch)
    guest.start("ext4", "exec guest_load files /data ext4 40")
    go_on(guest)
    page_kit.run(t, backup)
    assert manifest(t) == {"vda": "full"}
    go_on(guest)
    upgrade(t, serve, guest)
    t.daemons.pop().kill()
    serve()
    go_on(guest)
    durable = guest.durable()
    page_kit.run(t, backup)
    assert manifest(t) == {"vda": "incremental"}
    assert len(re.findall("vda", page_kit.run(t, listed))) >= 2
    guest.stop("ext4")
    if reboots:
        guest.reboot()
        print(guest.run(f"guest_load check /data {guest.durable()['ext4']}"))
        guest.start("ext4", "exec guest_load files /data ext4 40")
        go_on(guest)
        durable = guest.durable()
        page_kit.run(t, backup)
        assert manifest(t) == {"vda": "incremental"}
        guest.stop("ext4")
    guest.check_calm()
    power_off(guest)
    page_kit.run(t, backup)
    assert manifest(t) == {"vda": "incremental"}
    for command in page_kit.Page("docs/vmm/qemu.md").pick("fleece")[2:]:
        page_kit.run(t, command)
    t.daemons[-1].stop()
    check_restored(t, durable)


def qemu_page(t, number, **more):
    page = page_kit.Page("docs/vmm/qemu.md")
    t.borrow_vm("web1")
    live(t, lambda **more: page_kit.start_daemon(t, page.pick("fleeced")[number], **more), page.name,
         qemu(t, page.pick("qemu-system-x86_64")[number]), **more)


def test_qemu(t):
    qemu_page(t, 0, reboots=True)


def test_qemu_over_nbd(t):
    qemu_page(t, 1)


class Libvirt:
    """libvirt's QEMU driver in a folder of its own, as an ordinary user, who runs one domain."""

    def __init__(self, t):
        harness.need("virt-qemu-run", "virt-xml-validate")
        self.t, self.folder, self.user = t, t.path("libvirt"), os.getuid() or NOBODY
        self.folder.mkdir()
        self.environment = dict(t.environment, HOME=str(self.folder), XDG_RUNTIME_DIR=str(self.folder),
                                XDG_CACHE_HOME=str(self.folder), XDG_CONFIG_HOME=str(self.folder))
        t.dir.chmod(0o777)
        os.chown(self.folder, self.user, -1)

    def domain(self, xml, arguments):
        """The page's domain with our kernel."""
        arguments = ["virtio-serial-pci,addr=0x1e" if word == "virtio-serial-pci" else word for word in arguments]
        for option in ("-kernel", "-initrd"):  # where that user can read it
            at = arguments.index(option) + 1
            arguments[at] = shutil.copy(arguments[at], self.folder)
            os.chmod(arguments[at], 0o644)
        more = "".join(f"<qemu:arg value={quoteattr(str(word))}/>" for word in arguments)
        for old, new in (("<domain type='kvm'>",
                          "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"),
                         ("/run/fleece/web1/vda.sock", str(self.t.path("web1-vda.sock"))),
                         ("</domain>", f"<qemu:commandline>{more}</qemu:commandline></domain>")):
            assert xml.count(old) == 1, f"docs/vmm/libvirt.md: {old} should be once in the domain"
            xml = xml.replace(old, new)
        path = self.folder / "web1.xml"
        path.write_text(xml)
        return path

    def launch(self, xml):
        def run(*arguments, **options):
            for port in self.t.dir.glob("q*.[ce]*"):
                port.chmod(0o777)
            path = self.domain(xml, arguments)
            options.update(env=self.environment, user=self.user)
            return self.t.spawn("virt-qemu-run", f"--root={self.folder / 'root'}", path, **options)
        return run

    @staticmethod
    def power_off(guest):
        """The guest's end is QEMU's: libvirt sees to that. virt-qemu-run stays, and is killed: told to end by a signal, it
        ends the domain from its handler, and waits for itself for ever if it was at that already."""
        guest.ask_power_off()
        guest.qmp.socket.settimeout(vm.WAIT * harness.FACTOR)
        with contextlib.suppress(ConnectionError):
            while guest.qmp.stream.readline():  # until QEMU is gone
                pass
        guest.process.kill()
        guest.process.wait()
        guest.close()

    def serve(self, command, **more):
        daemon = page_kit.start_daemon(self.t, command, **more)
        os.chown(self.t.path("web1-vda.sock"), self.user, -1)  # who is the user of the page's unit
        return daemon


def test_libvirt(t):
    page = page_kit.Page("docs/vmm/libvirt.md")
    domain, _ = page.only("xml")
    t.borrow_vm("web1")
    libvirt = Libvirt(t)
    t.path("page.xml").write_text(domain)
    t.run("virt-xml-validate", t.path("page.xml"), "domain")
    live(t, lambda **more: libvirt.serve(*page.pick("fleeced"), **more), page.name, libvirt.launch(domain),
         libvirt.power_off)


harness.main()
