/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One datagram, by the protocol of sd_notify(3), without its library. Nobody hears it: no matter. */
#include "daemon/notify.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/log.h"

void notify_send(const char *state)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (!path || (path[0] != '/' && path[0] != '@') || strlen(path) >= sizeof address.sun_path)
        return;
    strcpy(address.sun_path, path);
    if (path[0] == '@')
        address.sun_path[0] = 0;
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return;
    socklen_t length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path));
    (void)sendto(fd, state, strlen(state), MSG_NOSIGNAL, (struct sockaddr *)&address, length);
    close(fd);
}

void notify_ready(const struct options *options, const char *const *nbd, unsigned nbd_count, const char *control_path)
{
    char text[LIMIT_READY_BYTES];
    size_t used = (size_t)snprintf(text, sizeof text, "ready: VM %s with", options->vm);
    for (unsigned i = 0; i < options->disk_count && used < sizeof text; i++)
        used += (size_t)snprintf(text + used, sizeof text - used, "%s %s", i ? "," : "", options->disks[i].name);
    for (unsigned i = 0; i < nbd_count && used < sizeof text; i++)
        used += (size_t)snprintf(text + used, sizeof text - used, "%s %s", i ? "," : "; NBD on", nbd[i]);
    for (unsigned i = 0; i < options->vhost_user_count && used < sizeof text; i++)
        used += (size_t)snprintf(text + used, sizeof text - used, "%s %s=%s", i ? "," : "; vhost-user on",
                                 options->vhost_users[i].disk, options->vhost_users[i].socket);
    if (used < sizeof text)
        snprintf(text + used, sizeof text - used, "; control socket %s", control_path);
    log_info("%s", text);
    notify_send("READY=1");
}
