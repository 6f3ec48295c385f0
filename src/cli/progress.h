/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How far a copy is: a bar with rate and time left on stderr when that is a terminal; with --json, lines on stdout. */
#ifndef FLEECE_CLI_PROGRESS_H
#define FLEECE_CLI_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct progress {
    bool json, bar;
    const char *point, *disk; /* point: NULL for a backup, which has none yet */
    uint64_t started_ns, shown_ns, last_ns, last_bytes;
    double rate; /* bytes a second, smoothed */
};

void progress_begin(struct progress *progress, bool json, const char *point, const char *disk, uint64_t now_ns);
void progress_show(struct progress *progress, uint64_t now_ns, uint64_t done_bytes, uint64_t total_bytes,
                   uint64_t data_bytes);
/* Takes the bar away, so that a line can be printed. */
void progress_end(struct progress *progress);

#endif
