/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The exports of the simulation, and what else the VM asks of the daemon: a view of a snapshot is published, read by several
 * readers at once on the disk's reactor (reader.c), and withdrawn when its readers have come back.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sim.h"

struct view {
    struct list_node link;
    struct sim *sim;
    struct sim_snapshot *snapshot;
    struct sim_disk *disk;
    struct readers *readers;
    struct io_message message;
    void (*unpublished)(void *argument, int status);
    void *unpublished_argument;
};

struct answer { /* to publish(), later */
    struct io_message message;
    void (*done)(void *argument, int status);
    void *argument;
    int status;
};

static void view_closed(struct io_message *message)
{
    struct view *view = container_of(message, struct view, message);
    list_remove(&view->link);
    view->snapshot->views--;
    void (*done)(void *, int) = view->unpublished;
    void *argument = view->unpublished_argument;
    readers_free(view->readers);
    free(view);
    done(argument, 0);
}

static void readers_stopped(void *argument)
{
    struct view *view = argument;
    view->message.deliver = view_closed;
    io_post(view->sim->control, &view->message);
}

static void view_start(struct io_message *message)
{
    struct view *view = container_of(message, struct view, message);
    readers_start(view->readers, readers_stopped, view);
}

static void publish_answer(struct io_message *message)
{
    struct answer *answer = container_of(message, struct answer, message);
    answer->done(answer->argument, answer->status);
    free(answer);
}

static struct view *view_create(struct sim *sim, struct sim_snapshot *snapshot, struct sim_disk *disk,
                                struct node *node)
{
    struct view *view = calloc(1, sizeof(*view));
    if (view == NULL)
        abort();
    *view = (struct view){.sim = sim, .snapshot = snapshot, .disk = disk};
    view->readers = readers_create(sim, snapshot, disk, node);
    list_append(&sim->views, &view->link);
    snapshot->views++;
    return view;
}

static struct sim_disk *find_disk(struct sim *sim, const char *export_name, const char **snapshot)
{
    const char *at = strchr(export_name, '@');
    for (unsigned i = 0; at != NULL && i < sim->disk_count; i++)
        if (strncmp(sim->disks[i].name, export_name, (size_t)(at - export_name)) == 0) {
            *snapshot = at + 1;
            return &sim->disks[i];
        }
    sim_fail(sim, "'%s' is no name of an export", export_name);
}

static void publish(void *context, const char *export_name, struct node *node, void (*done)(void *argument, int status),
                    void *argument)
{
    struct sim *sim = context;
    const char *name;
    struct sim_disk *disk = find_disk(sim, export_name, &name);
    struct sim_snapshot *snapshot = sim_snapshot_find(sim, name);
    if (snapshot == NULL || snapshot->answered)
        sim_fail(sim, "'%s' is published, and nobody asked for it", export_name);
    oracle_take_images(sim, snapshot);
    struct answer *answer = calloc(1, sizeof(*answer));
    if (answer == NULL)
        abort();
    *answer = (struct answer){{publish_answer, NULL}, done, argument, 0};
    if (sim_chance(sim, 16)) {
        snapshot->publish_failed = true;
        answer->status = -EADDRINUSE;
    } else {
        struct view *view = view_create(sim, snapshot, disk, node);
        view->message.deliver = view_start;
        io_post(disk->io, &view->message);
    }
    io_post(sim->control, &answer->message);
}

static void view_close(struct io_message *message)
{
    struct view *view = container_of(message, struct view, message);
    readers_stop(view->readers);
}

static void unpublish(void *context, const char *export_name, void (*done)(void *argument, int status), void *argument)
{
    struct sim *sim = context;
    const char *name;
    struct sim_disk *disk = find_disk(sim, export_name, &name);
    list_each (link, &sim->views) {
        struct view *view = container_of(link, struct view, link);
        if (view->disk != disk || strcmp(view->snapshot->name, name) != 0)
            continue;
        view->unpublished = done;
        view->unpublished_argument = argument;
        view->message.deliver = view_close;
        io_post(disk->io, &view->message);
        return;
    }
    sim_fail(sim, "'%s' is withdrawn, and was not published", export_name);
}

static void snapshot_created(void *context, const struct snapshot *snapshot)
{
    struct snapshot_info info;
    snapshot_info(snapshot, &info);
    sim_trace(context, "created %s", info.name);
}

/* For want of room the oldest goes first. */
static void check_older_ones(const struct sim *sim, const struct sim_snapshot *snapshot)
{
    list_each (link, &sim->snapshots) {
        const struct sim_snapshot *other = container_of(link, struct sim_snapshot, link);
        if (other == snapshot)
            return;
        if (other->live && !other->broken && !other->ending)
            sim_fail(sim, "snapshot %s broke for want of room, and %s is older", snapshot->name, other->name);
    }
}

static void snapshot_broken(void *context, const struct snapshot *snapshot)
{
    struct sim *sim = context;
    struct snapshot_info info;
    snapshot_info(snapshot, &info);
    struct sim_snapshot *mine = sim_snapshot_find(sim, info.name);
    sim_trace(sim, "broken %s: %s", info.name, info.reason != NULL ? info.reason : "?");
    if (mine == NULL || mine->broken || !mine->live)
        sim_fail(sim, "snapshot %s broke twice, or was not there", info.name);
    if (info.state != SNAPSHOT_BROKEN || info.reason == NULL || info.reason[0] == 0)
        sim_fail(sim, "snapshot %s broke without a reason", info.name);
    if (!sim->may_break)
        sim_fail(sim, "snapshot %s broke: %s; there was room, and no disk failed", info.name, info.reason);
    if (strstr(info.reason, "full") != NULL)
        check_older_ones(sim, mine);
    mine->broken = true;
    mine->broken_at = world_now(sim->world);
    sim->broken_count++;
}

static void snapshot_deleted(void *context, const char *name, const char *uuid)
{
    struct sim *sim = context;
    struct sim_snapshot *snapshot = sim_snapshot_find(sim, name);
    sim_trace(sim, "deleted %s", name);
    if (snapshot == NULL || !snapshot->ending || strlen(uuid) != 36)
        sim_fail(sim, "snapshot %s was deleted, and nobody asked for that", name);
    sim_snapshot_ended(snapshot);
}

const struct vm_hooks sim_hooks = {
    .publish = publish,
    .unpublish = unpublish,
    .cache_open = cache_open,
    .cache_close = cache_close,
    .snapshot_created = snapshot_created,
    .snapshot_broken = snapshot_broken,
    .snapshot_deleted = snapshot_deleted,
};
