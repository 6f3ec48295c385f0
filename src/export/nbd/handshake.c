/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Fixed newstyle negotiation.
 *
 *   greeting out -> client flags in -> (option in -> replies out)... -> EXPORT_NAME or GO answered -> session
 *
 * One operation is under way at a time: while a reply is being sent nothing is received, so what a handshake costs is
 * bounded by this struct and one option's data. A long list of exports goes out in portions. A deadline runs from the
 * first byte to the choice of an export; it is never moved, so trickling bytes does not help.
 *
 * Whatever the client may say wrongly inside an option is answered by an error, and negotiation goes on; what leaves us
 * without a way to find the next option (bad magic), or what the protocol says must end it (unknown client flags, an
 * EXPORT_NAME that cannot be had), closes the connection. There is no TLS yet: STARTTLS is answered like an option that
 * we do not know, and so are extended headers.
 *
 * The node is touched only when an export has been chosen.
 */
#include "export/nbd/handshake.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "export/nbd/contexts.h"
#include "export/nbd/session.h"

enum handshake_state {
    HANDSHAKE_FLAGS,  /* of the client come next */
    HANDSHAKE_OPTION, /* the header of an option comes next */
    HANDSHAKE_DATA,   /* its data */
    HANDSHAKE_SKIP,   /* its data, which is too long or of no interest */
    HANDSHAKE_LIST,   /* exports are being listed */
    HANDSHAKE_CHOSEN, /* the answer to GO or EXPORT_NAME is going out */
    HANDSHAKE_OVER,   /* the last answer is going out */
};

/* Room for the longest answer: all contexts of an export, and that this was all of them. */
enum {
    OUT_BYTES = (NBD_CONTEXT_COUNT + 1) * NBD_OPTION_REPLY_BYTES + NBD_CONTEXT_COUNT * (4 + NBD_CONTEXT_NAME_BYTES)
};

struct nbd_handshake {
    struct list_node link;
    struct nbd_lobby *lobby;
    int fd;
    enum handshake_state state;
    bool under_way, sending, closed;
    bool fixed, no_zeroes, structured;
    struct io_op op;
    struct io_timer deadline;
    struct io_task run;

    struct nbd_option_header option;
    uint32_t skip_reply; /* type of the answer once the data is skipped */
    uint8_t *data;       /* of an option that does not fit into `in`; NULL: none */
    uint32_t data_used;

    uint64_t listed;      /* serial of the last export listed */
    uint64_t chosen;      /* serial of an export */
    uint64_t contexts_of; /* serial of the export that the selection is for; 0: no selection */
    uint32_t contexts;

    uint32_t in_start, in_end, out_start, out_end;
    uint8_t in[LIMIT_NBD_INPUT_BYTES]; /* goes to the session: same size as there */
    struct iovec out_iov;
    uint8_t out[OUT_BYTES];
};

static void handshake_close(struct nbd_handshake *hs)
{
    if (hs->closed)
        return;
    hs->closed = true;
    io_timer_cancel(hs->lobby->io, &hs->deadline);
    io_shutdown(hs->lobby->io, hs->fd);
    if (hs->under_way)
        io_cancel(hs->lobby->io, &hs->op);
    io_task_queue(hs->lobby->io, &hs->run);
}

/* `fd` was closed or handed on before. */
static void handshake_free(struct nbd_handshake *hs)
{
    struct nbd_lobby *lobby = hs->lobby;
    assert(!hs->under_way && !list_linked(&hs->run.link));
    io_timer_cancel(lobby->io, &hs->deadline);
    list_remove(&hs->link);
    free(hs->data);
    free(hs);
    if (list_empty(&lobby->handshakes))
        lobby->emptied(lobby);
}

/* Replies. */

static uint8_t *out_place(struct nbd_handshake *hs, size_t length)
{
    assert(hs->out_end + length <= sizeof hs->out);
    uint8_t *at = hs->out + hs->out_end;
    hs->out_end += (uint32_t)length;
    return at;
}

