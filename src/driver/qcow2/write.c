/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Writes, write zeroes and discards: a slot for each at work, which takes the request through part by part.
 *
 *     decide -> in place                                                     where the clusters are ours already
 *            -> (fill read -> fill write)* -> data (-> solid) -> link (-> through)   new clusters, all in one run
 *            -> data and (link -> through), side by side                            ... over zeroes, written through
 *            -> pack -> place -> pack data -> link                           new clusters, compressed
 *            (-> through)                                                    mappings that zeroing has changed
 *     decide -> (commit) -> idle                                             at the end; the commit for FUA
 *
 * Data goes to its new place first, and what the write leaves of the clusters at its edges with it; then the table is
 * changed, in memory. So readers see the old cluster or the new one, whole. When all that reaches the disk is the business
 * of commit.c; or, for who writes through, of through.c: then a sync comes before mappings that hide something (`solid`),
 * and the write is over when the kernel has the table (`through`).
 *
 * Where zeroes were mapped a new cluster, which is zero on stable storage (pool.c), says the same before its data is there.
 * So the table need not wait for the data: whoever reads meanwhile, or after kill -9 between the two, finds zeroes or data
 * in each sector of the part, as of any write that is under way, and zeroes around it. The write is over when both are. If
 * the data fails the cluster stays mapped, to zeroes or to as much of the data as came.
 *
 * While clusters are being mapped they are locked: whoever else wants to change their mapping, or to write into them,
 * waits; so what is in place is also on its way. Writes to distinct clusters run side by side. Decisions are made afresh
 * after each wait.
 *
 * When another write fails, its new clusters are given back, but for those that the table names (give_back.c).
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "base/probe.h"
#include "driver/qcow2/internal.h"

#define TO(step) (1u << (step))
static const uint32_t allowed_moves[] = {
    [WRITE_IDLE] = TO(WRITE_DECIDE),
    [WRITE_DECIDE] = TO(WRITE_IN_PLACE) | TO(WRITE_FILL_READ) | TO(WRITE_DATA) | TO(WRITE_PACK) | TO(WRITE_COMMIT) |
                     TO(WRITE_THROUGH) | TO(WRITE_IDLE),
    [WRITE_IN_PLACE] = TO(WRITE_DECIDE),
    [WRITE_FILL_READ] = TO(WRITE_FILL_WRITE) | TO(WRITE_DECIDE) | TO(WRITE_GIVE_BACK),
    [WRITE_FILL_WRITE] = TO(WRITE_FILL_READ) | TO(WRITE_DATA) | TO(WRITE_DECIDE) | TO(WRITE_GIVE_BACK),
    [WRITE_DATA] = TO(WRITE_SOLID) | TO(WRITE_LINK) | TO(WRITE_DECIDE) | TO(WRITE_GIVE_BACK),
    [WRITE_SOLID] = TO(WRITE_LINK) | TO(WRITE_DECIDE) | TO(WRITE_GIVE_BACK),
    [WRITE_PACK] = TO(WRITE_PACK_PLACE),
    [WRITE_PACK_PLACE] = TO(WRITE_PACK_DATA) | TO(WRITE_GIVE_BACK),
    [WRITE_PACK_DATA] = TO(WRITE_LINK) | TO(WRITE_GIVE_BACK),
    [WRITE_LINK] = TO(WRITE_THROUGH) | TO(WRITE_DECIDE) | TO(WRITE_GIVE_BACK),
    [WRITE_THROUGH] = TO(WRITE_DECIDE) | TO(WRITE_GIVE_BACK),
    [WRITE_GIVE_BACK] = TO(WRITE_DECIDE),
    [WRITE_COMMIT] = TO(WRITE_IDLE),
};

static void decide(struct qcow2_write *w);
static void place_packed(struct qcow2_write *w);
static void link_clusters(struct qcow2_write *w);
static int part_through(struct qcow2_write *w);
static void half_end(struct qcow2_write *w, int status);
static void child_done(struct request *child, int status);

static void write_move(struct qcow2_write *w, enum write_step step)
{
    assert(allowed_moves[w->step] & TO(step));
    w->step = step;
}

