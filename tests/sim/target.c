/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Targets of backups that old data goes to straight, one for each disk of some snapshots: slow, failing, or hanging for
 * longer than the guest may wait. Whatever is written there must be what lay on the disk at the cut; a block that is there
 * may be gone from the view.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "sim.h"

struct target_write {
    struct sim_target *target;
    struct request *req;
    struct io_timer timer;
    int status;
};

struct sim_target {
    struct node node;
    struct sim *sim;
    struct sim_snapshot *snapshot;
    struct sim_disk *disk;
    bool *here; /* by block: it was written */
    struct target_write writes[LIMIT_THROUGH_COPIES];
};

static void target_done(struct io_timer *timer)
{
    struct target_write *write = container_of(timer, struct target_write, timer);
    struct request *req = write->req;
    const uint64_t block_bytes = write->target->sim->block_bytes;
    write->req = NULL;
    for (uint64_t block = req->range.start / block_bytes; block * block_bytes < range_end(req->range); block++)
        write->target->here[block] = write->target->here[block] || write->status == 0;
    sim_trace(write->target->sim, "target of %s@%s done %d", write->target->disk->name, write->target->snapshot->name,
              write->status);
    request_complete(req, write->status);
}

static void check_content(const struct sim_target *target, const struct request *req)
{
    const struct sim *sim = target->sim;
    const uint8_t *image = target->snapshot->images_taken ? target->snapshot->parts[target->disk->index].image
                                                          : target->disk->captured;
    uint8_t *bytes = malloc(req->range.length);
    if (bytes == NULL)
        abort();
    iov_copy_out(req->iov, req->iov_count, 0, bytes, req->range.length);
    if (memcmp(bytes, image + req->range.start, req->range.length) != 0)
        sim_fail(sim, "the target of %s@%s gets other data of [%llu +%llu] than there was at the cut (R1)",
                 target->disk->name, target->snapshot->name, (unsigned long long)req->range.start,
                 (unsigned long long)req->range.length);
    free(bytes);
}

static void target_submit(struct node *node, struct request *req)
{
    struct sim_target *target = container_of(node, struct sim_target, node);
    struct sim *sim = target->sim;
    if (req->kind != REQUEST_WRITE)
        sim_fail(sim, "a target is asked for something else than a write");
    check_content(target, req);
    struct target_write *write = target->writes;
    while (write->req != NULL)
        if (++write == target->writes + LIMIT_THROUGH_COPIES)
            sim_fail(sim, "a target gets more writes at once than there are copies");
    bool fails = sim_chance(sim, 64), hangs = sim_chance(sim, 32);
    write->req = req;
    write->status = fails ? -EIO : 0;
    write->timer.fire = target_done;
    uint64_t takes_ns = hangs ? sim_below(sim, 900 * NS_PER_MS) : sim_below(sim, NS_PER_MS);
    sim->may_break = sim->may_break || fails || sim->cbw_timeout_ns > 0;
    io_timer_set(target->disk->io, &write->timer, world_now(sim->world) + takes_ns);
}

static const struct node_ops target_ops = {.driver = "target", .submit = target_submit};

struct node *target_create(struct sim_snapshot *snapshot, struct sim_disk *disk)
{
    struct sim_target *target = calloc(1, sizeof(*target));
    if (target == NULL ||
        (target->here = calloc(disk->max_size / snapshot->sim->block_bytes + 2, sizeof(bool))) == NULL)
        abort();
    target->node = (struct node){
        .ops = &target_ops, .io = disk->io, .size_bytes = disk->max_size, .alignment_bytes = 1};
    target->sim = snapshot->sim;
    target->snapshot = snapshot;
    target->disk = disk;
    for (unsigned i = 0; i < LIMIT_THROUGH_COPIES; i++)
        target->writes[i].target = target;
    snapshot->parts[disk->index].target = target;
    return &target->node;
}

bool target_has(const struct sim_target *target, uint64_t block)
{
    return target != NULL && target->here[block];
}

void target_destroy(struct sim_target *target)
{
    if (target == NULL)
        return;
    for (unsigned i = 0; i < LIMIT_THROUGH_COPIES; i++)
        if (target->writes[i].req != NULL)
            sim_fail(target->sim, "a snapshot ended before the writes to its target");
    free(target->here);
    free(target);
}
