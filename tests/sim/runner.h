/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The program of a seeded simulation: runs seeds in child processes, and asks for more than their success.
 *
 *   NAME --seeds FROM-TO [--jobs N]    all of them must pass, and every probe that is the simulation's must be reached
 *   NAME --enough N [--jobs N]         seeds from 1 on, until sums[0] of their results has reached N; the same
 *   NAME --seed N [--trace]            one of them, twice: both runs must be the same
 *   NAME --mutants FILE [--jobs N]     each deliberate fault named in FILE must be caught by some seed; with NAME@SEED
 *                                      this one is tried first
 *   --mutant NAME                      with this fault on; --no-probes: probes that were not reached are no failure
 *   --requests N                       of one seed, if the simulation counts such
 *
 * A failure says its seed and how to repeat it. Exit codes: 0 passed, 1 failed, 2 usage.
 */
#ifndef TESTS_SIM_RUNNER_H
#define TESTS_SIM_RUNNER_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>

enum { RUNNER_SUMS = 16 };

struct runner_seed {
    uint64_t seed;
    bool trace;
    unsigned requests; /* 0: the simulation's own number */
};

struct runner_result {
    uint64_t hash; /* of the run */
    uint64_t sums[RUNNER_SUMS];
};

struct runner {
    const char *name;
    const char *enough; /* another word for --enough; NULL: none */
    /* Runs one seed; ends the process when it fails. */
    struct runner_result (*run)(const struct runner_seed *seed);
    bool (*is_mine)(const char *name);              /* a probe or mutant that is to be reached or caught here */
    void (*print)(const struct runner_result *sum); /* a line about all seeds; may be NULL */
    unsigned batch;                                 /* seeds of one child */
    bool kills;               /* what killed processes had stays in memory until the child ends, and is no leak */
    unsigned mutant_seeds;    /* a fault that so many seeds do not show is not caught */
    unsigned mutant_requests; /* of one seed; 0: the simulation's own number */
    unsigned mutant_seconds;  /* of the processor, for one seed */
};

/* A run has failed, for that reason: ends the process. And a line of a run that is traced. At `now_ns` of its world. */
void runner_fail(const char *name, uint64_t seed, uint64_t now_ns, const char *format, va_list arguments)
    __attribute__((format(printf, 4, 0), noreturn));
void runner_trace(uint64_t now_ns, const char *format, va_list arguments) __attribute__((format(printf, 2, 0)));

int runner_main(const struct runner *runner, int argc, char **argv);

#endif
