/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The client of the many lives that makes backups, as `fleece backup` does (C24):
 *
 *     snapshot + checkpoint, since the latest point's -> copied -> the point is visible -> its checkpoint is committed ->
 *     older ones are deleted -> the snapshot ends
 *
 * It outlives the daemon: after kill -9 it takes the lease again and goes on with what was not recorded yet; when its
 * snapshot is gone it gives up and begins anew. It may also die itself. A point is kept as numbers of sectors.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/probe.h"
#include "lives.h"
#include "vm/checkpoints.h"

#define NOT_COPIED 0xffffffffu

static struct lives_checkpoint *find_checkpoint(struct lives_client *client, const char *uuid)
{
    for (unsigned i = 0; i < client->checkpoint_count; i++)
        if (strcmp(client->checkpoints[i].uuid, uuid) == 0)
            return &client->checkpoints[i];
    return NULL;
}

static struct lives_checkpoint *add_checkpoint(struct lives_client *client, const char *uuid)
{
    assert_true(client->checkpoint_count < LIVES_CHECKPOINTS);
    struct lives_checkpoint *checkpoint = &client->checkpoints[client->checkpoint_count++];
    *checkpoint = (struct lives_checkpoint){.committed = false};
    memcpy(checkpoint->uuid, uuid, sizeof checkpoint->uuid);
    return checkpoint;
}

static void forget_checkpoint(struct lives_client *client, struct lives_checkpoint *checkpoint)
{
    *checkpoint = client->checkpoints[--client->checkpoint_count];
}

/* Nobody may take it away, on any disk: neither its deletion has been asked for, nor can its grace time be over. */
static bool is_firm(const struct lives_client *client, const struct lives_checkpoint *checkpoint)
{
    return !checkpoint->delete_asked && (checkpoint->committed || !client->forgiven);
}

static struct lives_point *latest(struct lives_client *client)
{
    return client->point_count > 0 ? &client->points[client->point_count - 1] : NULL;
}

/* ---- the target ---- */

static void target_write(struct lives_target *target, const struct request *req)
{
    uint32_t *content = target->lives->client.points[target->lives->client.point_count].content[target->disk];
    uint8_t sector[512] = {0};
    assert_true(range_end(req->range) <= target->node.size_bytes && req->range.start % 512 == 0);
    for (uint64_t at = 0; at < req->range.length; at += 512) {
        const uint64_t number = (req->range.start + at) / 512;
        if (req->kind == REQUEST_WRITE)
            iov_copy_out(req->iov, req->iov_count, at, sector, 512);
        content[number] = guest_number(target->lives, target->disk, number, sector);
    }
}

static void target_submit(struct node *node, struct request *req)
{
    struct lives_target *target = container_of(node, struct lives_target, node);
    if (request_is_write(req))
        target_write(target, req);
    else
        assert_int_equal(req->kind, REQUEST_FLUSH);
    request_complete(req, 0);
}

static const struct node_ops target_ops = {.driver = "target", .submit = target_submit};

static void target_begin(struct lives *lives, unsigned disk, bool incremental)
{
    struct lives_target *target = &lives->client.targets[disk];
    const uint64_t extents = copy_extent_count(lives->blocks * STAGE_BLOCK);
    *target = (struct lives_target){.lives = lives, .disk = disk, .incremental = incremental, .over = true};
    target->already = calloc(extents, sizeof(bool));
    target->masks = calloc(extents, COPY_MASK_BYTES);
    assert_true(target->already && target->masks);
}

static void target_end(struct lives_target *target)
{
    free(target->already);
    free(target->masks);
    *target = (struct lives_target){0};
}

/* ---- the copy ---- */

static int copy_record(void *context, const struct copy_run *runs, uint64_t count)
{
    struct lives_target *target = context;
    for (uint64_t i = 0; i < count; i++)
        memset(target->already + runs[i].first, true, runs[i].count);
    return 0;
}

