/* SPDX-License-Identifier: GPL-2.0-or-later */
/* An address is taken apart and checked before any socket is made: each mistake is told with the part that is wrong. */
#include "io/address.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int parse_unix(const char *text, struct address *address, struct error *err)
{
    const char *path = text + strlen("unix:");
    if (*path == '\0')
        return error_set(err, EINVAL, "address \"%s\": the path of the socket is missing", text);
    if (strlen(path) >= sizeof address->path)
        return error_set(err, ENAMETOOLONG, "socket path \"%s\" is %zu bytes long, the limit is %zu", path,
                         strlen(path), sizeof address->path - 1);
    address->kind = ADDRESS_UNIX;
    strcpy(address->path, path);
    return 0;
}

static int parse_port(const char *text, const char *port, struct address *address, struct error *err)
{
    size_t digits = strspn(port, "0123456789");
    unsigned long value = strtoul(port, NULL, 10);
    if (digits == 0 || digits > 5 || port[digits] != '\0' || value < 1 || value > 65535)
        return error_set(err, EINVAL, "address \"%s\": port \"%s\" is not a number from 1 to 65535", text, port);
    snprintf(address->port, sizeof address->port, "%u", (unsigned)value & 0xffff);
    return 0;
}

static int parse_tcp(const char *text, struct address *address, struct error *err)
{
    const char *host = text + strlen("tcp:"), *end;
    if (*host == '[') {
        host++;
        end = strchr(host, ']');
        if (!end || end[1] != ':')
            return error_set(err, EINVAL, "address \"%s\" is not tcp:[IPV6]:PORT", text);
    } else {
        end = strchr(host, ':');
        if (!end)
            return error_set(err, EINVAL, "address \"%s\": the port is missing, write tcp:HOST:PORT", text);
        if (strchr(end + 1, ':'))
            return error_set(err, EINVAL, "address \"%s\": write an IPv6 address in brackets, tcp:[IPV6]:PORT", text);
    }
    size_t length = (size_t)(end - host);
    if (length == 0)
        return error_set(err, EINVAL, "address \"%s\": the host is missing, write tcp:HOST:PORT", text);
    if (length >= sizeof address->host)
        return error_set(err, EINVAL, "address \"%s\": the host name is longer than %zu bytes", text,
                         sizeof address->host - 1);
    address->kind = ADDRESS_TCP;
    memcpy(address->host, host, length);
    return parse_port(text, *end == ']' ? end + 2 : end + 1, address, err);
}

int address_parse(const char *text, struct address *address, struct error *err)
{
    memset(address, 0, sizeof *address);
    if (strncmp(text, "unix:", 5) == 0)
        return parse_unix(text, address, err);
    if (strncmp(text, "tcp:", 4) == 0)
        return parse_tcp(text, address, err);
    return error_set(err, EINVAL, "address \"%s\" is neither unix:PATH nor tcp:HOST:PORT", text);
}

static bool is_loopback(const struct sockaddr *address)
{
    if (address->sa_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)(const void *)address)->sin_addr.s_addr) >> 24 == 127;
    if (address->sa_family == AF_INET6)
        return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)(const void *)address)->sin6_addr);
    return false;
}

int address_check_loopback(const char *text, struct error *err)
{
    struct address address;
    int result = address_parse(text, &address, err);
    if (result < 0 || address.kind == ADDRESS_UNIX)
        return result;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV}, *found;
    int problem = getaddrinfo(address.host, address.port, &hints, &found);
    if (problem)
        return error_set(err, EADDRNOTAVAIL, "address \"%s\": host \"%s\" is unknown: %s", text, address.host,
                         gai_strerror(problem));
    bool loopback = true;
    for (struct addrinfo *at = found; at; at = at->ai_next)
        loopback &= is_loopback(at->ai_addr);
    freeaddrinfo(found);
    if (!loopback)
        return error_set(err, EACCES, "address \"%s\": host \"%s\" can be reached from other machines", text,
                         address.host);
    return 0;
}
