/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A read is served from *slots*, each with the content of one extent of 1 MiB:
 *
 *     EMPTY -> LOADING (layer after layer, newest first) -> READY (kept until its slot is needed for another extent)
 *
 * While it loads, `missing` says which blocks are still to be found. A layer that has some of them is read (what it captured
 * in this extent, run by run), hashed on a helper thread and compared with its line; only then are its blocks taken over.
 * What no layer has is cleared when somebody asks for it.
 * Layers below are read only for what is still missing, so a chain costs what it holds, not its length.
 *
 * The hash of a line is that of all blocks that its image captured in the extent, so less than that can't be verified:
 * this is why block status speaks of whole extents, and why an extent stays in its slot for the next read.
 *
 * What is recorded as zeroes is not read, since zeroes it is, whatever the image holds; but for verifying it is looked
 * at, and there the image's own word that it holds zeroes is enough.
 *
 * Nothing is written here; a crash leaves nothing.
 */
#include "set/chain_view.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <gnutls/crypto.h>

#define EXTENT_BYTES MANIFEST_EXTENT_BYTES
#define EXTENT_BLOCKS (8 * COPY_MASK_BYTES)
#define BLOCK_BYTES HASHES_BLOCK_BYTES

struct mask {
    uint8_t bits[COPY_MASK_BYTES];
};

enum slot_state { SLOT_EMPTY, SLOT_LOADING, SLOT_READY };

struct chain_view;

struct slot {
    struct chain_view *view;
    enum slot_state state;
    uint64_t extent, used;     /* its number; when it was used last, as a count */
    struct mask missing, line; /* blocks that are looked for; those that the layer holds */
    struct mask found;         /* blocks whose content is here */
    unsigned layer, next;      /* block of the layer up to which it was read */
    uint64_t limit;            /* bytes of the extent that the layers so far don't cut off */
    struct range span;         /* in the extent: from the first to the last block of the line */
    char *content, *read;
    uint8_t hash[COPY_HASH_BYTES];
    struct list waiting; /* of struct request */
    struct iovec iov;
    struct request req;
    struct io_op op;
};

struct question { /* to an image, what it knows of blocks that are recorded as zeroes */
    struct request req, *origin;
    struct block_extent answer;
};

struct chain_view {
    struct node node;
    struct chain_view_options options;
    struct slot slots[LIMIT_VIEW_EXTENTS];
    char *buffers;
    uint64_t uses;
    struct list parked; /* requests without a slot */
    uint8_t zero_hash[COPY_HASH_BYTES];
    struct error err;
};

static struct chain_view *of_node(struct node *node)
{
    return container_of(node, struct chain_view, node);
}

static bool mask_get(const struct mask *mask, unsigned block)
{
    return mask->bits[block / 8] >> block % 8 & 1;
}

static bool mask_is_empty(const struct mask *mask)
{
    static const struct mask none;
    return memcmp(mask, &none, sizeof none) == 0;
}

static unsigned mask_count(const struct mask *mask)
{
    unsigned count = 0;
    for (unsigned i = 0; i < COPY_MASK_BYTES; i++)
        count += (unsigned)__builtin_popcount(mask->bits[i]);
    return count;
}

/* The first block from `from` on that is in the mask, or is not; EXTENT_BLOCKS: there is none. */
static unsigned mask_next(const struct mask *mask, unsigned from, bool value)
{
    while (from < EXTENT_BLOCKS) {
        if (from % 8 == 0 && mask->bits[from / 8] == (value ? 0 : 0xff))
            from += 8;
        else if (mask_get(mask, from) == value)
            break;
        else
            from++;
    }
    return from;
}

/* The blocks of an extent that begin before `size_bytes`. */
static struct mask mask_within(uint64_t extent, uint64_t size_bytes)
{
    struct mask mask = {{0}};
    uint64_t start = extent * EXTENT_BYTES, left = size_bytes > start ? size_bytes - start : 0;
    for (unsigned block = 0; block < EXTENT_BLOCKS && block * BLOCK_BYTES < left; block++)
        mask.bits[block / 8] |= (uint8_t)(1u << block % 8);
    return mask;
}

