/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The one way in which the header of an image that is open changes: features that whoever writes is to clear (open.c), the
 * disk's size (extend.c), the place and size of the L1 table (l1_grow.c) and of the table of refcount blocks
 * (reftable_grow.c).
 *
 *     asked -> first in the queue -> read -> changed -> written -> synced -> done
 *
 * All fields that are ever changed lie in the first sector, so a crash leaves what was there before or what is there now,
 * never a part of it.
 *
 * One change at a time, first come, first served. Each reads the sector after the one before has ended and changes its own
 * fields alone, so none takes back another's, whoever else is at work: nothing but this queue keeps them apart. The change
 * that is under way needs the file and nobody else, so whoever waits here may hold whatever he likes.
 *
 * When the write or the sync fails, nobody knows what the file holds of this change; the next one reads it and writes it
 * again, as it finds it. Whoever asked for the change decides what that means: a table that the header may name stays as it
 * is, and he tries it again.
 */
#include <stdlib.h>

#include "base/probe.h"
#include "driver/qcow2/internal.h"

static void change_go_on(struct header_change *change, int status);

static void change_wake(struct qcow2_waiter *waiter, int status)
{
    struct header_change *change = container_of(waiter, struct header_change, waiter);
    (void)status; /* it is our turn */
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
        if (!list_empty(&image->header_waiters))
            qcow2_wake_one(&image->header_waiters);
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
    if (image->header_changes && !MUTANT(qcow2_header_changes_side_by_side)) {
        PROBE(qcow2_header_awaited);
        qcow2_wait(&image->header_waiters, &change->waiter);
        return;
    }
    image->header_changes = true;
    change->step = HEADER_READ;
    submit(change, REQUEST_READ);
}
