/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Each socket is an export of its own, on the reactor of its disk; here they are only counted: all have started, or all
 * have ended. A first failure ends the start, and what has started by then is ended by vhost_exports_stop(). After kill -9
 * the next start finds the socket's file in the record of the run time and listens there again (daemon/runtime.c).
 */
#include "daemon/vhost_exports.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

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

static struct disk *find_disk(struct vm *vm, const char *name)
{
    for (unsigned i = 0; i < vm_disk_count(vm); i++)
        if (strcmp(vm_disk(vm, i)->name, name) == 0)
            return vm_disk(vm, i);
    return NULL;
}

void vhost_exports_start(struct vhost_exports *exports, struct io *control, struct vm *vm,
                         const struct options *options, void (*done)(void *argument, const struct error *err),
                         void *argument)
{
    assert(exports->count == 0);
    exports->started = done;
    exports->argument = argument;
    exports->pending = 1; /* this loop */
    if (options->vhost_user_count > 0)
        shared_map_guard(&exports->err);
    for (unsigned i = 0; i < options->vhost_user_count && !exports->err.code; i++) {
        const struct vhost_user_options *wanted = &options->vhost_users[i];
        struct disk *disk = find_disk(vm, wanted->disk);
        assert(disk); /* the options were checked */
        struct vhost_export *export = vhost_export_create(control, &disk->node, disk->name, wanted->socket);
        if (!export) {
            error_set(&exports->err, ENOMEM, "--vhost-user %s: no memory", disk->name);
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
    exports->stopped(exports->argument);
}

void vhost_exports_stop(struct vhost_exports *exports, void (*done)(void *argument), void *argument)
{
    exports->stopped = done;
    exports->argument = argument;
    exports->pending = exports->count + 1;
    for (unsigned i = 0; i < exports->count; i++)
        vhost_export_end(exports->exports[i], stop_counts, exports);
    stop_counts(exports);
}
