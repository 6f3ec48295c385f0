#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk that is served is locked as QEMU's tools lock images: nobody else writes to it, and we to nobody else's."""
import harness

MIB = 1 << 20


def test_qemu_refuses_a_disk_that_is_served(t):
    harness.need("qemu-img", "qemu-io")
    disk = t.disk("a.raw", 4 * MIB)
    d = t.daemon({"vda": disk})
    refused = t.run("qemu-io", "-f", "raw", "-c", "write 0 4k", disk, status=1)
    assert "lock" in refused.stderr, refused.stderr
    refused = t.run("qemu-img", "resize", "-f", "raw", disk, "8M", status=1)
    assert "lock" in refused.stderr, refused.stderr
    d.stop()
    t.run("qemu-io", "-f", "raw", "-c", "write 0 4k", disk)


def test_a_second_daemon_is_refused(t):
    disk = t.disk("a.raw", 4 * MIB)
    d = t.daemon({"vda": disk})
    second = t.run(t.program("fleeced"), "--name", f"{t.vm}-other", "--disk", f"vda={disk}", "--nbd",
                   f"unix:{t.path('other.sock')}", "--control", t.path("other.control"), "--lock-timeout", "0", status=1)
    assert str(disk) in second.stderr and "lock" in second.stderr, second.stderr
    assert not t.path("other.sock").exists() and not t.path("other.control").exists()
    d.stop()


harness.main()