/* Slots. */

static void slot_start(struct qcow2 *image, struct request *req);

static void slot_end(struct qcow2_write *w)
{
    struct qcow2 *image = w->image;
    struct request *req = w->req;
    write_move(w, WRITE_IDLE);
    w->req = NULL;
    list_remove(&w->link);
    list_append(&image->free_writes, &w->link);
    request_complete(req, w->status);
    if (image->starting_writes) /* one that ends at once comes back here: there is but one loop, however many do */
        return;
    image->starting_writes = true;
    while (!list_empty(&image->free_writes) && !list_empty(&image->waiting_writes))
        slot_start(image, container_of(list_take_first(&image->waiting_writes), struct request, link));
    image->starting_writes = false;
}

static void buffer_release(struct qcow2_write *w)
{
    struct qcow2 *image = w->image;
    if (!w->buffer)
        return;
    free(w->buffer);
    w->buffer = NULL;
    image->buffers_used--;
    while (image->buffers_used < LIMIT_QCOW2_BUFFERS && !list_empty(&image->buffer_waiters))
        qcow2_wake_one(&image->buffer_waiters);
}

/* What the part held: its buffer, and the clusters that nobody else might touch. */
static void part_leave(struct qcow2_write *w)
{
    struct qcow2 *image = w->image;
    write_move(w, WRITE_DECIDE);
    w->fresh = false;
    buffer_release(w);
    if (w->locked.length > 0) {
        w->locked.length = 0;
        qcow2_wake_all(&image->blocked, 0);
    }
    if (image->dirty_count > image->page_max / 4 * 3)
        commit_begin(image);
    decide(w);
}

/* It failed, and goes on when its new clusters are given back, or can't be. */
static void give_back(struct qcow2_write *w, int status)
{
    if (status < 0)
        PROBE(qcow2_write_leaked);
    else
        status = unnamed_give_back(w);
    if (status != -EAGAIN)
        part_leave(w);
}

/* Nothing of it is under way. */
static void part_end(struct qcow2_write *w, int status)
{
    w->half_status = 0;
    if (status == 0)
        w->at = range_end(w->part);
    else
        w->status = status;
    if (status < 0 && w->fresh) {
        write_move(w, WRITE_GIVE_BACK);
        give_back(w, 0);
        return;
    }
    part_leave(w);
}

static void wake(struct qcow2_waiter *waiter, int status)
{
    struct qcow2_write *w = container_of(waiter, struct qcow2_write, waiter);
    if (w->step == WRITE_COMMIT) {
        w->status = status;
        slot_end(w);
    } else if (w->step == WRITE_GIVE_BACK) {
        give_back(w, status);
    } else if (status < 0 && w->step != WRITE_DECIDE) {
        half_end(w, status);
    } else if (w->step == WRITE_SOLID) {
        write_move(w, WRITE_LINK);
        link_clusters(w);
    } else if (w->step == WRITE_LINK) {
        link_clusters(w);
    } else if (w->step == WRITE_THROUGH) {
        status = w->written ? 0 : part_through(w);
        if (status != -EAGAIN)
            half_end(w, status);
    } else if (w->step == WRITE_PACK_PLACE) {
        place_packed(w);
    } else {
        if (status < 0)
            w->status = status;
        decide(w);
    }
}

/* Where somebody else is mapping clusters, from `at` on; `end`: nowhere before. At most `at`: right here. */
static uint64_t free_until(const struct qcow2_write *w, uint64_t end)
{
    list_each (node, &w->image->writes) {
        if (MUTANT(qcow2_locks_ignored))
            break;
        const struct qcow2_write *other = container_of(node, struct qcow2_write, link);
        if (other != w && other->locked.length > 0 && range_end(other->locked) > w->at && other->locked.start < end)
            end = other->locked.start;
    }
    return end;
}

