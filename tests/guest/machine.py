# SPDX-License-Identifier: GPL-2.0-or-later
"""A small guest: Debian's own kernel, modules and busybox, under QEMU's TCG.

A guest has two file trees. The initial one (initramfs) loads the modules and hands over to /sbin/init of the disk, or
runs a script of its own. Disk trees become ext4 images by mke2fs -d, with no need for root or mounts. What is the same
for every run (the unpacked kernel, the initramfs) is kept in BUILD/guest-cache, under a name that holds a hash of what it
is made of.

Emulated code is slow, so little of it is run: unpacking the kernel, unpacking the initramfs and checking the modules
took more than half of a guest's start. The kernel is given to QEMU as it is inside its image, an ELF file with an entry
for PVH."""
import hashlib
import lzma
import os
import pathlib
import re
import selectors
import shutil
import subprocess
import tempfile
import time

import harness

CACHE = harness.BUILD / "guest-cache"
PATIENCE = 240  # seconds; nobody waits as long unless something is wrong
MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "ext4", "crc32c_generic", "crc32c_intel")
APPEND = ("console=ttyS0 quiet mitigations=off random.trust_cpu=on cryptomgr.notests apparmor=0 audit=0 "
          "tsc=reliable no_timer_check rcupdate.rcu_expedited=1")
XZ = b"\xfd7zXZ\0"

# mdev is not needed: devtmpfs makes the nodes. $@ is run instead of the disk's init when the script was given one.
BOOT_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev
while read module; do insmod "/modules/$module"; done < /modules/order
[ -x /run.sh ] && exec /run.sh
i=0; until [ -b /dev/vda ] || [ $i = 600 ]; do i=$((i + 1)); sleep 0.1; done
mount -t ext4 /dev/vda /disk || { echo "GUEST no root disk"; poweroff -f; }
umount /proc /sys
mount --move /dev /disk/dev
exec switch_root /disk /sbin/init
"""


def kernel():
    """(image, folder of its modules) of the newest Debian kernel that is installed."""
    found = []
    for image in pathlib.Path("/boot").glob("vmlinuz-*-amd64"):
        folder = pathlib.Path("/lib/modules") / image.name[len("vmlinuz-"):]
        if (folder / "modules.dep").exists() and os.access(image, os.R_OK):
            found.append((tuple(int(n) for n in re.findall(r"\d+", image.name)), image, folder))
    if not found:
        raise harness.Skip("no Debian kernel with its modules in /boot and /lib/modules (package linux-image-amd64)")
    return max(found)[1:]


def elf_kernel():
    """The kernel as QEMU starts it quickest: what Debian's image unpacks itself to; else the image itself."""
    image = kernel()[0]
    status = os.stat(image)
    made_of = repr((str(image), status.st_size, status.st_mtime_ns))
    cached = CACHE / f"vmlinux-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"
    if cached.exists():
        return cached
    packed = image.read_bytes()
    start = packed.find(XZ)
    unpacked = lzma.LZMADecompressor().decompress(packed[start:]) if start >= 0 else b""
    if unpacked[:4] != b"\x7fELF":
        return image
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        unfinished = pathlib.Path(scratch) / "vmlinux"
        unfinished.write_bytes(unpacked)
        unfinished.rename(cached)
    return cached


def busybox():
    path = pathlib.Path("/bin/busybox")
    if not path.exists():
        raise harness.Skip("no /bin/busybox (package busybox-static)")
    return path


