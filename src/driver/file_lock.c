/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Locks on images; all of them belong to the open file description that carries the I/O (OFD locks).
 *
 * Ours: one byte far beyond any data, exclusive for writers, shared for readers. When a process is killed its I/O lands
 * up to seconds later, and the kernel frees this lock only after that: so having the lock proves that nothing of a dead
 * daemon is still on its way (C10). A start waits for it. Each description of a file has a byte of its own.
 *
 * QEMU's: its programs hold shared locks on byte 100+p for each permission p that they use and on byte 200+p for each
 * that they do not let others use; whoever wants a permission looks whether somebody else holds the byte that forbids
 * it. We take part as a user who reads (and writes and resizes), and shares neither writing nor resizing. There is no
 * waiting here: a QEMU that has the disk open keeps it.
 *
 * Our byte comes first: once we have it, QEMU's bytes of a dead daemon are free, too.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/probe.h"
#include "driver/file_internal.h"

enum { QEMU_USED = 100, QEMU_FORBIDDEN = 200 };

static const struct {
    unsigned place;
    bool used_by_readers, used_by_writers, shared;
    const char *name;
} qemu_permissions[] = {
    {0, true, true, true, "consistent read"},
    {1, false, true, false, "write"},
    {3, false, true, false, "resize"},
};

static int lock_failed(const struct file_options *options, int code, struct error *err)
{
    return error_set(err, -code, "cannot lock disk \"%s\": %s", options->path, error_name(code));
}

static int lock_held(const struct file_options *options, struct error *err)
{
    if (options->lock_wait_ns == 0)
        return error_set(err, EAGAIN, "disk \"%s\" is locked by another Fleece process", options->path);
    return error_set(
        err, EAGAIN,
        "disk \"%s\" is locked by another Fleece process (waited %.1f s, longer than writes of a killed one "
        "take to land)",
        options->path, (double)options->lock_wait_ns / (double)NS_PER_S);
}

/* Tries until it succeeds or lock_wait_ns have been slept. `take`: takes the lock; else only looks. */
static int await_our_byte(struct io *io, int fd, const struct file_options *options, unsigned place, bool take,
                          struct error *err)
{
    for (uint64_t waited_ns = 0;; waited_ns += LOCK_POLL_NS) {
        int result = take ? io_lock(io, fd, FILE_LOCK_BYTE + place, 1, !options->read_only)
                          : io_lock_test(io, fd, FILE_LOCK_BYTE + place, 1, !options->read_only);
        if (result == 0)
            return 0;
        if (result != -EAGAIN)
            return lock_failed(options, result, err);
        if (waited_ns >= options->lock_wait_ns)
            return lock_held(options, err);
        if (waited_ns == 0 && options->waiting)
            options->waiting(options->waiting_context, options->path);
        io_sleep(io, LOCK_POLL_NS);
    }
}

static int lock_against_qemu(struct io *io, int fd, const struct file_options *options, struct error *err)
{
    const size_t count = sizeof qemu_permissions / sizeof qemu_permissions[0];
    int result = 0;
    /* First say what we do, then look what others do: two who start together both see each other. */
    for (size_t i = 0; i < count && result == 0; i++) {
        bool used = options->read_only ? qemu_permissions[i].used_by_readers : qemu_permissions[i].used_by_writers;
        if (used)
            result = io_lock(io, fd, QEMU_USED + qemu_permissions[i].place, 1, false);
        if (result == 0 && !qemu_permissions[i].shared)
            result = io_lock(io, fd, QEMU_FORBIDDEN + qemu_permissions[i].place, 1, false);
    }
    if (result < 0 && result != -EAGAIN)
        return lock_failed(options, result, err);
    for (size_t i = 0; i < count; i++) {
        bool used = options->read_only ? qemu_permissions[i].used_by_readers : qemu_permissions[i].used_by_writers;
        if ((used && io_lock_test(io, fd, QEMU_FORBIDDEN + qemu_permissions[i].place, 1, true) != 0) ||
            (!qemu_permissions[i].shared && io_lock_test(io, fd, QEMU_USED + qemu_permissions[i].place, 1, true) != 0))
            return error_set(
                err, EAGAIN,
                "disk \"%s\" is in use by another program (QEMU's lock for \"%s\" is held; is a VM running on "
                "it?)",
                options->path, qemu_permissions[i].name);
    }
    return 0;
}

int file_lock(struct io *io, int fd, const struct file_options *options, unsigned place, struct error *err)
{
    if (options->no_lock || MUTANT(file_lock_not_taken) || (place && MUTANT(file_tail_not_locked)))
        return 0;
    int result = await_our_byte(io, fd, options, place, true, err);
    if (result == 0 && place == 0)
        result = lock_against_qemu(io, fd, options, err);
    return result;
}

int file_lock_await(struct io *io, int fd, const struct file_options *options, struct error *err)
{
    return options->no_lock ? 0 : await_our_byte(io, fd, options, 0, false, err);
}