/* A buffer for the part, or the waiter is queued. */
static int take_buffer(struct qcow2_write *w, size_t length)
{
    struct qcow2 *image = w->image;
    if (image->buffers_used == LIMIT_QCOW2_BUFFERS) {
        PROBE(qcow2_write_waits_for_buffer);
        qcow2_wait(&image->buffer_waiters, &w->waiter);
        return -EAGAIN;
    }
    w->buffer = aligned_alloc(LIMIT_ALIGNMENT_BYTES, round_up(length, LIMIT_ALIGNMENT_BYTES));
    if (!w->buffer)
        return -ENOMEM;
    image->buffers_used++;
    return 0;
}

/* Data of the request, or zeroes, into the file. */
static void write_data(struct qcow2_write *w, uint64_t at, uint64_t length, uint64_t host)
{
    unsigned count = 0;
    if (w->zeroes) {
        for (uint64_t done = 0; done < length; done += w->iov[count++].iov_len)
            w->iov[count] = (struct iovec){w->image->zeroes,
                                           length - done < FILE_ZERO_BYTES ? length - done : FILE_ZERO_BYTES};
    } else {
        count = iov_slice(w->req->iov, w->req->iov_count, at - w->req->range.start, length, w->iov);
    }
    w->child = (struct request){
        .kind = REQUEST_WRITE, .range = {host, length}, .iov = w->iov, .iov_count = count, .done = child_done};
    node_submit(w->image->file, &w->child);
}

static void transfer_buffer(struct qcow2_write *w, struct node *node, enum request_kind kind, uint64_t at,
                            uint64_t length)
{
    w->iov[0] = (struct iovec){w->buffer, length};
    w->child = (struct request){.kind = kind, .range = {at, length}, .iov = w->iov, .iov_count = 1, .done = child_done};
    node_submit(node, &w->child);
}

/* Filling the edges. */

/* The next piece of them. */
static struct range fill_piece(const struct qcow2_write *w)
{
    uint64_t first = w->fill[0].length, skipped = w->filled < first ? w->filled : w->filled - first;
    struct range fill = w->fill[w->filled < first ? 0 : 1];
    uint64_t left = fill.length - skipped;
    return (struct range){fill.start + skipped, left < QCOW2_FILL_BYTES ? left : QCOW2_FILL_BYTES};
}

static void fill_write(struct qcow2_write *w)
{
    const struct range piece = fill_piece(w);
    write_move(w, WRITE_FILL_WRITE);
    transfer_buffer(w, w->image->file, REQUEST_WRITE, w->host + (piece.start - w->locked.start), piece.length);
}

/* Behind the disk's end it is filled with zeroes: the disk may grow. */
static void fill_read(struct qcow2_write *w)
{
    const struct range piece = fill_piece(w);
    const uint64_t size = w->image->node.size_bytes, left = piece.start < size ? size - piece.start : 0;
    const uint64_t length = left < piece.length ? left : piece.length;
    PROBE(qcow2_edge_filled);
    write_move(w, WRITE_FILL_READ);
    memset(w->buffer + length, 0, piece.length - length);
    if (length > 0)
        transfer_buffer(w, &w->image->node, REQUEST_READ, piece.start, length);
    else
        fill_write(w);
}

static void begin_data(struct qcow2_write *w)
{
    if (w->filled < w->fill[0].length + w->fill[1].length && !MUTANT(qcow2_edges_forgotten)) {
        fill_read(w);
        return;
    }
    write_move(w, WRITE_DATA);
    w->beside = (!w->hides || MUTANT(qcow2_hides_beside)) && !w->image->write_back;
    write_data(w, w->part.start, w->part.length, w->host + (w->part.start - w->locked.start));
    if (w->beside) {
        PROBE(qcow2_data_beside_table);
        write_move(w, WRITE_LINK);
        link_clusters(w);
    }
}

/* Compressing. */

