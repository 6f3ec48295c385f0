/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The reactor on io_uring: its life, its loop and the way of an operation. (ring_setup.c asks the kernel for the ring,
 * ring_disk.c and ring_socket.c have the operations themselves.)
 *
 * A tick:   kernel completions -> messages -> due timers -> tasks -> submit everything, and wait
 *
 * An operation gets a submission entry in the call that starts it, and nothing else happens: one system call
 * at the end of the tick submits all entries and waits for the next event or the soonest timer. When more is
 * started in a tick than the ring has entries, the full ring is submitted at once and reused. Completions are
 * moved from the ring to the list `ready` and delivered from there, at the beginning of a tick only; so
 * done() is never called inside the call that started the operation, even when that call had to enter the
 * kernel. Sends are the exception to the submission entry: they are tried at once (ring_socket.c). A tick that has such
 * completions for the next one does not enter the kernel at its end, but no two in a row; so a request of a lone client
 * costs one send and one wait. Nor does a tick that may not wait (a timer is due) and for which the kernel has nothing to
 * do: memory is watched without system calls.
 *
 * Helper threads and other reactors reach us through the mailbox. An eventfd is written only by the sender
 * that finds us asleep (see mailbox.c); a read on it is always under way, so a wake-up is one more
 * completion.
 */
#include "io/ring.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "io/ring_internal.h"
#include "io/shm.h"

static const struct io_ops ring_ops;

/* Operations. */

static void ring_reap(struct ring *ring)
{
    struct io_uring_cqe *cqe;
    unsigned head, seen = 0;
    io_uring_for_each_cqe(&ring->uring, head, cqe)
    {
        seen++;
        if (cqe->user_data == 0 || cqe->user_data == LIBURING_UDATA_TIMEOUT)
            continue; /* a cancel request; the timeout of a wait, on kernels that need one */
        struct io_op *op = (struct io_op *)(uintptr_t)cqe->user_data;
        struct ring_op *mine = ring_op_of(op);
        mine->result = mine->cancelled && cqe->res == -EINTR ? -ECANCELED : cqe->res;
        list_append(&ring->ready, &op->link);
    }
    io_uring_cq_advance(&ring->uring, seen);
}

static struct io_uring_sqe *ring_sqe(struct ring *ring)
{
    assert(io_on_owner(&ring->io));
    struct io_uring_sqe *sqe;
    while (!(sqe = io_uring_get_sqe(&ring->uring))) {
        int result = io_uring_submit(&ring->uring);
        if (result == -EBUSY || result == -EAGAIN) { /* too many completions not taken */
            ring_reap(ring);
            io_uring_get_events(&ring->uring);
        } else {
            assert(result >= 0 || result == -EINTR);
        }
    }
    return sqe;
}

struct io_uring_sqe *ring_begin(struct ring *ring, struct io_op *op)
{
    assert(op->done && !list_linked(&op->link));
    struct ring_op *mine = ring_op_of(op);
    mine->finish = NULL;
    mine->on_helper = mine->cancelled = false;
    struct io_uring_sqe *sqe = ring_sqe(ring);
    io_uring_sqe_set_data(sqe, op);
    return sqe;
}

void ring_complete(struct ring *ring, struct io_op *op, int64_t result)
{
    assert(io_on_owner(&ring->io) && op->done);
    struct ring_op *mine = ring_op_of(op);
    mine->result = result;
    mine->finish = NULL;
    list_append(&ring->ready, &op->link);
}

/* On a helper thread. */
static void ring_op_run(struct helper_job *job)
{
    struct ring_op *mine = container_of(job, struct ring_op, job);
    mine->result = mine->work(mine->argument);
    io_post(&mine->ring->io, &mine->finished);
}

static void ring_op_finished(struct io_message *message)
{
    struct ring_op *mine = container_of(message, struct ring_op, finished);
    struct io_op *op = ring_op_back(mine);
    op->done(op, mine->result);
}

void ring_work(struct ring *ring, struct io_op *op, int64_t (*work)(void *argument), void *argument)
{
    assert(io_on_owner(&ring->io) && op->done && !list_linked(&op->link));
    struct ring_op *mine = ring_op_of(op);
    mine->finish = NULL;
    mine->on_helper = true;
    mine->cancelled = false;
    mine->job = (struct helper_job){.run = ring_op_run};
    mine->finished = (struct io_message){.deliver = ring_op_finished};
    mine->ring = ring;
    mine->work = work;
    mine->argument = argument;
    int result = helpers_queue(&ring->helpers, &mine->job);
    if (result < 0)
        ring_complete(ring, op, result);
}

