# SPDX-License-Identifier: GPL-2.0-or-later
"""An NBD client that says whatever it is told to, right or wrong, byte by byte. For tests of the server."""
import contextlib
import socket
import struct

import harness

OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_STARTTLS, OPT_INFO, OPT_GO = 1, 2, 3, 5, 6, 7
OPT_STRUCTURED_REPLY, OPT_LIST_META, OPT_SET_META, OPT_EXTENDED_HEADERS = 8, 9, 10, 11
REP_ACK, REP_SERVER, REP_INFO, REP_META = 1, 2, 3, 4
ERR_UNSUP, ERR_POLICY, ERR_INVALID, ERR_UNKNOWN, ERR_TOO_BIG = [(1 << 31) + n for n in (1, 2, 3, 6, 9)]
INFO_EXPORT, INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE = range(4)
READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16
EPERM, EIO, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = 1, 5, 22, 28, 75, 95, 108
OPTION_MAGIC, REQUEST_MAGIC, SIMPLE_MAGIC, CHUNK_MAGIC = 0x49484156454F5054, 0x25609513, 0x67446698, 0x668E33EF
CHUNK_NONE, CHUNK_DATA, CHUNK_HOLE, CHUNK_STATUS, CHUNK_ERROR = 0, 1, 2, 5, 0x8001


class Closed(Exception):
    """The server has closed the connection."""


def text(name):
    name = name if isinstance(name, bytes) else name.encode()
    return struct.pack(">I", len(name)) + name


def info_data(name, *infos):
    return text(name) + struct.pack(f">H{len(infos)}H", len(infos), *infos)


def meta_data(name, *queries):
    return text(name) + struct.pack(">I", len(queries)) + b"".join(text(q) for q in queries)


def option_bytes(option, data=b"", length=None, magic=OPTION_MAGIC):
    return struct.pack(">QII", magic, option, len(data) if length is None else length) + data


def command_bytes(kind, offset=0, length=0, flags=0, cookie=1, payload=b"", magic=REQUEST_MAGIC):
    return struct.pack(">IHHQQI", magic, flags, kind, cookie, offset, length) + payload


class Raw:
    """Connected; nothing said yet. daemon: a harness.Daemon."""

    def __init__(self, daemon, timeout=harness.SOON):
        if daemon.nbd.startswith("unix:"):
            self.socket = socket.socket(socket.AF_UNIX)
            address = daemon.nbd[5:]
        else:
            host, port = daemon.nbd[4:].rsplit(":", 1)
            address = (host.strip("[]"), int(port))
            self.socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.socket.settimeout(timeout)
        self.socket.connect(address)
        self.structured = False

    def send(self, data):
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as e:
            raise Closed from e

    def receive(self, length):
        data = b""
        while len(data) < length:
            try:
                more = self.socket.recv(min(length - len(data), 1 << 20))
            except ConnectionResetError as e:
                raise Closed from e
            if not more:
                raise Closed
            data += more
        return data

    def unpack(self, form):
        return struct.unpack(form, self.receive(struct.calcsize(form)))

    def is_closed(self):
        """Waits for the end of the server's bytes; True when nothing came before it."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def close(self):
        with contextlib.suppress(OSError):
            self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # --- handshake

    def greet(self, flags=3):
        magic, option_magic, server_flags = self.unpack(">QQH")
        assert (magic, option_magic, server_flags) == (0x4E42444D41474943, OPTION_MAGIC, 3)
        self.send(struct.pack(">I", flags))
        return self

    def replies(self, option):
        """All replies to an option, as (type, data), to the final one."""
        found = []
        while True:
            magic, about, kind, length = self.unpack(">QIII")
            assert magic == 0x3E889045565A9 and about == option, (hex(magic), about)
            found.append((kind, self.receive(length)))
            if kind == REP_ACK or kind >> 31:
                return found

    def option(self, option, data=b""):
        self.send(option_bytes(option, data))
        replies = self.replies(option)
        if option == OPT_STRUCTURED_REPLY and replies[-1][0] == REP_ACK:
            self.structured = True
        return replies

    def verdict(self, option, data=b""):
        """The type of the final reply."""
        return self.option(option, data)[-1][0]

    def go(self, name="vda", structured=True, contexts=("base:allocation",)):
        """From the first byte to the transmission phase; sets size and flags."""
        self.greet()
        if structured:
            assert self.verdict(OPT_STRUCTURED_REPLY) == REP_ACK
            if contexts:
                assert self.verdict(OPT_SET_META, meta_data(name, *contexts)) == REP_ACK
        replies = self.option(OPT_GO, info_data(name))
        assert replies[-1][0] == REP_ACK, replies
        about = [data for kind, data in replies if kind == REP_INFO and data[:2] == b"\0\0"][0]
        self.size, self.flags = struct.unpack(">QH", about[2:])
        return self

    # --- transmission

    def command(self, kind, offset=0, length=0, flags=0, payload=b"", cookie=1):
        """Sends one command and waits for its whole reply: (error, data or list of chunks)."""
        self.send(command_bytes(kind, offset, length, flags, cookie, payload))
        return self.reply(kind, length, cookie)

    def reply(self, kind, length, cookie=1):
        chunks, error = [], 0
        while True:
            magic, = self.unpack(">I")
            if magic == SIMPLE_MAGIC:
                assert not (self.structured and kind == READ), "a simple reply to READ"
                error, got = self.unpack(">IQ")
                assert got == cookie, (got, cookie)
                return error, self.receive(length) if kind == READ and not error else b""
            assert magic == CHUNK_MAGIC and self.structured, hex(magic)
            flags, what, got, size = self.unpack(">HHQI")
            assert got == cookie, (got, cookie)
            data = self.receive(size)
            if what & 0x8000:
                error = struct.unpack(">I", data[:4])[0]
            elif what != CHUNK_NONE:
                chunks.append((what, data))
            if flags & 1:
                return error, chunks

    def read(self, offset, length, flags=0):
        """The data, whatever the kind of reply; an error is raised."""
        error, result = self.command(READ, offset, length, flags)
        if error:
            raise OSError(error, "NBD error")
        if not self.structured:
            return result
        data, filled = bytearray(length), 0
        for what, chunk in result:
            at = struct.unpack(">Q", chunk[:8])[0] - offset
            if what == CHUNK_DATA:
                data[at:at + len(chunk) - 8] = chunk[8:]
                filled += len(chunk) - 8
            else:
                filled += struct.unpack(">I", chunk[8:])[0]
        assert filled == length, (filled, length)
        return bytes(data)

    def status(self, offset, length, flags=0):
        """[(length, flags)...] of base:allocation."""
        error, chunks = self.command(BLOCK_STATUS, offset, length, flags)
        if error:
            raise OSError(error, "NBD error")
        (what, data), = chunks
        assert what == CHUNK_STATUS
        return [struct.unpack(">II", data[i:i + 8]) for i in range(4, len(data), 8)]


def is_served(daemon, name="vda"):
    """Another client is served as if nothing had happened; raises when not."""
    with Raw(daemon) as other:
        other.go(name)
        assert len(other.read(0, 4096)) == 4096
        assert other.command(FLUSH)[0] == 0
        other.send(command_bytes(DISC))
        assert other.is_closed()
    return True
