#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The negotiation of the NBD server, as clients of all kinds do it: right, unusual, wrong."""
import socket
import struct

import harness
from nbd_raw import (CHUNK_NONE, DISC, EINVAL, ERR_INVALID, ERR_TOO_BIG, ERR_UNKNOWN, ERR_UNSUP, INFO_BLOCK_SIZE,
                     INFO_DESCRIPTION, INFO_NAME, OPT_ABORT, OPT_EXPORT_NAME, OPT_EXTENDED_HEADERS, OPT_GO, OPT_INFO,
                     OPT_LIST, OPT_LIST_META, OPT_SET_META, OPT_STARTTLS, OPT_STRUCTURED_REPLY, REP_ACK, REP_META,
                     REP_SERVER, BLOCK_STATUS, READ, Closed, Raw, command_bytes, info_data, is_served, meta_data,
                     option_bytes)

MIB = 1 << 20


def serve(t, count=1):
    return t.daemon({f"vd{chr(97 + i)}": t.disk(f"{i}.raw", (i + 1) * MIB, fill=i) for i in range(count)})


def test_connect_and_close_200_times(t):
    d = serve(t)
    for i in range(200):
        c = Raw(d)
        if i % 3 == 1:
            c.greet()
        if i % 3 == 2:
            c.go()
        c.close()
    assert is_served(d)


def test_list(t):
    d = serve(t, 3)
    with Raw(d).greet() as c:
        replies = c.option(OPT_LIST)
        names = [data[4:4 + struct.unpack(">I", data[:4])[0]] for kind, data in replies if kind == REP_SERVER]
        assert names == [b"vda", b"vdb", b"vdc"], names
        assert replies[-1] == (REP_ACK, b"")


def test_data_on_options_that_have_none(t):
    d = serve(t)
    with Raw(d).greet() as c:
        assert c.verdict(OPT_LIST, b"x") == ERR_INVALID
        assert c.verdict(OPT_STARTTLS, b"x") == ERR_UNSUP
        assert c.verdict(OPT_STRUCTURED_REPLY, b"x") == ERR_INVALID
        assert c.verdict(OPT_LIST) == REP_ACK
        # structured replies were not agreed on, so there are no contexts either
        assert c.verdict(OPT_LIST_META, meta_data("vda")) == ERR_INVALID


def test_starttls_is_refused_and_negotiation_goes_on(t):
    d = serve(t)
    with Raw(d).greet() as c:
        c.send(option_bytes(OPT_STARTTLS) + option_bytes(OPT_GO, info_data("vda")))
        assert c.replies(OPT_STARTTLS)[-1][0] == ERR_UNSUP
        assert c.replies(OPT_GO)[-1][0] == REP_ACK
        assert len(c.read(0, 512)) == 512


def test_unknown_options(t):
    d = serve(t)
    with Raw(d).greet() as c:
        for option in (0, 4, OPT_EXTENDED_HEADERS, 12, 100, 0x7FFFFFFF, 0xFFFFFFFF):
            for data in (b"", b"x", b"y" * 3000, b"z" * 100_000):
                assert c.verdict(option, data) == ERR_UNSUP, option
        assert c.verdict(OPT_GO, info_data("vda")) == REP_ACK
        assert len(c.read(0, 512)) == 512


def test_unknown_client_flags_end_it(t):
    d = serve(t)
    for flags in (4, 0x80000000, 0xFFFFFFFF, 7):
        with Raw(d).greet(flags) as c:
            assert c.is_closed(), hex(flags)
    assert is_served(d)


def test_client_that_is_not_fixed_newstyle(t):
    d = serve(t)
    with Raw(d).greet(0) as c:
        c.send(option_bytes(OPT_EXPORT_NAME, b"vda"))
        size, flags = c.unpack(">QH")
        assert size == MIB and flags & 1
        assert c.receive(124) == bytes(124)
        assert len(c.read(0, 512)) == 512
    with Raw(d).greet(0) as c:
        c.send(option_bytes(OPT_LIST))
        assert c.is_closed()