static uint8_t *reply_place(struct nbd_handshake *hs, uint32_t type, size_t length)
{
    uint8_t *at = out_place(hs, NBD_OPTION_REPLY_BYTES + length);
    at = wire_put64(at, NBD_OPTION_REPLY_MAGIC);
    at = wire_put32(at, hs->option.option);
    at = wire_put32(at, type);
    return wire_put32(at, (uint32_t)length);
}

static void reply(struct nbd_handshake *hs, uint32_t type)
{
    static const struct {
        uint32_t type;
        const char *text;
    } texts[] = {
        {NBD_REP_ERR_UNSUP, "this option is not supported"},
        {NBD_REP_ERR_INVALID, "the data of this option is malformed, or it comes at the wrong time"},
        {NBD_REP_ERR_UNKNOWN, "there is no export of this name"},
        {NBD_REP_ERR_TOO_BIG, "the data of this option is too long"},
    };
    const char *text = "";
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        if (texts[i].type == type)
            text = texts[i].text;
    wire_put_bytes(reply_place(hs, type, strlen(text)), text, strlen(text));
}

static void reply_info_text(struct nbd_handshake *hs, enum nbd_info info, const char *text)
{
    uint8_t *at = reply_place(hs, NBD_REP_INFO, 2 + strlen(text));
    wire_put_bytes(wire_put16(at, (uint16_t)info), text, strlen(text));
}

static uint16_t flags_of(const struct nbd_handshake *hs, const struct nbd_entry *entry)
{
    return entry->flags | (hs->structured ? NBD_FLAG_SEND_DF : 0);
}

static void reply_infos(struct nbd_handshake *hs, const struct nbd_entry *entry, const struct nbd_info_request *request)
{
    uint8_t *at = wire_put16(reply_place(hs, NBD_REP_INFO, 12), NBD_INFO_EXPORT);
    wire_put16(wire_put64(at, node_size(entry->home.node)), flags_of(hs, entry));
    if (request->wants_name)
        reply_info_text(hs, NBD_INFO_NAME, entry->name);
    if (request->wants_description && entry->description[0])
        reply_info_text(hs, NBD_INFO_DESCRIPTION, entry->description);
    if (request->wants_block_size) {
        at = wire_put16(reply_place(hs, NBD_REP_INFO, 14), NBD_INFO_BLOCK_SIZE);
        at = wire_put32(at, 1);
        at = wire_put32(at, entry->home.node->block_bytes ? entry->home.node->block_bytes : 4096);
        wire_put32(at, LIMIT_NBD_TRANSFER_BYTES);
    }
    reply(hs, NBD_REP_ACK);
}

/* Options, with their data. */

static void option_info(struct nbd_handshake *hs, struct nbd_text data)
{
    struct nbd_info_request request;
    if (!nbd_option_parse_info(data, &request)) {
        reply(hs, NBD_REP_ERR_INVALID);
        return;
    }
    struct nbd_entry *entry = nbd_table_find(hs->lobby->table, request.name);
    if (!entry) {
        reply(hs, NBD_REP_ERR_UNKNOWN);
        return;
    }
    reply_infos(hs, entry, &request);
    if (hs->option.option == NBD_OPT_GO) {
        hs->chosen = entry->serial;
        hs->state = HANDSHAKE_CHOSEN;
    }
}

static void option_export_name(struct nbd_handshake *hs, struct nbd_text name)
{
    struct nbd_entry *entry = nbd_table_find(hs->lobby->table, name);
    if (!entry) {
        handshake_close(hs);
        return;
    }
    size_t zeroes = hs->no_zeroes ? 0 : NBD_ZEROES_BYTES;
    uint8_t *at = out_place(hs, 10 + zeroes);
    at = wire_put64(at, node_size(entry->home.node));
    at = wire_put16(at, flags_of(hs, entry));
    memset(at, 0, zeroes);
    hs->chosen = entry->serial;
    hs->state = HANDSHAKE_CHOSEN;
}

