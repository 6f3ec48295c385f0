/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A snapshot of a VM, from the wish to the last byte given back. Runs on the control thread; what has to happen on a
 * disk's reactor goes there as one message per disk ("part") and comes back, step by step:
 *
 *     QUEUED      another one is being cut
 *     ADOPTED     or: a killed daemon has left it (vm/restart.c), and exports can't be made yet
 *     OPENING     the cache files of the disks are made, if there are no filters yet
 *     PREPARING   parts: filter (if there is none), point, view, needed set: all that takes memory, before the guest is held
 *     FREEZING    the guest is frozen, if somebody can do that (snapshot_freeze.c)
 *     CUTTING     block/cut: hold, drain, all points go live, resume; an aborted attempt is tried again after a pause
 *     RECORDING   the checkpoint that was made with it becomes durable, if there is one (snapshot_checkpoint.c)
 *     PUBLISHING  the views become exports; the caller is told only when all are
 *     LIVE        (or broken: its points are dead, the exports answer errors, and it says why)
 *     ENDING      parts: the points die at once
 *     WITHDRAWING the exports end, with their connections
 *     FREEING     parts: views and points go; what served them alone is swept
 *     CLOSING     it was the last one: filters and cache files go; another one waits until they have gone
 *
 * A snapshot that is limited to a dirty bitmap needs what is set in it at the cut. The copy of the bitmap is made in
 * PREPARING and goes on noting writes until the cut (track/bitmap_copy), so that it is whole then and the hold takes no
 * memory. Had it no memory for one of those writes, the point needs all blocks, and the snapshot is taken back.
 *
 * A checkpoint that is made alone is a *bare* snapshot: it is cut like any other, but has no filter, point or view, is
 * listed nowhere, and ends when its checkpoint is recorded.
 *
 * What must be whole before the guest is held is made in PREPARING; nothing that can fail happens inside the hold. A
 * failure in any step leads through FREEING, so nothing is left behind (R7). A lease that ends while its snapshot is made
 * dooms it: it is taken back as soon as its step is over.
 *
 * A crash ends it, or the next daemon adopts it. The record of it says which, in one word: it is stored when the snapshot
 * becomes LIVE, before its maker is told, and withdrawn when it becomes ENDING.
 */
#include <assert.h>
#include <errno.h>

#include "base/probe.h"
#include "vm/snapshot_internal.h"

void snapshot_move(struct snapshot *snapshot, enum snapshot_step to)
{
    static const unsigned allowed[] = {
        [QUEUED] = 1 << OPENING | 1 << FREEING,
        [ADOPTED] = 1 << PUBLISHING | 1 << ENDING,
        [OPENING] = 1 << PREPARING | 1 << FREEING,
        [PREPARING] = 1 << FREEZING | 1 << CUTTING | 1 << FREEING,
        [FREEZING] = 1 << CUTTING | 1 << FREEING,
        [CUTTING] = 1 << RECORDING | 1 << PUBLISHING | 1 << FREEING,
        [RECORDING] = 1 << PUBLISHING | 1 << ENDING,
        [PUBLISHING] = 1 << LIVE | 1 << ENDING,
        [LIVE] = 1 << ENDING,
        [ENDING] = 1 << WITHDRAWING,
        [WITHDRAWING] = 1 << FREEING,
        [FREEING] = 1 << CLOSING,
        [CLOSING] = 0,
    };
    assert(allowed[snapshot->step] & 1U << to);
    snapshot->step = to;
}

/* Its exports are there, or not, and the guest has thawed. */
static void snapshot_conclude(struct snapshot *snapshot)
{
    struct vm *vm = snapshot->vm;
    if (snapshot->doomed)
        snapshot_forsaken(snapshot, "taken back");
    for (unsigned i = 0; i < vm->disk_count && !snapshot->failure.code; i++)
        if (snapshot->parts[i].status < 0)
            error_set(&snapshot->failure, -snapshot->parts[i].status, "cannot export '%s': %s",
                      snapshot->parts[i].export_name, error_name(snapshot->parts[i].status));
    for (unsigned i = 0; i < vm->disk_count && !snapshot->failure.code; i++)
        if (snapshot->parts[i].needed.status < 0)
            error_set(&snapshot->failure, ENOMEM, "snapshot '%s' refused: no memory to note what it needs of disk %s",
                      snapshot->name, snapshot->parts[i].vd->disk->name);
    if (snapshot->broken && !snapshot->adopted && !snapshot->failure.code)
        error_set(&snapshot->failure, ENOSPC, "snapshot '%s' broke at once: %s", snapshot->name, snapshot->reason);
    if (!snapshot->failure.code)
        (void)snapshot_check_consistency(snapshot, &snapshot->failure);
    if (snapshot->failure.code) {
        PROBE(snapshot_taken_back);
        snapshot_checkpoint_drop(snapshot);
        snapshot_end(snapshot);
        return;
    }
    snapshot_move(snapshot, LIVE);
    if (snapshot->adopted) {
        if (snapshot->record->leased)
            snapshot_wait_for_lease(snapshot);
        snapshot_checkpoint_adopted(snapshot);
        adopted_published(vm);
        return;
    }
    if (!MUTANT(restart_commit_word_missing))
        snapshot_record_commit(snapshot);
    snapshot_checkpoint_tell(snapshot);
    snapshot->created(snapshot->created_argument, snapshot, NULL);
    vm->options.hooks.snapshot_created(vm->options.hooks.context, snapshot);
}

