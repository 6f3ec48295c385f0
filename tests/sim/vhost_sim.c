/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The program of the simulation of vhost-user (vhost_sim.h); runner.h says how it is used. */
#include "vhost_sim.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "runner.h"

void sim_fail(const struct sim *sim, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    runner_fail("vhost_sim", sim->options.seed, world_now(sim->stage->world), format, arguments);
}

void sim_trace(const struct sim *sim, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    if (sim->options.trace)
        runner_trace(world_now(sim->stage->world), format, arguments);
    va_end(arguments);
}

enum { REQUESTS, DEATHS, CONNECTIONS, RESETS, SHOTS, CHECKS, MIGRATIONS };

static struct runner_result run(const struct runner_seed *seed)
{
    const struct sim_options options = {.seed = seed->seed, .trace = seed->trace, .steps = seed->requests};
    const struct sim_result result = sim_run(&options);
    return (struct runner_result){.hash = result.hash,
                                  .sums = {[REQUESTS] = result.requests,
                                           [DEATHS] = result.deaths,
                                           [CONNECTIONS] = result.connections,
                                           [RESETS] = result.resets,
                                           [SHOTS] = result.shots,
                                           [CHECKS] = result.checks,
                                           [MIGRATIONS] = result.migrations}};
}

static void print(const struct runner_result *sum)
{
    printf("  %llu requests, %llu connections, %llu deaths, %llu resets; %llu snapshots, %llu reads of them; %llu "
           "migrations\n",
           (unsigned long long)sum->sums[REQUESTS], (unsigned long long)sum->sums[CONNECTIONS],
           (unsigned long long)sum->sums[DEATHS], (unsigned long long)sum->sums[RESETS],
           (unsigned long long)sum->sums[SHOTS], (unsigned long long)sum->sums[CHECKS],
           (unsigned long long)sum->sums[MIGRATIONS]);
}

static bool is_mine(const char *name)
{
    return strncmp(name, "vhost_", 6) == 0;
}

int main(int argc, char **argv)
{
    const struct runner runner = {.name = "vhost_sim",
                                  .run = run,
                                  .is_mine = is_mine,
                                  .print = print,
                                  .batch = 8,
                                  .kills = true,
                                  .mutant_seeds = 2000,
                                  .mutant_seconds = 10};
    return runner_main(&runner, argc, argv);
}
