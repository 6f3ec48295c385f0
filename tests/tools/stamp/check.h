/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The judge: does an image of the disks show one instant of the run?
 *
 * From each slot the judge reads which record it holds; so it knows for every record of the log whether it is in (written
 * before the instant) or missing. Then, with times from the log:
 *   1. no record is torn, damaged, misplaced, or unknown to the log;
 *   2. every record acknowledged before `before_ns` is in, and none issued after `after_ns`;
 *   3. one instant: a record acknowledged before another one was issued is in if the other one is - for all writers and
 *      disks together, so it covers dependent writes over several disks;
 *   4. a writer with one record in flight at a time has a prefix: all slots are as after his first p records. Of
 *      dependent disks a and b, in the order in which they are written: p(a) >= p(b) >= p(a) - 1.
 */
#ifndef STAMP_CHECK_H
#define STAMP_CHECK_H

#include <stdio.h>

#include "log.h"

struct check_options {
    uint64_t before_ns; /* 0: rule 2 asks for nothing to be in */
    uint64_t after_ns;  /* UINT64_MAX: it forbids nothing */
    /* The image is what a crash left, not a snapshot: a record may be torn if it was never acknowledged; it counts as
     * missing. */
    bool crashed;
    FILE *out; /* sentences */
    /* Reads from the image of a disk. 0, or -1 when the reader has told why. */
    int (*read)(void *context, uint32_t disk, void *buffer, uint64_t offset, uint64_t length);
    void *context;
};

struct check_result {
    uint64_t records_in, records_missing; /* of those issued; overwritten ones count by their turn */
    uint64_t slots, problems;
};

/* true: it is one instant. */
bool check_run(const struct log_content *content, const struct check_options *options, struct check_result *result);

#endif
