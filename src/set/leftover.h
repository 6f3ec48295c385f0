/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Unfinished points: what a running backup has made so far, and what a killed one has left. */
#ifndef FLEECE_SET_LEFTOVER_H
#define FLEECE_SET_LEFTOVER_H

#include "set/set.h"

#define UNFINISHED_PREFIX ".tmp-" /* followed by 16 random hexadecimal digits */
#define UNFINISHED_NAME_BYTES 22

struct leftover_report {
    unsigned removed;
    unsigned resumable; /* that were kept, as was wanted, since a backup may go on with them */
    char resumable_name[UNFINISHED_NAME_BYTES];
    unsigned kept; /* folders with such a name that are not, or not only, ours */
    char kept_name[UNFINISHED_NAME_BYTES];
    char kept_reason[LIMIT_ERROR_BYTES / 2];
};

/* Whether it is the name of an unfinished point. */
bool leftover_name_valid(const char *name);
/* Removes every unfinished point but `own` and, if that is said, those that `fleece backup --resume` may go on with; and
 * from points what only unfinished ones need. The set is locked, so nobody works on them. */
void leftover_sweep(const struct set *set, const char *own, bool keep_resumable, struct leftover_report *report);
/* Whether a folder, a point too, could be removed as a whole: 0, or -errno and why not in reason[size]. */
int leftover_check(const struct set *set, const char *name, char *reason, size_t size);
/* Removes one that is ours as a whole: 0; else nothing of it: -errno and why in reason[size]. */
int leftover_remove(const struct set *set, const char *name, char *reason, size_t size);
/* " (process 123 on host h, since T)" about whoever holds the lock, or "". */
void leftover_describe_owner(const struct set *set, char *text, size_t size);

#endif