/* What a layer captured of an extent. */
static struct mask layer_line(const struct chain_layer *layer, uint64_t extent)
{
    struct mask mask = {{0}};
    if (extent >= layer->hashes->count)
        return mask;
    if (!layer->hashes->masks)
        return mask_within(extent, layer->hashes->size_bytes);
    memcpy(mask.bits, layer->hashes->masks + extent * COPY_MASK_BYTES, sizeof mask.bits);
    return mask;
}

/* Whether the line says that the whole extent is zero; only full images have such lines. */
static bool line_is_zero(const struct chain_view *view, const struct chain_layer *layer, uint64_t extent)
{
    return !layer->hashes->masks && (extent + 1) * EXTENT_BYTES <= layer->hashes->size_bytes &&
           memcmp(layer->hashes->sha256 + extent * COPY_HASH_BYTES, view->zero_hash, COPY_HASH_BYTES) == 0;
}

/* --- loading an extent */

static void view_serve(struct chain_view *view, struct request *req);
static void slot_next_layer(struct slot *slot);

static void slot_end(struct slot *slot, int status)
{
    struct chain_view *view = slot->view;
    struct list ready;
    struct list_node *link;
    list_init(&ready);
    list_take_all(&ready, &slot->waiting);
    list_take_all(&ready, &view->parked);
    slot->state = status < 0 ? SLOT_EMPTY : SLOT_READY;
    while ((link = list_take_first(&ready)) != NULL) {
        struct request *req = container_of(link, struct request, link);
        if (status < 0 && (req->range.start + req->leaf_scratch[0]) / EXTENT_BYTES == slot->extent)
            request_complete(req, status);
        else
            view_serve(view, req);
    }
}

/* A line is not as it was recorded, or can't be read. True: go on all the same. */
static bool slot_damaged(struct slot *slot, int status)
{
    struct chain_view *view = slot->view;
    const struct chain_layer *layer = &view->options.layers[slot->layer];
    uint64_t start = slot->extent * EXTENT_BYTES, left = layer->hashes->size_bytes - start;
    struct range extent = {start, left < EXTENT_BYTES ? left : EXTENT_BYTES};
    if (view->options.damaged) {
        view->options.damaged(view->options.context, slot->layer, extent, status);
        return true;
    }
    if (view->err.code == 0 && status == -EBADMSG)
        error_set(&view->err, EBADMSG,
                  "%s is damaged: extent %llu (bytes %llu to %llu) has another SHA-256 than was recorded", layer->name,
                  (unsigned long long)slot->extent, (unsigned long long)start,
                  (unsigned long long)range_end(extent) - 1);
    else if (view->err.code == 0)
        error_set(&view->err, -status, "reading %s failed at byte %llu (extent %llu): %s", layer->name,
                  (unsigned long long)start, (unsigned long long)slot->extent, error_name(status));
    slot_end(slot, status);
    return false;
}

/* On a helper thread, which alone touches the slot meanwhile, unless it is little. */
static int64_t slot_hash(void *argument)
{
    struct slot *slot = argument;
    gnutls_hash_hd_t state;
    uint64_t end = range_end(slot->span);
    if (gnutls_hash_init(&state, GNUTLS_DIG_SHA256) != 0)
        return -ENOMEM;
    for (unsigned first = mask_next(&slot->line, 0, true), stop; first < EXTENT_BLOCKS;
         first = mask_next(&slot->line, stop, true)) {
        stop = mask_next(&slot->line, first, false);
        uint64_t from = first * BLOCK_BYTES, to = stop * BLOCK_BYTES;
        gnutls_hash(state, slot->read + from, (to < end ? to : end) - from);
    }
    gnutls_hash_deinit(state, slot->hash);
    return 0;
}

/* Behind the end of an image there are zeroes, whatever those below it hold. */
static void slot_pass_layer(struct slot *slot)
{
    uint64_t size = slot->view->options.layers[slot->layer++].hashes->size_bytes, start = slot->extent * EXTENT_BYTES;
    struct mask within = mask_within(slot->extent, size);
    for (unsigned i = 0; i < COPY_MASK_BYTES; i++)
        slot->missing.bits[i] &= within.bits[i];
    if (size < start + slot->limit)
        slot->limit = size > start ? size - start : 0;
}