static void option_meta_context(struct nbd_handshake *hs, struct nbd_text data)
{
    bool list = hs->option.option == NBD_OPT_LIST_META_CONTEXT;
    if (!list)
        hs->contexts_of = hs->contexts = 0; /* also when it fails */
    struct nbd_meta_request request;
    if (!hs->structured || !nbd_option_parse_meta(data, &request)) {
        reply(hs, NBD_REP_ERR_INVALID);
        return;
    }
    struct nbd_entry *entry = nbd_table_find(hs->lobby->table, request.name);
    if (!entry) {
        reply(hs, NBD_REP_ERR_UNKNOWN);
        return;
    }
    const struct node *node = entry->home.node;
    uint32_t contexts = nbd_contexts_asked_for(node, &request, list);
    for (unsigned i = 0; i < NBD_CONTEXT_COUNT; i++) {
        char name[NBD_CONTEXT_NAME_BYTES + 1];
        if (!(contexts & NBD_CONTEXT_BIT(i)))
            continue;
        size_t length = nbd_context_name(node, i, name);
        uint8_t *at = reply_place(hs, NBD_REP_META_CONTEXT, 4 + length);
        wire_put_bytes(wire_put32(at, list ? 0 : NBD_CONTEXT_ID(i)), name, length);
    }
    reply(hs, NBD_REP_ACK);
    if (!list) {
        hs->contexts_of = entry->serial;
        hs->contexts = contexts;
    }
}

static void option_list(struct nbd_handshake *hs)
{
    hs->listed = 0;
    hs->state = HANDSHAKE_LIST;
}

static void option_run(struct nbd_handshake *hs, struct nbd_text data)
{
    hs->state = HANDSHAKE_OPTION;
    switch (hs->option.option) {
    case NBD_OPT_EXPORT_NAME:
        option_export_name(hs, data);
        break;
    case NBD_OPT_ABORT:
        reply(hs, NBD_REP_ACK);
        hs->state = HANDSHAKE_OVER;
        break;
    case NBD_OPT_LIST:
        if (data.length == 0)
            option_list(hs);
        else
            reply(hs, NBD_REP_ERR_INVALID);
        break;
    case NBD_OPT_STRUCTURED_REPLY:
        hs->structured |= data.length == 0;
        reply(hs, data.length == 0 ? NBD_REP_ACK : NBD_REP_ERR_INVALID);
        break;
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        option_info(hs, data);
        break;
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_SET_META_CONTEXT:
        option_meta_context(hs, data);
        break;
    default:
        reply(hs, NBD_REP_ERR_UNSUP);
    }
}

/* A portion of the list; the rest when it has been sent. */
static void list_some(struct nbd_handshake *hs)
{
    size_t room = 2 * NBD_OPTION_REPLY_BYTES + 4 + NBD_EXPORT_NAME_BYTES + NBD_DESCRIPTION_BYTES;
    while (hs->out_end + room <= sizeof hs->out) {
        struct nbd_entry *entry = nbd_table_after(hs->lobby->table, hs->listed);
        if (!entry) {
            reply(hs, NBD_REP_ACK);
            hs->state = HANDSHAKE_OPTION;
            return;
        }
        size_t name_length = strlen(entry->name), description_length = strlen(entry->description);
        uint8_t *at = reply_place(hs, NBD_REP_SERVER, 4 + name_length + description_length);
        at = wire_put32(at, (uint32_t)name_length);
        at = wire_put_bytes(at, entry->name, name_length);
        wire_put_bytes(at, entry->description, description_length);
        hs->listed = entry->serial;
    }
}

/* Input. The steps return false when they need more of it. */

static uint32_t in_length(const struct nbd_handshake *hs)
{
    return hs->in_end - hs->in_start;
}

static bool step_flags(struct nbd_handshake *hs)
{
    if (in_length(hs) < 4)
        return false;
    uint32_t flags = wire_get32(hs->in + hs->in_start);
    hs->in_start += 4;
    hs->fixed = flags & NBD_FLAG_FIXED_NEWSTYLE;
    hs->no_zeroes = flags & NBD_FLAG_NO_ZEROES;
    hs->state = HANDSHAKE_OPTION;
    if (flags & ~(uint32_t)(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES))
        handshake_close(hs);
    return true;
}