static void snapshot_published(struct snapshot *snapshot)
{
    snapshot_when_settled(snapshot, snapshot_conclude);
}

static void part_published(void *argument, int status)
{
    struct part *part = argument;
    struct snapshot *snapshot = part->snapshot;
    part->status = status;
    part->published = status == 0;
    if (--snapshot->parts_out == 0)
        snapshot_published(snapshot);
}

static void snapshot_publish_views(struct snapshot *snapshot)
{
    struct vm *vm = snapshot->vm;
    for (unsigned i = 0; i < vm->disk_count && !snapshot->failure.code; i++)
        if (snapshot->parts[i].status < 0)
            snapshot->failure = snapshot->parts[i].error;
    if (snapshot->failure.code || snapshot->doomed) {
        snapshot_published(snapshot);
        return;
    }
    snapshot->parts_out = snapshot->no_export ? 0 : vm->disk_count;
    for (unsigned i = 0; i < vm->disk_count && !snapshot->no_export; i++) {
        struct part *part = &snapshot->parts[i];
        vm->options.hooks.publish(vm->options.hooks.context, part->export_name, part->view, part_published, part);
    }
    if (snapshot->no_export)
        snapshot_published(snapshot);
}

static void snapshot_publish(struct snapshot *snapshot)
{
    snapshot_move(snapshot, PUBLISHING);
    if (MUTANT(restart_commit_word_early) && !snapshot->adopted)
        snapshot_record_commit(snapshot);
    if (snapshot->record && !snapshot->adopted)
        parts_send(snapshot, part_store, snapshot_publish_views);
    else
        snapshot_publish_views(snapshot);
}

/* The checkpoint is durable on every disk that could. */
static void snapshot_recorded(struct snapshot *snapshot)
{
    const int status = snapshot_checkpoint_enter(snapshot, &snapshot->failure);
    snapshot_turn_over(snapshot->vm);
    if (status < 0 && !snapshot->bare)
        snapshot->failure = (struct error){0}; /* the snapshot is whole: each disk says why it has no checkpoint */
    if (!snapshot->bare)
        snapshot_publish(snapshot);
    else
        snapshot_end(snapshot);
}

static void cut_attempt(struct snapshot *snapshot);

static void cut_pause_over(struct io_timer *timer)
{
    struct snapshot *snapshot = container_of(timer, struct snapshot, pause);
    if (!snapshot->doomed) {
        cut_attempt(snapshot);
        return;
    }
    PROBE(snapshot_doomed_in_pause);
    snapshot_forsaken(snapshot, "not taken");
    snapshot_free(snapshot);
}

static void cut_done(struct cut *cut, int status)
{
    struct snapshot *snapshot = container_of(cut, struct snapshot, cut);
    struct vm *vm = snapshot->vm;
    snapshot->hold_ns = cut->hold_ns;
    if (status == 0) {
        snapshot_thaw(snapshot);
        snapshot->created_wall_ns = io_wall_ns(vm->io);
        if (snapshot->checkpoint.name[0]) {
            snapshot_move(snapshot, RECORDING);
            parts_send(snapshot, part_record, snapshot_recorded);
        } else {
            snapshot_turn_over(vm);
            snapshot_publish(snapshot);
        }
    } else if (snapshot->doomed) {
        snapshot_forsaken(snapshot, "not taken");
        snapshot_free(snapshot);
    } else if (io_now_ns(vm->io) >= snapshot->give_up_ns) {
        PROBE(cut_refused);
        error_set(&snapshot->failure, ETIMEDOUT,
                  "snapshot '%s' refused: writes in flight on disk %s did not finish within %u attempts of %llu ms",
                  snapshot->name, cut->slowest_disk ? cut->slowest_disk : "?", snapshot->attempts,
                  (unsigned long long)(snapshot->drain_ns / NS_PER_MS));
        snapshot_free(snapshot);
    } else {
        PROBE(cut_tried_again);
        io_timer_set(vm->io, &snapshot->pause, io_now_ns(vm->io) + CUT_RETRY_PAUSE_NS);
    }
}

