/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How a world begins and ends, and how its processes die.
 *
 * kill -9 (C10): the reactors of the process never run again, but what they have given to the disk goes on and lands up
 * to four seconds later. A descriptor and its locks live until the last operation on it has landed. The operations'
 * memory is the dead process's, so what is needed of it is copied at the kill.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "world_internal.h"

static uint64_t splitmix(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

struct world *world_create(const struct world_options *options)
{
    struct world *world = calloc(1, sizeof(*world));
    if (world == NULL)
        abort();
    world->options = *options;
    if (world->options.disk_ns == 0)
        world->options.disk_ns = 50 * NS_PER_US;
    if (world->options.message_ns == 0)
        world->options.message_ns = 2 * NS_PER_US;
    uint64_t state = options->seed;
    world->random[0] = splitmix(&state);
    world->random[1] = splitmix(&state) | 1;
    world->now = NS_PER_S;
    world->hash = UINT64_C(0xcbf29ce484222325);
    world->descriptor_next = 3;
    return world;
}

struct io *world_reactor(struct world *world, const char *name, unsigned process)
{
    assert(world->reactor_count < WORLD_REACTORS);
    struct reactor *reactor = calloc(1, sizeof(*reactor));
    if (reactor == NULL)
        abort();
    reactor->io.ops = &world_ops;
    reactor->world = world;
    reactor->index = world->reactor_count;
    reactor->process = process;
    snprintf(reactor->name, sizeof(reactor->name), "%s", name);
    list_init(&reactor->tasks);
    reactor->backlog_end = &reactor->backlog;
    world->reactors[world->reactor_count++] = reactor;
    return &reactor->io;
}

struct world *world_of(struct io *io)
{
    return reactor_of(io)->world;
}

void *world_context(const struct world *world)
{
    return world->options.context;
}

uint64_t world_now(const struct world *world)
{
    return world->now;
}

uint64_t world_hash(const struct world *world)
{
    return world->hash;
}

uint64_t world_events(const struct world *world)
{
    return world->events;
}

uint64_t world_disk_operations(const struct world *world)
{
    return world->disk_operations;
}

unsigned world_descriptors(const struct world *world)
{
    return world->descriptor_count;
}

/* What the gate holds. */

static struct event *held_take(struct world *world, uint64_t number)
{
    for (struct event **at = &world->held; *at != NULL; at = &(*at)->next)
        if ((*at)->number == number) {
            struct event *event = *at;
            *at = event->next;
            event->held = false;
            world->held_count--;
            return event;
        }
    return NULL;
}

bool world_let_go(struct world *world, uint64_t number)
{
    struct event *event = held_take(world, number);
    if (event == NULL)
        return false;
    event_schedule(world, event, world->now + 1);
    return true;
}

bool world_land(struct world *world, uint64_t number)
{
    for (struct event *event = world->held; event != NULL; event = event->next)
        if (event->number == number && !event->landed) {
            disk_land(world, event);
            return true;
        }
    return false;
}

void world_let_go_all(struct world *world)
{
    while (world->held != NULL)
        world_let_go(world, world->held->number);
}

unsigned world_held(const struct world *world)
{
    return world->held_count;
}

/* Death. */

/* One event of a dead process: what has no effect outside of it vanishes, what the disk has goes on. */
static bool bury(struct world *world, struct event *event)
{
    bool disk = event->kind >= WORLD_READ && event->kind <= WORLD_EXTENT;
    if (disk && !event->landed) {
        disk_orphan(world, event);
        return true;
    }
    if (disk)
        description_release(world, event->fd);
    else if (event->kind >= WORLD_ACCEPT)
        description_at(world, event->fd)->under_way--;
    event_free(world, event);
    return false;
}

static void bury_chain(struct world *world, struct event **chain)
{
    for (struct event *event; (event = *chain) != NULL;) {
        *chain = event->next;
        if (bury(world, event))
            event_schedule(world, event, world->now + world_below(world, 4 * NS_PER_S));
    }
}

static void bury_held(struct world *world, unsigned process)
{
    for (struct event **at = &world->held; *at != NULL;) {
        struct event *event = *at;
        if (event->reactor->process != process) {
            at = &event->next;
            continue;
        }
        *at = event->next;
        event->held = false;
        world->held_count--;
        if (bury(world, event))
            event_schedule(world, event, world->now + world_below(world, 4 * NS_PER_S));
    }
}

static void bury_scheduled(struct world *world, unsigned process)
{
    size_t count = world->heap_count;
    struct event **events = malloc((count + 1) * sizeof(struct event *));
    if (events == NULL)
        abort();
    if (count > 0)
        memcpy(events, world->heap + 1, count * sizeof(struct event *));
    world->heap_count = 0;
    for (size_t i = 0; i < count; i++) {
        struct event *event = events[i];
        event->in_heap = false;
        bool theirs = event->reactor->process == process && !event->orphan;
        if (!theirs)
            event_schedule(world, event, event->due);
        else if (bury(world, event))
            event_schedule(world, event, event->due + world_below(world, 4 * NS_PER_S));
    }
    free(events);
}

void world_kill(struct world *world, unsigned process)
{
    assert(world->current == NULL || world->current->process != process);
    bury_scheduled(world, process);
    bury_held(world, process);
    socket_drop_process(world, process);
    for (unsigned i = 0; i < world->reactor_count; i++) {
        struct reactor *reactor = world->reactors[i];
        if (reactor->process != process || reactor->dead)
            continue;
        reactor->dead = true;
        reactor->timer_count = 0;
        list_init(&reactor->tasks);
        bury_chain(world, &reactor->backlog);
        reactor->backlog_end = &reactor->backlog;
    }
    kernel_kill(world, process);
    for (int fd = WORLD_DESCRIPTOR_FIRST; fd < WORLD_DESCRIPTOR_END; fd++) {
        struct description *description = description_at(world, fd);
        if (!description->open || description->process != process)
            continue;
        if (description->is_shm)
            shm_drop(world, description);
        description->closing = true;
        if (description->under_way == 0)
            description_drop(world, fd);
    }
}

/* What the tick that was cut short has started has not reached the kernel. */
void world_died(struct reactor *reactor)
{
    struct world *world = reactor->world;
    if (world->starting != NULL)
        event_free(world, world->starting);
    world->starting = NULL;
    for (size_t at = 1; at <= world->heap_count;) {
        struct event *event = world->heap[at];
        if (event->reactor != reactor || event->tick != world->ticks || event->kind < WORLD_READ ||
            event->kind > WORLD_EXTENT) {
            at++;
            continue;
        }
        event_unschedule(world, event);
        description_release(world, event->fd);
        event_free(world, event);
        at = 1; /* the heap has been sifted */
    }
    for (struct event **at = &world->held; *at != NULL;) {
        struct event *event = *at;
        if (event->reactor != reactor || event->tick != world->ticks) {
            at = &event->next;
            continue;
        }
        *at = event->next;
        world->held_count--;
        description_release(world, event->fd);
        event_free(world, event);
    }
    struct event *arriving = reactor->arriving;
    reactor->arriving = NULL;
    if (arriving != NULL && bury(world, arriving))
        event_schedule(world, arriving, world->now + world_below(world, 4 * NS_PER_S));
    world->current = NULL;
    world_kill(world, reactor->process);
}

void world_power_loss(struct world *world)
{
    assert(world->options.power);
    for (unsigned i = 0; i < world->reactor_count; i++)
        if (!world->reactors[i]->dead)
            world_kill(world, world->reactors[i]->process);
    size_t count = world->heap_count;
    for (size_t i = 1; i <= count; i++)
        world->heap[i]->in_heap = false;
    disk_power_loss(world, world->heap + 1, count);
    world->heap_count = 0;
    shm_power_loss(world);
    world->boots++;
}

/* The end. */

static unsigned report_chain(FILE *report, const char *what, struct event *event)
{
    unsigned count = 0;
    for (; event != NULL; event = event->next, count++)
        fprintf(report, "left over: %s, kind %d on %s, descriptor %d\n", what, (int)event->kind, event->reactor->name,
                event->fd);
    return count;
}

static unsigned count_leftovers(struct world *world, FILE *report)
{
    unsigned count = report_chain(report, "held operation", world->held);
    for (size_t i = 1; i <= world->heap_count; i++, count++)
        fprintf(report, "left over: event of kind %d on %s, descriptor %d\n", (int)world->heap[i]->kind,
                world->heap[i]->reactor->name, world->heap[i]->fd);
    for (unsigned i = 0; i < world->reactor_count; i++) {
        struct reactor *reactor = world->reactors[i];
        if (reactor->dead)
            continue;
        count += report_chain(report, "undelivered", reactor->backlog);
        for (size_t t = 1; t <= reactor->timer_count; t++, count++)
            fprintf(report, "left over: armed timer on %s\n", reactor->name);
        if (!list_empty(&reactor->tasks)) {
            count++;
            fprintf(report, "left over: queued task on %s\n", reactor->name);
        }
    }
    for (int fd = WORLD_DESCRIPTOR_FIRST; fd < WORLD_DESCRIPTOR_END; fd++) {
        struct description *description = description_at(world, fd);
        if (!description->open)
            continue;
        count++;
        fprintf(report, "left over: descriptor %d (%s), %u operations under way\n", fd,
                description->file != NULL ? description->file->path
                : description->is_shm     ? "shared memory"
                                          : "socket",
                description->under_way);
    }
    return count + kernel_leftovers(world, report);
}

static void free_chain(struct event *event)
{
    while (event != NULL) {
        struct event *next = event->next;
        free(event->copy);
        free(event->shared);
        free(event);
        event = next;
    }
}

unsigned world_destroy(struct world *world, FILE *report)
{
    unsigned count = count_leftovers(world, report != NULL ? report : stderr);
    for (size_t i = 1; i <= world->heap_count; i++) {
        world->heap[i]->next = NULL;
        free_chain(world->heap[i]);
    }
    free(world->heap);
    free_chain(world->held);
    for (int fd = WORLD_DESCRIPTOR_FIRST; fd < WORLD_DESCRIPTOR_END; fd++) {
        struct description *description = description_at(world, fd);
        if (!description->open)
            continue;
        if (description->is_shm)
            shm_drop(world, description);
        if (description->socket != NULL)
            free_chain(description->socket->waiters);
        if (description->socket != NULL)
            description->socket->waiters = NULL;
        description_drop(world, fd);
    }
    shm_power_loss(world);
    for (unsigned i = 0; i < world->reactor_count; i++) {
        free_chain(world->reactors[i]->backlog);
        free(world->reactors[i]->timers);
        free(world->reactors[i]);
    }
    for (unsigned i = 0; i < WORLD_FILES; i++)
        if (world->files[i] != NULL)
            file_free(world->files[i]);
    free_chain(world->free_events);
    free(world);
    return count;
}
