/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A larger table of refcount blocks, when the file has outgrown it. It lies behind all that the old one covers, with the
 * blocks that count it:
 *
 *     ... what the old table covers | new blocks | new table |
 *
 *     commit -> read the old table -> write the blocks, the table -> sync -> header, synced (header_change.c) -> switch
 *
 * So a crash leaves the old table, or the new one with all that it refers to. Nobody allocates meanwhile, so the old one
 * does not change; it becomes free after the switch.
 *
 * An attempt that fails leaves bytes behind all that the old table covers, where nobody allocates before another attempt
 * succeeds. That lies there too, and what is allocated next lies behind both.
 *
 * When the header can't be written nobody knows which table it names. Then nothing is allocated until that has succeeded:
 * each attempt tries it again. Where the image is closed before, and the header names the new table, the old one leaks.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "base/probe.h"
#include "driver/qcow2/internal.h"

struct grow {
    struct qcow2 *image;
    enum grow_step {
        GROW_COMMIT,
        GROW_READ,
        GROW_BLOCKS,
        GROW_TABLE,
        GROW_SYNC,
        GROW_HEADER,
        GROW_SWITCH,
        GROW_STUCK, /* the header may be either */
    } step;
    uint64_t first, blocks, clusters; /* of all new; blocks; of the table */
    char *blocks_bytes, *table_bytes;
    uint64_t done; /* bytes of a step */
    struct header_change header;
    struct qcow2_waiter waiter;
    struct request req;
    struct iovec iov;
};

static void grow_go_on(struct grow *grow, int status);

static void grow_wake(struct qcow2_waiter *waiter, int status)
{
    grow_go_on(container_of(waiter, struct grow, waiter), status);
}

static void grow_done(struct request *req, int status)
{
    struct grow *grow = container_of(req, struct grow, req);
    grow->done += req->range.length;
    grow_go_on(grow, status);
}

void grow_free(struct qcow2 *image)
{
    struct grow *grow = image->grow;
    image->grow = NULL;
    if (!grow)
        return;
    free(grow->blocks_bytes);
    free(grow->table_bytes);
    header_change_fini(&grow->header);
    free(grow);
}

/* What it has written there is not zero. */
static void keep_off(struct grow *grow)
{
    struct qcow2 *image = grow->image;
    uint64_t end = grow->first + grow->blocks + grow->clusters;
    PROBE(qcow2_growth_failed);
    image->grown_to = end > image->grown_to ? end : image->grown_to;
}

static void grow_end(struct grow *grow, int status)
{
    struct qcow2 *image = grow->image;
    if (status < 0 && grow->header.begun) {
        grow->step = GROW_STUCK;
    } else {
        if (status < 0 && grow->step >= GROW_BLOCKS)
            keep_off(grow);
        grow_free(image);
    }
    qcow2_wake_all(&image->grow_waiters, status);
}

static void submit(struct grow *grow, enum request_kind kind, char *bytes, uint64_t at, uint64_t length)
{
    grow->iov = (struct iovec){bytes, length};
    grow->req = (struct request){
        .kind = kind, .range = {at, length}, .iov = &grow->iov, .iov_count = length > 0, .done = grow_done};
    node_submit(grow->image->file, &grow->req);
}

/* The next piece of it: -EAGAIN. 0: that was all. */
static int submit_next(struct grow *grow, enum request_kind kind, char *bytes, uint64_t at, uint64_t length)
{
    uint64_t left = length - grow->done;
    if (left == 0)
        return 0;
    submit(grow, kind, bytes + grow->done, at + grow->done, left < LIMIT_REQUEST_BYTES ? left : LIMIT_REQUEST_BYTES);
    return -EAGAIN;
}

/* Where one of the new blocks, or the table behind them, lies. */
static uint64_t place_of(const struct grow *grow, uint64_t number)
{
    return (grow->first + number) << grow->image->cluster_bits;
}

static void name_table(struct header_change *change, uint8_t *sector)
{
    const struct grow *grow = container_of(change, struct grow, header);
    store_be64(sector + QCOW2_REFTABLE_OFFSET_AT, place_of(grow, grow->blocks));
    store_be32(sector + QCOW2_REFTABLE_CLUSTERS_AT, (uint32_t)grow->clusters);
}

static void header_changed(struct header_change *change, int status)
{
    grow_go_on(container_of(change, struct grow, header), status);
}

static void enter_blocks(struct grow *grow)
{
    for (uint64_t i = 0; i < grow->blocks; i++)
        store_be64(grow->table_bytes + (grow->first / grow->image->refblock_entries + i) * 8, place_of(grow, i));
}

static int table_switch(struct grow *grow)
{
    struct qcow2 *image = grow->image;
    struct qcow2_header *header = &image->header;
    const struct range table = {header->reftable_offset, header->reftable_clusters << image->cluster_bits};
    int status = freed_reserve(image, 1, &grow->waiter);
    if (status == 0)
        status = cache_drop(image, table, &grow->waiter);
    if (status < 0)
        return status;
    freed_add(image, table.start, table.length, false);
    header->reftable_offset = place_of(grow, grow->blocks);
    header->reftable_clusters = grow->clusters;
    image->cursor = grow->first + grow->blocks + grow->clusters;
    image->cursor = image->cursor > image->grown_to ? image->cursor : image->grown_to;
    PROBE(qcow2_table_grown);
    return 0;
}

