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
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/name.h"
#include "base/probe.h"
#include "io/uuid.h"
#include "vm/checkpoint_table.h"
#include "vm/snapshot_internal.h"

static void step_move(struct snapshot *snapshot, enum snapshot_step to)
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

/* ---- the end of a snapshot ---- */

static void snapshot_begin(struct snapshot *snapshot);

void vm_take_turns(struct vm *vm)
{
    if (vm->cutting || vm->growing || vm->filters == FILTERS_CLOSING || growth_begin(vm))
        return;
    list_each (link, &vm->snapshots) {
        struct snapshot *snapshot = container_of(link, struct snapshot, link);
        if (snapshot->step == QUEUED) {
            snapshot_begin(snapshot);
            return;
        }
    }
}

/* The next one in the queue may be prepared and cut. */
static void cut_next(struct vm *vm)
{
    vm->cutting = NULL;
    vm_take_turns(vm);
}

static void snapshot_gone(struct snapshot *snapshot)
{
    struct vm *vm = snapshot->vm;
    list_remove(&snapshot->link);
    vm->snapshot_count--;
    if (vm->cutting == snapshot || (!vm->cutting && snapshot->step == CLOSING))
        cut_next(vm);
    if (snapshot->failure.code)
        snapshot->created(snapshot->created_argument, NULL, &snapshot->failure);
    else if (snapshot->bare)
        snapshot->created(snapshot->created_argument, snapshot, NULL);
    else
        vm->options.hooks.snapshot_deleted(vm->options.hooks.context, snapshot->name, snapshot->uuid);
    if (snapshot->deleted)
        snapshot->deleted(snapshot->deleted_argument, NULL);
    free(snapshot);
    vm_check_closed(vm);
}

/* Whether another snapshot uses the filters. */
static bool filters_in_use(const struct snapshot *without)
{
    list_each (link, &without->vm->snapshots) {
        const struct snapshot *snapshot = container_of(link, struct snapshot, link);
        if (snapshot != without && snapshot->step > QUEUED && !snapshot->bare)
            return true;
    }
    return false;
}

static void filters_closed(struct snapshot *snapshot)
{
    snapshot_table_destroy(&snapshot->vm->table);
    snapshot->vm->filters = FILTERS_NONE;
    snapshot_gone(snapshot);
}

static void file_closed(void *argument)
{
    struct part *part = argument;
    struct snapshot *snapshot = part->snapshot;
    part->vd->file = NULL;
    if (--snapshot->parts_out > 0)
        return;
    filters_closed(snapshot);
}

static void filters_gone(struct snapshot *snapshot)
{
    struct vm *vm = snapshot->vm;
    snapshot->parts_out = 1; /* our own, so that it does not reach 0 within the loop */
    for (unsigned i = 0; i < vm->disk_count; i++) {
        struct vm_disk *vd = &vm->disks[i];
        if (!vd->file || MUTANT(cache_stays_open))
            continue;
        snapshot->parts_out++;
        vm->options.hooks.cache_close(vm->options.hooks.context, vd->disk, vd->file, file_closed, &snapshot->parts[i]);
    }
    if (--snapshot->parts_out == 0)
        filters_closed(snapshot);
}

/* Its parts have gone, and the guest has thawed. */
static void snapshot_leave(struct snapshot *snapshot)
{
    snapshot_record_free(snapshot);
    if (snapshot->vm->filters != FILTERS_MADE || snapshot->bare || filters_in_use(snapshot)) {
        snapshot_gone(snapshot);
        return;
    }
    step_move(snapshot, CLOSING);
    snapshot->vm->filters = FILTERS_CLOSING;
    parts_send(snapshot, part_close, filters_gone);
}

static void snapshot_freed(struct snapshot *snapshot)
{
    snapshot_when_settled(snapshot, snapshot_leave);
}

static void snapshot_free(struct snapshot *snapshot)
{
    snapshot_thaw(snapshot);
    step_move(snapshot, FREEING);
    parts_send(snapshot, part_free, snapshot_freed);
}