/* The line is right: its blocks that are missing are taken over. */
static void slot_take(struct slot *slot)
{
    uint64_t end = range_end(slot->span) < slot->limit ? range_end(slot->span) : slot->limit;
    for (unsigned block = 0; block < EXTENT_BLOCKS && block * BLOCK_BYTES < end; block++) {
        uint64_t from = block * BLOCK_BYTES, to = from + BLOCK_BYTES;
        if (!mask_get(&slot->line, block) || !mask_get(&slot->missing, block))
            continue;
        uint64_t length = (to < end ? to : end) - from;
        memcpy(slot->content + from, slot->read + from, length);
        memset(slot->content + from + length, 0, BLOCK_BYTES - length);
        slot->found.bits[block / 8] |= (uint8_t)(1u << block % 8);
    }
    for (unsigned i = 0; i < COPY_MASK_BYTES; i++)
        slot->missing.bits[i] &= (uint8_t)~slot->line.bits[i];
    slot_pass_layer(slot);
    slot_next_layer(slot);
}

static void slot_hashed(struct io_op *op, int64_t result)
{
    struct slot *slot = container_of(op, struct slot, op);
    const struct hashes *hashes = slot->view->options.layers[slot->layer].hashes;
    if (result == 0 && memcmp(hashes->sha256 + slot->extent * COPY_HASH_BYTES, slot->hash, COPY_HASH_BYTES) != 0)
        result = -EBADMSG;
    if (result == 0 || slot_damaged(slot, (int)result))
        slot_take(slot);
}

static void slot_read_run(struct slot *slot);

static void slot_has_read(struct request *req, int status)
{
    struct slot *slot = container_of(req, struct slot, req);
    if (status < 0) {
        if (slot_damaged(slot, status))
            slot_take(slot);
        return;
    }
    if (mask_next(&slot->line, slot->next, true) < EXTENT_BLOCKS) {
        slot_read_run(slot);
        return;
    }
    if (mask_count(&slot->line) <= LIMIT_HASH_INLINE_BLOCKS)
        slot_hashed(&slot->op, slot_hash(slot));
    else {
        slot->op.done = slot_hashed;
        io_work(slot->view->options.io, &slot->op, slot_hash, slot);
    }
}

/* The line of this layer, if it has blocks that are missing. */
static bool slot_wants_layer(struct slot *slot)
{
    const struct chain_layer *layer = &slot->view->options.layers[slot->layer];
    uint8_t any = 0;
    slot->line = layer_line(layer, slot->extent);
    for (unsigned i = 0; i < COPY_MASK_BYTES; i++)
        any |= slot->line.bits[i] & slot->missing.bits[i];
    return any != 0;
}

/* The next run of blocks of the line, across short gaps: a request costs more than the few zeroes there. */
static void slot_read_run(struct slot *slot)
{
    const struct chain_layer *layer = &slot->view->options.layers[slot->layer];
    unsigned first = mask_next(&slot->line, slot->next, true), end = mask_next(&slot->line, first, false), next;
    while ((next = mask_next(&slot->line, end, true)) < EXTENT_BLOCKS && next - end < COPY_GAP_CELLS)
        end = mask_next(&slot->line, next, false);
    uint64_t from = first * BLOCK_BYTES, to = end * BLOCK_BYTES;
    to = to < range_end(slot->span) ? to : range_end(slot->span);
    slot->next = end;
    slot->iov = (struct iovec){slot->read + from, to - from};
    slot->req = (struct request){.kind = REQUEST_READ,
                                 .range = {slot->extent * EXTENT_BYTES + from, to - from},
                                 .iov = &slot->iov,
                                 .iov_count = 1,
                                 .done = slot_has_read};
    node_submit(layer->image, &slot->req);
}

static void slot_read_line(struct slot *slot)
{
    const struct chain_layer *layer = &slot->view->options.layers[slot->layer];
    uint64_t start = slot->extent * EXTENT_BYTES, left = layer->hashes->size_bytes - start;
    unsigned first = mask_next(&slot->line, 0, true), last = EXTENT_BLOCKS;
    while (!mask_get(&slot->line, last - 1))
        last--;
    uint64_t from = first * BLOCK_BYTES, to = last * BLOCK_BYTES;
    slot->span = (struct range){from, (to < left ? to : left) - from};
    slot->next = 0;
    slot_read_run(slot);
}

