/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Connecting, by libnbd's asynchronous calls, so that a server that does not answer can be given up:
 *
 *     connecting -> (negotiating: dirty bitmaps listed -> GO sent, with all contexts by name) -> ready
 *
 * A client has to name the contexts that it wants, and names of dirty bitmaps are anybody's: so the server is asked for
 * them first. One that has none, or knows neither contexts nor structured replies, says so with an error, which is no
 * reason not to go on; whether it is alive GO will tell. A server of the old style has no options: it is ready at once.
 *
 * libnbd's sentence about what failed is that of the last call on this thread: it is taken before the next one.
 */
#include "driver/nbd_connect.h"

#include <errno.h>
#include <string.h>

struct connecting {
    struct io *io;
    struct nbd_handle *handle;
    const char *uri;
    bool allocation;
    const atomic_bool *stop;
    uint64_t deadline_ns;
};

/* libnbd's sentence without the name of the call that it begins with. */
static const char *reason(void)
{
    const char *text = nbd_get_error();
    const char *colon = text ? strstr(text, ": ") : NULL;
    return colon && strncmp(text, "nbd_", 4) == 0 ? colon + 2 : text ? text : "unknown error";
}

static int refuse(const struct connecting *connecting, int code, const char *why, struct error *err)
{
    return error_set(err, code > 0 ? code : EIO, "can't connect to NBD export %s: %s", connecting->uri, why);
}

/* Until the handshake or an option is over: the handle is ready, or negotiates on. */
static int wait_until_answered(const struct connecting *connecting, struct error *err)
{
    while (nbd_aio_is_connecting(connecting->handle) == 1) {
        uint64_t now_ns = io_now_ns(connecting->io);
        if (now_ns >= connecting->deadline_ns)
            return refuse(connecting, ETIMEDOUT, "the server does not answer", err);
        if (connecting->stop && atomic_load(connecting->stop))
            return refuse(connecting, ECANCELED, "it was cancelled", err);
        uint64_t left_ns = connecting->deadline_ns - now_ns;
        uint64_t wait_ns = left_ns < NBD_STOP_POLL_NS ? left_ns : NBD_STOP_POLL_NS;
        if (nbd_poll(connecting->handle, (int)(wait_ns / NS_PER_MS) + 1) < 0)
            return refuse(connecting, nbd_get_errno(), reason(), err);
    }
    return 0;
}

static int context_listed(void *argument, const char *context)
{
    struct nbd_dirty_maps *maps = argument;
    size_t length = strlen(context), prefix = strlen(NBD_DIRTY_PREFIX);
    if (strncmp(context, NBD_DIRTY_PREFIX, prefix) != 0 || length == prefix || length - prefix > LIMIT_NAME_BYTES ||
        maps->count == LIMIT_DIRTY_MAPS)
        return 0;
    memcpy(maps->contexts[maps->count], context, length + 1);
    maps->names[maps->count] = maps->contexts[maps->count] + prefix;
    maps->count++;
    return 0;
}

struct answer { /* to an option */
    bool given;
    int error;
    char why[LIMIT_ERROR_BYTES];
};

static int option_answered(void *argument, int *error)
{
    struct answer *answer = argument;
    answer->given = true;
    answer->error = *error;
    if (*error)
        memccpy(answer->why, reason(), 0, sizeof answer->why - 1);
    return 1;
}

static int list_dirty_maps(const struct connecting *connecting, struct nbd_dirty_maps *maps, struct error *err)
{
    struct answer answer = {0};
    nbd_completion_callback done = {.callback = option_answered, .user_data = &answer};
    nbd_context_callback listed = {.callback = context_listed, .user_data = maps};
    maps->count = 0;
    if (nbd_aio_opt_list_meta_context(connecting->handle, listed, done) < 0)
        return 0; /* no structured replies, so no contexts */
    return wait_until_answered(connecting, err);
}

/* Selects the contexts and the export. */
static int go(const struct connecting *connecting, const struct nbd_dirty_maps *maps, struct error *err)
{
    struct nbd_handle *handle = connecting->handle;
    struct answer answer = {0};
    nbd_completion_callback done = {.callback = option_answered, .user_data = &answer};
    int status = nbd_clear_meta_contexts(handle);
    if (status == 0 && connecting->allocation)
        status = nbd_add_meta_context(handle, NBD_ALLOCATION_CONTEXT);
    if (status == 0)
        status = nbd_add_meta_context(handle, NBD_RESIDENCE_CONTEXT);
    for (unsigned i = 0; i < maps->count && status == 0; i++)
        status = nbd_add_meta_context(handle, maps->contexts[i]);
    if (status < 0 || nbd_aio_opt_go(handle, done) < 0)
        return refuse(connecting, nbd_get_errno(), reason(), err);
    status = wait_until_answered(connecting, err);
    if (status == 0 && answer.given && answer.error)
        return refuse(connecting, answer.error, answer.why, err);
    return status;
}

/* What was listed is had only as far as the server has agreed. */
static void keep_selected(struct nbd_handle *handle, struct nbd_dirty_maps *maps)
{
    unsigned kept = 0;
    for (unsigned i = 0; i < maps->count; i++) {
        if (nbd_can_meta_context(handle, maps->contexts[i]) != 1)
            continue;
        memmove(maps->contexts[kept], maps->contexts[i], sizeof maps->contexts[i]);
        maps->names[kept] = maps->contexts[kept] + strlen(NBD_DIRTY_PREFIX);
        kept++;
    }
    maps->count = kept;
}

int nbd_connect(struct io *io, struct nbd_handle *handle, const char *uri, bool allocation, const atomic_bool *stop,
                struct nbd_dirty_maps *maps, struct error *err)
{
    struct connecting connecting = {io, handle, uri, allocation, stop, io_now_ns(io) + NBD_CONNECT_NS};
    /* libnbd would refuse to send TRIM to an export that is read-only but for what is released. */
    uint32_t strict = nbd_get_strict_mode(handle) & ~(uint32_t)LIBNBD_STRICT_COMMANDS;
    if (nbd_set_opt_mode(handle, true) < 0 || nbd_add_meta_context(handle, NBD_DIRTY_PREFIX) < 0 ||
        nbd_set_strict_mode(handle, strict) < 0 || nbd_set_pread_initialize(handle, false) < 0 ||
        nbd_aio_connect_uri(handle, uri) < 0)
        return refuse(&connecting, nbd_get_errno(), reason(), err);
    int status = wait_until_answered(&connecting, err);
    if (status == 0 && nbd_aio_is_negotiating(handle) == 1)
        status = list_dirty_maps(&connecting, maps, err);
    if (status == 0 && nbd_aio_is_negotiating(handle) == 1)
        status = go(&connecting, maps, err);
    if (status == 0 && nbd_aio_is_ready(handle) != 1)
        return refuse(&connecting, ENOTCONN, "the server ended the connection", err);
    if (status == 0)
        keep_selected(handle, maps);
    return status;
}
