/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Read-once (C9): blocks of a snapshot that a client has read need not be kept. The protocol has no word by which a client
 * says that it has got a reply. A later request of the same connection proves nothing, since clients send many before they
 * look at the first reply. What proves it is DISC from a client that had nothing outstanding: all its replies had left, and
 * it must not say DISC before it has taken them. So:
 *
 *  - a range is noted when the last byte of the whole, successful reply to its READ is with the kernel;
 *  - READ_ONCE: what is noted is released when the connection ends by DISC with no reply outstanding. Any other end (reset,
 *    end of bytes, DISC ahead of replies, the export or the daemon going) releases nothing;
 *  - READ_ONCE_EAGER: it is released as soon as it is noted. A reply that is lost on its way is lost for good.
 *
 * Only whole blocks are released: those that one READ covers, or several that adjoin. Parts of blocks are kept in a small
 * table until their block is whole. Remembering may fail for want of memory: such blocks are just not released.
 *
 * The release goes to the node as discards, one bounded piece at a time, and outlives the connection: then the object hangs
 * on the export alone and frees itself after the last piece. A snapshot that breaks or ends meanwhile ends it.
 */
#include "export/nbd/read_once.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/bitmap.h"
#include "export/nbd/home.h"

struct nbd_read_once {
    struct list_node link; /* home->read_once */
    struct nbd_home *home;
    struct bitmap blocks; /* read, and not released yet */
    uint64_t block_bytes, charged_bytes;
    bool eager, stopped, over; /* over: the connection is */
    bool releasing;            /* a piece is under way */
    bool fresh;                /* blocks may have been noted behind `next` */
    uint64_t next;             /* block from which the release goes on */
    struct request piece;
    struct block_range piece_blocks;
    unsigned next_part;
    struct range parts[LIMIT_NBD_READ_PARTS]; /* of one block each, and not all of it; empty: free */
};

static void charge(struct nbd_read_once *once)
{
    uint64_t now = sizeof *once + bitmap_bytes(&once->blocks);
    atomic_fetch_add(&once->home->read_once_totals->memory_bytes, now - once->charged_bytes); /* may wrap around */
    once->charged_bytes = now;
}

static void once_free(struct nbd_read_once *once)
{
    struct nbd_home *home = once->home;
    assert(once->over && !once->releasing);
    atomic_fetch_sub(&home->read_once_totals->memory_bytes, once->charged_bytes);
    bitmap_fini(&once->blocks);
    list_remove(&once->link);
    free(once);
    nbd_home_check(home);
}

static struct nbd_read_once *once_create(struct nbd_home *home)
{
    const struct node *node = home->node;
    assert(node->can_release && node->block_bytes > 0);
    uint64_t blocks = (node->size_bytes + node->block_bytes - 1) / node->block_bytes;
    uint64_t memory = sizeof(struct nbd_read_once) + blocks / BITMAP_CHUNK_BITS * sizeof(void *);
    if (atomic_load(&home->read_once_totals->memory_bytes) + memory > LIMIT_NBD_READ_ONCE_BYTES)
        return NULL;
    struct nbd_read_once *once = calloc(1, sizeof *once);
    if (!once)
        return NULL;
    once->home = home;
    once->block_bytes = node->block_bytes;
    once->eager = node->read_once == READ_ONCE_EAGER;
    once->stopped = home->removed;
    if (bitmap_init(&once->blocks, blocks, false) < 0) {
        free(once);
        return NULL;
    }
    list_append(&home->read_once, &once->link);
    charge(once);
    return once;
}

/* ---- the release */

static void release_done(struct request *piece, int status);

/* The next run of blocks to be released, LIMIT_NBD_RANGE_BYTES at most. Empty: none. */
static struct block_range next_run(struct nbd_read_once *once)
{
    const uint64_t most = LIMIT_NBD_RANGE_BYTES / once->block_bytes;
    uint64_t first = bitmap_next(&once->blocks, once->next, true);
    if (first == once->blocks.bit_count && once->fresh) {
        once->fresh = false;
        first = bitmap_next(&once->blocks, 0, true);
    }
    if (first == once->blocks.bit_count)
        return (struct block_range){0, 0};
    uint64_t end = bitmap_next(&once->blocks, first, false);
    return (struct block_range){first, end - first < most ? end - first : most};
}