static void slot_next_layer(struct slot *slot)
{
    const struct chain_view *view = slot->view;
    while (slot->layer < view->options.layer_count && !mask_is_empty(&slot->missing)) {
        if (!slot_wants_layer(slot)) {
            slot_pass_layer(slot);
            continue;
        }
        if (!view->options.damaged && line_is_zero(view, &view->options.layers[slot->layer], slot->extent))
            break; /* a full image: nothing lies below it */
        slot_read_line(slot);
        return;
    }
    slot_end(slot, 0);
}

/* --- reading */

static struct slot *slot_of_extent(struct chain_view *view, uint64_t extent)
{
    for (unsigned i = 0; i < LIMIT_VIEW_EXTENTS; i++)
        if (view->slots[i].state != SLOT_EMPTY && view->slots[i].extent == extent)
            return &view->slots[i];
    return NULL;
}

/* An empty slot, or the one that was not used for longest. NULL: all are loading. */
static struct slot *slot_to_use(struct chain_view *view)
{
    struct slot *found = NULL;
    for (unsigned i = 0; i < LIMIT_VIEW_EXTENTS; i++) {
        struct slot *slot = &view->slots[i];
        if (slot->state == SLOT_EMPTY)
            return slot;
        if (slot->state == SLOT_READY && (!found || slot->used < found->used))
            found = slot;
    }
    return found;
}

/* What was found nowhere is zero: cleared where it is wanted, at the latest now. */
static void slot_clear(struct slot *slot, uint64_t start, uint64_t end)
{
    unsigned stop = (unsigned)((end + BLOCK_BYTES - 1) / BLOCK_BYTES);
    for (unsigned first = mask_next(&slot->found, (unsigned)(start / BLOCK_BYTES), false); first < stop;
         first = mask_next(&slot->found, first, false)) {
        memset(slot->content + first * BLOCK_BYTES, 0, BLOCK_BYTES);
        slot->found.bits[first / 8] |= (uint8_t)(1u << first % 8);
    }
}

/* Takes what is ready; leaf_scratch[0] says how far the request has come. */
static void view_serve(struct chain_view *view, struct request *req)
{
    while (req->leaf_scratch[0] < req->range.length) {
        uint64_t at = req->range.start + req->leaf_scratch[0], inside = at % EXTENT_BYTES;
        uint64_t left = req->range.length - req->leaf_scratch[0], length = EXTENT_BYTES - inside;
        struct slot *slot = slot_of_extent(view, at / EXTENT_BYTES);
        bool begin = !slot;
        if (!slot && !(slot = slot_to_use(view))) {
            list_append(&view->parked, &req->link);
            return;
        }
        slot->used = ++view->uses;
        if (!begin && slot->state == SLOT_READY) {
            length = length < left ? length : left;
            slot_clear(slot, inside, inside + length);
            iov_copy_in(req->iov, req->iov_count, req->leaf_scratch[0], slot->content + inside, length);
            req->leaf_scratch[0] += length;
            continue;
        }
        list_append(&slot->waiting, &req->link);
        if (begin) {
            slot->state = SLOT_LOADING;
            slot->extent = at / EXTENT_BYTES;
            slot->layer = 0;
            slot->limit = EXTENT_BYTES;
            slot->missing = mask_within(slot->extent, view->options.size_bytes);
            slot->found = (struct mask){{0}};
            slot_next_layer(slot);
        }
        return;
    }
    request_complete(req, 0);
}

/* --- block status */

enum record { RECORD_ZERO, RECORD_DATA, RECORD_LOOK /* zeroes, which the image has to confirm */ };

static enum record record_of(const struct chain_view *view, uint64_t extent)
{
    if (view->options.only && !bitmap_get(view->options.only, extent))
        return RECORD_ZERO;
    for (unsigned i = 0; i < view->options.layer_count; i++) {
        struct mask line = layer_line(&view->options.layers[i], extent);
        if (extent >= view->options.layers[i].hashes->count)
            return RECORD_ZERO;
        if (mask_is_empty(&line))
            continue;
        if (!line_is_zero(view, &view->options.layers[i], extent))
            return RECORD_DATA;
        return view->options.damaged ? RECORD_LOOK : RECORD_ZERO;
    }
    return RECORD_ZERO;
}