static void copy_done(void *context, int status, const struct error *err)
{
    struct lives_target *target = context;
    target->copy = NULL;
    target->over = true;
    target->status = status;
    if (status < 0)
        lives_trace(target->lives, "the copy of disk %u fails: %s", target->disk, err->text);
}

static void copy_begin(void *argument)
{
    struct lives_target *target = argument;
    const struct lives_client *client = &target->lives->client;
    struct stage *stage = target->lives->stage;
    target->node = (struct node){.ops = &target_ops,
                                 .io = stage->io[target->disk],
                                 .size_bytes = target->lives->blocks * STAGE_BLOCK,
                                 .alignment_bytes = 1,
                                 .can_discard = true,
                                 .can_fast_zero = true};
    target->status = 0;
    const struct copy_options options = {.io = target->node.io,
                                         .source = client->snapshot->views[target->disk],
                                         .target = &target->node,
                                         .source_name = "the snapshot",
                                         .target_name = "the target",
                                         .advice = true,
                                         .release = target->lives->releases,
                                         .dirty = target->incremental,
                                         .masks = target->masks,
                                         .already = target->already,
                                         .record = copy_record,
                                         .done = copy_done,
                                         .context = target};
    target->copy = copy_start(&options);
    assert_non_null(target->copy);
}

/* What was not recorded counts as not copied; it may be the base's. */
static void reset_extents(struct lives *lives, unsigned disk)
{
    struct lives_client *client = &lives->client;
    const struct lives_target *target = &client->targets[disk];
    uint32_t *content = client->points[client->point_count].content[disk];
    const uint32_t *base = target->incremental ? client->points[client->base].content[disk] : NULL;
    const uint64_t per_extent = COPY_EXTENT_BYTES / 512;
    for (uint64_t i = 0; i < lives->blocks * LIVES_SECTORS; i++)
        if (!target->already[i / per_extent])
            content[i] = base ? base[i] : NOT_COPIED;
    for (uint64_t i = 0; i < copy_extent_count(lives->blocks * STAGE_BLOCK); i++)
        if (!target->already[i])
            memset(target->masks + i * COPY_MASK_BYTES, 0, COPY_MASK_BYTES);
}

static void copies_start(struct lives *lives)
{
    struct lives_client *client = &lives->client;
    client->copied = true;
    for (unsigned disk = 0; disk < STAGE_DISKS && !lives->stage->dead; disk++) {
        reset_extents(lives, disk);
        client->targets[disk].over = false;
        world_call(lives->stage->io[disk], copy_begin, &client->targets[disk]);
    }
}

static void copy_stop(void *argument)
{
    struct lives_target *target = argument;
    if (target->copy)
        copy_cancel(target->copy);
}

static bool is_copying(const struct lives_client *client)
{
    return !client->targets[0].over || !client->targets[1].over;
}

/* ---- the oracle ---- */

/* Every block that was copied has been touched since the base's cut. */
static void check_superset(const struct lives *lives, const struct lives_target *target)
{
    const struct lives_point *base = &lives->client.points[lives->client.base];
    if (base->power_losses != lives->result.power_losses)
        return; /* which cost whole extents */
    for (uint64_t block = 0; block < lives->blocks; block++)
        if ((target->masks[block / 8] >> block % 8 & 1) &&
            lives->disks[target->disk].blocks[block].stamp <= base->stamp[target->disk])
            lives_fail(lives, "block %llu of disk %u is copied, and nobody has touched it since the base",
                       (unsigned long long)block, target->disk);
}

static void check_chain(const struct lives *lives, const struct lives_point *point)
{
    for (unsigned disk = 0; disk < STAGE_DISKS; disk++)
        for (uint64_t i = 0; i < lives->client.image.size[disk] * LIVES_SECTORS; i++)
            if (point->content[disk][i] != lives->client.image.sectors[disk][i])
                lives_fail(lives, "the backup has %u in sector %llu of disk %u, and %u was there at the cut (R5)",
                           point->content[disk][i], (unsigned long long)i, disk, lives->client.image.sectors[disk][i]);
}

