/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Where the blocks of a snapshot are, for the control socket: a question to the view, on the disk's reactor.
 *
 * A view answers for a bounded number of blocks at a time; the query goes on from there until its extents are full, the
 * range ends or LIMIT_RESIDENCE_ROUNDS have passed. Between two rounds the reactor serves everybody else. While it lasts
 * the snapshot keeps its views: it may end meanwhile, and the view then answers an error.
 */
#include <errno.h>
#include <stdlib.h>

#include "vm/vm_private.h"

struct residence_query {
    struct io_message message;
    struct vm *vm;
    struct snapshot *snapshot;
    struct node *view;
    struct range range; /* what is left of it */
    unsigned rounds;
    struct request request;
    int status;
    unsigned count;
    struct block_extent extents[LIMIT_STATUS_EXTENTS];
    void (*done)(void *argument, int status, const struct block_extent *extents, unsigned count);
    void *argument;
};

static void query_answered(struct io_message *message)
{
    struct residence_query *query = container_of(message, struct residence_query, message);
    snapshot_let_go(query->snapshot);
    query->done(query->argument, query->status, query->extents, query->count);
    free(query);
}

static void query_answer(struct residence_query *query, int status)
{
    query->status = status;
    query->message.deliver = query_answered;
    io_post(query->vm->io, &query->message);
}

static void query_round(struct residence_query *query);

static void query_round_done(struct request *request, int status)
{
    struct residence_query *query = container_of(request, struct residence_query, request);
    if (status < 0) {
        query_answer(query, status);
        return;
    }
    const struct block_extent *found = request->extents;
    for (unsigned i = 0; i < request->extent_count; i++) {
        struct block_extent extent = found[i], *last = query->count ? &query->extents[query->count - 1] : NULL;
        query->range.start += extent.length;
        query->range.length -= extent.length;
        if (last && last->flags == extent.flags)
            last->length += extent.length;
        else
            query->extents[query->count++] = extent; /* never behind where it was found */
    }
    if (query->range.length == 0 || query->count == LIMIT_STATUS_EXTENTS || ++query->rounds == LIMIT_RESIDENCE_ROUNDS)
        query_answer(query, 0);
    else
        query_round(query);
}

static void query_round(struct residence_query *query)
{
    query->request = (struct request){
        .kind = REQUEST_BLOCK_STATUS,
        .flags = REQUEST_RESIDENCE,
        .range = query->range,
        .extents = query->extents + query->count,
        .extent_max = LIMIT_STATUS_EXTENTS - query->count,
        .done = query_round_done,
    };
    node_submit(query->view, &query->request);
}

static void query_arrived(struct io_message *message)
{
    query_round(container_of(message, struct residence_query, message));
}

int vm_residence_query(struct vm *vm, struct snapshot *snapshot, unsigned disk_index, struct range range,
                       void (*done)(void *argument, int status, const struct block_extent *extents, unsigned count),
                       void *argument)
{
    struct residence_query *query = calloc(1, sizeof *query);
    if (!query)
        return -ENOMEM;
    if (!snapshot_hold(snapshot)) {
        free(query);
        return -EBUSY;
    }
    query->vm = vm;
    query->snapshot = snapshot;
    query->view = snapshot_view(snapshot, disk_index);
    query->range = range;
    query->done = done;
    query->argument = argument;
    query->message.deliver = query_arrived;
    io_post(query->view->io, &query->message);
    return 0;
}
