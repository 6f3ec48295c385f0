# SPDX-License-Identifier: GPL-2.0-or-later
"""A file system of the host's that can be frozen: what then writes to it sleeps in the kernel, until it is thawed."""
import contextlib

import harness

MIB = 1 << 20


class Frozen:
    def __init__(self, t, folder):
        self.t, self.folder = t, folder

    def freeze(self):
        self.t.run("fsfreeze", "-f", self.folder)

    def thaw(self):
        self.t.run("fsfreeze", "-u", self.folder)


@contextlib.contextmanager
def file_system(t):
    """An ext4 on a loop device, mounted at .folder."""
    harness.need("mkfs.ext4", "fsfreeze")
    backing, folder = t.disk("fs", 64 * MIB), t.path("mounted")
    t.run("mkfs.ext4", "-q", backing)
    folder.mkdir()
    if t.run("mount", "-o", "loop", backing, folder, status=None).returncode != 0:
        raise harness.Skip("nothing can be mounted here")
    try:
        yield Frozen(t, folder)
    finally:
        t.run("fsfreeze", "-u", folder, status=None)
        t.run("umount", folder, status=None)