static int64_t pack(void *argument) /* on a helper thread; it alone touches the slot meanwhile */
{
    struct qcow2_write *w = argument;
    const struct request *req = w->req;
    uint32_t cluster_bytes = w->image->cluster_bytes;
    char *flat = w->buffer + w->packed_count * (size_t)cluster_bytes;
    struct ZSTD_CCtx_s *context = deflate_open();
    w->packed_bytes = 0;
    for (unsigned i = 0; i < w->packed_count; i++) {
        uint64_t at = w->part.start - req->range.start + (uint64_t)i * cluster_bytes;
        struct iovec slice[LIMIT_QCOW2_FRAGMENTS];
        const char *cluster = flat;
        if (iov_slice(req->iov, req->iov_count, at, cluster_bytes, slice) == 1)
            cluster = slice[0].iov_base;
        else
            iov_copy_out(req->iov, req->iov_count, at, flat, cluster_bytes);
        w->sizes[i] = deflate_cluster(context, cluster, cluster_bytes, w->buffer + w->packed_bytes);
        w->packed_bytes += w->sizes[i];
        w->plain_count += w->sizes[i] == 0;
    }
    deflate_close(context);
    return 0;
}

static void packed(struct io_op *op, int64_t result)
{
    struct qcow2_write *w = container_of(op, struct qcow2_write, op);
    (void)result;
    write_move(w, WRITE_PACK_PLACE);
    place_packed(w);
}

/* Clusters for what stayed plain, and room for the rest. */
static void place_packed(struct qcow2_write *w)
{
    struct qcow2 *image = w->image;
    int status = 0;
    assert(image->write_back);
    if (w->plain_count > 0 && w->host == 0)
        status = clusters_allocate(image, w->plain_count, &w->waiter, &w->host);
    if (status == 0 && w->packed_bytes > 0)
        status = packed_allocate(image, w->sizes, w->packed_count, &w->waiter, &w->packed_host);
    if (status == -EAGAIN)
        return;
    if (status < 0) {
        part_end(w, status);
        return;
    }
    write_move(w, WRITE_PACK_DATA);
    uint64_t length = round_up(w->packed_bytes, QCOW2_PACK_ALIGNMENT);
    memset(w->buffer + w->packed_bytes, 0, length - w->packed_bytes);
    if (length > 0)
        transfer_buffer(w, image->file, REQUEST_WRITE, w->packed_host, length);
    else
        child_done(&w->child, 0);
}

/* The next run of plain clusters among those that were packed; they lie side by side in the file. false: none. */
static bool write_plain(struct qcow2_write *w)
{
    uint64_t cluster_bytes = w->image->cluster_bytes;
    unsigned first = w->next_plain, before = 0;
    while (first < w->packed_count && w->sizes[first] > 0)
        first++;
    if (first == w->packed_count)
        return false;
    unsigned end = first;
    while (end < w->packed_count && w->sizes[end] == 0)
        end++;
    for (unsigned i = 0; i < first; i++)
        before += w->sizes[i] == 0;
    w->next_plain = end;
    PROBE(qcow2_plain_among_packed);
    write_data(w, w->part.start + first * cluster_bytes, (end - first) * cluster_bytes,
               w->host + before * cluster_bytes);
    return true;
}

/* Entering the new place. */

static struct cluster linked_cluster(struct qcow2_write *w, const struct cluster *old, unsigned number,
                                     uint64_t *plain_host, uint64_t *packed_host)
{
    const struct qcow2 *image = w->image;
    if (w->pack && w->sizes[number] > 0) {
        struct cluster new = {.compressed = true, .host = *packed_host, .compressed_bytes = w->sizes[number]};
        *packed_host += w->sizes[number];
        return new;
    }
    uint64_t start = w->locked.start + (uint64_t)number * image->cluster_bytes;
    uint64_t from = w->kept.start > start ? w->kept.start - start : 0, end = range_end(w->kept) - start;
    end = end < image->cluster_bytes ? end : image->cluster_bytes;
    unsigned first = (unsigned)(from / image->granule_bytes), stop = (unsigned)(end / image->granule_bytes);
    uint32_t bits = (stop < 32 ? (UINT32_C(1) << stop) - 1 : UINT32_MAX) & ~((UINT32_C(1) << first) - 1);
    struct cluster new = {.copied = true, .host = *plain_host, .data = bits};
    if (image->subclusters > 1 && !old->compressed) {
        new.data |= old->data;
        new.zero = old->zero & ~bits;
    }
    *plain_host += image->cluster_bytes;
    return new;
}