static void answer_one(struct request *req, uint64_t end, uint32_t flags)
{
    uint64_t stop = range_end(req->range);
    req->extents[0] = (struct block_extent){(end < stop ? end : stop) - req->range.start, flags};
    req->extent_count = 1;
    request_complete(req, 0);
}

/* Zeroes for as many whole extents as the image says; else the first one is to be read. */
static void question_answered(struct request *req, int status)
{
    struct question *question = container_of(req, struct question, req);
    struct request *origin = question->origin;
    uint64_t first_end = round_down(origin->range.start, EXTENT_BYTES) + EXTENT_BYTES, end = first_end;
    bool zero = false;
    if (status == 0 && (question->answer.flags & EXTENT_ZERO)) {
        end = round_down(req->range.start + question->answer.length, EXTENT_BYTES);
        zero = end >= first_end;
    }
    free(question);
    answer_one(origin, zero ? end : first_end, zero ? EXTENT_ZERO : 0);
}

/* Asks the full image, the last layer, about extents up to `end`. */
static void ask_image(struct chain_view *view, struct request *origin, uint64_t end)
{
    struct node *image = view->options.layers[view->options.layer_count - 1].image;
    uint64_t start = round_down(origin->range.start, EXTENT_BYTES);
    struct question *question = calloc(1, sizeof *question);
    if (!question) {
        request_complete(origin, -ENOMEM);
        return;
    }
    question->origin = origin;
    question->req = (struct request){.kind = REQUEST_BLOCK_STATUS,
                                     .range = {start, (end < image->size_bytes ? end : image->size_bytes) - start},
                                     .extents = &question->answer,
                                     .extent_max = 1,
                                     .done = question_answered};
    node_submit(image, &question->req);
}

static void view_answer_status(struct chain_view *view, struct request *req)
{
    uint64_t extent = req->range.start / EXTENT_BYTES, end = extent + 1;
    enum record record = record_of(view, extent);
    while (end * EXTENT_BYTES < range_end(req->range) && end - extent < LIMIT_STATUS_BLOCKS &&
           record_of(view, end) == record)
        end++;
    if (record == RECORD_LOOK)
        ask_image(view, req, end * EXTENT_BYTES);
    else
        answer_one(req, end * EXTENT_BYTES, record == RECORD_ZERO ? EXTENT_ZERO : 0);
}

/* The blocks of an extent that the end of an image cuts, or that lie behind it: they are zero there, as if it held them. */
static struct mask mask_behind(uint64_t extent, uint64_t size_bytes, uint64_t view_bytes)
{
    struct mask mask = {{0}};
    for (unsigned block = 0; block < EXTENT_BLOCKS; block++) {
        uint64_t end = extent * EXTENT_BYTES + (block + 1) * BLOCK_BYTES;
        if ((end < view_bytes ? end : view_bytes) > size_bytes)
            mask.bits[block / 8] |= (uint8_t)(1u << block % 8);
    }
    return mask;
}

/* Whether any layer says what the block is; *end: up to where that is so, within its extent. */
static bool is_captured(const struct chain_view *view, uint64_t block, uint64_t *end)
{
    struct mask all = {{0}};
    unsigned inside = (unsigned)(block % EXTENT_BLOCKS);
    for (unsigned i = 0; i < view->options.layer_count; i++) {
        const struct chain_layer *layer = &view->options.layers[i];
        struct mask line = layer_line(layer, block / EXTENT_BLOCKS);
        struct mask behind = mask_behind(block / EXTENT_BLOCKS, layer->hashes->size_bytes, view->options.size_bytes);
        for (unsigned byte = 0; byte < COPY_MASK_BYTES; byte++)
            all.bits[byte] |= line.bits[byte] | behind.bits[byte];
    }
    bool captured = mask_get(&all, inside);
    *end = block - inside + mask_next(&all, inside, !captured);
    return captured;
}

