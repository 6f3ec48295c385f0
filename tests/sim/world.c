/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Time, reactors, events.
 *
 * Everything that will happen is an event with a due time in one heap: completions, messages; timers stand in a heap of
 * their reactor. A step takes what is due first, moves the clock there and runs one tick of one reactor: it delivers,
 * fires timers, runs tasks until none is left. Latencies are random, so the order of completions is; messages between
 * two reactors keep their order.
 *
 * A disk operation has two moments: it lands (its data moves, its result is known) and it is delivered. They are the
 * same for most, and apart for a quarter of them, since a kernel's completion may wait for a reactor that is busy. A
 * stalled reactor collects what is due for it and takes all of it in one tick, as a real one does with a full queue.
 *
 * The owner rule holds here as there: io_on_owner() is true only for the reactor whose tick it is.
 */
#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "world_internal.h"

static const char *const kind_names[] = {"message", "read",        "write",       "sync",       "allocate",
                                         "extent",  "work",        "accept",      "recv",       "send",
                                         "poll",    "recv packet", "send packet", "event wait", "event signal"};

void world_violation(struct world *world, const char *format, ...)
{
    va_list arguments;
    fprintf(stderr, "world: seed %llu, event %llu, %s: ", (unsigned long long)world->options.seed,
            (unsigned long long)world->events, world->current != NULL ? world->current->name : "nobody");
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    abort();
}

/* Random numbers: xoroshiro128+. */

static inline uint64_t rotate(uint64_t value, int by)
{
    return (value << by) | (value >> (64 - by));
}

uint64_t world_random(struct world *world)
{
    uint64_t a = world->random[0], b = world->random[1], result = a + b;
    b ^= a;
    world->random[0] = rotate(a, 24) ^ b ^ (b << 16);
    world->random[1] = rotate(b, 37);
    return result;
}

uint64_t world_below(struct world *world, uint64_t below)
{
    return (uint64_t)(((unsigned __int128)world_random(world) * below) >> 64);
}

bool world_chance(struct world *world, unsigned per_1024)
{
    return per_1024 != 0 && (world_random(world) >> 54) < per_1024;
}

uint64_t world_latency(struct world *world, uint64_t typical_ns)
{
    uint64_t random = world_random(world);
    uint64_t latency = typical_ns / 4 + (typical_ns * (random & 0x3ff)) / 683;
    if ((random >> 60) == 0)
        latency *= (random >> 52 & 0xf) == 0 ? 100 : 10;
    return latency + 1;
}

static inline void hash_mix(struct world *world, uint64_t value)
{
    world->hash = (world->hash ^ value) * UINT64_C(0x100000001b3);
    world->hash ^= world->hash >> 29;
}

/* Events. */

static inline bool event_before(const struct event *a, const struct event *b)
{
    return a->due < b->due || (a->due == b->due && a->order < b->order);
}

static void heap_up(struct world *world, size_t at)
{
    struct event *event = world->heap[at];
    for (; at > 1 && event_before(event, world->heap[at / 2]); at /= 2)
        world->heap[at] = world->heap[at / 2];
    world->heap[at] = event;
}

static void heap_down(struct world *world, size_t at)
{
    struct event *event = world->heap[at];
    for (size_t child; (child = 2 * at) <= world->heap_count; at = child) {
        if (child < world->heap_count && event_before(world->heap[child + 1], world->heap[child]))
            child++;
        if (!event_before(world->heap[child], event))
            break;
        world->heap[at] = world->heap[child];
    }
    world->heap[at] = event;
}

static void heap_remove_at(struct world *world, size_t at)
{
    world->heap[at]->in_heap = false;
    struct event *last = world->heap[world->heap_count--];
    if (at > world->heap_count)
        return;
    world->heap[at] = last;
    heap_up(world, at);
    heap_down(world, at);
}