static void link_clusters(struct qcow2_write *w)
{
    struct qcow2 *image = w->image;
    struct page *page;
    unsigned index, count = (unsigned)(w->locked.length >> image->cluster_bits);
    uint64_t table_end, plain_host = w->host, packed_host = w->packed_host;
    int status = l2_find_for_write(image, w->locked.start >> image->cluster_bits, &w->waiter, &page, &index,
                                   &table_end);
    if (status == 0)
        status = freed_reserve(image, count, &w->waiter);
    if (status == 0 && !page_change(page))
        status = -ENOMEM;
    if (status == -EAGAIN)
        return;
    for (unsigned i = 0; i < count && status == 0; i++) {
        struct cluster old, new;
        status = cluster_decode(image, page, index + i, &old);
        if (status < 0)
            break;
        new = linked_cluster(w, &old, i, &plain_host, &packed_host);
        cluster_encode(image, page, index + i, &new);
        w->named = i + 1;
        if (old.host && (old.host != new.host || old.compressed))
            freed_add(image, old.host, old.compressed ? old.compressed_bytes : image->cluster_bytes, false);
    }
    if (status == 0 && !image->write_back) {
        write_move(w, WRITE_THROUGH);
        w->written = true;
        status = MUTANT(qcow2_not_through) ? 0 : page_through(page, &w->waiter);
    }
    if (status != -EAGAIN)
        half_end(w, status == -ENOENT ? -EIO : status);
}

/* Data or table: the part is over when both are, if they are written side by side. */
static void half_end(struct qcow2_write *w, int status)
{
    if (status < 0)
        w->half_status = status;
    if (w->beside) {
        w->beside = false;
        if (status < 0 && MUTANT(qcow2_given_back_under_data))
            w->fresh = unnamed_give_back(w) < 0;
        return;
    }
    part_end(w, w->half_status);
}

/* What this part relies on is with the kernel. */
static int part_through(struct qcow2_write *w)
{
    struct qcow2 *image = w->image;
    struct page *page;
    unsigned index;
    uint64_t table_end;
    int status = l2_find_for_write(image, w->part.start >> image->cluster_bits, &w->waiter, &page, &index, &table_end);
    if (status == 0) {
        status = page_through(page, &w->waiter);
        w->written = status == -EAGAIN;
    }
    return status == -ENOENT ? 0 : status;
}

/* The part [from, w->at) was zeroed, or was zero already, which somebody else's write may have made it just now. */
static int zeroes_through(struct qcow2_write *w, uint64_t from)
{
    if (w->image->write_back || w->at == from || MUTANT(qcow2_zeroes_not_through))
        return 0;
    w->part = (struct range){from, w->at - from};
    w->written = false;
    write_move(w, WRITE_THROUGH);
    int status = part_through(w);
    if (status != -EAGAIN)
        write_move(w, WRITE_DECIDE);
    return status;
}

static void child_done(struct request *child, int status)
{
    struct qcow2_write *w = container_of(child, struct qcow2_write, child);
    if (w->step == WRITE_IN_PLACE)
        mapped_leave(w->image, w->side);
    if (w->step == WRITE_LINK || w->step == WRITE_THROUGH) {
        half_end(w, status);
        return;
    }
    if (status < 0) {
        part_end(w, status);
        return;
    }
    switch (w->step) {
    case WRITE_FILL_READ:
        fill_write(w);
        break;
    case WRITE_FILL_WRITE:
        w->filled += fill_piece(w).length;
        begin_data(w);
        break;
    case WRITE_PACK_DATA:
        if (write_plain(w))
            break;
        write_move(w, WRITE_LINK);
        link_clusters(w);
        break;
    case WRITE_DATA:
        if (w->hides && !w->image->write_back && !MUTANT(qcow2_hides_unsynced)) {
            PROBE(qcow2_hides_synced);
            write_move(w, WRITE_SOLID);
            sync_wait(w->image, &w->waiter);
            break;
        }
        write_move(w, WRITE_LINK);
        link_clusters(w);
        break;
    case WRITE_IN_PLACE:
        part_end(w, 0);
        break;
    case WRITE_IDLE:
    case WRITE_DECIDE:
    case WRITE_PACK:
    case WRITE_PACK_PLACE:
    case WRITE_SOLID:
    case WRITE_LINK:
    case WRITE_THROUGH:
    case WRITE_GIVE_BACK:
    case WRITE_COMMIT:
        abort();
    }
}

