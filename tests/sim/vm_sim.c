/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The program of the simulation of the VM (sim.h); runner.h says how it is used. */
#include <string.h>

#include "runner.h"
#include "sim.h"

/* The file driver, qcow2, change tracking and what outlives the daemon have simulations of their own (file_sim.c,
 * qcow2_sim.c, track_crash.c, restart_sim.c); here the world's disks are served by sim_leaf.c. */
static bool is_mine(const char *name)
{
    static const char *const elsewhere[] = {"file_", "qcow2_", "track_", "restart_", "vhost_", "push_"};
    for (unsigned i = 0; i < sizeof elsewhere / sizeof elsewhere[0]; i++)
        if (strncmp(name, elsewhere[i], strlen(elsewhere[i])) == 0)
            return false;
    return true;
}

static struct runner_result run(const struct runner_seed *seed)
{
    const struct sim_options options = {.seed = seed->seed, .trace = seed->trace, .requests = seed->requests};
    return (struct runner_result){.hash = sim_run(&options)};
}

int main(int argc, char **argv)
{
    const struct runner runner = {.name = "vm_sim",
                                  .run = run,
                                  .is_mine = is_mine,
                                  .batch = 100,
                                  .mutant_seeds = 4000,
                                  .mutant_requests = 2000,
                                  .mutant_seconds = 5}; /* twenty times what a slow seed takes */
    return runner_main(&runner, argc, argv);
}