struct event *event_new(struct reactor *reactor, enum world_kind kind, struct io_op *op)
{
    struct world *world = reactor->world;
    struct event *event = world->free_events;
    if (event != NULL)
        world->free_events = event->next;
    else if ((event = malloc(sizeof(*event))) == NULL)
        abort();
    *event = (struct event){.reactor = reactor, .kind = kind, .op = op, .fd = -1, .tick = world->ticks};
    if (op != NULL) {
        if (op->scratch[0] == (WORLD_OP_MAGIC ^ (uintptr_t)op))
            world_violation(world, "%s started on an operation that is under way", kind_names[kind]);
        op->scratch[0] = WORLD_OP_MAGIC ^ (uintptr_t)op;
        op->scratch[1] = (uintptr_t)event;
    }
    return event;
}

void event_free(struct world *world, struct event *event)
{
    free(event->copy);
    free(event->shared);
    event->copy = NULL;
    event->shared = NULL;
    event->next = world->free_events;
    world->free_events = event;
}

void event_schedule(struct world *world, struct event *event, uint64_t due)
{
    assert(!event->in_heap);
    event->due = due;
    event->order = world->order++;
    event->in_heap = true;
    if (world->heap_count + 2 > world->heap_room) {
        world->heap_room = world->heap_room == 0 ? 256 : 2 * world->heap_room;
        world->heap = realloc(world->heap, world->heap_room * sizeof(struct event *));
        if (world->heap == NULL)
            abort();
    }
    world->heap[++world->heap_count] = event;
    heap_up(world, world->heap_count);
}

void event_unschedule(struct world *world, struct event *event)
{
    for (size_t at = 1; at <= world->heap_count; at++)
        if (world->heap[at] == event) {
            heap_remove_at(world, at);
            return;
        }
    assert(false); /* it is in the heap */
}

static void trace_event(const struct world *world, const struct event *event, int64_t result)
{
    fprintf(stderr, "%14.6f us %-10s %-8s", (double)world->now / 1000, event->reactor->name, kind_names[event->kind]);
    if (event->fd >= 0)
        fprintf(stderr, " fd %d", event->fd);
    if (event->number != 0)
        fprintf(stderr, " #%llu [%llu +%llu]%s", (unsigned long long)event->number,
                (unsigned long long)event->range.start, (unsigned long long)event->range.length,
                (event->flags & IO_WRITE_DSYNC) != 0 && event->kind == WORLD_WRITE ? " dsync" : "");
    if (event->kind != WORLD_MESSAGE)
        fprintf(stderr, " -> %lld", (long long)result);
    fputc('\n', stderr);
}

void event_finish(struct world *world, struct event *event, int64_t result)
{
    struct io_op *op = event->op;
    world->events++;
    hash_mix(world, world->now ^ (uint64_t)event->kind << 56 ^ (uint64_t)event->reactor->index << 48);
    hash_mix(world, (uint64_t)result ^ event->range.start << 20);
    if (world->options.trace)
        trace_event(world, event, result);
    if (event->kind >= WORLD_READ && event->kind <= WORLD_EXTENT)
        description_release(world, event->fd);
    else if (event->kind >= WORLD_ACCEPT)
        description_at(world, event->fd)->under_way--;
    if (op->scratch[0] != (WORLD_OP_MAGIC ^ (uintptr_t)op) || op->scratch[1] != (uintptr_t)event)
        world_violation(world, "the memory of an operation (%s) was changed while it was under way",
                        kind_names[event->kind]);
    op->scratch[0] = op->scratch[1] = 0;
    event_free(world, event);
    op->done(op, result);
}

/* Timers: a heap of each reactor, places from 1, so that 0 says "not armed". */

static inline bool timer_before(const struct armed *a, const struct armed *b)
{
    return a->timer->deadline_ns < b->timer->deadline_ns ||
           (a->timer->deadline_ns == b->timer->deadline_ns && a->order < b->order);
}

static void timer_place(struct reactor *reactor, size_t at, struct armed armed)
{
    reactor->timers[at] = armed;
    armed.timer->heap_place = at;
}

static void timer_sift(struct reactor *reactor, size_t at)
{
    struct armed armed = reactor->timers[at];
    for (; at > 1 && timer_before(&armed, &reactor->timers[at / 2]); at /= 2)
        timer_place(reactor, at, reactor->timers[at / 2]);
    for (size_t child; (child = 2 * at) <= reactor->timer_count; at = child) {
        if (child < reactor->timer_count && timer_before(&reactor->timers[child + 1], &reactor->timers[child]))
            child++;
        if (!timer_before(&reactor->timers[child], &armed))
            break;
        timer_place(reactor, at, reactor->timers[child]);
    }
    timer_place(reactor, at, armed);
}