def test_export_name(t):
    d = serve(t, 2)
    with Raw(d).greet(3) as c:
        c.send(option_bytes(OPT_EXPORT_NAME, b"vdb") + command_bytes(READ, 0, 512, cookie=77))
        size, _ = c.unpack(">QH")
        assert size == 2 * MIB
        error, data = c.reply(READ, 512, 77)  # no zeroes before it
        assert error == 0 and len(data) == 512
    for name in (b"", b"vd", b"vda ", b"vda\0", b"x" * 5000):
        with Raw(d).greet(3) as c:
            c.send(option_bytes(OPT_EXPORT_NAME, name))
            assert c.is_closed(), name
    assert is_served(d)


def test_empty_name_is_the_only_export(t):
    d = serve(t, 1)
    with Raw(d) as c:
        c.go("")
        assert c.size == MIB
    d.stop()
    d = serve(t, 2)
    with Raw(d).greet() as c:
        assert c.verdict(OPT_GO, info_data("")) == ERR_UNKNOWN


def test_abort(t):
    d = serve(t)
    for data in (b"", b"surplus"):
        with Raw(d).greet() as c:
            assert c.verdict(OPT_ABORT, data) == REP_ACK
            assert c.is_closed()


def test_names_of_all_lengths(t):
    d = serve(t)
    with Raw(d).greet() as c:
        assert c.verdict(OPT_STRUCTURED_REPLY) == REP_ACK
        for length in (1, 255, 256, 257, 3000, 4095, 4096):
            name = b"n" * length
            for option in (OPT_INFO, OPT_GO):
                assert c.verdict(option, info_data(name)) == ERR_UNKNOWN, length
            for option in (OPT_LIST_META, OPT_SET_META):
                assert c.verdict(option, meta_data(name, "base:allocation")) == ERR_UNKNOWN, length
        for length in (4097, 5000, 15_000):
            assert c.verdict(OPT_GO, info_data(b"n" * length)) == ERR_INVALID
            assert c.verdict(OPT_SET_META, meta_data(b"n" * length)) == ERR_INVALID
            assert c.verdict(OPT_SET_META, meta_data("vda", b"q" * length)) == ERR_INVALID
        assert c.verdict(OPT_GO, info_data(b"n" * 100_000)) == ERR_TOO_BIG
        assert c.verdict(OPT_GO, info_data("vda")) == REP_ACK


def test_lengths_that_do_not_add_up(t):
    d = serve(t)
    wrong = [b"", b"\0", b"\0\0\0", struct.pack(">I", 3) + b"vd", struct.pack(">I", 0xFFFFFFFF) + b"vda",
             info_data("vda") + b"x", info_data("vda")[:-1], struct.pack(">I3sH", 3, b"vda", 1),
             struct.pack(">I3sH", 3, b"vda", 0xFFFF), struct.pack(">I3sHH", 3, b"vda", 0, 3)]
    with Raw(d).greet() as c:
        for data in wrong:
            for option in (OPT_INFO, OPT_GO):
                assert c.verdict(option, data) == ERR_INVALID, data
        assert c.verdict(OPT_STRUCTURED_REPLY) == REP_ACK
        good = meta_data("vda", "base:allocation")
        for data in (b"", good[:-1], good + b"x", meta_data("vda") + b"\0", struct.pack(">I3sI", 3, b"vda", 0xFFFFFFFF),
                     struct.pack(">I3sII", 3, b"vda", 1, 0xFFFFFFFF), struct.pack(">I3sI", 3, b"vda", 1)):
            for option in (OPT_LIST_META, OPT_SET_META):
                assert c.verdict(option, data) == ERR_INVALID, data
        assert c.verdict(OPT_GO, info_data("vda")) == REP_ACK


def test_info_is_repeated_by_go(t):
    d = serve(t)
    with Raw(d).greet() as c:
        data = info_data("vda", INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE, 99)
        info, go = c.option(OPT_INFO, data), c.option(OPT_GO, data)
        assert info == go, (info, go)
        found = {struct.unpack(">H", body[:2])[0]: body[2:] for kind, body in info if kind != REP_ACK}
        assert found[INFO_NAME] == b"vda"
        assert struct.unpack(">III", found[INFO_BLOCK_SIZE]) == (1, 4096, 32 * MIB)
        assert struct.unpack(">QH", found[0])[0] == MIB