/* The copies are whole: the point becomes visible. */
static void publish(struct lives *lives)
{
    struct lives_client *client = &lives->client;
    struct lives_point *point = &client->points[client->point_count];
    check_chain(lives, point);
    for (unsigned disk = 0; disk < STAGE_DISKS; disk++) {
        if (client->targets[disk].incremental)
            check_superset(lives, &client->targets[disk]);
        point->stamp[disk] = client->image.stamp[disk];
        target_end(&client->targets[disk]);
    }
    memcpy(point->uuid, client->checkpoint, sizeof point->uuid);
    client->point_count++;
    lives->result.backups++;
    lives->result.incrementals += client->base >= 0;
    lives_trace(lives, "backup %u is whole", client->point_count);
}

/* ---- questions to the daemon ---- */

struct question {
    struct lives *lives;
    bool done;
    int code;
};

static void answered(void *argument, const struct error *err)
{
    struct lives_client *client = argument;
    client->answered = true;
    client->code = err ? err->code : 0;
}

/* A command, once in each life; false: there is no answer yet. */
static bool ask(struct lives *lives, void (*command)(struct lives *lives))
{
    struct lives_client *client = &lives->client;
    if (!client->asked) {
        client->asked = true;
        client->answered = false;
        world_act_as(lives->stage->world, lives->stage->control);
        command(lives);
        world_act_as(lives->stage->world, NULL);
    }
    client->asked = !client->answered;
    return client->answered;
}

static void list_one(struct lives *lives, const struct vm_checkpoint *listed)
{
    struct lives_client *client = &lives->client;
    struct lives_checkpoint *mine = find_checkpoint(client, listed->id.uuid);
    for (unsigned i = 0; i < STAGE_DISKS; i++)
        if (mine && is_firm(client, mine) &&
            (!listed->disks[i].present || listed->disks[i].state == CHECKPOINT_INVALID))
            lives_fail(lives, "checkpoint %s is lost on disk %u: %s", listed->id.name, i, listed->disks[i].reason);
    if (mine && mine->committed && listed->state != CHECKPOINT_COMMITTED)
        lives_fail(lives, "checkpoint %s was committed, and is not", listed->id.name);
    if (mine && !mine->commit_asked && listed->state == CHECKPOINT_COMMITTED)
        lives_fail(lives, "checkpoint %s is committed, and nobody has asked for it", listed->id.name);
    if (!mine) { /* it was being made when the daemon died */
        PROBE(restart_checkpoint_nobody_was_told_of);
        add_checkpoint(client, listed->id.uuid)->delete_asked = true; /* soon; it need not be whole */
        if (listed->state != CHECKPOINT_PENDING)
            lives_fail(lives, "checkpoint %s is committed, and nobody was told of it", listed->id.name);
    }
}

static bool is_listed(const struct vm_checkpoints *list, const char *uuid)
{
    for (unsigned i = 0; i < list->count; i++)
        if (strcmp(list->checkpoints[i].id.uuid, uuid) == 0)
            return true;
    return false;
}

static void listed(void *argument, const struct vm_checkpoints *list)
{
    struct question *question = argument;
    struct lives_client *client = &question->lives->client;
    assert_non_null(list);
    for (unsigned i = 0; i < list->count; i++)
        list_one(question->lives, &list->checkpoints[i]);
    for (unsigned i = client->checkpoint_count; i-- > 0;) {
        struct lives_checkpoint *mine = &client->checkpoints[i];
        if (is_listed(list, mine->uuid))
            continue;
        if (is_firm(client, mine))
            lives_fail(question->lives, "checkpoint %s is not there any more", mine->uuid);
        forget_checkpoint(client, mine);
    }
    question->done = true;
}