static void cut_attempt(struct snapshot *snapshot)
{
    struct vm *vm = snapshot->vm;
    uint64_t deadline_ns = io_now_ns(vm->io) + snapshot->drain_ns;
    if (deadline_ns > snapshot->give_up_ns)
        deadline_ns = snapshot->give_up_ns;
    snapshot->attempts++;
    snapshot->cut.io = vm->io;
    snapshot->cut.disks = snapshot->cut_disks;
    snapshot->cut.disk_count = vm->disk_count;
    snapshot->cut.deadline_ns = deadline_ns;
    snapshot->cut.at_cut = part_cut;
    snapshot->cut.done = cut_done;
    cut_start(&snapshot->cut);
}

static void snapshot_prepared(struct snapshot *snapshot)
{
    for (unsigned i = 0; i < snapshot->vm->disk_count; i++)
        if (snapshot->parts[i].status < 0)
            snapshot->failure = snapshot->parts[i].error;
    if (snapshot->doomed && !snapshot->failure.code)
        snapshot_forsaken(snapshot, "not taken");
    if (snapshot->failure.code) {
        PROBE(snapshot_not_prepared);
        snapshot_free(snapshot);
        return;
    }
    if (snapshot_wants_freeze(snapshot)) {
        snapshot_move(snapshot, FREEZING);
        snapshot->freeze_began_ns = io_now_ns(snapshot->vm->io);
        snapshot_freeze(snapshot);
        return;
    }
    snapshot_move(snapshot, CUTTING);
    cut_attempt(snapshot);
}

void snapshot_frozen(struct snapshot *snapshot)
{
    if (!snapshot->frozen)
        (void)snapshot_check_consistency(snapshot, &snapshot->failure);
    if (snapshot->failure.code) {
        snapshot_free(snapshot);
        return;
    }
    snapshot->give_up_ns += io_now_ns(snapshot->vm->io) - snapshot->freeze_began_ns;
    snapshot_move(snapshot, CUTTING);
    cut_attempt(snapshot);
}

static void snapshot_prepare(struct snapshot *snapshot)
{
    struct vm *vm = snapshot->vm;
    for (unsigned i = 0; i < vm->disk_count && !snapshot->failure.code; i++)
        if (vm->disks[i].error.code)
            snapshot->failure = vm->disks[i].error;
    if (snapshot->doomed && !snapshot->failure.code)
        snapshot_forsaken(snapshot, "not taken");
    if (snapshot->failure.code) {
        PROBE(snapshot_without_cache_file);
        snapshot_free(snapshot);
        return;
    }
    snapshot_move(snapshot, PREPARING);
    parts_send(snapshot, part_prepare, snapshot_prepared);
}

static void sidecar_opened(struct vm_disk *vd)
{
    struct snapshot *snapshot = vd->tracking.opened_context;
    if (--snapshot->parts_out == 0)
        snapshot_prepare(snapshot);
}

static void file_opened(void *argument, struct node *file, const struct error *err)
{
    struct part *part = argument;
    const struct vm_hooks *hooks = &part->snapshot->vm->options.hooks;
    part->vd->file = file;
    if (err)
        part->vd->error = *err;
    else if (file && part->snapshot->vm->table.layout)
        hooks->cache_describe(hooks->context, file, &part->vd->file_id);
    if (--part->snapshot->parts_out == 0)
        snapshot_prepare(part->snapshot);
}

void snapshot_begin(struct snapshot *snapshot)
{
    struct vm *vm = snapshot->vm;
    const struct vm_hooks *hooks = &vm->options.hooks;
    vm->cutting = snapshot;
    snapshot->checkpoint.created_wall_ns = io_wall_ns(vm->io);
    snapshot->give_up_ns += io_now_ns(vm->io);
    snapshot->pause.fire = cut_pause_over;
    snapshot_move(snapshot, OPENING);
    if (!snapshot->bare) {
        if (vm->filters == FILTERS_NONE)
            snapshot_table_begin(vm);
        snapshot->epoch = ++vm->last_epoch;
        snapshot_record_make(snapshot);
    }
    snapshot->parts_out = 1; /* our own, so that it does not reach 0 within the loop */
    snapshot_sidecars_open(snapshot, sidecar_opened);
    for (unsigned i = 0; i < vm->disk_count && vm->filters == FILTERS_NONE && !snapshot->bare; i++) {
        struct vm_disk *vd = &vm->disks[i];
        vd->error = (struct error){0};
        if (!vm->options.disk_bytes || !hooks->cache_open)
            continue;
        snapshot->parts_out++;
        hooks->cache_open(hooks->context, vd->disk, vd->block_bytes, file_opened, &snapshot->parts[i]);
    }
    if (!snapshot->bare) {
        cache_watch_begin(vm);
        vm->filters = FILTERS_MADE;
    }
    if (--snapshot->parts_out == 0)
        snapshot_prepare(snapshot);
}

void snapshot_adopted(struct snapshot *snapshot)
{
    assert(snapshot->step == ADOPTED);
    snapshot_publish(snapshot);
}