static void op_timer_cancel(struct io *io, struct io_timer *timer)
{
    struct reactor *reactor = reactor_of(io);
    world_check_owner(io, "timer_cancel");
    size_t at = timer->heap_place;
    if (at == 0)
        return;
    if (at > reactor->timer_count || reactor->timers[at].timer != timer)
        world_violation(reactor->world, "timer_cancel of a timer of somebody else");
    timer->heap_place = 0;
    struct armed last = reactor->timers[reactor->timer_count--];
    if (last.timer == timer)
        return;
    timer_place(reactor, at, last);
    timer_sift(reactor, at);
}

static void op_timer_set(struct io *io, struct io_timer *timer, uint64_t deadline_ns)
{
    struct reactor *reactor = reactor_of(io);
    world_check_owner(io, "timer_set");
    op_timer_cancel(io, timer);
    if (reactor->timer_count + 2 > reactor->timer_room) {
        reactor->timer_room = reactor->timer_room == 0 ? 64 : 2 * reactor->timer_room;
        reactor->timers = realloc(reactor->timers, reactor->timer_room * sizeof(struct armed));
        if (reactor->timers == NULL)
            abort();
    }
    timer->deadline_ns = deadline_ns;
    reactor->timers[++reactor->timer_count] = (struct armed){timer, reactor->world->order++};
    timer_sift(reactor, reactor->timer_count);
}

/* As io/ring has it: a timer that sets itself anew is due in a later tick, whatever its deadline. */
static void fire_timers(struct reactor *reactor)
{
    for (size_t left = reactor->timer_count; left > 0 && reactor->timer_count > 0; left--) {
        if (reactor->timers[1].timer->deadline_ns > reactor->world->now)
            return;
        struct io_timer *timer = reactor->timers[1].timer;
        op_timer_cancel(&reactor->io, timer);
        reactor->world->events++;
        hash_mix(reactor->world, reactor->world->now ^ timer->deadline_ns << 8);
        if (reactor->world->options.trace)
            fprintf(stderr, "%14.6f us %-10s timer\n", (double)reactor->world->now / 1000, reactor->name);
        timer->fire(timer);
    }
}

/* Ticks. */

/* In order, until none is left; what LIMIT_TICK_ROUNDS generations leave stays for the next tick. */
static void run_tasks(struct reactor *reactor)
{
    for (unsigned round = 0; round < LIMIT_TICK_ROUNDS && !list_empty(&reactor->tasks); round++) {
        struct list generation;
        list_init(&generation);
        list_take_all(&generation, &reactor->tasks);
        for (struct list_node *node; (node = list_take_first(&generation)) != NULL;) {
            struct io_task *task = container_of(node, struct io_task, link);
            task->run(task);
        }
    }
}

static void deliver(struct world *world, struct event *event)
{
    if (event->kind == WORLD_MESSAGE) {
        struct io_message *message = event->message;
        world->events++;
        hash_mix(world, world->now ^ (uint64_t)event->reactor->index << 48);
        if (world->options.trace)
            trace_event(world, event, 0);
        event_free(world, event);
        message->deliver(message);
    } else if (event->kind == WORLD_WORK) {
        event_finish(world, event, event->work(event->argument));
    } else if (event->kind >= WORLD_ACCEPT) {
        net_try(world, event);
    } else {
        event_finish(world, event, event->result);
    }
}

static void backlog_append(struct reactor *reactor, struct event *event)
{
    event->next = NULL;
    *reactor->backlog_end = event;
    reactor->backlog_end = &event->next;
}

static void deliver_backlog(struct reactor *reactor)
{
    while (reactor->backlog != NULL) {
        struct event *event = reactor->backlog;
        reactor->backlog = event->next;
        if (reactor->backlog == NULL)
            reactor->backlog_end = &reactor->backlog;
        deliver(reactor->world, event);
    }
}

