#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A VMM that connects and hangs up at every stage of the handshake, and one that sends bad messages with descriptors, as
fast as it goes: afterwards the daemon holds what it held before, and the guest of another disk was served throughout."""
import os
import socket
import struct

import harness

MIB = 1 << 20
CLIENT = "tests/vhost/vhost_client"
HANG_UPS, BAD_MESSAGES = 2000, 10000
HELPERS = 4              # threads that a reactor makes when it needs them, and keeps: at most so many
GUEST = "storm's guest"  # a name that the kernel shows where such memory is mapped
AT = 0x7F0000000000      # of the guest's memory, in the VMM
(GET_FEATURES, SET_FEATURES, SET_OWNER, SET_MEM_TABLE, SET_LOG_BASE, SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE,
 SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR, SET_PROTOCOL_FEATURES, SET_VRING_ENABLE, SET_BACKEND_REQ_FD,
 GET_INFLIGHT_FD, SET_INFLIGHT_FD, ADD_MEM_REG) = (1, 2, 3, 5, 6, 8, 9, 10, 12, 13, 14, 16, 18, 21, 31, 32, 37)
# LOG_SHMFD, REPLY_ACK, BACKEND_REQ, CONFIG, INFLIGHT_SHMFD, CONFIGURE_MEM_SLOTS
PROTOCOL = sum(1 << bit for bit in (1, 3, 5, 9, 12, 15))
FEATURES = 1 << 30 | 1 << 32  # PROTOCOL_FEATURES, VERSION_1


def message(request, payload=b"", flags=1, size=None):
    return struct.pack("=III", request, flags, len(payload) if size is None else size) + payload


def u64(value):
    return struct.pack("=Q", value)


def state(index, value):
    return struct.pack("=II", index, value)


def table(count, regions=1):
    return struct.pack("=II", count, 0) + struct.pack("=QQQQ", 0, MIB, AT, 0) * regions


class Storm:
    """What its connections have to send."""

    def __init__(self, path):
        self.path = str(path)
        self.memory = os.memfd_create(GUEST)
        os.truncate(self.memory, MIB)
        self.event, self.file = os.eventfd(0), os.open("/dev/null", os.O_RDWR)
        self.ours, self.backs = socket.socketpair()
        m, e = self.memory, self.event
        inflight = struct.pack("=QQHH4x", 1 << 17, 0, 1, 128)
        self.handshake = (
            (message(SET_OWNER),), (message(GET_FEATURES),), (message(SET_PROTOCOL_FEATURES, u64(PROTOCOL)),),
            (message(SET_FEATURES, u64(FEATURES)),), (message(SET_BACKEND_REQ_FD), self.backs.fileno()),
            (message(SET_MEM_TABLE, table(1)), m), (message(GET_INFLIGHT_FD, inflight),),
            (message(SET_INFLIGHT_FD, inflight), m), (message(SET_VRING_NUM, state(0, 128)),),
            (message(SET_VRING_BASE, state(0, 0)),),
            (message(SET_VRING_ADDR, struct.pack("=IIQQQQ", 0, 0, AT + 0x20000, AT + 0x22000, AT + 0x21000, 0)),),
            (message(SET_VRING_CALL, u64(0)), e), (message(SET_VRING_ERR, u64(0)), e),
            (message(SET_VRING_KICK, u64(0)), e), (message(SET_VRING_ENABLE, state(0, 1)),))
        region = u64(0) + struct.pack("=QQQQ", 0, MIB, AT, 0)
        self.bad = (
            (message(GET_FEATURES), m), (message(GET_FEATURES), *[m] * 8), (message(GET_FEATURES), *[e] * 100),
            (message(SET_MEM_TABLE, table(1)),), (message(SET_MEM_TABLE, table(1)), m, m),
            (message(SET_MEM_TABLE, table(2, 2)), m), (message(SET_MEM_TABLE, table(2, 2)), m, m),  # these overlap
            (message(SET_MEM_TABLE, table(8, 8)), *[m] * 7), (message(SET_MEM_TABLE, table(200, 1)), *[m] * 8),
            (message(SET_MEM_TABLE, table(1)), e), (message(SET_MEM_TABLE, table(1)), self.file),
            (message(ADD_MEM_REG, region), m, m), (message(ADD_MEM_REG, region[:-8]), m),
            (message(SET_VRING_KICK, u64(0)), e, e), (message(SET_VRING_KICK, u64(0x100)), e),
            (message(SET_VRING_KICK, u64(99)), e), (message(SET_VRING_CALL, u64(0)), m),
            (message(SET_VRING_ERR, u64(0)), self.file), (message(SET_LOG_BASE, u64(4096) + u64(0)), m, m),
            (message(SET_INFLIGHT_FD, inflight), m, m), (message(SET_INFLIGHT_FD, inflight), e),
            (message(SET_BACKEND_REQ_FD), m, m), (message(SET_BACKEND_REQ_FD), self.file),
            (message(SET_VRING_NUM, state(0, 128)), m), (message(999, u64(0)), m, e),
            (message(SET_FEATURES, u64(FEATURES), flags=2), m), (message(SET_FEATURES, b"", size=1 << 30), m),
            (message(SET_OWNER)[:7], m, e))

    def close(self):
        for fd in (self.memory, self.event, self.file):
            os.close(fd)
        self.ours.close()
        self.backs.close()

    def life(self, *messages, until=None):
        """A connection, which is over when all was sent or nobody hears it any more, and `until` is true."""
        with socket.socket(socket.AF_UNIX) as c:
            c.settimeout(harness.SOON)
            c.connect(self.path)
            try:
                for data, *fds in messages:
                    socket.send_fds(c, [data], fds)
            except (BrokenPipeError, ConnectionResetError):
                pass
            if until:
                harness.wait_for("the handshake is whole", until)

    def hang_ups(self, count):
        """After each message, and in the middle of it."""
        for i in range(count):
            stage = i // 2 % (len(self.handshake) + 1)
            messages = list(self.handshake[:stage])
            if i % 2 and messages:
                data, *fds = messages.pop()
                messages.append((data[:1 + i % (len(data) - 1)], *fds))
            self.life(*messages)

    def bad_messages(self, count):
        """One ends a connection; the next one comes with it, and nobody will read that. Before it, nothing, or that much of
        a handshake."""
        for i in range(0, count, 2):
            before = self.handshake[:(0, 3, 7, 15)[i // 2 % 4]]
            self.life(*before, self.bad[i // 8 % len(self.bad)], self.bad[(i // 8 + 1) % len(self.bad)])


def threads(d):
    """Without the kernel's, which come and go."""
    count = 0
    for task in os.listdir(f"/proc/{d.pid}/task"):
        try:
            with open(f"/proc/{d.pid}/task/{task}/comm", encoding="ascii") as f:
                count += not f.read().startswith("iou-")
        except OSError:
            pass  # it is gone
    return count


