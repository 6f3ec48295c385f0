/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Asking the kernel for an io_uring. 5.10 is enough. Newer features are asked for and done without when the kernel
 * refuses: SINGLE_ISSUER with DEFER_TASKRUN (6.1) runs completion work only when we enter the kernel, COOP_TASKRUN (5.19)
 * without interrupting us. FLEECE_RING_FEATURES=none asks for none of them, so that a test on a new kernel sees the old
 * one's ways. A kernel that refuses altogether is the user's to persuade: the error says where to look.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io/ring_internal.h"

static int setup_error(int error, struct error *err)
{
    char setting[16] = "unknown";
    int fd = open("/proc/sys/kernel/io_uring_disabled", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        ssize_t length = read(fd, setting, sizeof setting - 1);
        setting[length > 0 ? strcspn(setting, "\n") : 0] = '\0';
        close(fd);
    }
    switch (error) {
    case ENOSYS:
        return error_set(
            err, error,
            "io_uring is missing: the kernel is older than 5.10, built without it, or the seccomp profile of "
            "the container hides it");
    case EPERM:
    case EACCES:
        return error_set(err, error,
                         "io_uring is forbidden: see sysctl kernel.io_uring_disabled (now %s, 0 allows it) "
                         "and the seccomp "
                         "profile of the container (io_uring_setup, io_uring_enter, io_uring_register)",
                         setting);
    case ENOMEM:
        return error_set(err, error, "no memory for an io_uring: raise the limit of locked memory (ulimit -l)");
    default:
        return error_set(err, error, "io_uring_setup failed: %s", error_name(error));
    }
}

static int queue_init(struct ring *ring, struct error *err)
{
    static const struct {
        unsigned flags;
        const char *name;
    } levels[] = {
        {IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SINGLE_ISSUER |
             IORING_SETUP_DEFER_TASKRUN,
         "io_uring, single issuer, deferred task work"},
        {IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
         "io_uring, cooperative task work"},
        {0, "io_uring"},
    };
    const unsigned count = sizeof levels / sizeof levels[0];
    int result = -EINVAL;
    for (unsigned i = ring->masked ? count - 1 : 0; i < count && result == -EINVAL; i++) {
        struct io_uring_params params = {.flags = levels[i].flags | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP,
                                         .cq_entries = LIMIT_RING_COMPLETIONS};
        result = io_uring_queue_init_params(LIMIT_RING_ENTRIES, &ring->uring, &params);
        snprintf(ring->features, sizeof ring->features, "%s%s", levels[i].name,
                 ring->masked ? ", newer features masked" : "");
    }
    if (result < 0)
        return setup_error(-result, err);
    if (!(ring->uring.features & IORING_FEAT_FAST_POLL) || !(ring->uring.features & IORING_FEAT_NODROP)) {
        io_uring_queue_exit(&ring->uring);
        return error_set(err, ENOSYS, "the io_uring of this kernel is too old: 5.10 or newer is needed");
    }
    if (ring->masked) /* the library then waits with a timeout entry, as it must on 5.10 */
        ring->uring.features &= ~(unsigned)IORING_FEAT_EXT_ARG;
    io_uring_ring_dontfork(&ring->uring);
    return 0;
}

static int read_features(struct ring *ring, struct error *err)
{
    const char *wanted = getenv("FLEECE_RING_FEATURES");
    if (wanted && *wanted && strcmp(wanted, "none") != 0)
        return error_set(err, EINVAL, "FLEECE_RING_FEATURES is \"%s\": only \"none\" is known", wanted);
    ring->masked = wanted && *wanted;
    return 0;
}

int ring_setup(struct ring *ring, struct error *err)
{
    int result = read_features(ring, err);
    return result < 0 ? result : queue_init(ring, err);
}
