/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The file driver: raw files and block devices. */
#ifndef FLEECE_DRIVER_FILE_H
#define FLEECE_DRIVER_FILE_H

#include "block/node.h"

struct file_options {
    const char *path;
    bool read_only;
    bool page_cache;       /* cache=writeback; else direct I/O (cache=none) */
    bool no_lock;          /* for files that nobody else can know yet */
    uint64_t lock_wait_ns; /* how long to wait for the lock of a killed daemon (C10); 0: refuse at once */
    bool create;           /* a new file of size_bytes, which must not exist */
    uint64_t size_bytes;   /* with create */
    bool growable;         /* a regular file may have any length, 0 too, and writes extend it: node->growable */
    bool adopt;            /* `fd` is the file, open for reading and writing; it stays the caller's on failure */
    int fd;
    void (*waiting)(void *context, const char *path); /* called once when the wait for a lock begins; may be NULL */
    void *waiting_context;
};

/* The byte whose OFD lock is ours, exclusive for writers, shared for readers: far beyond any data. "fleece" in ASCII. */
#define FILE_LOCK_BYTE UINT64_C(0x666c65656365)

/*
 * Opens, locks and measures. May block (up to lock_wait_ns): on a control thread. `io` is the owner from then on.
 * -ENOENT, -EACCES, -EISDIR, -EAGAIN (locked), -EBUSY (device claimed), -EINVAL (size 0, no direct I/O), ...; what `create`
 * has created stays when a later step fails.
 */
int file_open(struct io *io, const struct file_options *options, struct node **node, struct error *err);

/* Whether it is a regular file on a file system of this machine alone: elsewhere a server or another machine sets the times,
 * by its own clock. */
bool file_has_local_times(const char *path);
/* The same of what is open there. */
bool file_descriptor_has_local_times(int fd);

/* What the kernel says of the file of a node of this driver. Any thread. 0 or -errno. */
int file_stat(const struct node *node, struct io_stat *stat);
/* Its file system may hang: from now on no write to it makes the reactor wait. Before anything is submitted. */
void file_write_apart(struct node *node);
/* By which a node of this driver writes, to ask the kernel more; it stays the node's. Any thread. */
int file_descriptor(const struct node *node);

#endif