/* Deciding about data. */

/* How many bytes from w->at on are in place already, side by side; *host: of the first. */
static int in_place(struct qcow2_write *w, const struct page *page, unsigned index, uint64_t end, uint64_t *length,
                    uint64_t *host)
{
    const struct qcow2 *image = w->image;
    *length = 0;
    for (uint64_t to = w->at; to < end && index < l2_page_entries(image); index++) {
        struct cluster cluster;
        int status = cluster_decode(image, page, index, &cluster);
        if (status < 0)
            return *length ? 0 : status;
        do {
            uint64_t inside = to % image->cluster_bytes,
                     next = round_down(to, image->granule_bytes) + image->granule_bytes;
            if (!cluster.copied || !(cluster.data >> (inside / image->granule_bytes) & 1) ||
                (*length > 0 && cluster.host + inside != *host + *length))
                return 0;
            if (*length == 0)
                *host = cluster.host + inside;
            next = next < end ? next : end;
            *length += next - to;
            to = next;
        } while (to < end && to % image->cluster_bytes != 0);
    }
    return 0;
}

/* Whether the subcluster at this byte reads as zeroes, and its cluster's new place does, too. */
static bool edge_is_zero(const struct qcow2 *image, const struct cluster *cluster, uint64_t at)
{
    unsigned subcluster = (unsigned)(at % image->cluster_bytes / image->granule_bytes);
    if (cluster->compressed || cluster->data >> subcluster & 1)
        return false;
    if (cluster->zero >> subcluster & 1 || !image->header.has_backing)
        return true;
    return image->backing && round_down(at, image->granule_bytes) >= image->backing->size_bytes;
}

/* Whether all of it reads as zeroes, as a new cluster does. */
static bool is_zero(const struct qcow2 *image, const struct cluster *cluster, uint64_t at)
{
    uint32_t all = image->subclusters == 1 ? 1 : UINT32_MAX;
    if (cluster->compressed || cluster->data)
        return false;
    return cluster->host == 0 && (cluster->zero == all || edge_is_zero(image, &(struct cluster){0}, at));
}

/* A cluster of extended entries that is ours and has room for another subcluster. */
static bool is_open(const struct qcow2 *image, const struct cluster *cluster)
{
    return image->subclusters > 1 && cluster->host && cluster->copied && !cluster->compressed;
}

/* What has to be copied around [from, to), the part of a cluster that is written: whole granules; of a cluster that
 * moves, all. A new cluster is zero behind the disk's end; one that is open may have anything there. */
static void plan_edges(struct qcow2_write *w, const struct cluster *cluster, uint64_t from, uint64_t to)
{
    const struct qcow2 *image = w->image;
    bool open = is_open(image, cluster), moves = !open && (cluster->compressed || cluster->data);
    uint64_t unit = moves ? image->cluster_bytes : image->granule_bytes, size = image->node.size_bytes;
    uint64_t start = round_down(from, unit), end = round_up(to, unit);
    unsigned first = (unsigned)(from % image->cluster_bytes / image->granule_bytes);
    unsigned last = (unsigned)((to - 1) % image->cluster_bytes / image->granule_bytes);
    bool head = open ? !(cluster->data >> first & 1) : moves || !edge_is_zero(image, cluster, from);
    bool tail = open ? !(cluster->data >> last & 1) : moves || !edge_is_zero(image, cluster, to - 1);
    if (from == w->part.start) {
        w->kept.start = start;
        w->fill[0] = (struct range){start, head ? from - start : 0};
    }
    if (to == range_end(w->part)) {
        w->kept.length = end - w->kept.start;
        w->fill[1] = (struct range){to, tail && (open || to < size) ? (open || end < size ? end : size) - to : 0};
    }
}

