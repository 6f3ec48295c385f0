/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The helper threads of a reactor. A thread is started when more jobs wait than threads are idle and there
 * are fewer than LIMIT_HELPERS; it then stays until the pool ends. Signals are for the main thread: helpers
 * block all of them.
 *
 * Helpers sleep on a semaphore, not on a condition variable: that of glibc before 2.41 loses a wake-up now and then when
 * several threads wait (its bug 25847), and a job would lie in the queue until the next one comes.
 */
#include "io/helpers.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>

void helpers_init(struct helpers *helpers)
{
    *helpers = (struct helpers){0};
    pthread_mutex_init(&helpers->mutex, NULL);
    sem_init(&helpers->work, 0, 0);
    list_init(&helpers->queue);
}

void helpers_fini(struct helpers *helpers)
{
    pthread_mutex_lock(&helpers->mutex);
    assert(list_empty(&helpers->queue));
    helpers->ending = true;
    for (unsigned i = 0; i < helpers->started; i++)
        sem_post(&helpers->work);
    pthread_mutex_unlock(&helpers->mutex);
    for (unsigned i = 0; i < helpers->started; i++)
        pthread_join(helpers->threads[i], NULL);
    sem_destroy(&helpers->work);
    pthread_mutex_destroy(&helpers->mutex);
}

static void *helper_main(void *argument)
{
    struct helpers *helpers = argument;
    pthread_setname_np(pthread_self(), "helper");
    pthread_mutex_lock(&helpers->mutex);
    for (;;) {
        helpers->idle++;
        pthread_mutex_unlock(&helpers->mutex);
        while (sem_wait(&helpers->work) < 0)
            assert(errno == EINTR);
        pthread_mutex_lock(&helpers->mutex);
        helpers->idle--;
        struct list_node *first = list_take_first(&helpers->queue);
        if (first) {
            helpers->waiting--;
            struct helper_job *job = container_of(first, struct helper_job, link);
            pthread_mutex_unlock(&helpers->mutex);
            job->run(job);
            pthread_mutex_lock(&helpers->mutex);
        } else if (helpers->ending) {
            break;
        } /* else a job was cancelled */
    }
    pthread_mutex_unlock(&helpers->mutex);
    return NULL;
}

static int helpers_start_one(struct helpers *helpers)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&helpers->threads[helpers->started], NULL, helper_main, helpers);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!error)
        helpers->started++;
    return -error;
}

int helpers_queue(struct helpers *helpers, struct helper_job *job)
{
    int error = 0;
    pthread_mutex_lock(&helpers->mutex);
    assert(!helpers->ending);
    list_append(&helpers->queue, &job->link);
    helpers->waiting++;
    if (helpers->waiting > helpers->idle && helpers->started < LIMIT_HELPERS)
        error = helpers_start_one(helpers);
    if (error && helpers->started == 0) {
        list_remove(&job->link);
        helpers->waiting--;
    } else {
        error = 0;
    }
    sem_post(&helpers->work);
    pthread_mutex_unlock(&helpers->mutex);
    return error;
}

bool helpers_cancel(struct helpers *helpers, struct helper_job *job)
{
    pthread_mutex_lock(&helpers->mutex);
    bool waiting = list_linked(&job->link);
    if (waiting) {
        list_remove(&job->link);
        helpers->waiting--;
    }
    pthread_mutex_unlock(&helpers->mutex);
    return waiting;
}
