/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Addresses as users write them: "unix:PATH", "tcp:HOST:PORT", "tcp:[IPV6]:PORT". Any thread. */
#ifndef FLEECE_IO_ADDRESS_H
#define FLEECE_IO_ADDRESS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

enum address_kind { ADDRESS_UNIX, ADDRESS_TCP };

struct address {
    enum address_kind kind;
    char path[108]; /* unix: what a socket address holds, its 0 included */
    char host[256]; /* tcp: without brackets */
    char port[6];   /* tcp: "1".."65535" */
};

/* 0; -EINVAL, or -ENAMETOOLONG for a socket path that no socket address can hold. */
int address_parse(const char *text, struct address *address, struct error *err);

/* Whether only this machine can reach it: a unix socket, or a host all of whose addresses are loopback. May
 * block (name service). 0; -EACCES when others can reach it; -errno when the host is unknown. */
int address_check_loopback(const char *text, struct error *err);

#endif
