/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A larger L1 table, for a disk that is about to grow beyond what the old one maps. It gets a place of its own, at the end
 * of the file:
 *
 *     room -> counts stable, the old table at rest -> copy -> write -> sync -> header (place and size in one sector) -> sync
 *     -> switch
 *
 * So a crash leaves the old table, or the new one with all that it holds and with its count. The old one becomes free after
 * the switch. A crash before leaves the clusters of one of them counted and unused.
 *
 * Meanwhile no entry of the table changes: whoever wants to enter an L2 table waits. What is mapped already is read and
 * written as ever.
 *
 * When the header can't be written nobody knows which table it names. Then no entry changes until that has succeeded: each
 * attempt tries it again.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "base/probe.h"
#include "driver/qcow2/internal.h"

struct l1_move {
    struct qcow2 *image;
    enum l1_step {
        L1_ROOM,
        L1_REST,
        L1_COPY,
        L1_WRITE,
        L1_SYNC,
        L1_HEADER,
        L1_SWITCH,
        L1_STUCK, /* the header may name either */
    } step;
    uint64_t entries, clusters, offset; /* of the new table */
    uint64_t old_clusters;
    char *table;
    uint64_t at;                /* bytes of a step */
    struct qcow2_waiter *asked; /* NULL: has been told */
    struct qcow2_waiter waiter;
    struct io_task task;
    struct header_change header;
    struct request req;
    struct iovec iov;
};

static void move_go_on(struct l1_move *move, int status);

static void move_wake(struct qcow2_waiter *waiter, int status)
{
    move_go_on(container_of(waiter, struct l1_move, waiter), status);
}

static void move_done(struct request *req, int status)
{
    struct l1_move *move = container_of(req, struct l1_move, req);
    move->at += req->range.length;
    move_go_on(move, status);
}

static uint64_t clusters_of(const struct qcow2 *image, uint64_t entries)
{
    return round_up(entries * 8, image->cluster_bytes) >> image->cluster_bits;
}

void l1_move_free(struct qcow2 *image)
{
    struct l1_move *move = image->l1_move;
    image->l1_move = NULL;
    if (!move)
        return;
    header_change_fini(&move->header);
    free(move->table);
    free(move);
}

static void move_end(struct l1_move *move, int status)
{
    struct qcow2 *image = move->image;
    struct qcow2_waiter *asked = move->asked;
    const bool stuck = status < 0 && move->header.begun;
    move->asked = NULL;
    if (stuck) {
        PROBE(qcow2_l1_stuck);
        move->step = L1_STUCK;
    } else {
        if (status < 0 && move->offset) { /* nobody refers to it; when there is no room to note that it leaks */
            PROBE(qcow2_l1_growth_failed);
            if (image->freed_count < image->freed_max)
                freed_add(image, move->offset, move->clusters << image->cluster_bits, false);
        }
        l1_move_free(image);
    }
    if (asked)
        asked->wake(asked, status);
    qcow2_wake_all(&image->l1_waiters, stuck ? status : 0); /* with the old table they can go on */
}

/* An L1 table may be longer than the disk's size needs. It goes whole, if what the header says of it can be so. */
static void note_old_table(struct l1_move *move, const uint8_t *sector)
{
    const struct qcow2 *image = move->image;
    const struct qcow2_header *header = &image->header;
    const uint64_t named = load_be32(sector + QCOW2_L1_ENTRIES_AT), end = clusters_of(image, named)
                                                                          << image->cluster_bits;
    const struct range rest = {header->l1_offset + (move->old_clusters << image->cluster_bits),
                               end - (move->old_clusters << image->cluster_bits)};
    if (load_be64(sector + QCOW2_L1_OFFSET_AT) == header->l1_offset && named * 8 <= LIMIT_QCOW2_L1_BYTES &&
        clusters_of(image, named) > move->old_clusters && qcow2_place_is_right(image, rest.start, rest.length))
        move->old_clusters = clusters_of(image, named);
}

static void name_table(struct header_change *change, uint8_t *sector)
{
    struct l1_move *move = container_of(change, struct l1_move, header);
    note_old_table(move, sector);
    store_be32(sector + QCOW2_L1_ENTRIES_AT, (uint32_t)move->entries);
    store_be64(sector + QCOW2_L1_OFFSET_AT, move->offset);
}

static void header_changed(struct header_change *change, int status)
{
    move_go_on(container_of(change, struct l1_move, header), status);
}

