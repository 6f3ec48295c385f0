/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What of a target the next daemon must know. It may lie in shared memory, and is right at every moment: a word that says
 * how far it is vouches for all that counts then, and is stored after it.
 */
#ifndef FLEECE_JOB_TARGET_NOTE_H
#define FLEECE_JOB_TARGET_NOTE_H

#include "base/sealed.h"
#include "io/uuid.h"

enum target_stage {
    TARGET_UNTOUCHED,
    TARGET_NAMING, /* a file with the nonce in its name may be there: it is ours */
    TARGET_KNOWN,  /* it is the file that `is` tells, under the nonce's name or its own */
};

struct target_identity { /* zeroes: not known */
    uint64_t device, inode;
    uint64_t made_ns;  /* when the file was made: an inode's number may be given again */
    uint64_t instance; /* of a block device: another one, in a boot, when it is made or gets a medium */
};

struct target_note {
    struct sealed_word stage; /* enum target_stage */
    uint32_t created;         /* by us: the file is removed when the copy fails, and read as zeroes at first */
    char nonce[UUID_TEXT_BYTES];
    struct target_identity is;
};

/* When it was written last, on both clocks; zeroes: never. */
struct target_written {
    struct target_look {
        atomic_ullong clock_ns, wall_ns, sum;
    } looks[2];
    atomic_uint next; /* of the two; for the writer alone */
};

/* UNTOUCHED, whatever it was. */
void target_note_begin(struct target_note *note);
/* After what counts then. */
void target_note_store(struct target_note *note, enum target_stage stage);
/* enum target_stage, or -EBADMSG: not all of it is what was stored. */
int target_note_stage(const struct target_note *note);

void target_written_begin(struct target_written *written);
/* Before each write. */
void target_writing(struct target_written *written, struct io *io);
/* The last write's time, or that of the one before if none followed. 0; -EBADMSG: it is not known. */
int target_written_when(const struct target_written *written, uint64_t *clock_ns, uint64_t *wall_ns);

#endif