/* Timers before or after what has arrived, then the tasks. */
static void tick_run(struct reactor *reactor, struct event *event)
{
    struct world *world = reactor->world;
    bool timers_first = (world->order & 1) != 0;
    reactor->arriving = event;
    if (timers_first)
        fire_timers(reactor);
    reactor->arriving = NULL;
    if (reactor->backlog != NULL) {
        if (event != NULL)
            backlog_append(reactor, event);
        deliver_backlog(reactor);
    } else if (event != NULL) {
        deliver(world, event);
    }
    if (!timers_first)
        fire_timers(reactor);
    run_tasks(reactor);
}

/* One tick, which world_die() may end. */
static void tick(struct reactor *reactor, struct event *event)
{
    struct world *world = reactor->world;
    struct reactor *before = world->current;
    jmp_buf here, *outer = world->escape;
    world->current = reactor;
    world->ticks++;
    world->escape = &here;
    if (_setjmp(here) == 0)
        tick_run(reactor, event);
    else
        world_died(reactor);
    world->escape = outer;
    world->current = before;
    world->now += 50;
}

/* Whose turn it is besides the event heap: a reactor that wakes or whose timer is due. */
static struct reactor *next_reactor(struct world *world, uint64_t *due)
{
    struct reactor *next = NULL;
    for (unsigned i = 0; i < world->reactor_count; i++) {
        struct reactor *reactor = world->reactors[i];
        uint64_t at;
        if (reactor->dead)
            continue;
        if (reactor->backlog != NULL || !list_empty(&reactor->tasks))
            at = reactor->stalled_until;
        else if (reactor->timer_count > 0)
            at = reactor->timers[1].timer->deadline_ns > reactor->stalled_until ? reactor->timers[1].timer->deadline_ns
                                                                                : reactor->stalled_until;
        else
            continue;
        if (at < *due) {
            *due = at;
            next = reactor;
        }
    }
    return next;
}

/* A disk operation whose time has come. Returns whether it is to be delivered now. */
static bool land(struct world *world, struct event *event)
{
    if (event->landed)
        return true;
    disk_land(world, event);
    if (event->orphan) {
        description_release(world, event->fd);
        event_free(world, event);
        return false;
    }
    if ((world_random(world) & 3) == 0) {
        event_schedule(world, event, world->now + world_latency(world, world->options.message_ns * 4));
        return false;
    }
    return true;
}

bool world_step(struct world *world)
{
    uint64_t due = world->heap_count > 0 ? world->heap[1]->due : UINT64_MAX;
    struct reactor *reactor = next_reactor(world, &due);
    if (due == UINT64_MAX)
        return false;
    if (due > world->now)
        world->now = due;
    if (reactor != NULL) {
        reactor->stalled_until = 0;
        tick(reactor, NULL);
        return true;
    }
    struct event *event = world->heap[1];
    heap_remove_at(world, 1);
    if (event->kind >= WORLD_READ && event->kind <= WORLD_EXTENT && !land(world, event))
        return true;
    reactor = event->reactor;
    if (reactor->stalled_until <= world->now && world_chance(world, world->options.stall_per_1024))
        reactor->stalled_until = world->now + world_latency(world, world->options.disk_ns);
    if (reactor->stalled_until > world->now)
        backlog_append(reactor, event);
    else
        tick(reactor, event);
    return true;
}

bool world_run_until(struct world *world, bool (*condition)(void *argument), void *argument, uint64_t timeout_ns)
{
    uint64_t end = world->now + timeout_ns;
    while (!condition(argument)) {
        if (world->now >= end || !world_step(world))
            return false;
    }
    return true;
}

uint64_t world_next(struct world *world)
{
    uint64_t due = world->heap_count > 0 ? world->heap[1]->due : UINT64_MAX;
    next_reactor(world, &due);
    return due;
}

void world_run_for(struct world *world, uint64_t duration_ns)
{
    uint64_t end = world->now + duration_ns;
    while (world_next(world) <= end && world_step(world))
        ;
    if (world->now < end)
        world->now = end;
}

void world_call(struct io *io, void (*function)(void *argument), void *argument)
{
    struct reactor *reactor = reactor_of(io), *before = reactor->world->current;
    jmp_buf here, *outer = reactor->world->escape;
    reactor->world->current = reactor;
    reactor->world->ticks++;
    reactor->world->escape = &here;
    if (_setjmp(here) == 0) {
        function(argument);
        run_tasks(reactor);
    } else {
        world_died(reactor);
    }
    reactor->world->escape = outer;
    reactor->world->current = before;
}

