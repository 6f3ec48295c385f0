/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * CRC32C (Castagnoli; RFC 3720, appendix B.4): reflected polynomial 0x82f63b78, all ones at the start, inverted at the
 * end. What processors have an instruction for, and what other formats use for the same purpose.
 */
#ifndef FLEECE_BASE_CRC32C_H
#define FLEECE_BASE_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* Of the bytes so far (0: none) followed by `bytes`. Any thread. */
uint32_t crc32c(uint32_t so_far, const void *bytes, size_t length);
/* The same without the processor's help, for the test that compares them. */
uint32_t crc32c_by_table(uint32_t so_far, const void *bytes, size_t length);

#endif