static void view_answer_dirty(struct chain_view *view, struct request *req)
{
    uint64_t at = req->range.start, stop = range_end(req->range);
    unsigned looks = 0;
    assert(req->dirty_map == 0 && req->extent_max > 0);
    req->extent_count = 0;
    while (at < stop && looks++ < LIMIT_STATUS_BLOCKS) {
        uint64_t end;
        uint32_t flags = is_captured(view, at / BLOCK_BYTES, &end) ? EXTENT_DIRTY : 0;
        end = end * BLOCK_BYTES < stop ? end * BLOCK_BYTES : stop;
        if (!request_add_extent(req, end - at, flags))
            break;
        at = end;
    }
    request_complete(req, 0);
}

/* --- the node */

static void view_submit(struct node *node, struct request *req)
{
    struct chain_view *view = of_node(node);
    assert(!request_is_write(req));
    if (req->kind == REQUEST_READ) {
        req->leaf_scratch[0] = 0;
        view_serve(view, req);
    } else if (req->kind == REQUEST_FLUSH) {
        request_complete(req, 0);
    } else if (req->flags & REQUEST_DIRTY) {
        view_answer_dirty(view, req);
    } else {
        view_answer_status(view, req);
    }
}

static void view_destroy(struct node *node)
{
    struct chain_view *view = of_node(node);
    assert(list_empty(&view->parked));
    for (unsigned i = 0; i < LIMIT_VIEW_EXTENTS; i++)
        assert(view->slots[i].state != SLOT_LOADING);
    free(view->buffers);
    free(view);
}

static const struct node_ops view_ops = {.driver = "chain-view", .submit = view_submit, .destroy = view_destroy};

static int view_init(struct chain_view *view)
{
    view->buffers = aligned_alloc(LIMIT_ALIGNMENT_BYTES, 2 * LIMIT_VIEW_EXTENTS * EXTENT_BYTES);
    if (!view->buffers)
        return -ENOMEM;
    memset(view->buffers, 0, EXTENT_BYTES);
    if (gnutls_hash_fast(GNUTLS_DIG_SHA256, view->buffers, EXTENT_BYTES, view->zero_hash) != 0)
        return -ENOMEM;
    list_init(&view->parked);
    for (unsigned i = 0; i < LIMIT_VIEW_EXTENTS; i++) {
        struct slot *slot = &view->slots[i];
        slot->view = view;
        slot->content = view->buffers + 2 * i * EXTENT_BYTES;
        slot->read = slot->content + EXTENT_BYTES;
        list_init(&slot->waiting);
    }
    return 0;
}

int chain_view_create(const struct chain_view_options *options, struct node **node, struct error *err)
{
    static const char *const dirty_maps[] = {"captured"};
    struct chain_view *view = calloc(1, sizeof *view);
    if (!view || view_init(view) < 0) {
        free(view ? view->buffers : NULL);
        free(view);
        return error_set(err, ENOMEM, "no memory for the buffers of a chain of images");
    }
    view->options = *options;
    view->node = (struct node){.ops = &view_ops,
                               .io = options->io,
                               .size_bytes = options->size_bytes,
                               .alignment_bytes = 1,
                               .read_only = true,
                               .dirty_maps = dirty_maps,
                               .dirty_map_count = 1};
    *node = &view->node;
    return 0;
}

const struct error *chain_view_error(const struct node *node)
{
    return &container_of((struct node *)(uintptr_t)node, struct chain_view, node)->err;
}

bool chain_view_hash(const struct node *node, uint64_t extent, uint8_t *hash)
{
    const struct chain_view *view = container_of((struct node *)(uintptr_t)node, struct chain_view, node);
    const struct chain_layer *only = NULL;
    for (unsigned i = 0; i < view->options.layer_count; i++) {
        const struct chain_layer *layer = &view->options.layers[i];
        struct mask line = layer_line(layer, extent);
        if (layer->hashes->size_bytes != view->options.size_bytes)
            return false;
        if (mask_is_empty(&line))
            continue;
        if (only)
            return false;
        only = layer;
    }
    if (!only || view->options.damaged)
        return false;
    memcpy(hash, only->hashes->sha256 + extent * COPY_HASH_BYTES, COPY_HASH_BYTES);
    return true;
}