void world_act_as(struct world *world, struct io *io)
{
    if (world->current != NULL)
        run_tasks(world->current);
    world->current = io != NULL ? reactor_of(io) : NULL;
}

void world_stall(struct io *io, uint64_t until_ns)
{
    reactor_of(io)->stalled_until = until_ns;
}

void world_moment(struct io *io)
{
    struct world *world = reactor_of(io)->world;
    if (world->options.moment != NULL && world->escape != NULL && world->current == reactor_of(io))
        world->options.moment(world->options.context);
}

unsigned world_process(const struct world *world)
{
    assert(world->current != NULL);
    return world->current->process;
}

void world_die(struct world *world)
{
    assert(world->escape != NULL);
    longjmp(*world->escape, 1);
}

/* The operations of time. */

void world_check_owner(struct io *io, const char *what)
{
    struct reactor *reactor = reactor_of(io);
    struct world *world = reactor->world;
    if (world->current != reactor)
        world_violation(world, "%s on %s, which is not the thread that runs", what, reactor->name);
}

static uint64_t op_now_ns(struct io *io)
{
    world_moment(io);
    return reactor_of(io)->world->now;
}

static uint64_t op_wall_ns(struct io *io)
{
    return world_wall(reactor_of(io)->world);
}

void world_set_clock(struct world *world, int64_t by_ns)
{
    world->wall_ahead_ns += (uint64_t)by_ns;
}

static void op_random(struct io *io, void *bytes, size_t length)
{
    struct world *world = reactor_of(io)->world;
    world_moment(io);
    if (world_chance(world, world->options.random_per_1024)) {
        memset(bytes, 0, length);
        return;
    }
    for (size_t at = 0; at < length; at += 8) {
        uint64_t random = world_random(world);
        memcpy((char *)bytes + at, &random, length - at < 8 ? length - at : 8);
    }
}

static bool op_on_owner(const struct io *io)
{
    const struct reactor *reactor = (const struct reactor *)io;
    return reactor->world->current == reactor;
}

static void op_task_queue(struct io *io, struct io_task *task)
{
    world_check_owner(io, "task_queue");
    world_moment(io);
    list_append(&reactor_of(io)->tasks, &task->link);
}

static void op_post(struct io *to, struct io_message *message)
{
    struct reactor *reactor = reactor_of(to);
    struct world *world = reactor->world;
    if (reactor->dead)
        return;
    uint64_t *last = &reactor->post_last[world->current != NULL ? world->current->index : WORLD_REACTORS];
    uint64_t due = world->now + world_latency(world, world->options.message_ns);
    if (world->options.delay != NULL)
        due += world->options.delay(world->options.context, world->current != NULL ? &world->current->io : NULL, to);
    *last = due > *last ? due : *last + 1;
    struct event *event = event_new(reactor, WORLD_MESSAGE, NULL);
    event->message = message;
    event_schedule(world, event, *last);
}

static void op_work(struct io *io, struct io_op *op, int64_t (*work)(void *argument), void *argument)
{
    struct reactor *reactor = reactor_of(io);
    world_check_owner(io, "work");
    world_moment(io);
    struct event *event = event_new(reactor, WORLD_WORK, op);
    event->work = work;
    event->argument = argument;
    event_schedule(reactor->world, event, reactor->world->now + world_latency(reactor->world, 4000));
}

/* Whoever calls hangs here; everybody else goes on. */
static void op_yield(struct io *io)
{
    world_check_owner(io, "yield");
}

static void op_sleep(struct io *io, uint64_t duration_ns)
{
    struct world *world = reactor_of(io)->world;
    struct reactor *caller = world->current;
    uint64_t end = world->now + duration_ns, stalled_until = 0;
    if (caller != NULL) {
        stalled_until = caller->stalled_until;
        caller->stalled_until = UINT64_MAX;
    }
    world->current = NULL;
    world_run_for(world, duration_ns);
    world->current = caller;
    if (caller != NULL)
        caller->stalled_until = stalled_until > end ? stalled_until : 0;
}

