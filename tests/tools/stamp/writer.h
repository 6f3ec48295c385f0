/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The load: writes stamped records over NBD until time is up or a signal says so. */
#ifndef STAMP_WRITER_H
#define STAMP_WRITER_H

#include "log.h"

struct writer_options {
    struct log_plan plan;    /* finished */
    const char *const *uris; /* plan.disks */
    struct log *log;
    uint64_t duration_ns;  /* 0: until SIGINT or SIGTERM */
    uint64_t rate;         /* records a second, of all writers together; 0: as fast as it goes */
    uint32_t flush_every;  /* a flush after every so many records of a writer; 0: never */
    uint32_t fua_every;    /* every so manieth record with FUA; 0: none */
    bool until_disconnect; /* the server may vanish: that ends the run, and is no failure */
};

struct writer_result {
    uint64_t records, bytes;
    uint64_t elapsed_ns;
    uint64_t slowest_ns; /* from issue to acknowledgement */
    uint64_t failed;     /* answered with an error */
    bool disconnected;
    char error[512]; /* the first thing that went wrong; empty: nothing */
};

/* 0: all went well; 1: result->error says what did not. Blocks SIGINT and SIGTERM of the process for its own use. */
int writer_run(const struct writer_options *options, struct writer_result *result);

#endif
