/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The exports of the simulation: a view of a snapshot is published, read at random places by several readers at once on
 * the disk's reactor, and withdrawn when its readers have come back. Every byte must be that of the image, however long
 * ago the guest has overwritten it; a broken or deleted snapshot answers errors.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sim.h"

struct reader {
    struct view *view;
    struct request req;
    struct iovec iov[3];
    struct block_extent extents[SIM_EXTENTS];
    uint8_t *buffer;
    bool busy;
    uint64_t read_faults, issued_at;
    struct io_timer pause;
};

struct view {
    struct list_node link;
    struct sim *sim;
    struct sim_snapshot *snapshot;
    struct sim_disk *disk;
    struct node *node;
    unsigned reader_count, readers_out;
    bool closing;
    uint64_t longest;
    struct io_message message;
    void (*unpublished)(void *argument, int status);
    void *unpublished_argument;
    struct reader readers[];
};

struct answer { /* to publish(), later */
    struct io_message message;
    void (*done)(void *argument, int status);
    void *argument;
    int status;
};

static void reader_issue(struct reader *reader);

static void view_closed(struct io_message *message)
{
    struct view *view = container_of(message, struct view, message);
    list_remove(&view->link);
    view->snapshot->views--;
    void (*done)(void *, int) = view->unpublished;
    void *argument = view->unpublished_argument;
    for (unsigned i = 0; i < view->reader_count; i++)
        free(view->readers[i].buffer);
    free(view);
    done(argument, 0);
}

static void reader_stop(struct reader *reader)
{
    struct view *view = reader->view;
    if (--view->readers_out > 0)
        return;
    view->message.deliver = view_closed;
    io_post(view->sim->control, &view->message);
}

static void reader_pause_over(struct io_timer *timer)
{
    reader_issue(container_of(timer, struct reader, pause));
}

/* What readers find while the guests rest is soon known: no time is spent on it. */
static bool readers_lead(const struct sim *sim)
{
    return sim->reads_done > sim->requests_done + sim->requests_done / 2 + 100;
}

static void reader_pause(struct reader *reader)
{
    struct sim *sim = reader->view->sim;
    uint64_t longest = sim_slow(sim)          ? 10 * NS_PER_MS
                       : readers_lead(sim)    ? 2 * NS_PER_MS
                       : sim_chance(sim, 128) ? NS_PER_MS
                                              : 300 * NS_PER_US;
    reader->pause.fire = reader_pause_over;
    io_timer_set(reader->view->disk->io, &reader->pause, world_now(sim->world) + 1 + sim_below(sim, longest));
}

static void reader_check_error(const struct reader *reader, int status)
{
    const struct view *view = reader->view;
    const struct sim *sim = view->sim;
    if (status == -EIO && view->disk->read_faults == reader->read_faults)
        view->snapshot->failed_at = view->snapshot->failed_at ? view->snapshot->failed_at : world_now(sim->world);
    if (status == -EIO && (sim->may_break || view->disk->read_faults != reader->read_faults))
        return;
    if (status == -ESHUTDOWN && (view->snapshot->ending || !view->snapshot->live)) /* or taken back */
        return;
    sim_fail(sim, "a read of %s@%s failed with %d, for no reason", view->disk->name, view->snapshot->name, status);
}

static void reader_check(const struct reader *reader)
{
    const struct view *view = reader->view;
    const struct sim *sim = view->sim;
    const struct sim_snapshot *snapshot = view->snapshot;
    const uint8_t *image = snapshot->images[view->disk->index];
    /* from the news of a break to the last disk that obeys: a round that is under way, messages, and threads that hang */
    const uint64_t grace_ns = (sim->tight ? 260 : 20) * NS_PER_MS + 700 * sim->message_ns;
    if (snapshot->broken && reader->issued_at > snapshot->broken_at + grace_ns)
        sim_fail(sim, "a read of %s@%s, which is broken, did not fail (R4)", view->disk->name, snapshot->name);
    if (reader->req.kind == REQUEST_BLOCK_STATUS) {
        sim_check_extents(sim, &reader->req, image, snapshot->name);
        return;
    }
    const struct range range = reader->req.range;
    if (memcmp(reader->buffer, image + range.start, range.length) == 0)
        return;
    uint64_t at = 0;
    while (reader->buffer[at] == image[range.start + at])
        at++;
    sim_fail(sim, "%s@%s: byte %llu of [%llu +%llu] is not what it was at the cut (R1)", view->disk->name,
             snapshot->name, (unsigned long long)(range.start + at), (unsigned long long)range.start,
             (unsigned long long)range.length);
}

