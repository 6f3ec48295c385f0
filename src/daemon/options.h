/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The command line of fleeced. */
#ifndef FLEECE_DAEMON_OPTIONS_H
#define FLEECE_DAEMON_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/limits.h"

enum track_option {
    TRACK_AUTO, /* when there is a sidecar, or a checkpoint is made */
    TRACK_ON,
    TRACK_OFF,
};

struct disk_options {
    char name[LIMIT_NAME_BYTES + 1];
    char *path; /* as it was given; NULL for the null driver */
    bool null_driver;
    bool qcow2; /* format=qcow2 */
    bool read_only;
    bool page_cache;
    uint64_t size_bytes;  /* of the null driver */
    uint64_t block_bytes; /* of preservation; 0: the default */
    enum track_option track;
    uint64_t track_granularity; /* of a sidecar that is made; 0: the default */
};

struct vhost_user_options {
    char disk[LIMIT_NAME_BYTES + 1];
    char *socket; /* absolute */
};

enum options_action { OPTIONS_SERVE, OPTIONS_THAW, OPTIONS_HELP, OPTIONS_VERSION };

struct options {
    enum options_action action;
    char vm[LIMIT_NAME_BYTES + 1];
    struct disk_options disks[LIMIT_DISKS];
    unsigned disk_count;
    char *nbd[LIMIT_NBD_ADDRESSES]; /* unix paths made absolute */
    unsigned nbd_count;             /* 0: the default place */
    struct vhost_user_options vhost_users[LIMIT_DISKS];
    unsigned vhost_user_count;
    char *control;   /* absolute path; NULL: the default place */
    char *state_dir; /* NULL: the default place */
    uint64_t ram_bytes;
    uint64_t cache_bytes;    /* of all cache files; 0: not said */
    char *cache_dir;         /* absolute; NULL: beside each disk's image */
    uint64_t cbw_timeout_ns; /* 0: the default */
    bool copy_on_read;
    unsigned io_threads; /* 0: as many as fit the disks and the machine */
    uint64_t lock_wait_ns;
    char *guest_agent;          /* "unix:" and an absolute path; NULL: none */
    char *hook_dir;             /* absolute; NULL: none */
    uint64_t freeze_timeout_ns; /* 0: the default */
    bool incoming;              /* the disks are another daemon's until a VMM starts the rings of one */
};

/* 0, or -EINVAL with a sentence that names the option, the value and what is right. options_fini() in both cases. */
int options_parse(struct options *options, int argc, char **argv, struct error *err);
void options_fini(struct options *options);
/* Whether there is to be a disk tier. */
bool options_want_cache_files(const struct options *options);
/* How many I/O threads there are to be, on this machine. */
unsigned options_io_threads(const struct options *options);
/* 0, or -errno with a sentence: the state directory that was named is none, or can't be written. */
int options_check_state_dir(const struct options *options, struct error *err);

extern const char options_help[];

#endif
