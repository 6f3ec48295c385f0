/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Short scenes that qcow2_sim plays: one interleaving each, which random lives meet by luck only. */
#ifndef TESTS_SIM_QCOW2_SCENES_H
#define TESTS_SIM_QCOW2_SCENES_H

/* The first thing that is wrong ends the program. */
void qcow2_scenes(void);
void qcow2_growth_scenes(void);
void qcow2_failure_scenes(void);
void qcow2_old_scenes(void);
void qcow2_cost_scenes(void);

#endif
