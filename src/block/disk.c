/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The root of a disk's chain.
 *
 * A request is decided here from the top each time it is submitted: a write during a hold parks in `held`; everything
 * else goes to the filter, if there is one, or to the leaf. On the doorstep of the leaf change tracking may park a write
 * once more (disk->gate). A write is "in flight" from disk_issue(), the step that hands it to the leaf, to the leaf's
 * completion (C4): not while it is parked anywhere (C3), and not until its reply is sent.
 *
 * Parked requests keep the time of their first park through every re-submission and re-enter a queue at that place, so
 * that wake-ups are first come, first served (C8).
 */
#include "block/disk.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/probe.h"

static void disk_submit(struct node *node, struct request *req)
{
    struct disk *disk = container_of(node, struct disk, node);
    req->disk = disk;
    if (disk->holding && request_is_write(req) && !MUTANT(disk_hold_lets_writes_pass)) {
        PROBE(park_hold);
        disk_park(&disk->held, req);
        return;
    }
    if (disk->filter)
        node_submit(disk->filter, req);
    else
        disk_issue(disk, req);
}

static void disk_tell_observers(struct disk *disk, struct range range)
{
    list_each_safe (link, &disk->observers) { /* one that has seen enough goes */
        struct write_observer *observer = container_of(link, struct write_observer, link);
        observer->written(observer, range);
    }
}

void disk_issue(struct disk *disk, struct request *req)
{
    assert(req->disk == disk && !req->in_flight);
    if (request_is_write(req) && disk->gate && !disk->gate->admit(disk->gate, req))
        return;
    if (request_is_write(req) && !(req->kind != REQUEST_WRITE && MUTANT(zeroes_not_in_flight))) {
        req->in_flight = true;
        disk->writes_in_flight++;
    }
    if (request_is_write(req) && !(req->kind == REQUEST_WRITE_ZEROES && MUTANT(bitmap_misses_zeroes)))
        disk_tell_observers(disk, req->range);
    node_submit(disk->leaf, req);
}

static void disk_count(struct disk *disk, const struct request *req)
{
    struct disk_counters *counters = &disk->counters;
    if (req->status < 0) {
        counters->errors++;
        return;
    }
    switch (req->kind) {
    case REQUEST_READ:
        counters->reads++;
        counters->read_bytes += req->range.length;
        break;
    case REQUEST_WRITE:
        counters->writes++;
        counters->written_bytes += req->range.length;
        break;
    case REQUEST_WRITE_ZEROES:
        counters->zeroes++;
        break;
    case REQUEST_DISCARD:
        counters->discards++;
        break;
    case REQUEST_FLUSH:
        counters->flushes++;
        break;
    case REQUEST_BLOCK_STATUS:
        break;
    }
}

static void disk_check_drained(struct disk *disk)
{
    if (!disk->drained || (disk->writes_in_flight > 0 && !MUTANT(disk_drains_early)))
        return;
    void (*drained)(void *) = disk->drained;
    disk->drained = NULL;
    drained(disk->drained_context);
}

void disk_settle(struct disk *disk, struct request *req)
{
    if (!(req->flags & REQUEST_OWN))
        disk_count(disk, req);
    req->disk = NULL;
    req->parked_since_ns = 0;
    if (!req->in_flight)
        return;
    req->in_flight = false;
    assert(disk->writes_in_flight > 0);
    disk->writes_in_flight--;
    disk_check_drained(disk);
}

void disk_park(struct list *queue, struct request *req)
{
    if (!req->parked_since_ns)
        req->parked_since_ns = io_now_ns(req->io);
    struct list_node *before = &queue->head;
    while (before->prev != &queue->head &&
           container_of(before->prev, struct request, link)->parked_since_ns > req->parked_since_ns) {
        PROBE(park_keeps_its_turn);
        before = before->prev;
    }
    list_insert_before(before, &req->link);
}

void disk_resubmit(struct request *req)
{
    struct disk *disk = req->disk;
    list_append(&disk->resubmitted, &req->link);
    io_task_queue(disk->node.io, &disk->resubmit);
}

void disk_resubmit_all(struct disk *disk, struct list *queue)
{
    if (list_empty(queue))
        return;
    list_take_all(&disk->resubmitted, queue);
    io_task_queue(disk->node.io, &disk->resubmit);
}

static void disk_resubmit_run(struct io_task *task)
{
    struct disk *disk = container_of(task, struct disk, resubmit);
    struct list ready;
    list_init(&ready);
    list_take_all(&ready, &disk->resubmitted);
    for (struct list_node *link; (link = list_take_first(&ready));)
        node_submit(&disk->node, container_of(link, struct request, link));
}

void disk_hold(struct disk *disk, void (*drained)(void *context), void *context)
{
    assert(io_on_owner(disk->node.io));
    assert(!disk->holding);
    disk->holding = true;
    disk->drained = drained;
    disk->drained_context = context;
    disk_check_drained(disk);
}

void disk_release(struct disk *disk)
{
    assert(io_on_owner(disk->node.io));
    assert(disk->holding);
    disk->holding = false;
    disk->drained = NULL;
    if (!MUTANT(disk_release_forgets_held))
        disk_resubmit_all(disk, &disk->held);
}

void disk_grow(struct disk *disk, uint64_t size_bytes)
{
    assert(io_on_owner(disk->node.io));
    assert(disk->holding && disk->writes_in_flight == 0 && size_bytes > disk->node.size_bytes);
    disk->leaf->ops->grow(disk->leaf, size_bytes);
    assert(disk->leaf->size_bytes == size_bytes);
    node_set_size(&disk->node, size_bytes);
}

void disk_set_filter(struct disk *disk, struct node *filter)
{
    assert(io_on_owner(disk->node.io));
    assert(!disk->filter != !filter);
    disk->filter = filter;
}

static void disk_destroy_node(struct node *node)
{
    disk_destroy(container_of(node, struct disk, node));
}

static const struct node_ops disk_node_ops = {
    .driver = "disk",
    .submit = disk_submit,
    .destroy = disk_destroy_node,
};

struct disk *disk_create(const char *name, struct node *leaf)
{
    assert(leaf->size_bytes <= LIMIT_DISK_BYTES);
    struct disk *disk = calloc(1, sizeof *disk);
    if (!disk)
        return NULL;
    disk->node = *leaf; /* size, alignment and abilities are the leaf's */
    disk->node.ops = &disk_node_ops;
    disk->node.dirty_maps = NULL; /* what a leaf can tell of the past is not about this disk's checkpoints */
    disk->node.dirty_map_count = 0;
    memccpy(disk->name, name, 0, sizeof disk->name - 1);
    disk->leaf = leaf;
    disk->resubmit.run = disk_resubmit_run;
    list_init(&disk->held);
    list_init(&disk->resubmitted);
    list_init(&disk->observers);
    return disk;
}

void disk_destroy(struct disk *disk)
{
    assert(!disk->filter && !disk->holding && disk->writes_in_flight == 0);
    assert(list_empty(&disk->held) && list_empty(&disk->resubmitted) && list_empty(&disk->observers));
    node_destroy(disk->leaf);
    free(disk);
}