/* From pages in memory, which are clean. */
static int copy_table(struct l1_move *move)
{
    struct qcow2 *image = move->image;
    const uint64_t length = image->header.l1_entries * 8;
    while (move->at < length) {
        struct page *page;
        int status = page_get(image, PAGE_L1, image->header.l1_offset + move->at, &move->waiter, &page);
        if (status < 0)
            return status;
        const uint64_t left = length - move->at;
        memcpy(move->table + move->at, page->bytes, left < image->page_bytes ? left : image->page_bytes);
        move->at += left < image->page_bytes ? left : image->page_bytes;
    }
    return 0;
}

static bool submit_next(struct l1_move *move)
{
    const uint64_t left = (move->clusters << move->image->cluster_bits) - move->at;
    if (left == 0)
        return false;
    move->iov = (struct iovec){move->table + move->at, left < LIMIT_REQUEST_BYTES ? left : LIMIT_REQUEST_BYTES};
    move->req = (struct request){.kind = REQUEST_WRITE,
                                 .range = {move->offset + move->at, move->iov.iov_len},
                                 .iov = &move->iov,
                                 .iov_count = 1,
                                 .done = move_done};
    node_submit(move->image->file, &move->req);
    return true;
}

static int switch_table(struct l1_move *move)
{
    struct qcow2 *image = move->image;
    struct qcow2_header *header = &image->header;
    int status = freed_reserve(image, 1, &move->waiter);
    if (status == 0)
        status = cache_drop(image, (struct range){header->l1_offset, header->l1_entries * 8}, &move->waiter);
    if (status < 0)
        return status;
    freed_add(image, header->l1_offset, move->old_clusters << image->cluster_bits, false);
    header->l1_offset = move->offset;
    header->l1_entries = move->entries;
    PROBE(qcow2_l1_grown);
    return 0;
}

/* Begins a step, or goes on with it. 0: it is over; -EAGAIN: it goes on later; or an error. */
static int do_step(struct l1_move *move, bool begins)
{
    struct qcow2 *image = move->image;
    switch (move->step) {
    case L1_ROOM:
        return clusters_allocate(image, move->clusters, &move->waiter, &move->offset);
    case L1_REST:
        if (!begins)
            return 0;
        commit_wait_counts(image, &move->waiter);
        return -EAGAIN;
    case L1_COPY:
        return copy_table(move);
    case L1_WRITE:
        return submit_next(move) ? -EAGAIN : 0;
    case L1_SYNC:
        if (!begins || MUTANT(qcow2_l1_named_first))
            return 0;
        move->req = (struct request){.kind = REQUEST_FLUSH, .done = move_done};
        node_submit(image->file, &move->req);
        return -EAGAIN;
    case L1_HEADER:
        if (!begins)
            return 0;
        header_change_start(&move->header);
        return -EAGAIN;
    case L1_SWITCH:
        return switch_table(move);
    case L1_STUCK:
        break;
    }
    abort();
}

static void move_go_on(struct l1_move *move, int status)
{
    if (status == 0)
        status = do_step(move, false);
    while (status == 0 && move->step < L1_SWITCH) {
        move->step++;
        move->at = 0;
        status = do_step(move, true);
    }
    if (status != -EAGAIN)
        move_end(move, status);
}

static void move_start(struct io_task *task)
{
    move_go_on(container_of(task, struct l1_move, task), 0);
}

void l1_wait(struct qcow2 *image, struct qcow2_waiter *waiter)
{
    struct l1_move *move = image->l1_move;
    PROBE(qcow2_l1_awaited);
    qcow2_wait(&image->l1_waiters, waiter);
    if (move->step == L1_STUCK) {
        move->step = L1_HEADER;
        header_change_start(&move->header);
    }
}

int l1_grow(struct qcow2 *image, uint64_t entries, struct qcow2_waiter *waiter)
{
    if (image->l1_move) { /* of an attempt that failed */
        l1_wait(image, waiter);
        return -EAGAIN;
    }
    struct l1_move *move = calloc(1, sizeof *move);
    if (!move)
        return -ENOMEM;
    image->l1_move = move;
    *move = (struct l1_move){.image = image, .entries = entries, .asked = waiter, .waiter.wake = move_wake};
    move->clusters = clusters_of(image, entries);
    move->old_clusters = clusters_of(image, image->header.l1_entries);
    move->table = aligned_alloc(LIMIT_ALIGNMENT_BYTES,
                                round_up(move->clusters << image->cluster_bits, LIMIT_ALIGNMENT_BYTES));
    if (!header_change_init(&move->header, image, name_table, header_changed) || !move->table) {
        l1_move_free(image);
        return -ENOMEM;
    }
    memset(move->table, 0, move->clusters << image->cluster_bits);
    move->task.run = move_start;
    io_task_queue(image->node.io, &move->task);
    return -EAGAIN;
}