def test_meta_contexts(t):
    d = serve(t, 2)
    with Raw(d).greet() as c:
        assert c.verdict(OPT_SET_META, meta_data("vda", "base:allocation")) == ERR_INVALID  # before structured replies
        assert c.verdict(OPT_STRUCTURED_REPLY) == REP_ACK
        for queries in ((), ("base:",), ("base:allocation",), ("x:y", "base:allocation")):
            replies = c.option(OPT_LIST_META, meta_data("vda", *queries))
            assert [data[4:] for kind, data in replies if kind == REP_META] == [b"base:allocation"], queries
        for queries in (("x:y",), ("base:nothing",), ("",), ("base",)):
            assert c.option(OPT_LIST_META, meta_data("vda", *queries)) == [(REP_ACK, b"")], queries
        for queries in ((), ("base:",), ("qemu:dirty-bitmap:b",)):
            assert c.option(OPT_SET_META, meta_data("vda", *queries)) == [(REP_ACK, b"")], queries
        replies = c.option(OPT_SET_META, meta_data("vda", "base:allocation", "base:allocation", "x:y"))
        assert [data[4:] for kind, data in replies if kind == REP_META] == [b"base:allocation"]


def selected(d, *options):
    """Whether BLOCK_STATUS works on vda after these options."""
    with Raw(d).greet() as c:
        assert c.verdict(OPT_STRUCTURED_REPLY) == REP_ACK
        for option, data in options:
            c.verdict(option, data)
        assert c.verdict(OPT_GO, info_data("vda")) == REP_ACK
        error, _ = c.command(BLOCK_STATUS, 0, 4096)
        assert error in (0, EINVAL)
        return error == 0


def test_what_clears_a_selection(t):
    d = serve(t, 2)
    good = (OPT_SET_META, meta_data("vda", "base:allocation"))
    assert selected(d, good)
    assert selected(d, good, (OPT_LIST_META, meta_data("vda")))
    assert not selected(d)
    assert not selected(d, good, (OPT_SET_META, meta_data("vda")))
    assert not selected(d, good, (OPT_SET_META, meta_data("vda", "x:y")))
    assert not selected(d, good, (OPT_SET_META, b"rubbish"))
    assert not selected(d, good, (OPT_SET_META, b"x" * 100_000))
    assert not selected(d, good, (OPT_SET_META, meta_data("nobody", "base:allocation")))
    assert not selected(d, (OPT_SET_META, meta_data("vdb", "base:allocation")))


def test_bad_magic(t):
    d = serve(t)
    with Raw(d).greet() as c:
        c.send(option_bytes(OPT_LIST, magic=0x49484156454F5055))
        assert c.is_closed()
    with Raw(d) as c:
        c.go()
        c.send(command_bytes(READ, 0, 512, magic=0x25609514))
        assert c.is_closed()
    assert is_served(d)


def test_oldstyle_clients_and_strangers(t):
    d = serve(t)
    for hello in (command_bytes(READ, 0, 4096), b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\0\1\0\1\xfc\3\3" * 9,
                  bytes(10_000), b"\xff" * 10_000):
        with Raw(d) as c:
            c.unpack(">QQH")
            try:
                c.send(hello)
                assert c.is_closed(), hello
            except Closed:
                pass
    assert is_served(d)


def test_trickled_and_batched(t):
    """A whole session in one send, and one byte at a time."""
    d = serve(t)
    whole = struct.pack(">I", 3) + option_bytes(OPT_LIST) + option_bytes(OPT_STRUCTURED_REPLY) + \
        option_bytes(OPT_GO, info_data("vda")) + command_bytes(READ, 0, 512, cookie=5) + command_bytes(DISC)
    for step in (1, 3, 1000):
        with Raw(d) as c:
            c.unpack(">QQH")
            c.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            for at in range(0, len(whole), step):
                c.send(whole[at:at + step])
            for option in (OPT_LIST, OPT_STRUCTURED_REPLY, OPT_GO):
                assert c.replies(option)[-1][0] == REP_ACK
            c.structured = True
            error, chunks = c.reply(READ, 512, 5)
            assert error == 0 and [what for what, _ in chunks] != [CHUNK_NONE]
            assert c.is_closed()


def test_stalled_handshake_has_a_deadline(t):
    d = serve(t)
    early, late = Raw(d), Raw(d)
    late.greet()
    late.send(option_bytes(OPT_GO, length=100))
    with Raw(d) as c:
        c.go()
        early.receive(18)
        assert early.is_closed() and late.is_closed()
        assert len(c.read(0, 512)) == 512  # a session has none
    early.close()
    late.close()


harness.main()