/* The run of clusters from w->at on that need a new place (or, if one is open, that one alone): w->part, w->locked,
 * w->fill. */
static int plan_run(struct qcow2_write *w, const struct page *page, unsigned index, uint64_t end, bool *open)
{
    const struct qcow2 *image = w->image;
    uint64_t to = w->at;
    struct cluster cluster, last = {0};
    w->fill[0].length = w->fill[1].length = 0;
    w->hides = *open = false;
    for (; to < end && index < l2_page_entries(image); index++) {
        int status = cluster_decode(image, page, index, &cluster);
        bool ours = cluster.copied && (cluster.data || is_open(image, &cluster));
        if (status < 0 && to == w->at)
            return status;
        if (status < 0 || (ours && to > w->at))
            break;
        if (to == w->at) {
            *open = is_open(image, &cluster);
            w->host = *open ? cluster.host : 0;
        }
        uint64_t next = round_down(to, image->cluster_bytes) + image->cluster_bytes;
        w->hides |= !is_zero(image, &cluster, round_down(to, image->cluster_bytes));
        if (to == w->at) {
            w->part = (struct range){to, (next < end ? next : end) - to};
            plan_edges(w, &cluster, to, range_end(w->part));
        }
        last = cluster;
        to = next < end ? next : end;
        if (*open)
            break;
    }
    uint64_t last_start = round_down(to - 1, image->cluster_bytes);
    w->part = (struct range){w->at, to - w->at};
    plan_edges(w, &last, last_start > w->at ? last_start : w->at, to);
    w->locked = range_align_out(w->part, image->cluster_bytes);
    return 0;
}

/* Whole clusters are compressed, as many as one go takes. */
static bool plan_pack(struct qcow2_write *w, bool open)
{
    const struct qcow2 *image = w->image;
    uint64_t whole = round_down(w->part.length, image->cluster_bytes), most = LIMIT_QCOW2_PACK_CLUSTERS;
    if (!image->compress || w->zeroes || open || w->part.start % image->cluster_bytes != 0 || whole == 0)
        return false;
    most <<= image->cluster_bits;
    w->part.length = w->locked.length = whole < most ? whole : most;
    w->kept = w->part;
    w->packed_count = (unsigned)(w->part.length >> image->cluster_bits);
    w->plain_count = w->next_plain = 0;
    w->packed_host = w->host = 0;
    return true;
}

/* Fewer clusters than that side by side. */
static void plan_shorten(struct qcow2_write *w, uint64_t count)
{
    uint64_t end = w->locked.start + (count << w->image->cluster_bits);
    if (end >= range_end(w->locked))
        return;
    w->locked.length = end - w->locked.start;
    w->part.length = end - w->part.start;
    w->kept.length = end - w->kept.start;
    w->fill[1].length = 0;
}

/* New clusters for a run. */
static int begin_run(struct qcow2_write *w, const struct page *page, unsigned index, uint64_t end)
{
    struct qcow2 *image = w->image;
    bool open;
    uint64_t count;
    int status = plan_run(w, page, index, end, &open);
    if (status < 0)
        return status;
    w->pack = plan_pack(w, open);
    w->filled = 0;
    if (w->pack)
        status = take_buffer(w, w->part.length + image->cluster_bytes);
    else if (w->fill[0].length + w->fill[1].length > 0)
        status = take_buffer(w, QCOW2_FILL_BYTES);
    if (status == 0 && !w->pack && !open) {
        status = clusters_take(image, w->locked.length >> image->cluster_bits, &w->waiter, &w->host, &count);
        if (status == 0)
            plan_shorten(w, count);
    }
    if (status < 0) { /* nothing has begun */
        w->locked.length = 0;
        buffer_release(w);
        return status;
    }
    w->fresh = !open;
    w->named = 0;
    if (w->pack) {
        write_move(w, WRITE_PACK);
        w->op.done = packed;
        io_work(image->node.io, &w->op, pack, w);
    } else {
        begin_data(w);
    }
    return 0;
}