static void part_withdrawn(void *argument, int status)
{
    struct part *part = argument;
    struct snapshot *snapshot = part->snapshot;
    (void)status;
    part->published = false;
    if (--snapshot->parts_out == 0)
        snapshot_free(snapshot);
}

static void snapshot_withdraw(struct snapshot *snapshot)
{
    struct vm *vm = snapshot->vm;
    step_move(snapshot, WITHDRAWING);
    snapshot->parts_out = 1 + snapshot->holds; /* one is our own, so that it does not reach 0 within the loop */
    for (unsigned i = 0; i < vm->disk_count; i++) {
        struct part *part = &snapshot->parts[i];
        if (!part->published || MUTANT(export_not_withdrawn))
            continue;
        snapshot->parts_out++;
        vm->options.hooks.unpublish(vm->options.hooks.context, part->export_name, part_withdrawn, part);
    }
    if (--snapshot->parts_out == 0)
        snapshot_free(snapshot);
}

bool snapshot_hold(struct snapshot *snapshot)
{
    if (snapshot->step == LIVE)
        snapshot->holds++;
    return snapshot->step == LIVE;
}

void snapshot_let_go(struct snapshot *snapshot)
{
    assert(snapshot->holds > 0 && snapshot->step >= LIVE && snapshot->step <= WITHDRAWING);
    snapshot->holds--;
    if (snapshot->step == WITHDRAWING && --snapshot->parts_out == 0)
        snapshot_free(snapshot);
}

void snapshot_end(struct snapshot *snapshot)
{
    io_timer_cancel(snapshot->vm->io, &snapshot->grace);
    step_move(snapshot, ENDING);
    if (!MUTANT(restart_end_not_stored))
        snapshot_record_end(snapshot);
    parts_send(snapshot, part_end, snapshot_withdraw);
}

/* ---- the making of a snapshot ---- */