static void ask_list(void *argument)
{
    struct question *question = argument;
    vm_checkpoints_query(question->lives->stage->vm, listed, question);
}

void backup_check_checkpoints(struct lives *lives)
{
    struct question question = {.lives = lives};
    if (!lives->tracked)
        return;
    world_call(lives->stage->control, ask_list, &question);
    lives_wait(lives, &question.done);
    lives->client.forgiven = lives->client.forgiven && !question.done;
}

/* ---- the steps ---- */

static void step(struct lives *lives, enum lives_client_step next)
{
    lives->client.step = next;
    lives->client.asked = lives->client.answered = false;
}

static void end_lease(void *argument)
{
    struct lives *lives = argument;
    vm_lease_end(lives->stage->vm, &lives->client);
}

static void point_make(struct lives *lives)
{
    struct lives_client *client = &lives->client;
    struct lives_point *point = &client->points[client->point_count];
    *point = (struct lives_point){.power_losses = (unsigned)lives->result.power_losses};
    for (unsigned disk = 0; disk < STAGE_DISKS; disk++) {
        point->content[disk] = malloc(lives->blocks * LIVES_SECTORS * sizeof(uint32_t));
        assert_non_null(point->content[disk]);
    }
}

static void point_free(struct lives_point *point)
{
    for (unsigned disk = 0; disk < STAGE_DISKS; disk++)
        free(point->content[disk]);
    *point = (struct lives_point){0};
}

/* What is based on the latest point whose checkpoint is there. */
static int choose_base(struct lives_client *client)
{
    for (int i = (int)client->point_count - 1; i >= 0; i--)
        if (find_checkpoint(client, client->points[i].uuid))
            return i;
    return -1;
}

static void begin(struct lives *lives)
{
    struct lives_client *client = &lives->client;
    char name[16], checkpoint[16];
    if (lives->creating || client->point_count == LIVES_POINTS || lives->stage->snapshot_count == STAGE_SNAPSHOTS ||
        client->checkpoint_count + 2 >= LIVES_CHECKPOINTS)
        return;
    backup_check_checkpoints(lives);
    if (lives->stage->dead)
        return;
    const struct lives_point *point = latest(client);
    const struct lives_checkpoint *of_latest = point ? find_checkpoint(client, point->uuid) : NULL;
    if (of_latest && !of_latest->committed) { /* a client died before it could say so */
        memcpy(client->checkpoint, point->uuid, sizeof client->checkpoint);
        step(lives, CLIENT_COMMIT);
        return;
    }
    client->base = choose_base(client);
    if (client->base >= 0 && client->base + 1 < (int)client->point_count)
        PROBE(restart_backup_since_an_older_point);
    snprintf(name, sizeof name, "b%u", client->names);
    snprintf(checkpoint, sizeof checkpoint, "c%u", client->names++);
    client->grace_ns = lives_chance(lives, 512) ? 60 * NS_PER_S : 0;
    const struct snapshot_options options = {.lease = client,
                                             .grace_ns = client->grace_ns,
                                             .since = client->base >= 0 ? client->points[client->base].uuid : NULL,
                                             .checkpoint = checkpoint};
    lives->creating = true;
    client->snapshot = stage_create_with(lives->stage, name, &options);
    lives_trace(lives, "backup %u begins, since %d", client->point_count, client->base);
    step(lives, CLIENT_SNAPSHOT);
}