static void skip_data(struct nbd_handshake *hs, uint32_t reply_type)
{
    hs->skip_reply = reply_type;
    hs->state = HANDSHAKE_SKIP;
}

static bool option_is_known(uint32_t option)
{
    return option >= NBD_OPT_EXPORT_NAME && option <= NBD_OPT_SET_META_CONTEXT && option != 4 &&
           option != NBD_OPT_STARTTLS;
}

static bool step_option(struct nbd_handshake *hs)
{
    if (in_length(hs) < NBD_OPTION_BYTES)
        return false;
    bool is_option = nbd_option_parse_header(hs->in + hs->in_start, &hs->option);
    hs->in_start += NBD_OPTION_BYTES;
    bool export_name = hs->option.option == NBD_OPT_EXPORT_NAME;
    if (!is_option || (!hs->fixed && !export_name) || (export_name && hs->option.length > NBD_STRING_BYTES)) {
        handshake_close(hs);
        return true;
    }
    if (!option_is_known(hs->option.option)) {
        skip_data(hs, NBD_REP_ERR_UNSUP);
    } else if (hs->option.length > LIMIT_NBD_OPTION_BYTES) {
        if (hs->option.option == NBD_OPT_SET_META_CONTEXT)
            hs->contexts_of = hs->contexts = 0;
        skip_data(hs, NBD_REP_ERR_TOO_BIG);
    } else {
        hs->state = HANDSHAKE_DATA;
    }
    return true;
}

static bool step_skip(struct nbd_handshake *hs)
{
    uint32_t here = in_length(hs) < hs->option.length ? in_length(hs) : hs->option.length;
    hs->in_start += here;
    hs->option.length -= here;
    if (hs->option.length > 0)
        return false;
    hs->state = HANDSHAKE_OPTION;
    reply(hs, hs->skip_reply);
    return true;
}

/* Data that may not fit into `in` is gathered in memory of its own. */
static bool step_data(struct nbd_handshake *hs)
{
    uint32_t length = hs->option.length;
    if (!hs->data && length <= sizeof hs->in - NBD_OPTION_BYTES) {
        if (in_length(hs) < length)
            return false;
        struct nbd_text data = {hs->in + hs->in_start, length};
        hs->in_start += length;
        option_run(hs, data);
        return true;
    }
    if (!hs->data) {
        hs->data = malloc(length);
        hs->data_used = 0;
        if (!hs->data) {
            handshake_close(hs);
            return true;
        }
    }
    uint32_t here = in_length(hs) < length - hs->data_used ? in_length(hs) : length - hs->data_used;
    memcpy(hs->data + hs->data_used, hs->in + hs->in_start, here);
    hs->in_start += here;
    hs->data_used += here;
    if (hs->data_used < length)
        return false;
    option_run(hs, (struct nbd_text){hs->data, length});
    free(hs->data);
    hs->data = NULL;
    return true;
}

static bool step_list(struct nbd_handshake *hs)
{
    list_some(hs);
    return true;
}

/* The answer is out: the connection becomes a session, with what the client sent behind its choice. */
static bool step_chosen(struct nbd_handshake *hs)
{
    struct nbd_lobby *lobby = hs->lobby;
    struct nbd_entry *entry = nbd_table_find_serial(lobby->table, hs->chosen);
    if (!entry) {
        handshake_close(hs);
        return true;
    }
    struct nbd_terms terms = {
        .size_bytes = node_size(entry->home.node),
        .flags = flags_of(hs, entry),
        .structured = hs->structured,
        .releases = entry->releases,
        .contexts = hs->contexts_of == entry->serial ? hs->contexts : 0,
    };
    struct nbd_session *session = nbd_session_create(&entry->home, hs->fd, &terms, hs->in + hs->in_start,
                                                     in_length(hs));
    if (!session) {
        handshake_close(hs);
        return true;
    }
    atomic_fetch_add(&entry->home.connections, 1);
    hs->closed = true;
    hs->fd = -1;
    nbd_session_start(session);
    return true;
}

static bool step_over(struct nbd_handshake *hs)
{
    handshake_close(hs);
    return true;
}

