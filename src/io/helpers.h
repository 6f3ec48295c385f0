/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A small pool of threads for what can block, started on first use, LIMIT_HELPERS at most. */
#ifndef FLEECE_IO_HELPERS_H
#define FLEECE_IO_HELPERS_H

#include <pthread.h>
#include <semaphore.h>

#include "base/limits.h"
#include "base/list.h"

struct helper_job { /* belongs to the pool until run() is called, on a helper thread */
    struct list_node link;
    void (*run)(struct helper_job *job);
};

struct helpers {
    pthread_mutex_t mutex;
    sem_t work;        /* at least as many as jobs in the queue: a cancelled one leaves its own */
    struct list queue; /* of helper_job, first come, first served */
    pthread_t threads[LIMIT_HELPERS];
    unsigned started, idle, waiting; /* threads, sleeping threads, jobs in the queue */
    bool ending;
};

void helpers_init(struct helpers *helpers);
/* Ends and joins the threads. No job is queued or running. */
void helpers_fini(struct helpers *helpers);
/* job->run() will be called on a helper thread. -errno when no thread can be started at all: then it will
 * not. */
int helpers_queue(struct helpers *helpers, struct helper_job *job);
/* Whether the job was still waiting: then it is out and will not run. */
bool helpers_cancel(struct helpers *helpers, struct helper_job *job);

#endif
