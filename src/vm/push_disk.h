/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One disk of a push: the copy engine on the disk's reactor, and the words by which the control thread and the reactor tell
 * each other what is wanted and how far it is. Used by push.c alone.
 */
#ifndef FLEECE_VM_PUSH_DISK_H
#define FLEECE_VM_PUSH_DISK_H

#include <stdatomic.h>

#include "job/copy.h"
#include "vm/push_record.h"
#include "vm/room.h"

struct push_disk;

struct push_disk_options {
    bool advice, release, needed_only;
    unsigned workers; /* 0: default */
};

/* What the control thread wants of a disk; the reactor looks at it whenever it is nudged. */
struct push_wishes {
    atomic_bool cancel, hang_up, hurry, pause;
    atomic_uint pause_number; /* of the latest pause */
    atomic_ullong speed;
};

struct push_disk_hooks {                    /* on the control thread */
    void (*news)(struct push_disk *disk);   /* its progress, or that it has paused */
    void (*ended)(struct push_disk *disk);  /* status, err */
    void (*closed)(struct push_disk *disk); /* the target, and nothing is on its way any more */
};

struct push_disk {
    void *context; /* the push */
    struct io *control;
    struct push_disk_hooks hooks;
    struct disk *disk;
    uint64_t size_bytes; /* when the job was made: its snapshot must have it, for the target does */
    char *where;         /* NULL: not pushed; what the snapshot keeps of this disk is released at once */
    struct target target;
    struct target_note note;                       /* of it, if there is no record */
    struct push_record_progress *progress;         /* in the record; NULL: there is none, or it is not pushed */
    uint64_t before_done_bytes, before_data_bytes; /* how far a killed daemon had come */
    struct node *view;
    struct push_disk_options options;
    struct push_wishes wishes;
    char source_name[LIMIT_NAME_BYTES + 16];
    /* The reactor's: */
    struct copy *copy;
    unsigned pause_obeyed;
    bool cancel_obeyed, pausing;
    uint64_t speed_obeyed;
    struct request release; /* of a disk that is not pushed */
    uint64_t released_bytes;
    /* Reactor -> control: */
    struct nudge order, news;
    atomic_bool failing;
    atomic_ullong done_bytes, data_bytes;
    atomic_uint paused_number; /* the pause that has taken effect */
    struct io_message life;    /* begin, end, close: one at a time */
    bool begun, closing;       /* the control thread's, too */
    bool running;              /* from push_disk_begin() to hooks.ended; the control thread's */
    bool failed_reading, failed_io;
    int status;
    struct error err;
};

/* All on the control thread. */
void push_disk_begin(struct push_disk *disk);
/* The wishes have changed. */
void push_disk_nudge(struct push_disk *disk);
/* How far it is: never less than was said before. And: notes that in the record. */
uint64_t push_disk_done(const struct push_disk *disk);
uint64_t push_disk_data(const struct push_disk *disk);
void push_disk_note(struct push_disk *disk);
/* Not running. Closes the target, if it is open. */
void push_disk_close(struct push_disk *disk);

#endif
