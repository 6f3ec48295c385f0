/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The program of the many lives of a daemon (lives.h); runner.h says how it is used. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lives.h"
#include "runner.h"

void lives_fail(const struct lives *lives, const char *format, ...)
{
    va_list arguments;
    fprintf(stderr, "restart_sim: seed %llu, death %llu, %.6f s: ", (unsigned long long)lives->options.seed,
            (unsigned long long)lives->result.deaths, (double)world_now(lives->stage->world) / (double)NS_PER_S);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

void lives_trace(const struct lives *lives, const char *format, ...)
{
    if (!lives->options.trace)
        return;
    va_list arguments;
    fprintf(stderr, "%14.3f us -- ", (double)world_now(lives->stage->world) / 1000);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
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
                                  .mutant_seeds = 400,
                                  .mutant_seconds = 10};
    return runner_main(&runner, argc, argv);
}
