/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A small checker of qcow2 images of our own, which shares no code with the driver. */
#ifndef TESTS_SIM_QCOW2_CHECK_H
#define TESTS_SIM_QCOW2_CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct qcow2_verdict {
    unsigned leaks;  /* clusters that are counted more often than they are referred to */
    char error[256]; /* the first thing that no image may have; empty: none */
};

/* Makes a header of version 3 one of version 2: 72 bytes, and extensions behind these. */
void qcow2_make_old(uint8_t *bytes, size_t length);
/* The image as it lies in a file. */
void qcow2_check(const uint8_t *bytes, uint64_t file_bytes, struct qcow2_verdict *verdict);

#endif
