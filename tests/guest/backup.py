#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The example of README.md, run as it stands there: a guest with its disk on our NBD export writes and fsyncs files
while it is backed up. The restored disk needs no more than its journal, holds every file that was fsynced before the
backup began, and boots."""
import re
import shutil

import harness
import machine

EXAMPLE = "<!-- tests/guest/backup.py runs this -->\n\n```sh\n"
# File N holds a line with its name and some numbers, so that each has a content of its own that the guest knows again.
INIT = r"""#!/bin/sh
export PATH=/bin
mount -t proc none /proc
stty -echo
content() { echo "file $1"; seq $1 $(($1 + 300)); }
if grep -q again /proc/cmdline; then
    good=0 bad=
    for file in /data/*; do
        n=${file#/data/}
        if [ "$(content $n)" = "$(cat $file)" ]; then good=$((good + 1)); else bad="$bad $n"; fi
    done
    echo "GUEST again, good: $good, other:$bad."
    poweroff -f
fi
echo "GUEST up"
n=0
while :; do
    n=$((n + 1))
    content $n | dd of=/data/$n conv=fsync 2>/dev/null && echo "FSYNCED $n"
done &
while :; do dd if=/dev/urandom of=/bulk bs=64k count=64 conv=notrunc,fsync 2>/dev/null; done &
while read order; do
    case $order in
        mark) echo marked | dd of=/marked conv=fsync 2>/dev/null; echo "GUEST marked" ;;
        off) kill %1 %2; wait; sync; mount -o remount,ro /; echo "GUEST off"; poweroff -f ;;
    esac
done
"""


def content(n):
    return f"file {n}\n" + "".join(f"{i}\n" for i in range(n, n + 301))


def example():
    """The commands of the README's example, one each, continued lines joined."""
    text = (harness.ROOT / "README.md").read_text()
    assert EXAMPLE in text, "README.md has lost its example"
    block = text.split(EXAMPLE)[1].split("```")[0].replace("\\\n", " ")
    return [line for line in block.splitlines() if line.strip() and not line.startswith("#")]


def pick(commands, word):
    found = [c for c in commands if word in c]
    assert len(found) == 1, f"README.md: its example should have one command with {word!r}, it has {len(found)}"
    return found[0].rstrip(" &")


def fsynced(guest):
    return max(map(int, re.findall(r"^FSYNCED (\d+)$", guest.drain(), re.M)), default=0)


def wait_fsynced(guest, count):
    """A single line may be torn by one of the kernel's."""
    guest.wait(f"{count} files are fsynced", lambda: fsynced(guest) >= count)


def prepare(t):
    """The folder in which the README's commands run: the programs, web1.raw, and a QEMU that boots our kernel."""
    harness.need("qemu-system-x86_64", "qemu-img")
    t.program("fleeced"), t.program("fleece")
    tree = machine.disk_tree(t.path("tree"), INIT)
    (tree / "ballast").write_bytes(harness.pattern(96 << 20, 5))
    (tree / "bulk").write_bytes(harness.pattern(4 << 20, 6))
    machine.ext4(t.path("web1.raw"), 192 << 20, tree)
    shutil.rmtree(tree)
    t.path("build").symlink_to(harness.BUILD)
    t.path("bin").mkdir()
    arguments = " ".join(f"'{a}'" for a in ("-no-reboot", *machine.qemu_arguments(machine.initramfs(), "panic=-1")))
    wrapper = t.path("bin/qemu-system-x86_64")  # TCG, for there is no KVM in most test machines, and our kernel
    wrapper.write_text(f"#!/bin/sh\n[ \"$1 $2\" = '-accel kvm' ] || exit 9\nshift 2\n"
                       f"exec {shutil.which('qemu-system-x86_64')} -accel tcg \"$@\" {arguments}\n")
    wrapper.chmod(0o755)
    t.environment["PATH"] = f"{t.path('bin')}:{t.environment['PATH']}"
    t.borrow_vm("web1")


def check_files(t, last):
    """What is in the restored file system, seen from here."""
    # Nothing but the replay of the journal may be needed: after it, a full check changes and finds nothing.
    shutil.copy(t.path("restored.raw"), t.path("checked.raw"))
    t.run("/sbin/e2fsck", "-fy", "-E", "journal_only", t.path("checked.raw"), status=None)
    t.run("/sbin/e2fsck", "-fn", t.path("checked.raw"))
    t.path("found").mkdir()
    t.run("/sbin/debugfs", "-R", f"rdump /data /ballast {t.path('found')}", t.path("checked.raw"))
    for n in range(1, last + 1):
        file = t.path(f"found/data/{n}")
        assert file.exists(), f"file {n} was fsynced before the backup began, and is not in it (the last one: {last})"
        assert file.read_text() == content(n), f"file {n} was fsynced before the backup began, and is other in it"
    assert t.path("found/ballast").read_bytes() == harness.pattern(96 << 20, 5)
    root = t.run("/sbin/debugfs", "-R", "ls -p /", t.path("checked.raw")).stdout
    assert "/ballast/" in root and "/marked/" not in root, f"a file written after the backup is in it:\n{root}"
    t.path("checked.raw").unlink()


def test_the_example_of_the_readme(t):
    prepare(t)
    commands = example()
    daemon = harness.Daemon(t, ["sh", "-c", f"exec {pick(commands, 'build/fleeced')}"], t.path("web1.sock"),
                            f"unix:{t.path('web1.nbd')}", t.environment, "fleeced.log", cwd=t.dir)
    t.daemons.append(daemon)
    daemon.wait_ready()
    guest = machine.Guest(t, ["sh", "-c", f"exec {pick(commands, 'qemu-system')}"], cwd=t.dir)
    wait_fsynced(guest, 30)

    before = fsynced(guest)
    t.run("sh", "-c", pick(commands, " backup "), cwd=t.dir)
    wait_fsynced(guest, fsynced(guest) + 5)  # and the guest goes on
    guest.say("mark")
    guest.expect("GUEST marked")
    listed = t.run("sh", "-c", pick(commands, " list "), cwd=t.dir).stdout
    assert "vda" in listed, listed
    for word in (" verify ", " restore "):
        t.run("sh", "-c", pick(commands, word), cwd=t.dir)
    guest.say("off")
    guest.expect("GUEST off")
    guest.end()
    status = daemon.status()
    assert status["disks"][0]["errors"] == 0 and status["disks"][0]["blocks-preserved"] > 0, status
    daemon.stop()
    t.run("/sbin/e2fsck", "-fn", t.path("web1.raw"))

    print(f"{before} files were fsynced before the backup began")
    check_files(t, before)
    again = machine.Guest(t, ["/usr/bin/qemu-system-x86_64", "-accel", "tcg", "-m", "256", "-snapshot", "-drive",
                              f"file={t.path('restored.raw')},format=raw,if=virtio",
                              "-no-reboot", *machine.qemu_arguments(machine.initramfs(), "again panic=-1")])
    found = again.expect(r"GUEST again, good: (\d+), other:([\d ]*)\.")
    again.end()
    # One file was being written, unsynced, at the cut: it may be there in part.
    assert int(found[1]) >= before and len(found[2].split()) <= 1, found[0]


harness.main()
