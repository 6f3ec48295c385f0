/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The run-time folder of a VM: its lock, which one daemon holds as long as it lives, and the record of its sockets, by
 * which the next daemon recognises what a crash left behind. Control thread; every function may block shortly.
 */
#ifndef FLEECE_DAEMON_RUNTIME_H
#define FLEECE_DAEMON_RUNTIME_H

#include <limits.h>
#include <stdint.h>

#include "base/error.h"

/* Room for the path of a file in the run-time folder, with "unix:" before it or not. */
#define RUNTIME_PATH_BYTES (PATH_MAX + LIMIT_NAME_BYTES)

struct runtime {
    char folder[PATH_MAX];
    char lock_path[RUNTIME_PATH_BYTES];
    int lock_fd; /* -1: not held */
};

/* Makes the folder (0700), takes the lock, and removes the sockets of a daemon that was killed. -EBUSY with a sentence
 * when another daemon serves the VM; that one is not disturbed. A dying one is waited for, wait_ns at most. */
int runtime_claim(struct runtime *runtime, const char *vm, uint64_t wait_ns, struct error *err);
/* Notes the sockets (paths) that exist now, for the day after a crash. */
int runtime_record(struct runtime *runtime, const char *const *paths, unsigned count, struct error *err);
/* Removes recorded sockets that are there still, the lock and the folder. Safe to call when nothing was claimed. */
void runtime_release(struct runtime *runtime);

#endif