static void release_step(struct nbd_read_once *once)
{
    assert(!once->releasing);
    struct block_range run = {0, 0};
    if (!once->stopped)
        run = next_run(once);
    if (run.count == 0) {
        if (once->over)
            once_free(once);
        return;
    }
    struct node *node = once->home->node;
    uint64_t start = run.first * once->block_bytes, end = block_range_end(run) * once->block_bytes;
    /* Should there be no memory to clear some, they are released twice, which harms nobody. */
    (void)bitmap_assign(&once->blocks, run.first, run.count, false);
    once->next = block_range_end(run);
    once->releasing = true;
    once->piece.kind = REQUEST_DISCARD;
    once->piece.range = (struct range){start, (end < node->size_bytes ? end : node->size_bytes) - start};
    once->piece.done = release_done;
    node_submit(node, &once->piece);
}

static void release_done(struct request *piece, int status)
{
    struct nbd_read_once *once = container_of(piece, struct nbd_read_once, piece);
    once->releasing = false;
    if (status < 0) /* the snapshot is broken or ending */
        once->stopped = true;
    else
        atomic_fetch_add(&once->home->read_once_totals->released_bytes, piece->range.length);
    charge(once);
    release_step(once);
}

void nbd_read_once_end(struct nbd_read_once *once, bool goodbye)
{
    assert(!once->over);
    once->over = true;
    if (!goodbye && !once->eager)
        once->stopped = true;
    if (!once->releasing)
        release_step(once);
}

void nbd_read_once_stop(struct nbd_home *home)
{
    list_each (node, &home->read_once)
        container_of(node, struct nbd_read_once, link)->stopped = true;
}

/* ---- noting */

static void forget(struct nbd_home *home, uint64_t bytes)
{
    atomic_fetch_add(&home->read_once_totals->forgotten_bytes, bytes);
}

/* At most two chunks of the bitmap become mixed by it. */
static bool note_blocks(struct nbd_read_once *once, struct block_range blocks)
{
    uint64_t memory = atomic_load(&once->home->read_once_totals->memory_bytes);
    bool noted = memory + BITMAP_CHUNK_BITS / 4 <= LIMIT_NBD_READ_ONCE_BYTES &&
                 bitmap_assign(&once->blocks, blocks.first, blocks.count, true) == 0;
    charge(once);
    once->fresh = true;
    return noted;
}

/* The block that holds `at`, as far as the disk goes. */
static struct range block_at(const struct nbd_read_once *once, uint64_t at)
{
    uint64_t start = at - at % once->block_bytes, left = once->home->node->size_bytes - start;
    return (struct range){start, left < once->block_bytes ? left : once->block_bytes};
}

/* Joins parts that overlap or adjoin; a block that is whole now is noted. */
static void note_part(struct nbd_read_once *once, struct range range)
{
    const struct range block = block_at(once, range.start);
    for (unsigned i = 0; i < LIMIT_NBD_READ_PARTS; i++) {
        struct range *part = &once->parts[i];
        if (part->length == 0 || part->start > range_end(range) || range_end(*part) < range.start ||
            block_at(once, part->start).start != block.start)
            continue;
        uint64_t start = part->start < range.start ? part->start : range.start;
        uint64_t end = range_end(*part) > range_end(range) ? range_end(*part) : range_end(range);
        bool grew = end - start > range.length;
        range = (struct range){start, end - start};
        part->length = 0;
        if (grew)
            i = UINT32_MAX; /* it may adjoin earlier ones now */
    }
    if (range.length == block.length) {
        if (!note_blocks(once, (struct block_range){block.start / once->block_bytes, 1}))
            forget(once->home, block.length);
        return;
    }
    struct range *place = &once->parts[once->next_part]; /* the oldest one is forgotten */
    forget(once->home, place->length);
    *place = range;
    once->next_part = (once->next_part + 1) % LIMIT_NBD_READ_PARTS;
}

static void note_range(struct nbd_read_once *once, struct range range)
{
    const uint64_t size = once->home->node->size_bytes, unit = once->block_bytes;
    assert(!once->over && range.length > 0);
    uint64_t end = range_end(range), first = (range.start + unit - 1) / unit;
    uint64_t last = end == size ? (size + unit - 1) / unit : end / unit;
    if (first > last) { /* inside one block */
        note_part(once, range);
    } else {
        if (first < last && !note_blocks(once, (struct block_range){first, last - first}))
            forget(once->home, (last - first) * unit);
        if (range.start < first * unit)
            note_part(once, (struct range){range.start, first * unit - range.start});
        if (end > last * unit)
            note_part(once, (struct range){last * unit, end - last * unit});
    }
    if (once->eager && !once->releasing && !once->stopped)
        release_step(once);
}

void nbd_read_once_note(struct nbd_home *home, struct nbd_read_once **once, struct range range)
{
    if (home->node->read_once == READ_MANY)
        return;
    atomic_fetch_add(&home->read_once_totals->sent_bytes, range.length);
    if (!*once)
        *once = once_create(home);
    if (*once)
        note_range(*once, range);
    else
        forget(home, range.length);
}
