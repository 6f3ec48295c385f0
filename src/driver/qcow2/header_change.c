/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A change of what the header says: its first sector is read, changed, written and synced. All fields that are ever changed
 * lie there, so a crash leaves what was there before or what is there now.
 *
 * The table of refcount blocks has the same sector changed when it grows (reftable_grow.c): one of them at a time. Whoever
 * allocates clusters meanwhile waits, lest that begins.
 *
 * When the write or the sync fails, nobody knows what the file holds. Whoever asked for the change decides what that means.
 */
#include <stdlib.h>

#include "base/probe.h"
#include "driver/qcow2/internal.h"

static void change_go_on(struct header_change *change, int status);

static void change_wake(struct qcow2_waiter *waiter, int status)
{
    struct header_change *change = container_of(waiter, struct header_change, waiter);
    (void)status; /* of what somebody else wanted */
    header_change_start(change);
}

static void change_done(struct request *req, int status)
{
    change_go_on(container_of(req, struct header_change, req), status);
}

static void submit(struct header_change *change, enum request_kind kind)
{
    const uint64_t length = kind == REQUEST_FLUSH ? 0 : IMAGE_SECTOR_BYTES;
    change->iov = (struct iovec){change->sector, length};
    change->req = (struct request){
        .kind = kind, .range = {0, length}, .iov = &change->iov, .iov_count = length > 0, .done = change_done};
    node_submit(change->image->file, &change->req);
}

static void change_go_on(struct header_change *change, int status)
{
    struct qcow2 *image = change->image;
    if (status == 0 && change->step == HEADER_READ) {
        change->apply(change, (uint8_t *)change->sector);
        change->begun = true;
        change->step = HEADER_WRITE;
        submit(change, REQUEST_WRITE);
    } else if (status == 0 && change->step == HEADER_WRITE) {
        change->step = HEADER_SYNC;
        submit(change, REQUEST_FLUSH);
    } else {
        image->header_changes = false;
        qcow2_wake_all(&image->header_waiters, 0);
        change->done(change, status);
    }
}

bool header_change_init(struct header_change *change, struct qcow2 *image,
                        void (*apply)(struct header_change *change, uint8_t *sector),
                        void (*done)(struct header_change *change, int status))
{
    *change = (struct header_change){.image = image, .apply = apply, .done = done};
    change->waiter.wake = change_wake;
    change->sector = aligned_alloc(LIMIT_ALIGNMENT_BYTES, LIMIT_ALIGNMENT_BYTES);
    return change->sector != NULL;
}

void header_change_fini(struct header_change *change)
{
    free(change->sector);
    change->sector = NULL;
}

void header_change_start(struct header_change *change)
{
    struct qcow2 *image = change->image;
    if (image->header_changes || grow_is_under_way(image)) {
        PROBE(qcow2_header_awaited);
        qcow2_wait(image->header_changes ? &image->header_waiters : &image->grow_waiters, &change->waiter);
        return;
    }
    image->header_changes = true;
    change->step = HEADER_READ;
    submit(change, REQUEST_READ);
}