static void look_at_snapshot(void *argument)
{
    struct lives *lives = argument;
    struct lives_client *client = &lives->client;
    const struct snapshot *snapshot = vm_snapshot_find(lives->stage->vm, client->snapshot->name);
    struct snapshot_info info;
    assert_non_null(snapshot);
    snapshot_info(snapshot, &info);
    memcpy(client->uuid, info.uuid, sizeof client->uuid);
    memcpy(client->checkpoint, info.checkpoint_uuid, sizeof client->checkpoint);
    for (unsigned disk = 0; disk < STAGE_DISKS; disk++) {
        struct snapshot_disk_info part;
        snapshot_disk_info(snapshot, disk, &part);
        if (!part.checkpoint)
            lives_fail(lives, "disk %u has no checkpoint: %s", disk, part.checkpoint_reason);
        const struct lives_checkpoint *base = client->base >= 0
                                                  ? find_checkpoint(client, client->points[client->base].uuid)
                                                  : NULL;
        if (base && is_firm(client, base) && !part.incremental)
            lives_fail(lives, "disk %u goes full: %s", disk, part.reason);
        target_begin(lives, disk, part.incremental);
    }
}

static void snapshot_answered(struct lives *lives)
{
    struct lives_client *client = &lives->client;
    if (!client->snapshot->answered)
        return;
    lives->creating = false;
    if (!client->snapshot->created) {
        if (!lives->tight && !lives->faults)
            lives_fail(lives, "no snapshot for a backup: %s", client->snapshot->text);
        step(lives, CLIENT_IDLE);
        return;
    }
    image_take(lives, &client->image);
    point_make(lives);
    world_call(lives->stage->control, look_at_snapshot, lives);
    add_checkpoint(client, client->checkpoint);
    client->copied = false;
    step(lives, CLIENT_COPY);
}

/* Its snapshot is not needed any more; nor, unless it has become a point, is anything else of it. */
static void let_go(struct lives *lives)
{
    struct lives_client *client = &lives->client;
    image_free(&client->image);
    client->snapshot = NULL;
    if (!lives->stage->dead)
        world_call(lives->stage->control, end_lease, lives);
    step(lives, CLIENT_IDLE);
}

static void give_up(struct lives *lives)
{
    struct lives_client *client = &lives->client;
    for (unsigned disk = 0; disk < STAGE_DISKS && !lives->stage->dead; disk++)
        world_call(lives->stage->io[disk], copy_stop, &client->targets[disk]);
    for (unsigned disk = 0; disk < STAGE_DISKS; disk++)
        lives_wait(lives, &client->targets[disk].over);
    if (lives->stage->dead)
        return;
    for (unsigned disk = 0; disk < STAGE_DISKS; disk++)
        target_end(&client->targets[disk]);
    point_free(&client->points[client->point_count]);
    client->forgiven = true; /* with the lease or after its grace time, what is pending goes */
    let_go(lives);
}

static void copy_goes_on(struct lives *lives)
{
    struct lives_client *client = &lives->client;
    if (!client->copied) {
        copies_start(lives);
        return;
    }
    if (lives_chance(lives, 8)) {
        PROBE(restart_client_dies);
        step(lives, CLIENT_GIVE_UP);
        return;
    }
    if (is_copying(client))
        return;
    if (client->targets[0].status == 0 && client->targets[1].status == 0) {
        publish(lives);
        step(lives, CLIENT_COMMIT);
        return;
    }
    if (!lives->tight && !lives->faults)
        lives_fail(lives, "the copy of a backup fails");
    step(lives, CLIENT_GIVE_UP);
}

static void ask_commit(struct lives *lives)
{
    vm_checkpoint_commit(lives->stage->vm, lives->client.checkpoint, answered, &lives->client);
}

static void commit(struct lives *lives)
{
    struct lives_client *client = &lives->client;
    struct lives_checkpoint *mine = find_checkpoint(client, client->checkpoint);
    assert_non_null(mine);
    if (lives_chance(lives, 80)) { /* the client dies before it could say so */
        client->forgiven = true;
        let_go(lives);
        return;
    }
    mine->commit_asked = true;
    if (!ask(lives, ask_commit) || client->code == EBUSY)
        return;
    if (client->code != 0)
        lives_fail(lives, "the commit of a backup fails: %d", client->code);
    mine->committed = true;
    step(lives, CLIENT_FORGET);
}