static void ring_work_op(struct io *io, struct io_op *op, int64_t (*work)(void *argument), void *argument)
{
    ring_work(ring_of(io), op, work, argument);
}

static void ring_cancel(struct io *io, struct io_op *op)
{
    struct ring *ring = ring_of(io);
    struct ring_op *mine = ring_op_of(op);
    assert(io_on_owner(io));
    if (list_linked(&op->link))
        return; /* it has a result already */
    mine->cancelled = true;
    if (!mine->on_helper) {
        struct io_uring_sqe *sqe = ring_sqe(ring);
        io_uring_prep_cancel(sqe, op, 0);
        io_uring_sqe_set_data64(sqe, 0);
    } else if (helpers_cancel(&ring->helpers, &mine->job)) {
        ring_complete(ring, op, -ECANCELED);
    }
}

/* The clock, timers, tasks and messages. */

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

static uint64_t ring_now_ns(struct io *io)
{
    (void)io;
    return clock_ns(CLOCK_MONOTONIC);
}

static uint64_t ring_wall_ns(struct io *io)
{
    (void)io;
    return clock_ns(CLOCK_REALTIME);
}

static void ring_random(struct io *io, void *bytes, size_t length)
{
    (void)io;
    for (char *at = bytes; length > 0;) {
        ssize_t got = getrandom(at, length, 0);
        assert(got > 0 || errno == EINTR);
        if (got > 0) {
            at += got;
            length -= (size_t)got;
        }
    }
}

static bool ring_on_owner(const struct io *io)
{
    return pthread_equal(pthread_self(), ((const struct ring *)(const void *)io)->owner);
}

static void ring_timer_set(struct io *io, struct io_timer *timer, uint64_t deadline_ns)
{
    assert(io_on_owner(io));
    timer_heap_set(&ring_of(io)->timers, timer, deadline_ns);
}

static void ring_timer_cancel(struct io *io, struct io_timer *timer)
{
    assert(io_on_owner(io));
    timer_heap_cancel(&ring_of(io)->timers, timer);
}

static void ring_task_queue(struct io *io, struct io_task *task)
{
    assert(io_on_owner(io) && task->run);
    list_append(&ring_of(io)->tasks, &task->link);
}

static void ring_wake(struct ring *ring)
{
    uint64_t one = 1;
    ssize_t written;
    do {
        written = write(ring->wake_fd, &one, sizeof one);
    } while (written < 0 && errno == EINTR);
    assert(written == sizeof one);
}

static void ring_post(struct io *to, struct io_message *message)
{
    struct ring *ring = ring_of(to);
    if (mailbox_put(&ring->mailbox, message))
        ring_wake(ring);
}

static void ring_start_wake(struct ring *ring)
{
    io_uring_prep_read(ring_begin(ring, &ring->wake), ring->wake_fd, &ring->wake_count, sizeof ring->wake_count, 0);
}

static void ring_woken(struct io_op *op, int64_t result)
{
    struct ring *ring = container_of(op, struct ring, wake);
    assert(result == sizeof ring->wake_count || (ring->ending && result == -ECANCELED));
    if (ring->ending)
        ring->wake_idle = true;
    else
        ring_start_wake(ring);
}

/* The loop. */

static void ring_deliver(struct ring *ring)
{
    struct list now;
    list_init(&now);
    ring_reap(ring);
    list_take_all(&now, &ring->ready); /* what completes meanwhile belongs to the next tick */
    for (struct list_node *node; (node = list_take_first(&now));) {
        struct io_op *op = container_of(node, struct io_op, link);
        struct ring_op *mine = ring_op_of(op);
        if (!mine->finish || mine->finish(ring, mine))
            op->done(op, mine->result);
    }
    for (struct io_message *message = mailbox_take(&ring->mailbox); message;) {
        struct io_message *next = message->next;
        message->deliver(message);
        message = next;
    }
}

static void ring_fire(struct ring *ring)
{
    if (ring->timers.count == 0 || ring->skipped)
        return;
    uint64_t now_ns = io_now_ns(&ring->io);
    struct io_timer *timer;
    /* A timer that sets itself anew is due in a later tick, whatever its deadline: at most those armed now
     * fire. */
    for (size_t left = ring->timers.count; left > 0 && (timer = timer_heap_take_due(&ring->timers, now_ns)); left--)
        timer->fire(timer);
}

static void ring_run_tasks(struct ring *ring)
{
    for (unsigned round = 0; round < LIMIT_TICK_ROUNDS && !list_empty(&ring->tasks); round++) {
        struct list now;
        list_init(&now);
        list_take_all(&now, &ring->tasks);
        for (struct list_node *node; (node = list_take_first(&now));) {
            struct io_task *task = container_of(node, struct io_task, link);
            task->run(task);
        }
    }
}

