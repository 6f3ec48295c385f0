/* SPDX-License-Identifier: GPL-2.0-or-later */
/* --sample and --seed: which extents of a disk are looked at. */
#ifndef FLEECE_CLI_SAMPLE_H
#define FLEECE_CLI_SAMPLE_H

#include "base/bitmap.h"
#include "cli/command.h"

struct sample {
    double percent; /* more than 0, at most 100 */
    uint64_t seed;
    uint64_t state; /* of the random numbers */
};

/* All of it or a part, with a random seed. */
void sample_init(struct sample *sample, double percent);
/* The options of a command that has just --sample ("5", "0.5%") and --seed. CLI_DONE, or what the command returns. */
int sample_parse_options(const struct cli *cli, struct sample *sample, int argc, char **argv);

/*
 * Sets exactly so many bits of `chosen`, out of those for which may_choose() says so, each as likely, at least one if
 * there is any. *among: how many those are; *count: how many of them were chosen. -ENOMEM.
 */
int sample_choose(struct sample *sample, bool (*may_choose)(const void *context, uint64_t bit), const void *context,
                  struct bitmap *chosen, uint64_t *among, uint64_t *count);

#endif