/* Begins the step, or goes on with it. 0: it is over; -EAGAIN: it goes on later; or an error. */
static int do_step(struct grow *grow, bool begins)
{
    struct qcow2 *image = grow->image;
    const struct qcow2_header *header = &image->header;
    switch (grow->step) {
    case GROW_COMMIT:
        return 0;
    case GROW_READ:
        return submit_next(grow, REQUEST_READ, grow->table_bytes, header->reftable_offset,
                           header->reftable_clusters << image->cluster_bits);
    case GROW_BLOCKS:
        if (begins)
            enter_blocks(grow);
        return submit_next(grow, REQUEST_WRITE, grow->blocks_bytes, place_of(grow, 0),
                           grow->blocks << image->cluster_bits);
    case GROW_TABLE:
        return submit_next(grow, REQUEST_WRITE, grow->table_bytes, place_of(grow, grow->blocks),
                           grow->clusters << image->cluster_bits);
    case GROW_SYNC:
        if (!begins || MUTANT(qcow2_header_before_table))
            return 0;
        submit(grow, REQUEST_FLUSH, NULL, 0, 0);
        return -EAGAIN;
    case GROW_HEADER:
        if (!begins)
            return 0;
        header_change_start(&grow->header);
        return -EAGAIN;
    case GROW_SWITCH:
        return table_switch(grow);
    case GROW_STUCK:
        break;
    }
    abort();
}

static void grow_go_on(struct grow *grow, int status)
{
    if (status == 0)
        status = do_step(grow, false);
    while (status == 0 && grow->step < GROW_SWITCH) {
        grow->step++;
        grow->done = 0;
        status = do_step(grow, true);
    }
    if (status != -EAGAIN)
        grow_end(grow, status);
}

static bool lay_out(struct grow *grow, uint64_t cluster)
{
    struct qcow2 *image = grow->image;
    const uint64_t entries = image->refblock_entries, per_cluster = image->cluster_bytes / 8;
    const uint64_t covered = (image->header.reftable_clusters << image->cluster_bits) / 8 * entries;
    const uint64_t most = LIMIT_QCOW2_REFTABLE_BYTES >> image->cluster_bits;
    uint64_t end = image->header.reftable_clusters;
    grow->first = image->cursor > covered ? image->cursor : covered;
    do {
        end *= 2;
        grow->clusters = end < most ? end : most;
        grow->blocks = 1;
        while ((grow->first / entries + grow->blocks) * entries < grow->first + grow->blocks + grow->clusters)
            grow->blocks++;
    } while (end < most && grow->clusters * per_cluster * entries <= cluster + grow->blocks + grow->clusters);
    return grow->clusters * per_cluster * entries > cluster + grow->blocks + grow->clusters;
}

/* The blocks count themselves and the table; the first one may begin before. */
static void fill_blocks(struct grow *grow)
{
    const struct qcow2 *image = grow->image;
    uint64_t before = grow->first % image->refblock_entries, end = before + grow->blocks + grow->clusters;
    uint8_t *counts = (uint8_t *)grow->blocks_bytes;
    for (uint64_t i = before; i < end; i++) {
        if (image->refcount_bits < 8)
            counts[i * image->refcount_bits / 8] |= (uint8_t)(1u << (i * image->refcount_bits % 8));
        else
            counts[(i + 1) * image->refcount_bits / 8 - 1] = 1;
    }
}

static char *zeroed(uint64_t length)
{
    char *bytes = aligned_alloc(LIMIT_ALIGNMENT_BYTES, round_up(length, LIMIT_ALIGNMENT_BYTES));
    if (bytes)
        memset(bytes, 0, length);
    return bytes;
}

void grow_wait(struct qcow2 *image, struct qcow2_waiter *waiter)
{
    struct grow *grow = image->grow;
    qcow2_wait(&image->grow_waiters, waiter);
    if (grow->step == GROW_STUCK) {
        grow->step = GROW_SYNC;
        submit(grow, REQUEST_FLUSH, NULL, 0, 0);
    }
}

int table_grow(struct qcow2 *image, uint64_t cluster, struct qcow2_waiter *waiter)
{
    struct grow *grow = calloc(1, sizeof *grow);
    if (!grow)
        return -ENOMEM;
    assert(!image->grow);
    grow->image = image;
    grow->waiter.wake = grow_wake;
    if (!lay_out(grow, cluster)) {
        free(grow);
        return -ENOSPC;
    }
    image->grow = grow;
    grow->blocks_bytes = zeroed(grow->blocks << image->cluster_bits);
    grow->table_bytes = zeroed(grow->clusters << image->cluster_bits);
    if (!header_change_init(&grow->header, image, name_table, header_changed) || !grow->blocks_bytes ||
        !grow->table_bytes) {
        grow_free(image);
        return -ENOMEM;
    }
    fill_blocks(grow);
    qcow2_wait(&image->grow_waiters, waiter);
    commit_wait_counts(image, &grow->waiter);
    return -EAGAIN;
}