/* How long the tick may wait for an event: 0 not at all, UINT64_MAX for ever. */
static uint64_t ring_wait_ns(struct ring *ring)
{
    if (!list_empty(&ring->ready) || !list_empty(&ring->tasks) || atomic_load(&ring->quit) || ring->wake_idle)
        return 0;
    uint64_t deadline_ns = timer_heap_deadline(&ring->timers), wait_ns = UINT64_MAX;
    if (deadline_ns != UINT64_MAX) {
        uint64_t now_ns = io_now_ns(&ring->io);
        wait_ns = deadline_ns > now_ns ? deadline_ns - now_ns : 0;
    }
    return wait_ns && mailbox_may_sleep(&ring->mailbox) ? wait_ns : 0;
}

/* Whether a tick that does not wait must enter the kernel: to submit something, or to have it complete something. Where it
 * interrupts us to do that it needs no asking. */
static bool ring_has_work(struct ring *ring)
{
    return io_uring_sq_ready(&ring->uring) > 0 ||
           (__atomic_load_n(ring->uring.sq.kflags, __ATOMIC_RELAXED) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW));
}

static void ring_submit(struct ring *ring)
{
    if (!list_empty(&ring->ready) && !ring->skipped) { /* what was begun may wait until these are seen to */
        ring->skipped = true;
        return;
    }
    ring->skipped = false;
    uint64_t wait_ns = ring_wait_ns(ring);
    int result;
    if (wait_ns == 0) {
        if (!ring_has_work(ring))
            return;
        result = io_uring_submit_and_get_events(&ring->uring);
    } else {
        struct io_uring_cqe *cqe;
        struct __kernel_timespec timeout = {(int64_t)(wait_ns / NS_PER_S), (long long)(wait_ns % NS_PER_S)};
        result = io_uring_submit_and_wait_timeout(&ring->uring, &cqe, 1, wait_ns == UINT64_MAX ? NULL : &timeout, NULL);
    }
    /* A timeout, a signal, or completions to be taken first: the next tick sees to all of them. */
    assert(result >= 0 || result == -ETIME || result == -EINTR || result == -EBUSY || result == -EAGAIN);
}

static void ring_tick(struct ring *ring)
{
    ring_deliver(ring);
    ring_fire(ring);
    ring_run_tasks(ring);
    ring_submit(ring);
}

void ring_run(struct io *io)
{
    struct ring *ring = ring_of(io);
    assert(io_on_owner(io));
    while (!atomic_load(&ring->quit))
        ring_tick(ring);
    atomic_store(&ring->quit, false);
}

void ring_quit(struct io *io)
{
    struct ring *ring = ring_of(io);
    atomic_store(&ring->quit, true);
    ring_wake(ring);
}

/* Life. */

int ring_create(struct io **io, struct error *err)
{
    struct ring *ring = calloc(1, sizeof *ring);
    if (!ring)
        return error_set(err, ENOMEM, "no memory for a reactor");
    int result = ring_setup(ring, err);
    if (result < 0) {
        free(ring);
        return result;
    }
    ring->wake_fd = eventfd(0, EFD_CLOEXEC);
    if (ring->wake_fd < 0) {
        result = error_set(err, errno, "cannot make an eventfd: %s", error_name(errno));
        io_uring_queue_exit(&ring->uring);
        free(ring);
        return result;
    }
    ring->io.ops = &ring_ops;
    ring->owner = pthread_self();
    list_init(&ring->ready);
    list_init(&ring->tasks);
    list_init(&ring->burials);
    timer_heap_init(&ring->timers);
    mailbox_init(&ring->mailbox);
    helpers_init(&ring->helpers);
    pthread_mutex_init(&ring->listeners_mutex, NULL);
    list_init(&ring->listeners);
    ring->wake.done = ring_woken;
    ring_start_wake(ring);
    *io = &ring->io;
    return 0;
}

/* Ends what the reactor itself has under way. On the owner thread. */
static void ring_end(struct ring *ring)
{
    ring->ending = true;
    ring_cancel(&ring->io, &ring->wake); /* or it has been woken meanwhile: ended just as well */
    while (!ring->wake_idle)
        ring_tick(ring);
    io_uring_queue_exit(&ring->uring);
    helpers_fini(&ring->helpers);
}

static void ring_free(struct ring *ring)
{
    assert(list_empty(&ring->ready) && list_empty(&ring->tasks) && list_empty(&ring->burials));
    assert(list_empty(&ring->listeners));
    assert(!mailbox_take(&ring->mailbox));
    timer_heap_fini(&ring->timers);
    pthread_mutex_destroy(&ring->listeners_mutex);
    close(ring->wake_fd);
    free(ring);
}