static bool (*const steps[])(struct nbd_handshake *hs) = {
    [HANDSHAKE_FLAGS] = step_flags, [HANDSHAKE_OPTION] = step_option, [HANDSHAKE_DATA] = step_data,
    [HANDSHAKE_SKIP] = step_skip,   [HANDSHAKE_LIST] = step_list,     [HANDSHAKE_CHOSEN] = step_chosen,
    [HANDSHAKE_OVER] = step_over,
};

static void send_out(struct nbd_handshake *hs)
{
    hs->under_way = hs->sending = true;
    hs->out_iov = (struct iovec){hs->out + hs->out_start, hs->out_end - hs->out_start};
    io_sendv(hs->lobby->io, &hs->op, hs->fd, &hs->out_iov, 1);
}

static void receive_in(struct nbd_handshake *hs)
{
    uint8_t *to = hs->in;
    uint32_t room = sizeof hs->in;
    if (hs->data) {
        to = hs->data + hs->data_used;
        room = hs->option.length - hs->data_used;
        hs->in_start = hs->in_end = 0;
    } else {
        memmove(hs->in, hs->in + hs->in_start, in_length(hs));
        hs->in_end = in_length(hs);
        hs->in_start = 0;
        to += hs->in_end;
        room -= hs->in_end;
    }
    hs->under_way = true;
    hs->sending = false;
    io_recv(hs->lobby->io, &hs->op, hs->fd, to, room);
}

static void handshake_run(struct io_task *task)
{
    struct nbd_handshake *hs = container_of(task, struct nbd_handshake, run);
    while (!hs->under_way && !hs->closed) {
        if (hs->out_start < hs->out_end)
            send_out(hs);
        else if (!steps[hs->state](hs))
            receive_in(hs);
    }
    if (!hs->under_way && !list_linked(&hs->run.link)) {
        if (hs->fd >= 0) {
            io_close(hs->lobby->io, hs->fd);
            atomic_fetch_sub(&hs->lobby->connections, 1);
        }
        handshake_free(hs);
    }
}

static void operation_done(struct io_op *op, int64_t result)
{
    struct nbd_handshake *hs = container_of(op, struct nbd_handshake, op);
    hs->under_way = false;
    if (result <= 0) {
        handshake_close(hs);
    } else if (hs->sending) {
        hs->out_start += (uint32_t)result;
        if (hs->out_start == hs->out_end)
            hs->out_start = hs->out_end = 0;
    } else if (hs->data) {
        hs->data_used += (uint32_t)result;
    } else {
        hs->in_end += (uint32_t)result;
    }
    io_task_queue(hs->lobby->io, &hs->run);
}

static void deadline_passed(struct io_timer *timer)
{
    handshake_close(container_of(timer, struct nbd_handshake, deadline));
}

void nbd_handshake_start(struct nbd_lobby *lobby, int fd)
{
    struct nbd_handshake *hs = NULL;
    if (atomic_load(&lobby->connections) < LIMIT_NBD_CONNECTIONS)
        hs = calloc(1, sizeof *hs);
    if (!hs) {
        io_close(lobby->io, fd);
        return;
    }
    atomic_fetch_add(&lobby->connections, 1);
    hs->lobby = lobby;
    hs->fd = fd;
    hs->state = HANDSHAKE_FLAGS;
    hs->op.done = operation_done;
    hs->deadline.fire = deadline_passed;
    hs->run.run = handshake_run;
    list_append(&lobby->handshakes, &hs->link);
    uint8_t *at = out_place(hs, NBD_GREETING_BYTES);
    at = wire_put64(at, NBD_MAGIC);
    at = wire_put64(at, NBD_OPTION_MAGIC);
    wire_put16(at, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    io_timer_set(lobby->io, &hs->deadline, io_now_ns(lobby->io) + NBD_HANDSHAKE_NS);
    io_task_queue(lobby->io, &hs->run);
}

void nbd_lobby_clear(struct nbd_lobby *lobby)
{
    list_each (node, &lobby->handshakes)
        handshake_close(container_of(node, struct nbd_handshake, link));
}
