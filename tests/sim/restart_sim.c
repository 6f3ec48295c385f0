/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The program of the many lives of a daemon (lives.h); runner.h says how it is used. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "lives.h"
#include "runner.h"

void lives_fail(const struct lives *lives, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    runner_fail("restart_sim", lives->options.seed, world_now(lives->stage->world), format, arguments);
}

void lives_trace(const struct lives *lives, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    if (lives->options.trace)
        runner_trace(world_now(lives->stage->world), format, arguments);
    va_end(arguments);
}

enum { DEATHS, POWER_LOSSES, CHECKS, BACKUPS, INCREMENTALS };

static struct runner_result run(const struct runner_seed *seed)
{
    const struct lives_options options = {.seed = seed->seed, .trace = seed->trace, .steps = seed->requests};
    const struct lives_result result = lives_run(&options);
    struct runner_result sums = {.hash = result.hash};
    sums.sums[DEATHS] = result.deaths;
    sums.sums[POWER_LOSSES] = result.power_losses;
    sums.sums[CHECKS] = result.checks;
    sums.sums[BACKUPS] = result.backups;
    sums.sums[INCREMENTALS] = result.incrementals;
    return sums;
}

static void print(const struct runner_result *sum)
{
    printf(
        "  %llu deaths, %llu of them by power loss; %llu reads of snapshots; %llu backups, %llu of them incremental\n",
        (unsigned long long)sum->sums[DEATHS], (unsigned long long)sum->sums[POWER_LOSSES],
        (unsigned long long)sum->sums[CHECKS], (unsigned long long)sum->sums[BACKUPS],
        (unsigned long long)sum->sums[INCREMENTALS]);
}

/* What the VM does in one life is the matter of vm_sim, and tracking that of track_crash. */
static bool is_mine(const char *name)
{
    return strncmp(name, "restart_", 8) == 0;
}

int main(int argc, char **argv)
{
    const struct runner runner = {.name = "restart_sim",
                                  .enough = "deaths",
                                  .run = run,
                                  .is_mine = is_mine,
                                  .print = print,
                                  .batch = 8,
                                  .kills = true,
                                  .mutant_seeds = 2000,
                                  .mutant_seconds = 10};
    return runner_main(&runner, argc, argv);
}
