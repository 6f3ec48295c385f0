/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Each socket is an export of its own, on the reactor of its disk; here they are only counted: all have started, or all
 * have ended. A first failure ends the start, and what has started by then is ended by vhost_exports_stop(). After kill -9
 * the next start finds the socket's file in the record of the run time and listens there again (daemon/runtime.c).
 *
 * A VM that migrates. Its disks stop one after the other, and each asks when it has: all but the last are answered at
 * once. When none runs any more the VM may go on elsewhere, so its snapshots end before that last one is answered
 * (vm_leave()). Should the VM go on here after all, the first disk that starts asks again, and that is all that has to be
 * undone. It may do so before vm_leave() is done, take a snapshot, and stop once more: then there is something to break
 * again before the last one is answered. From the first log to the last, the VM is said to migrate (vm_migrates()), which
 * no export waits for but one that gets a log. Where a VM arrives it is the other way round: the disks are opened when the
 * first ring is to start, and those who ask wait for that.
 */
#include "daemon/vhost_exports.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "base/probe.h"
#include "export/vhost_user/shared_map.h"

static void start_counts(struct vhost_exports *exports)
{
    if (--exports->pending == 0)
        exports->started(exports->argument, exports->err.code ? &exports->err : NULL);
}

static void one_started(void *argument, const struct error *err)
{
    struct vhost_exports *exports = argument;
    if (err && !exports->err.code) {
        exports->err = *err;
        error_prefix(&exports->err, "--vhost-user");
    }
    start_counts(exports);
}

static unsigned disk_index(const struct options *options, const char *name)
{
    unsigned i = 0;
    while (strcmp(options->disks[i].name, name) != 0)
        i++; /* the options were checked */
    return i;
}

/* The export's disk, when it is open. */
static struct node *node_of(const struct vhost_exports *exports, unsigned index)
{
    return &vm_disk(exports->vm, disk_index(exports->options, exports->options->vhost_users[index].disk))->node;
}

static unsigned export_index(const struct vhost_exports *exports, const struct vhost_export *export)
{
    unsigned i = 0;
    while (exports->exports[i] != export)
        i++;
    return i;
}

/* --- where the VM is */

static void stop_all(struct vhost_exports *exports);
static void leave(struct vhost_exports *exports);

static bool any_runs(const struct vhost_exports *exports)
{
    struct vhost_export_status status;
    for (unsigned i = 0; i < exports->count; i++) {
        vhost_export_status(exports->exports[i], &status);
        if (status.queues > 0)
            return true;
    }
    return false;
}

static bool any_migrates(const struct vhost_exports *exports)
{
    for (unsigned i = 0; i < exports->count; i++)
        if (exports->migrates[i])
            return true;
    return false;
}

static void vm_left(void *argument)
{
    struct vhost_exports *exports = argument;
    exports->leaving = false;
    if (exports->stopped) {
        stop_all(exports);
        return;
    }
    if (exports->parted_again && !any_runs(exports)) {
        leave(exports);
        return;
    }
    for (unsigned i = 0; i < exports->count; i++)
        if (exports->asked[i])
            vhost_export_answer(exports->exports[i], VHOST_ELSEWHERE, NULL);
    memset(exports->asked, 0, sizeof exports->asked);
}

static void leave(struct vhost_exports *exports)
{
    exports->leaving = exports->away = true;
    exports->parted_again = false;
    log_info("the guest has stopped in mid-migration: it may go on elsewhere, so its snapshots end");
    vm_leave(exports->vm, "the VM migrates: its disks may be written elsewhere from now on", vm_left, exports);
}

static void parting(void *context, struct vhost_export *export)
{
    struct vhost_exports *exports = context;
    if (any_runs(exports) || (exports->away && !exports->leaving)) {
        vhost_export_answer(export, VHOST_ELSEWHERE, NULL);
        return;
    }
    exports->asked[export_index(exports, export)] = true;
    if (!exports->leaving)
        leave(exports);
    else if (!exports->away)
        exports->parted_again = true;
}

