/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The simulated operations pass the suite that the real ones pass, with many seeds: orders, latencies, short transfers. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "conformance.h"
#include "world.h"

enum { SEEDS = 40 };

struct place { /* of one world: texts for the suite */
    char text[128];
    unsigned addresses;
};

static struct io *begin(void)
{
    struct place *place = calloc(1, sizeof(*place));
    const char *seed = getenv("WORLD_SEED");
    struct world *world = world_create(&(struct world_options){
        .seed = strtoull(seed, NULL, 10), .context = place, .short_per_1024 = 200, .stall_per_1024 = 50});
    struct io *io = world_reactor(world, "main", 0);
    world_act_as(world, io);
    return io;
}

static void end(struct io *io)
{
    struct world *world = world_of(io);
    struct place *place = world_context(world);
    world_act_as(world, NULL);
    if (world_destroy(world, stderr) != 0)
        abort();
    free(place);
}

static bool run_until(struct io *io, bool (*reached)(void *context), void *context)
{
    struct world *world = world_of(io);
    world_act_as(world, NULL);
    uint64_t deadline_ns = world_now(world) + 10 * NS_PER_S;
    bool is_reached;
    while (!(is_reached = reached(context)) && world_now(world) < deadline_ns)
        if (!world_step(world))
            world_run_for(world, NS_PER_MS); /* nothing to come: time passes all the same */
    world_act_as(world, io);
    return is_reached;
}

static const char *path(struct io *io, const char *name)
{
    struct place *place = world_context(world_of(io));
    snprintf(place->text, sizeof(place->text), "/sim/%s", name);
    return place->text;
}

static const char *address(struct io *io, bool tcp)
{
    struct place *place = world_context(world_of(io));
    snprintf(place->text, sizeof(place->text), tcp ? "tcp:127.0.0.1:%u" : "unix:/sim/socket%u",
             10000 + place->addresses++);
    return place->text;
}

static int connect_to(struct io *io, const char *to)
{
    return world_connect(world_of(io), to);
}

static int event(struct io *io, bool blocking)
{
    (void)blocking; /* makes no difference here */
    return world_event(world_of(io));
}

static void elsewhere(struct io *io, void (*body)(void *argument), void *argument)
{
    struct world *world = world_of(io);
    world_act_as(world, NULL);
    body(argument);
    world_act_as(world, io);
}

int main(void)
{
    static const struct conformance_fixture fixture = {
        .begin = begin,
        .end = end,
        .run_until = run_until,
        .path = path,
        .address = address,
        .connect = connect_to,
        .event = event,
        .elsewhere = elsewhere,
    };
    int failed = 0;
    for (unsigned seed = 1; seed <= SEEDS && failed == 0; seed++) {
        char text[16];
        snprintf(text, sizeof(text), "%u", seed);
        setenv("WORLD_SEED", text, 1);
        failed += conformance_run("world", &fixture);
    }
    return failed == 0 ? 0 : 1;
}
