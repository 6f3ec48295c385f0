/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Whether the tables of a qcow2 image are right, down to each count and each bit that has to be zero; and their hash. */
#ifndef FLEECE_SET_QCOW2_CHECK_H
#define FLEECE_SET_QCOW2_CHECK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

struct qcow2_check_options {
    int fd;           /* of a file that nobody writes to */
    bool allow_leaks; /* clusters that are counted though nothing refers to them harm nobody */
    /* Called for each thing that is wrong, with where in the file that is. */
    void (*damage)(void *context, uint64_t file_offset, const char *what);
    void *context;
};

/*
 * 0 also when something is wrong; -EIO, -ENOMEM... with a sentence: it could not be looked at to the end. sha256
 * [COPY_HASH_BYTES]: of all that the image is made of but for the guest's data, as docs/formats/backup-set.md says; of use
 * when nothing is wrong.
 */
int qcow2_check(const struct qcow2_check_options *options, uint8_t *sha256, struct error *err);

#endif
