/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The program of the crash simulation (crash.h); runner.h says how it is used. A crash state is one restart after a crash,
 * with the oracle run: `--states N` runs seeds until there are so many.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "crash.h"
#include "runner.h"

void crash_fail(const struct crash_sim *sim, const char *format, ...)
{
    va_list arguments;
    fprintf(stderr, "track_crash: seed %llu, life %llu, %.6f s: ", (unsigned long long)sim->options.seed,
            (unsigned long long)sim->result.lives, (double)world_now(sim->world) / (double)NS_PER_S);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\nrun it again: track_crash --seed %llu --trace\n", (unsigned long long)sim->options.seed);
    exit(1);
}

void crash_trace(const struct crash_sim *sim, const char *format, ...)
{
    if (!sim->options.trace)
        return;
    va_list arguments;
    fprintf(stderr, "%14.3f us -- ", (double)world_now(sim->world) / 1000);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
}

enum { STATES, LIVES, WRITES, CHECKS, TAMPERS, RECOVERED };

static struct runner_result run(const struct runner_seed *seed)
{
    const struct crash_result result = crash_run(&(struct crash_options){.seed = seed->seed, .trace = seed->trace});
    struct runner_result sums = {.hash = result.hash};
    sums.sums[STATES] = result.states;
    sums.sums[LIVES] = result.lives;
    sums.sums[WRITES] = result.writes;
    sums.sums[CHECKS] = result.checks;
    sums.sums[TAMPERS] = result.tampers;
    for (unsigned i = 0; i <= TRACKER_VOID; i++)
        sums.sums[RECOVERED + i] = result.recovered[i];
    return sums;
}

static void print(const struct runner_result *sum)
{
    static const char *const recovered[] = {[TRACKER_NEW] = "new",
                                            [TRACKER_CLEAN] = "clean",
                                            [TRACKER_ADOPTED] = "adopted",
                                            [TRACKER_REPLAYED] = "replayed",
                                            [TRACKER_VOID] = "void"};
    printf("  %llu crash states, %llu lives;", (unsigned long long)sum->sums[STATES],
           (unsigned long long)sum->sums[LIVES]);
    for (unsigned i = 0; i <= TRACKER_VOID; i++)
        printf(" %llu %s,", (unsigned long long)sum->sums[RECOVERED + i], recovered[i]);
    printf(" %llu requests, %llu bitmaps checked, %llu changes behind our back\n",
           (unsigned long long)sum->sums[WRITES], (unsigned long long)sum->sums[CHECKS],
           (unsigned long long)sum->sums[TAMPERS]);
}

/* Only tracking is simulated here. */
static bool is_mine(const char *name)
{
    return strncmp(name, "track_", 6) == 0;
}

int main(int argc, char **argv)
{
    const struct runner runner = {.name = "track_crash",
                                  .enough = "states",
                                  .run = run,
                                  .is_mine = is_mine,
                                  .print = print,
                                  .batch = 16,
                                  .kills = true,
                                  .mutant_seeds = 2000,
                                  .mutant_seconds = 5};
    return runner_main(&runner, argc, argv);
}