struct ring_starter {
    struct ring *ring;
    struct error *err;
    int result;
    const char *name;
    sem_t started;
};

static void *ring_main(void *argument)
{
    struct ring_starter *starter = argument;
    pthread_setname_np(pthread_self(), starter->name);
    struct io *io = NULL;
    starter->result = ring_create(&io, starter->err);
    struct ring *ring = starter->ring = io ? ring_of(io) : NULL;
    if (ring)
        ring->has_thread = true;
    sem_post(&starter->started); /* from here on the starter is gone */
    if (ring) {
        ring_run(io);
        ring_end(ring);
    }
    return NULL;
}

int ring_start(const char *name, struct io **io, struct error *err)
{
    struct ring_starter starter = {.err = err, .name = name};
    assert(strlen(name) <= 15);
    sem_init(&starter.started, 0, 0);
    sigset_t all, before;
    sigfillset(&all);
    sigdelset(&all,
              SIGBUS); /* comes to the thread whose access it is, and has a handler where memory is a stranger's */
    pthread_t thread;
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the main thread */
    int error = pthread_create(&thread, NULL, ring_main, &starter);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error) {
        starter.result = error_set(err, error, "cannot start thread \"%s\": %s", name, error_name(error));
    } else {
        while (sem_wait(&starter.started) != 0)
            assert(errno == EINTR);
        if (starter.result < 0)
            pthread_join(thread, NULL);
        else
            *io = &starter.ring->io;
    }
    sem_destroy(&starter.started);
    return starter.result;
}

void ring_destroy(struct io *io)
{
    struct ring *ring = ring_of(io);
    if (ring->has_thread) {
        assert(!io_on_owner(io));
        ring_quit(io);
        pthread_join(ring->owner, NULL);
    } else {
        ring_end(ring);
    }
    ring_free(ring);
}

const char *ring_features(const struct io *io)
{
    return ((const struct ring *)(const void *)io)->features;
}

static void ring_yield(struct io *io)
{
    assert(io_on_owner(io));
    sched_yield();
}

static void ring_sleep(struct io *io, uint64_t duration_ns)
{
    (void)io;
    struct timespec left = {.tv_sec = (time_t)(duration_ns / NS_PER_S), .tv_nsec = (long)(duration_ns % NS_PER_S)};
    while (nanosleep(&left, &left) < 0 && errno == EINTR)
        ;
}

/* All zeroes when there is no /proc: nobody adopts what carries that. */
static void ring_boot_id(struct io *io, uint8_t id[BOOT_ID_BYTES])
{
    (void)io;
    memset(id, 0, BOOT_ID_BYTES);
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (!file)
        return;
    unsigned digits = 0;
    for (int c; digits < 2 * BOOT_ID_BYTES && (c = fgetc(file)) != EOF;) {
        if (!isxdigit(c))
            continue;
        unsigned value = (unsigned)(isdigit(c) ? c - '0' : tolower(c) - 'a' + 10);
        id[digits / 2] = (uint8_t)(id[digits / 2] << 4 | value);
        digits++;
    }
    fclose(file);
}

static const struct io_ops ring_ops = {
    .now_ns = ring_now_ns,
    .wall_ns = ring_wall_ns,
    .random = ring_random,
    .on_owner = ring_on_owner,
    .boot_id = ring_boot_id,
    .timer_set = ring_timer_set,
    .timer_cancel = ring_timer_cancel,
    .task_queue = ring_task_queue,
    .post = ring_post,
    .work = ring_work_op,
    .yield = ring_yield,
    .sleep = ring_sleep,
    .open = ring_open,
    .stat = ring_stat,
    .truncate = ring_truncate,
    .lock = ring_lock,
    .lock_test = ring_lock_test,
    .close = ring_close,
    .readv = ring_readv,
    .writev = ring_writev,
    .datasync = ring_datasync,
    .allocate = ring_allocate,
    .extent = ring_extent,
    .listen = ring_listen,
    .accept = ring_accept,
    .connect = ring_connect,
    .recv = ring_recv,
    .sendv = ring_sendv,
    .recv_packet = ring_recv_packet,
    .send_packet = ring_send_packet,
    .shutdown = ring_shutdown,
    .poll = ring_poll,
    .event_wait = ring_event_wait,
    .event_signal = ring_event_signal,
    .cancel = ring_cancel,
    .shm_create = shm_create,
    .shm_adopt = shm_adopt,
    .shm_remove = shm_remove,
    .shm_grow = shm_grow,
    .shm_populate = shm_populate,
    .shm_punch = shm_punch,
    .shm_destroy = shm_destroy,
};
