/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the parts of fleece prune share: prune.c (what stays, and the order of things), prune_merge.c (one point) and
 * prune_clone.c (a shorter way where there is one). */
#ifndef FLEECE_CLI_PRUNE_H
#define FLEECE_CLI_PRUNE_H

#include "cli/chain_images.h"
#include "cli/command.h"
#include "cli/transfer.h"
#include "set/chain.h"
#include "set/keep.h"
#include "set/point.h"

struct prune {
    struct cli *cli;
    struct keep_rules rules;
    bool dry_run, warned;
    struct set *set;
    struct transfer transfer;
    struct set_points points;
    uint8_t *kept;   /* of each point, as keep_choose() says */
    unsigned *users; /* of each point: images that lie over one of its images */
    bool *removed;
    unsigned merged_count, removed_count;
    uint64_t freed_bytes, written_bytes; /* of space on the disk */
    uint64_t shared_bytes;               /* of what went, blocks that new files share: not freed */
};

/* The number of a point in prune->points; points.count: there is none of that name. */
unsigned prune_find(const struct prune *prune, const char *point);
/* How many links of a chain that begins with a point that stays are to be made one: up to the next that stays. 1: none. */
unsigned prune_links_to_merge(const struct prune *prune, const struct chain *chain);
/* What would be free if the point were not there. */
uint64_t prune_space_of_point(const struct prune *prune, const char *point, const struct manifest *manifest);
/* Makes a point that stays independent of those that have expired, by merging what they hold into it. `manifest` is that
 * of the point, and becomes that of the new one. 0, also when there is nothing to do; -errno with a sentence: the point
 * is as it was. */
int prune_merge_point(struct prune *prune, const char *point, struct manifest *manifest, struct error *err);
/* Merges all open images of a chain, down to the full one, by changing a clone of that one at `path`. 1: that can't be done
 * here, and nothing was; 0, and `disk` has its numbers; -errno with a sentence. */
int prune_clone(struct prune *prune, struct point *point, const struct chain *chain, struct chain_images *images,
                const char *path, struct manifest_disk *disk, struct error *err);

#endif
