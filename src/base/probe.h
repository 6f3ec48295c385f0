/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Two instruments of the test build (FLEECE_TEST_BUILD); both are nothing at all in a release.
 *
 * PROBE(name) marks a path of the data path: a park reason, a move of a state, an error. The simulation fails when a
 * probe was never reached.
 *
 * MUTANT(name) is a deliberate fault: false, unless the test selected it by name. The simulation must catch each one.
 * `if (!MUTANT(skip_recheck)) recheck();`
 */
#ifndef FLEECE_BASE_PROBE_H
#define FLEECE_BASE_PROBE_H

#ifdef FLEECE_TEST_BUILD

#include <stdbool.h>

struct probe {
    const char *name;
    unsigned long hits;
};

struct mutant {
    const char *name;
    bool on;
};

#define PROBE(label)                                                                                                 \
    do {                                                                                                             \
        static struct probe probe_##label __attribute__((used, aligned(8), section("fleece_probes"))) = {#label, 0}; \
        probe_##label.hits++;                                                                                        \
    } while (0)

#define MUTANT(label)                                                                       \
    (__extension__({                                                                        \
        static struct mutant mutant_##label                                                 \
            __attribute__((used, aligned(8), section("fleece_mutants"))) = {#label, false}; \
        mutant_##label.on;                                                                  \
    }))

#else

#define PROBE(label) ((void)0)
#define MUTANT(label) 0

#endif
#endif
