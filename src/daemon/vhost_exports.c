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
 * again before the last one is answered. Where a VM arrives it is the other way round: the disks are opened when the first
 * ring is to start, and those who ask wait for that.
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

static bool any_asks(const struct vhost_exports *exports)
{
    for (unsigned i = 0; i < exports->count; i++)
        if (exports->asked[i])
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
    if (!exports->away && any_asks(exports) && !any_runs(exports)) {
        leave(exports);
        return;
    }
    for (unsigned i = 0; i < exports->count; i++)
        if (exports->asked[i])
            vhost_export_answer(exports->exports[i], false, NULL);
    memset(exports->asked, 0, sizeof exports->asked);
}

static void leave(struct vhost_exports *exports)
{
    exports->leaving = exports->away = true;
    log_info("the guest has stopped in mid-migration: it may go on elsewhere, so its snapshots end");
    vm_leave(exports->vm, "the VM migrates: its disks may be written elsewhere from now on", vm_left, exports);
}

static void parting(void *context, struct vhost_export *export)
{
    struct vhost_exports *exports = context;
    if (any_runs(exports) || (exports->away && !exports->leaving)) {
        vhost_export_answer(export, false, NULL);
        return;
    }
    exports->asked[export_index(exports, export)] = true;
    if (!exports->leaving)
        leave(exports);
}

static void returning(void *context, struct vhost_export *export)
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
    exports->away = false;
    if (!MUTANT(vhost_away_for_ever))
        vm_come_back(exports->vm);
    vhost_export_answer(export, true, node_of(exports, index));
}

void vhost_exports_open(struct vhost_exports *exports, struct vm *vm)
{
    exports->vm = vm;
    for (unsigned i = 0; i < exports->count; i++)
        if (exports->asked[i])
            vhost_export_answer(exports->exports[i], true, node_of(exports, i));
    memset(exports->asked, 0, sizeof exports->asked);
}

/* --- start and end */

void vhost_exports_start(struct vhost_exports *exports, struct io *control, struct vm *vm, struct node *stand_ins,
                         const struct options *options, void (*wanted)(void *argument),
                         void (*done)(void *argument, const struct error *err), void *argument)
{
    const struct vhost_export_hooks hooks = {.context = exports, .parting = parting, .returning = returning};
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
    exports->pending = exports->count + 1;
    for (unsigned i = 0; i < exports->count; i++)
        vhost_export_end(exports->exports[i], stop_counts, exports);
    stop_counts(exports);
}

void vhost_exports_stop(struct vhost_exports *exports, void (*done)(void *argument), void *argument)
{
    exports->stopped = done;
    exports->stopped_argument = argument;
    if (!exports->leaving) /* else when that is over: the disks that are told must be there */
        stop_all(exports);
}