static void op_cancel(struct io *io, struct io_op *op)
{
    struct world *world = reactor_of(io)->world;
    world_check_owner(io, "cancel");
    if (op->scratch[0] != (WORLD_OP_MAGIC ^ (uintptr_t)op))
        return;
    struct event *event = (struct event *)(uintptr_t)op->scratch[1];
    if (event->kind >= WORLD_ACCEPT) {
        event->canceled = true;
        net_cancel_waiter(world, event);
    }
}

/* Descriptors. */

int description_new(struct world *world, unsigned process)
{
    for (unsigned i = 0; i < WORLD_DESCRIPTORS; i++) {
        unsigned place = (world->descriptor_next + i) % WORLD_DESCRIPTORS;
        if (!world->descriptions[place].open) {
            world->descriptor_next = (place + 1) % WORLD_DESCRIPTORS; /* a stale number shall not work by luck */
            world->descriptor_count++;
            world->descriptions[place] = (struct description){.open = true, .process = process};
            return WORLD_DESCRIPTOR_FIRST + (int)place;
        }
    }
    return -EMFILE;
}

struct description *description_of(struct world *world, int fd)
{
    bool known = fd >= WORLD_DESCRIPTOR_FIRST && fd < WORLD_DESCRIPTOR_END;
    if (!known || !description_at(world, fd)->open || description_at(world, fd)->closing)
        world_violation(world, "descriptor %d is not open", fd);
    return description_at(world, fd);
}

void description_drop(struct world *world, int fd)
{
    if (is_kernel_descriptor(fd)) {
        kernel_close(world, fd);
        return;
    }
    struct description *description = description_at(world, fd);
    description->open = false;
    world->descriptor_count--;
    free(description->locks);
    if (description->file != NULL)
        description->file->descriptions--;
    if (description->socket != NULL)
        socket_close(world, description->socket);
}

void description_release(struct world *world, int fd)
{
    struct description *description = description_at(world, fd);
    assert(description->under_way > 0);
    if (--description->under_way == 0 && description->closing)
        description_drop(world, fd);
}

static void op_close(struct io *io, int fd)
{
    struct world *world = reactor_of(io)->world;
    if (is_kernel_descriptor(fd)) {
        kernel_close(world, fd);
        return;
    }
    struct description *description = description_of(world, fd);
    if (description->under_way != 0)
        world_violation(world, "close of descriptor %d with %u operations under way", fd, description->under_way);
    description_drop(world, fd);
}

static void op_shutdown(struct io *io, int fd)
{
    net_shutdown(io, fd);
}

static void op_boot_id(struct io *io, uint8_t id[BOOT_ID_BYTES])
{
    memset(id, 0xb0, BOOT_ID_BYTES);
    memcpy(id, &reactor_of(io)->world->boots, sizeof(uint64_t));
}

const struct io_ops world_ops = {
    .now_ns = op_now_ns,
    .wall_ns = op_wall_ns,
    .random = op_random,
    .on_owner = op_on_owner,
    .boot_id = op_boot_id,
    .timer_set = op_timer_set,
    .timer_cancel = op_timer_cancel,
    .task_queue = op_task_queue,
    .post = op_post,
    .work = op_work,
    .yield = op_yield,
    .sleep = op_sleep,
    .open = disk_open,
    .stat = disk_stat,
    .truncate = disk_truncate,
    .lock = disk_lock,
    .lock_test = disk_lock_test,
    .close = op_close,
    .readv = disk_readv,
    .writev = disk_writev,
    .datasync = disk_datasync,
    .allocate = disk_allocate,
    .extent = disk_extent,
    .listen = net_listen,
    .accept = net_accept,
    .connect = net_connect,
    .recv = net_recv,
    .sendv = net_sendv,
    .recv_packet = net_recv_packet,
    .send_packet = net_send_packet,
    .shutdown = op_shutdown,
    .poll = net_poll,
    .event_wait = net_event_wait,
    .event_signal = net_event_signal,
    .cancel = op_cancel,
    .shm_create = shm_create_,
    .shm_adopt = shm_adopt_,
    .shm_remove = shm_remove_,
    .shm_grow = shm_grow_,
    .shm_populate = shm_populate_,
    .shm_punch = shm_punch_,
    .shm_destroy = shm_destroy_,
};
