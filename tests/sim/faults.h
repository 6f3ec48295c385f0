/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Deliberate faults (base/probe.h) that a script notices. Chance may take thousands of seeds to come upon the moment that
 * shows one, and after the next change of the simulation many more; a script goes there.
 */
#ifndef TESTS_SIM_FAULTS_H
#define TESTS_SIM_FAULTS_H

#include <stdbool.h>

#include "base/probe.h"

/* The fault of that name; NULL: the code has none. */
struct mutant *fault_find(const char *name);

/* Runs the script in a child that has the fault; true if it did not end with 0. It hangs, which counts, after so many
 * seconds of the processor. Says the outcome. */
bool fault_is_caught(struct mutant *mutant, int (*script)(void), unsigned seconds);

#endif