static void migration_noted(void *argument)
{
    struct vhost_exports *exports = argument;
    exports->noting = false;
    if (exports->stopped) {
        stop_all(exports);
        return;
    }
    for (unsigned i = 0; i < exports->count; i++)
        if (exports->waits[i])
            vhost_export_answer(exports->exports[i], VHOST_MIGRATING, node_of(exports, i));
    memset(exports->waits, 0, sizeof exports->waits);
}

static void staying(void *context, struct vhost_export *export, bool migrates)
{
    struct vhost_exports *exports = context;
    const unsigned index = export_index(exports, export);
    if (!exports->vm) {
        exports->asked[index] = true;
        if (exports->wanted)
            exports->wanted(exports->wanted_argument);
        exports->wanted = NULL;
        return;
    }
    if (exports->away)
        log_info("the guest goes on here after all");
    exports->away = exports->parted_again = false;
    if (!MUTANT(vhost_away_for_ever))
        vm_come_back(exports->vm);
    exports->migrates[index] = migrates;
    if (!any_migrates(exports))
        vm_stays(exports->vm);
    if (!migrates) {
        vhost_export_answer(export, VHOST_HERE, node_of(exports, index));
        return;
    }
    exports->waits[index] = true;
    if (exports->noting)
        return;
    exports->noting = true;
    vm_migrates(exports->vm, migration_noted, exports);
}

void vhost_exports_open(struct vhost_exports *exports, struct vm *vm)
{
    exports->vm = vm;
    for (unsigned i = 0; i < exports->count; i++)
        if (exports->asked[i])
            vhost_export_answer(exports->exports[i], VHOST_HERE, node_of(exports, i));
    memset(exports->asked, 0, sizeof exports->asked);
}

/* --- start and end */

void vhost_exports_start(struct vhost_exports *exports, struct io *control, struct vm *vm, struct node *stand_ins,
                         const struct options *options, void (*wanted)(void *argument),
                         void (*done)(void *argument, const struct error *err), void *argument)
{
    const struct vhost_export_hooks hooks = {.context = exports, .parting = parting, .staying = staying};
    assert(exports->count == 0);
    exports->options = options;
    exports->vm = vm;
    exports->wanted = wanted;
    exports->started = done;
    exports->argument = exports->wanted_argument = argument;
    exports->pending = 1; /* this loop */
    if (options->vhost_user_count > 0)
        shared_map_guard(&exports->err);
    for (unsigned i = 0; i < options->vhost_user_count && !exports->err.code; i++) {
        const struct vhost_user_options *user = &options->vhost_users[i];
        struct node *node = vm ? node_of(exports, i) : &stand_ins[disk_index(options, user->disk)];
        struct vhost_export *export = vhost_export_create(control, node, vm != NULL, user->disk, user->socket, &hooks);
        if (!export) {
            error_set(&exports->err, ENOMEM, "--vhost-user %s: no memory", user->disk);
            break;
        }
        exports->exports[exports->count++] = export;
        exports->pending++;
        vhost_export_start(export, one_started, exports);
    }
    start_counts(exports);
}

void vhost_exports_resized(const struct vhost_exports *exports, const struct disk *disk)
{
    for (unsigned i = 0; i < exports->count; i++) {
        struct vhost_export_status status;
        vhost_export_status(exports->exports[i], &status);
        if (strcmp(status.disk, disk->name) == 0)
            vhost_export_resized(exports->exports[i]);
    }
}

static void stop_counts(void *argument)
{
    struct vhost_exports *exports = argument;
    if (--exports->pending > 0)
        return;
    exports->count = 0;
    exports->stopped(exports->stopped_argument);
}

static void stop_all(struct vhost_exports *exports)
{
    if (exports->leaving || exports->noting)
        return; /* when that is over: the disks that are told must be there */
    exports->pending = exports->count + 1;
    for (unsigned i = 0; i < exports->count; i++)
        vhost_export_end(exports->exports[i], stop_counts, exports);
    stop_counts(exports);
}

void vhost_exports_stop(struct vhost_exports *exports, void (*done)(void *argument), void *argument)
{
    exports->stopped = done;
    exports->stopped_argument = argument;
    stop_all(exports);
}