/* Nobody waits for it any more; `fate`: what became of it. */
static void snapshot_forsaken(struct snapshot *snapshot, const char *fate)
{
    bool closing = snapshot->vm->closing;
    error_set(&snapshot->failure, closing ? ESHUTDOWN : ECANCELED, "snapshot '%s' was %s: %s", snapshot->name, fate,
              closing ? "the daemon is shutting down" : "its client is gone");
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
    step_move(snapshot, LIVE);
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
    if (snapshot->failure.code) {
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
    step_move(snapshot, PUBLISHING);
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
    cut_next(snapshot->vm);
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
            step_move(snapshot, RECORDING);
            parts_send(snapshot, part_record, snapshot_recorded);
        } else {
            cut_next(vm);
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
        step_move(snapshot, FREEZING);
        snapshot->freeze_began_ns = io_now_ns(snapshot->vm->io);
        snapshot_freeze(snapshot);
        return;
    }
    step_move(snapshot, CUTTING);
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
    step_move(snapshot, CUTTING);
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
    step_move(snapshot, PREPARING);
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

static void snapshot_begin(struct snapshot *snapshot)
{
    struct vm *vm = snapshot->vm;
    const struct vm_hooks *hooks = &vm->options.hooks;
    vm->cutting = snapshot;
    snapshot->checkpoint.created_wall_ns = io_wall_ns(vm->io);
    snapshot->give_up_ns += io_now_ns(vm->io);
    step_move(snapshot, OPENING);
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

/* ---- what callers ask for ---- */

struct snapshot *vm_snapshot_next(const struct vm *vm, const struct snapshot *after)
{
    const struct list_node *next = after ? after->link.next : vm->snapshots.head.next;
    while (next != &vm->snapshots.head && container_of(next, struct snapshot, link)->bare)
        next = next->next;
    return next == &vm->snapshots.head ? NULL : container_of(next, struct snapshot, link);
}

struct snapshot *vm_snapshot_find(const struct vm *vm, const char *name)
{
    struct snapshot *snapshot = NULL;
    while ((snapshot = vm_snapshot_next(vm, snapshot)) && strcmp(snapshot->name, name) != 0)
        ;
    return snapshot;
}

static int snapshot_check(struct vm *vm, const struct snapshot_options *options, const char *name, struct error *err)
{
    const char *bitmap = options->bitmap;
    if (name_check("snapshot name", name, err) < 0 || (bitmap && name_check("name of a dirty bitmap", bitmap, err) < 0))
        return -EINVAL;
    if (vm->closing)
        return error_set(err, ESHUTDOWN, "no snapshot '%s': the daemon is shutting down", name);
    if (options->consistency == CONSISTENCY_REQUIRED && !vm->options.hooks.freeze)
        return error_set(err, EINVAL,
                         "snapshot '%s' refused: this daemon can't freeze the guest; fleeced has the options "
                         "--guest-agent and --hook-dir for that",
                         name);
    if (vm->away)
        return error_set(err, EBUSY, "no snapshot '%s': %s", name, vm->away);
    if (vm_snapshot_find(vm, name))
        return error_set(err, EEXIST, "there is a snapshot '%s' already: choose another name, or delete it", name);
    if (vm->snapshot_count == LIMIT_SNAPSHOTS)
        return error_set(err, ENOSPC, "snapshot '%s' is one too many: a VM has at most %d at once, delete one", name,
                         LIMIT_SNAPSHOTS);
    if (vm->last_epoch >= LIMIT_EPOCH - LIMIT_SNAPSHOTS)
        return error_set(err, ENOSPC,
                         "snapshot '%s' refused: this daemon has made %u, as many as it can count; restart it", name,
                         vm->last_epoch);
    return 0;
}

static struct snapshot *snapshot_make(struct vm *vm, const struct snapshot_options *options, const char *name)
{
    struct snapshot *snapshot = calloc(1, sizeof *snapshot + vm->disk_count * sizeof snapshot->parts[0]);
    if (!snapshot)
        return NULL;
    snapshot->vm = vm;
    snapshot->lease = options->lease;
    snapshot->read_once = options->read_once;
    snapshot->through_mode = options->through_always ? THROUGH_ALWAYS : THROUGH_WHEN_FULL;
    if (options->bitmap)
        memccpy(snapshot->bitmap, options->bitmap, 0, sizeof snapshot->bitmap - 1);
    snapshot->no_export = options->no_export;
    snapshot->consistency_wish = options->consistency;
    snapshot->ephemeral = options->ephemeral || options->through || options->no_export;
    snapshot->grace_ns = options->grace_ns;
    snapshot->grace.fire = snapshot_grace_over;
    snapshot->drain_ns = options->drain_ns ? options->drain_ns : CUT_ATTEMPT_NS;
    uint64_t total_ns = options->total_ns ? options->total_ns : CUT_TOTAL_MAX_NS;
    snapshot->give_up_ns = total_ns < CUT_TOTAL_MAX_NS ? total_ns : CUT_TOTAL_MAX_NS; /* from its beginning */
    snapshot->pause.fire = cut_pause_over;
    memccpy(snapshot->name, name, 0, sizeof snapshot->name - 1);
    uuid_make(vm->io, snapshot->uuid);
    for (unsigned i = 0; i < vm->disk_count; i++) {
        struct part *part = &snapshot->parts[i];
        part->snapshot = snapshot;
        part->vd = &vm->disks[i];
        part->through = options->through ? options->through[i] : NULL;
        snprintf(part->export_name, sizeof part->export_name, "%s@%s", part->vd->disk->name, snapshot->name);
        snapshot->cut_disks[i].disk = part->vd->disk;
        snapshot->cut_disks[i].context = part;
    }
    return snapshot;
}

static void snapshot_not_adopted(void *argument, struct snapshot *snapshot, const struct error *err)
{
    (void)snapshot;
    log_warning("a snapshot of the daemon that was killed is lost: %s", err->text);
    adopted_published(argument);
}

struct snapshot *snapshot_adopt(struct vm *vm, unsigned number)
{
    struct snapshot_record *record = &vm->table.records[number];
    const struct snapshot_options options = {.bitmap = record->bitmap, .read_once = (enum read_once)record->read_once};
    struct snapshot *snapshot = snapshot_make(vm, &options, record->name);
    if (!snapshot)
        return NULL;
    snapshot->number = number;
    snapshot->record = record;
    snapshot->adopted = true;
    snapshot->step = ADOPTED;
    snapshot->epoch = record->epoch;
    snapshot->attempts = record->cut_attempts;
    snapshot->created_wall_ns = record->created_wall_ns;
    snapshot->hold_ns = record->hold_ns;
    snapshot->consistency = (enum consistency)record->consistency;
    snapshot->frozen_ns = record->frozen_ns;
    snprintf(snapshot->consistency_reason, sizeof snapshot->consistency_reason, "%.*s",
             (int)sizeof record->consistency_reason - 1, record->consistency_reason);
    snapshot->grace_ns = record->grace_ns ? record->grace_ns : LEASE_GRACE_DEFAULT_NS;
    snapshot->since = record->since;
    snapshot->checkpoint = record->checkpoint;
    memcpy(snapshot->uuid, record->uuid, sizeof snapshot->uuid);
    snapshot->broken = atomic_load(&record->broken);
    snprintf(snapshot->reason, sizeof snapshot->reason, "%.*s", (int)sizeof record->reason - 1,
             record->reason[0] ? record->reason : "it broke in the moment in which the daemon was killed");
    for (unsigned i = 0; i < vm->disk_count; i++)
        snapshot->parts[i].incremental = record->incremental >>
                                             snapshot_table_disk(&vm->table, vm->disks[i].disk->name) &
                                         1;
    snapshot->created = snapshot_not_adopted;
    snapshot->created_argument = vm;
    list_append(&vm->snapshots, &snapshot->link);
    vm->snapshot_count++;
    return snapshot;
}

void snapshot_adopted(struct snapshot *snapshot)
{
    assert(snapshot->step == ADOPTED);
    snapshot_publish(snapshot);
}

void snapshot_bury(struct snapshot *snapshot)
{
    snapshot_end(snapshot);
}

/* It waits for its turn, or begins. */
static void snapshot_start(struct snapshot *snapshot,
                           void (*done)(void *argument, struct snapshot *snapshot, const struct error *err),
                           void *argument)
{
    struct vm *vm = snapshot->vm;
    snapshot->created = done;
    snapshot->created_argument = argument;
    list_append(&vm->snapshots, &snapshot->link);
    vm->snapshot_count++;
    if (!vm->cutting && !vm->growing && vm->filters != FILTERS_CLOSING)
        snapshot_begin(snapshot);
    else
        PROBE(snapshot_queued);
}

void vm_snapshot_create(struct vm *vm, const struct snapshot_options *options,
                        void (*done)(void *argument, struct snapshot *snapshot, const struct error *err),
                        void *argument)
{
    struct error err = {0};
    char generated[LIMIT_NAME_BYTES + 1];
    const char *name = options->name;
    if (!name) {
        do
            snprintf(generated, sizeof generated, "snap-%u", ++vm->next_number);
        while (vm_snapshot_find(vm, generated));
        name = generated;
    }
    struct snapshot *snapshot = NULL;
    if (snapshot_check(vm, options, name, &err) == 0 && !(snapshot = snapshot_make(vm, options, name)))
        error_set(&err, ENOMEM, "no memory for snapshot '%s'", name);
    if (snapshot && snapshot_checkpoints_choose(snapshot, options, &err) < 0) {
        free(snapshot);
        snapshot = NULL;
    }
    if (snapshot)
        snapshot_start(snapshot, done, argument);
    else
        done(argument, NULL, &err);
}

struct snapshot *snapshot_create_bare(struct vm *vm, const char *checkpoint,
                                      void (*done)(void *argument, struct snapshot *snapshot, const struct error *err),
                                      void *argument, struct error *err)
{
    const struct snapshot_options options = {.checkpoint = checkpoint};
    struct snapshot *snapshot = NULL;
    if (vm->closing)
        error_set(err, ESHUTDOWN, "no checkpoint '%.80s': the daemon is shutting down", checkpoint);
    else if (vm->away)
        error_set(err, EBUSY, "no checkpoint '%.80s': %s", checkpoint, vm->away);
    else if (vm->snapshot_count == LIMIT_SNAPSHOTS)
        error_set(err, ENOSPC, "checkpoint '%.80s' must wait: there are %d snapshots, as many as a VM can have",
                  checkpoint, LIMIT_SNAPSHOTS);
    else if (!(snapshot = snapshot_make(vm, &options, "")))
        error_set(err, ENOMEM, "no memory for checkpoint '%.80s'", checkpoint);
    if (snapshot && snapshot_checkpoints_choose(snapshot, &options, err) < 0) {
        free(snapshot);
        snapshot = NULL;
    }
    if (!snapshot)
        return NULL;
    snapshot->bare = snapshot->no_export = true;
    snapshot_start(snapshot, done, argument);
    return snapshot;
}

void vm_snapshot_delete(struct vm *vm, const char *name, void (*done)(void *argument, const struct error *err),
                        void *argument)
{
    struct error err = {0};
    struct snapshot *snapshot = vm_snapshot_find(vm, name);
    if (!snapshot)
        error_set(&err, ENOENT, "there is no snapshot '%.80s'", name);
    else if (snapshot->step != LIVE)
        error_set(&err, EBUSY, "snapshot '%s' is being %s", name, snapshot->step < LIVE ? "created" : "deleted");
    if (err.code) {
        done(argument, &err);
        return;
    }
    snapshot->deleted = done;
    snapshot->deleted_argument = argument;
    snapshot_end(snapshot);
}

void snapshot_doom(struct snapshot *snapshot)
{
    switch (snapshot->step) {
    case QUEUED:
        snapshot_forsaken(snapshot, "not taken");
        snapshot_free(snapshot);
        break;
    case FREEZING: {
        const struct vm_hooks *hooks = &snapshot->vm->options.hooks;
        hooks->freeze_cancel(hooks->context);
        snapshot_forsaken(snapshot, "not taken");
        snapshot_free(snapshot);
        break;
    }
    case OPENING:
    case PREPARING:
    case CUTTING:
    case RECORDING:
    case PUBLISHING:
        PROBE(snapshot_doomed_in_making);
        snapshot->doomed = !MUTANT(lease_end_ignored);
        break;
    case ADOPTED:
    case LIVE:
        snapshot_end(snapshot);
        break;
    case ENDING:
    case WITHDRAWING:
    case FREEING:
    case CLOSING:
        break;
    }
}

void snapshots_end_all(struct vm *vm)
{
    list_each_safe (link, &vm->snapshots)
        snapshot_doom(container_of(link, struct snapshot, link));
    vm_check_closed(vm);
}

void snapshot_broke(struct snapshot *snapshot)
{
    const struct vm_hooks *hooks = &snapshot->vm->options.hooks;
    snapshot->broken = true;
    snapshot_record_broke(snapshot);
    if (snapshot->step == LIVE)
        hooks->snapshot_broken(hooks->context, snapshot);
}

void snapshots_ran_out(struct vm *vm, struct room_shortage shortage)
{
    list_each (link, &vm->snapshots) {
        struct snapshot *snapshot = container_of(link, struct snapshot, link);
        if (!snapshot->epoch || snapshot->epoch > shortage.through_epoch || snapshot->broken)
            continue;
        vm_describe_shortage(vm, &shortage, snapshot->reason, sizeof snapshot->reason);
        snapshot_broke(snapshot);
    }
}

void snapshots_lost(struct vm *vm, struct loss loss, const struct vm_disk *vd)
{
    const char *sentences[] = {
        [LOST_OLD_DATA] = "old data of disk %s could not be read before a guest write: %s",
        [LOST_CACHED] = "old data of disk %s could not be read from its cache file: %s",
        [LOST_TARGET] = "old data of disk %s could not be written to the backup's target: %s",
    };
    list_each (link, &vm->snapshots) {
        struct snapshot *snapshot = container_of(link, struct snapshot, link);
        if (snapshot->epoch != loss.epoch || snapshot->broken)
            continue;
        snprintf(snapshot->reason, sizeof snapshot->reason, sentences[loss.how], vd->disk->name,
                 error_name(loss.status));
        snapshot_broke(snapshot);
    }
}