def descriptors(d):
    return len(os.listdir(f"/proc/{d.pid}/fd"))


def mappings(d):
    with open(f"/proc/{d.pid}/maps", encoding="utf-8") as f:
        return sum(GUEST in line for line in f)


def private_memory(d):
    with open(f"/proc/{d.pid}/status", encoding="ascii") as f:
        return int([line for line in f if line.startswith("RssAnon")][0].split()[1]) << 10


def served(d):
    """Requests of the neighbour."""
    return d.status()["vhost-user"][1]["requests"]


def settle(d, connections):
    """So many connections of vda are over."""
    def over():
        status = d.status()["vhost-user"][0]
        return status["connections"] >= connections and not status["connected"]
    harness.wait_for("all connections are over", over)


def test_nothing_is_left(t):
    a, b = t.path("a.v"), t.path("b.v")
    d = t.daemon({"vda": t.disk("a.raw", 16 * MIB), "vdb": t.disk("b.raw", 16 * MIB)}, "--io-threads", "1",
                 "--vhost-user", f"vda={a}", "--vhost-user", f"vdb={b}")
    with open(t.path("neighbour"), "wb") as said:
        neighbour = t.spawn(t.program(CLIENT), "run", b, "--rw", "randrw", "--seconds", "600", "--size", "4m", stdout=said,
                            stderr=-2)
    harness.wait_for("the neighbour is served", lambda: served(d) > 100)
    storm = Storm(a)
    storm.life(*storm.handshake, until=lambda: d.status()["vhost-user"][0]["queues"] == 1)
    storm.hang_ups(200)
    storm.bad_messages(400)
    lives = 1 + 200 + 200
    settle(d, lives)
    held, at_work, memory = descriptors(d), threads(d), private_memory(d)
    for shower, count, connections in ((storm.hang_ups, HANG_UPS, HANG_UPS),
                                       (storm.bad_messages, BAD_MESSAGES, BAD_MESSAGES // 2)):
        first = served(d)
        for _ in range(10):  # the neighbour's program may have had no processor, but not for ever
            shower(count)
            lives += connections
            settle(d, lives)
            got = served(d) - first
            assert neighbour.poll() is None, "the guest of the other disk was hurt"
            if got > connections // 20:
                break
        assert got > connections // 20, f"the other disk had {got} requests in ten storms"
    harness.wait_for("descriptors are given back", lambda: descriptors(d) <= held)
    harness.wait_for("memory of the guest's is given back", lambda: mappings(d) == 0)
    assert threads(d) <= at_work + HELPERS, (at_work, threads(d))
    assert private_memory(d) < memory + 8 * MIB, (memory, private_memory(d))
    t.run(t.program(CLIENT), "model", a, "--requests", "200", "--size", "4m")
    neighbour.kill()
    neighbour.wait()
    storm.close()
    d.stop()


harness.main()