def module_order(folder, names):
    """The files of the modules `names` and of what they need, in the order in which they can be loaded."""
    needs = {}
    for line in (folder / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
    by_name = {pathlib.Path(p).name.split(".")[0]: p for p in needs}
    order = []

    def add(path):
        for other in needs[path]:
            add(other)
        if path not in order:
            order.append(path)

    for name in names:
        if name in by_name:  # else it is part of the kernel
            add(by_name[name])
    return order


def libraries(*programs):
    """The shared libraries of programs, with the dynamic linker, as absolute paths."""
    found = set()
    for program in programs:
        listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        found.update(re.findall(r"(?:=> )?(/\S+) \(0x", listed))
    return sorted(found)


def initramfs(files=None, script=None, modules=()):
    """A cpio archive. files: {path in the guest: path here}; script: run instead of the disk's init; modules: loaded besides
    MODULES. Kept for the next run, unless it holds files."""
    image, folder = kernel()
    order, files = module_order(folder, (*MODULES, *modules)), dict(files or {})
    made_of = repr((str(image), order, BOOT_INIT, script, os.stat(busybox()).st_mtime_ns))
    cached = CACHE / f"initramfs-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.cpio"
    if files:
        cached = CACHE / f"initramfs-{os.getpid()}.cpio"
    elif cached.exists():
        return cached
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:  # two tests may do this at once, and one may be killed at it
        tree, unfinished = pathlib.Path(scratch) / "tree", pathlib.Path(scratch) / "cpio"
        fill_tree(tree, folder, order, files, script)
        subprocess.run("find . | cpio -o -H newc --quiet >../cpio", shell=True, cwd=tree, check=True)
        unfinished.rename(cached)
    return cached


def fill_tree(tree, folder, order, files, script):
    """What is in an initramfs."""
    for name in ("bin", "proc", "sys", "dev", "disk", "modules", "tmp", "run"):
        (tree / name).mkdir(parents=True)
    shutil.copy(busybox(), tree / "bin/busybox")
    for module in order:  # without what is only checked, parsed and thrown away: the signature, and types for BPF
        subprocess.run(["objcopy", "--strip-debug", "-R", ".BTF", "-R", ".BTF_ids", folder / module,
                        tree / "modules" / pathlib.Path(module).name], check=True)
    (tree / "modules/order").write_text("".join(f"{pathlib.Path(m).name}\n" for m in order))
    for inside, here in files.items():
        (tree / inside.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(here, tree / inside.lstrip("/"))
    scripts = {"init": BOOT_INIT}
    if script:
        scripts["run.sh"] = script
    for name, text in scripts.items():
        (tree / name).write_text(text)
        (tree / name).chmod(0o755)


def disk_tree(folder, init):
    """A root file system in `folder`: busybox, its links, and `init` as /sbin/init."""
    for name in ("bin", "sbin", "proc", "sys", "dev", "tmp", "data"):
        (folder / name).mkdir(parents=True)
    shutil.copy(busybox(), folder / "bin/busybox")
    for name in subprocess.run([busybox(), "--list"], capture_output=True, text=True, check=True).stdout.split():
        if name != "busybox":
            (folder / "bin" / name).symlink_to("busybox")
    (folder / "sbin/init").write_text(init)
    (folder / "sbin/init").chmod(0o755)
    return folder


def ext4(image, size, tree):
    """Makes `image` an ext4 file system of `size` bytes with the files of `tree`, owned by root."""
    with open(image, "wb") as f:
        f.truncate(size)
    subprocess.run(["/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-E", "root_owner=0:0,lazy_itable_init=0,nodiscard",
                    "-d", str(tree), str(image)], check=True, capture_output=True)
    return image


def qemu_arguments(initrd, more="", serial="stdio"):
    """What boots our kernel, besides disks; `more` goes to its command line."""
    return ["-nodefaults", "-display", "none", "-serial", serial, "-cpu", "max,la57=off",
            "-kernel", str(elf_kernel()), "-initrd", str(initrd), "-append", f"{APPEND} {more}".strip()]


class Guest:
    """A running QEMU with its serial console on a pipe."""

    def __init__(self, case, arguments, **options):
        self.process = case.spawn(*arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  **options)
        self.text = ""
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.process.stdout, selectors.EVENT_READ)
        os.set_blocking(self.process.stdout.fileno(), False)

    def _read(self, timeout):
        """Takes in what the console says; False at its end."""
        if not self.selector.select(timeout):
            return True
        data = self.process.stdout.read()
        if data == b"":
            return False
        self.text += (data or b"").decode(errors="replace").replace("\r", "")
        return True

    def drain(self):
        """Takes in all that was said until now."""
        while self.selector.select(0):
            if not self._read(0):
                break
        return self.text

    def expect(self, expression, timeout=PATIENCE):
        """Waits until the console has said `expression` and returns the match."""
        return self.wait(f"the guest said {expression!r}", lambda: re.search(expression, self.text, re.M), timeout)

    def wait(self, what, condition, timeout=PATIENCE):
        """Waits until what the console has said (`text`) fulfils a condition, and returns its value."""
        end = time.monotonic() + timeout * harness.FACTOR
        goes_on = True
        while not (found := condition()):
            assert goes_on, f"QEMU ended before {what}; its console:\n{self.text[-3000:]}"
            assert time.monotonic() < end, f"still not: {what}; the console:\n{self.text[-3000:]}"
            goes_on = self._read(0.5)
        return found

    def say(self, line):
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def end(self, timeout=PATIENCE):
        """Waits for the guest to power itself off."""
        end = time.monotonic() + timeout * harness.FACTOR
        while self._read(0.5):
            assert time.monotonic() < end, f"the guest did not power off; its console:\n{self.text[-3000:]}"
        self.process.stdout.close()
        self.process.stdin.close()
        code = self.process.wait(timeout * harness.FACTOR)
        assert code == 0, f"QEMU ended with {code}:\n{self.text[-3000:]}"
        return self.text
