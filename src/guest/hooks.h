/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Hooks: programs of the administrator's that run before a guest is cut ("freeze") and after it ("thaw"), as those of
 * qemu-ga. Both functions block; they are work for a helper thread (io_work()).
 */
#ifndef FLEECE_GUEST_HOOKS_H
#define FLEECE_GUEST_HOOKS_H

#include <limits.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/limits.h"

struct hook_list {
    char folder[PATH_MAX];
    unsigned count;
    char names[LIMIT_HOOKS][LIMIT_NAME_BYTES + 1]; /* in the order in which they run */
};

/* What of list->folder is to run: regular files with the right to be executed and a name of letters, digits and "._-" that
 * does not begin with a dot, sorted. -errno with a sentence: the folder can't be read, holds too many; or, EPERM, it, one
 * of them, or a folder on the way to it is not root's or ours, or can be written by others. */
int hooks_find(struct hook_list *list, struct error *err);

/* A process, and not another one that has got its number later. */
struct hook_process {
    int64_t number; /* 0: none */
    uint64_t began; /* in ticks since the machine's start */
};

/* Processes of hooks that were killed and have not ended, they or others of their groups: they sleep in the kernel, and may
 * freeze something yet. */
struct hook_strays {
    unsigned count;
    struct {
        char name[LIMIT_NAME_BYTES + 1]; /* of the hook */
        struct hook_process process;
    } each[LIMIT_HOOKS];
};

struct hook_run {
    const struct hook_list *list;
    unsigned index;
    const char *verb, *vm, *snapshot; /* its argument; FLEECE_VM and FLEECE_SNAPSHOT in its environment */
    uint64_t timeout_ns;
    const atomic_bool *cut_short; /* set: the timeout is over now; any thread */
    struct hook_strays *strays; /* a hook is not run while one of its own is left; the helper thread's while it runs */
    void (*started)(void *argument, const struct hook_process *process); /* on the helper thread; NULL: nobody asks */
    void *started_argument;
    struct error error; /* why it did not succeed; code 0: it did */
    bool is_gone;       /* because there is no such hook any more */
    bool was_started;   /* else it has frozen nothing */
};

/* Runs it without a shell, in a process group of its own, its output going to the log; kills the group when it takes too
 * long, and waits HOOK_KILL_NS for its end: then it is a stray. For io_work(): the argument is the struct hook_run. */
int64_t hook_run(void *argument);

/* Kills one of a daemon that was killed, with its group, if it runs still, and counts it as a stray of the hook. */
void hook_kill(const struct hook_process *process, const char *name, struct hook_strays *strays);

#endif
