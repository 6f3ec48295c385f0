/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The images that a disk of a point consists of: its own, those that lie under it, and at the end a full one. */
#ifndef FLEECE_SET_CHAIN_H
#define FLEECE_SET_CHAIN_H

#include "set/set.h"

struct chain_link {
    char point[POINT_NAME_BYTES];
    char snapshot[UUID_TEXT_BYTES];
    struct manifest_disk disk;
};

struct chain {
    unsigned count;           /* 1 to LIMIT_CHAIN_LINKS */
    struct chain_link *links; /* the newest first; the last one is full, all others are incremental */
};

/* -ENOENT: the point has no disk of that name, and says which it has. -EBADMSG: a point under it is missing, is not the
 * one that it was made from, has no such disk, or leads back. The sentence names all points concerned. Free with
 * chain_free(). */
int chain_resolve(const struct set *set, const char *point, const char *disk, struct chain *chain, struct error *err);
/* The same, but of an incremental image only the one below it is looked for: two links, the last of which may be either. */
int chain_resolve_step(const struct set *set, const char *point, const char *disk, struct chain *chain,
                       struct error *err);
void chain_free(struct chain *chain);

/* What the image of a link that is incremental names as its backing file, "../POINT/vda.qcow2"; for the full one "". */
void chain_backing_name(const struct chain *chain, unsigned link, char *name, size_t size);

#endif