/* Begins the next part of data. 0: it is under way, or (still in DECIDE) look again; -EAGAIN: it waits. */
static int decide_data(struct qcow2_write *w, uint64_t end)
{
    struct qcow2 *image = w->image;
    struct page *page;
    unsigned index;
    uint64_t table_end, length = 0, host = 0;
    uint64_t most = w->zeroes ? LIMIT_REQUEST_BYTES : qcow2_fragments_length(w->req, w->at, end - w->at);
    end = end - w->at < most ? end : w->at + most;
    int status = l2_find_for_write(image, w->at >> image->cluster_bits, &w->waiter, &page, &index, &table_end);
    if (status == -ENOENT)
        return l2_create(image, w->at >> image->cluster_bits, &w->waiter);
    if (status == 0)
        status = in_place(w, page, index, end, &length, &host);
    if (status < 0)
        return status;
    if (length == 0)
        return begin_run(w, page, index, end);
    if (page->failed) { /* where it is known to us only */
        status = page_through(page, &w->waiter);
        if (status < 0)
            return status;
    }
    write_move(w, WRITE_IN_PLACE);
    w->side = mapped_enter(image);
    w->part = (struct range){w->at, length};
    write_data(w, w->at, length, host);
    return 0;
}

static void decide_later(struct io_task *task)
{
    decide(container_of(task, struct qcow2_write, task));
}

static void decide(struct qcow2_write *w)
{
    struct qcow2 *image = w->image;
    uint64_t end = range_end(w->req->range);
    unsigned steps = 0;
    while (w->status == 0 && w->at < end) {
        uint64_t limit = free_until(w, end);
        if (limit <= w->at) {
            PROBE(qcow2_write_blocked);
            qcow2_wait(&image->blocked, &w->waiter);
            return;
        }
        bool as_data = w->req->kind == REQUEST_WRITE;
        int status = 0;
        uint64_t from = w->at;
        w->data_end = limit;
        if (!as_data)
            status = zero_go_on(w, limit, &as_data);
        if (status == 0)
            status = zeroes_through(w, from);
        if (status == 0 && as_data)
            status = decide_data(w, w->data_end);
        if (status == -EAGAIN || w->step != WRITE_DECIDE)
            return;
        if (status < 0)
            w->status = status;
        if (++steps == LIMIT_QCOW2_STEPS && w->status == 0) {
            io_task_queue(image->node.io, &w->task);
            return;
        }
    }
    if (w->status == 0 && (w->req->flags & REQUEST_FUA) && !MUTANT(qcow2_fua_forgotten)) {
        write_move(w, WRITE_COMMIT);
        commit_wait(image, &w->waiter);
    } else {
        slot_end(w);
    }
}

static void slot_start(struct qcow2 *image, struct request *req)
{
    struct qcow2_write *w = container_of(list_take_first(&image->free_writes), struct qcow2_write, link);
    list_append(&image->writes, &w->link);
    write_move(w, WRITE_DECIDE);
    w->image = image;
    w->req = req;
    w->waiter.wake = wake;
    w->task.run = decide_later;
    w->status = w->half_status = 0;
    w->at = req->range.start;
    w->zeroes = req->kind != REQUEST_WRITE;
    decide(w);
}

/* Whether the tables can say it without a byte of data. */
static bool is_fast(const struct qcow2 *image, const struct request *req)
{
    struct range range = req->range;
    if (range_end(range) == image->node.size_bytes)
        range.length = round_up(range.length, image->granule_bytes);
    return image->node.can_fast_zero && !(req->flags & REQUEST_NO_HOLE) && range_aligned(range, image->granule_bytes);
}

void write_submit(struct qcow2 *image, struct request *req)
{
    if (req->kind == REQUEST_WRITE_ZEROES && (req->flags & REQUEST_FAST_ZERO) && !is_fast(image, req)) {
        request_complete(req, -EOPNOTSUPP);
    } else if (list_empty(&image->free_writes)) {
        PROBE(qcow2_write_waits_for_slot);
        list_append(&image->waiting_writes, &req->link);
    } else {
        slot_start(image, req);
    }
}
