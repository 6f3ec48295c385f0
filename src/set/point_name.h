/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Names of backup points: the time in UTC, "2026-11-22T06:05:45Z", and "2026-11-22T06:05:45Z-2" for a second one in that
 * second. */
#ifndef FLEECE_SET_POINT_NAME_H
#define FLEECE_SET_POINT_NAME_H

#include <stdbool.h>
#include <stdint.h>

#define POINT_TIME_BYTES 21 /* "2026-11-22T06:05:45Z" and its end */
#define POINT_NAME_BYTES 24

/* Seconds since 1970 to text[POINT_TIME_BYTES]; the year is one of 1970 to 9999. */
void point_time_format(char *text, uint64_t seconds);
/* Whether it is such a time, and one that exists. */
bool point_time_valid(const char *text);
bool point_name_valid(const char *name);
/* <0, 0, >0: older, same, newer. Both valid. */
int point_name_compare(const char *a, const char *b);
/* The name of number `number` (1, 2...99) of that time, into name[POINT_NAME_BYTES]. */
void point_name_make(char *name, const char *time, unsigned number);

#endif