static void reader_done(struct request *req, int status)
{
    struct reader *reader = container_of(req, struct reader, req);
    struct sim *sim = reader->view->sim;
    if (!reader->busy)
        sim_fail(sim, "a read of a snapshot was completed twice");
    reader->busy = false;
    sim->reads_done++;
    sim_trace(sim, "%s@%s read [%llu +%llu] done %d", reader->view->disk->name, reader->view->snapshot->name,
              (unsigned long long)req->range.start, (unsigned long long)req->range.length, status);
    if (status < 0)
        reader_check_error(reader, status);
    else
        reader_check(reader);
    if (reader->view->closing)
        reader_stop(reader);
    else if (!sim_slow(sim) && !readers_lead(sim) && sim_chance(sim, 400))
        reader_issue(reader);
    else
        reader_pause(reader);
}

static void reader_issue(struct reader *reader)
{
    struct view *view = reader->view;
    struct sim *sim = view->sim;
    if (view->closing) {
        reader_stop(reader);
        return;
    }
    bool status = sim_chance(sim, 200);
    reader->req = (struct request){.kind = status ? REQUEST_BLOCK_STATUS : REQUEST_READ, .done = reader_done};
    reader->req.range = sim_random_range(sim, view->disk->size, view->longest);
    if (sim_chance(sim, 128)) { /* the chains' place, too */
        reader->req.range.start = 0;
        reader->req.range.length = 1 + sim_below(sim, view->longest);
    }
    if (status) {
        reader->req.extents = reader->extents;
        reader->req.extent_max = 1 + (unsigned)sim_below(sim, SIM_EXTENTS);
        reader->req.flags = sim_chance(sim, 256) ? REQUEST_ONE : 0;
        if (sim_chance(sim, 64))
            reader->req.range = (struct range){0, view->disk->size};
    } else {
        sim_slice(sim, reader->iov, &reader->req.iov_count, reader->buffer, reader->req.range.length);
        reader->req.iov = reader->iov;
    }
    reader->busy = true;
    reader->read_faults = view->disk->read_faults;
    reader->issued_at = world_now(sim->world);
    node_submit(view->node, &reader->req);
}

static void view_start(struct io_message *message)
{
    struct view *view = container_of(message, struct view, message);
    view->readers_out = view->reader_count;
    for (unsigned i = 0; i < view->reader_count; i++) {
        if (sim_chance(view->sim, 512))
            reader_issue(&view->readers[i]);
        else
            reader_pause(&view->readers[i]);
    }
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
    unsigned count = 1 + (unsigned)sim_below(sim, sim->readers_max);
    if (sim->readers_max > 8 && sim_chance(sim, 512))
        count = sim->readers_max;
    struct view *view = calloc(1, sizeof(*view) + count * sizeof(struct reader));
    if (view == NULL)
        abort();
    view->sim = sim;
    view->snapshot = snapshot;
    view->disk = disk;
    view->node = node;
    view->reader_count = count;
    view->longest = sim->longest < disk->size ? sim->longest : disk->size;
    for (unsigned i = 0; i < count; i++) {
        view->readers[i].view = view;
        if ((view->readers[i].buffer = malloc(view->longest)) == NULL)
            abort();
    }
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
    view->closing = true; /* each reader stops when it comes back */
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
    .snapshot_created = snapshot_created,
    .snapshot_broken = snapshot_broken,
    .snapshot_deleted = snapshot_deleted,
};