/* Another checkpoint than the latest point's; NULL: there is none. */
static struct lives_checkpoint *one_to_delete(struct lives_client *client)
{
    for (unsigned i = 0; i < client->checkpoint_count; i++)
        if (strcmp(client->checkpoints[i].uuid, latest(client)->uuid) != 0)
            return &client->checkpoints[i];
    return NULL;
}

static void ask_delete(struct lives *lives)
{
    struct lives_checkpoint *checkpoint = one_to_delete(&lives->client);
    checkpoint->delete_asked = true;
    vm_checkpoint_delete(lives->stage->vm, checkpoint->uuid, answered, &lives->client);
}

static void forget(struct lives *lives)
{
    struct lives_client *client = &lives->client;
    struct lives_checkpoint *checkpoint = one_to_delete(client);
    if (!checkpoint) {
        let_go(lives);
        return;
    }
    if (!ask(lives, ask_delete) || client->code == EBUSY)
        return;
    if (client->code != 0 && client->code != ENOENT)
        lives_fail(lives, "a checkpoint can't be deleted: %d", client->code);
    forget_checkpoint(client, checkpoint);
    step(lives, CLIENT_FORGET);
}

void backup_act(struct lives *lives)
{
    struct lives_client *client = &lives->client;
    switch (client->step) {
    case CLIENT_IDLE:
        if (lives->tracked && lives_chance(lives, 300))
            begin(lives);
        break;
    case CLIENT_SNAPSHOT:
        snapshot_answered(lives);
        break;
    case CLIENT_COPY:
        copy_goes_on(lives);
        break;
    case CLIENT_COMMIT:
        commit(lives);
        break;
    case CLIENT_FORGET:
        forget(lives);
        break;
    case CLIENT_GIVE_UP:
        give_up(lives);
        break;
    }
}

/* ---- deaths ---- */

static void lease_again(void *argument)
{
    struct lives *lives = argument;
    struct error err;
    lives->client.code = vm_snapshot_lease(lives->stage->vm, lives->client.uuid, &lives->client, &err);
}

/* The new daemon is there: is the snapshot? */
void backup_died(struct lives *lives)
{
    struct lives_client *client = &lives->client;
    const enum lives_client_step was = client->step;
    const bool copying = was == CLIENT_COPY || was == CLIENT_GIVE_UP;
    for (unsigned disk = 0; disk < STAGE_DISKS; disk++) {
        client->targets[disk].copy = NULL;
        client->targets[disk].over = true;
    }
    client->asked = client->copied = false;
    if (was == CLIENT_SNAPSHOT) {
        if (client->snapshot->views[0] != NULL && !client->snapshot->answered)
            lives_fail(lives, "the snapshot of a backup is there, and nobody was told of it (C2)");
        step(lives, CLIENT_IDLE);
    }
    if (was == CLIENT_SNAPSHOT || was == CLIENT_IDLE)
        return;
    world_call(lives->stage->control, lease_again, lives);
    if (client->code == 0)
        return;
    if (copying)
        PROBE(restart_backup_lost_its_snapshot);
    if (copying)
        step(lives, CLIENT_GIVE_UP);
}

void backup_finish(struct lives *lives)
{
    for (unsigned i = 0; i < 20000 && lives->client.step != CLIENT_IDLE && !lives->stage->dead; i++) {
        backup_act(lives);
        world_run_for(lives->stage->world, 100 * NS_PER_US);
    }
    if (!lives->stage->dead && lives->client.step != CLIENT_IDLE)
        lives_fail(lives, "a backup never comes to its end: step %d", (int)lives->client.step);
}

void backup_end(struct lives *lives)
{
    struct lives_client *client = &lives->client;
    for (unsigned i = 0; i < client->point_count; i++)
        point_free(&client->points[i]);
    image_free(&client->image);
}
