/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A chain is walked by manifests, from the point that is wanted down to a full image; what the images themselves call their
 * backing file is compared with that when they are opened, and never followed. The parent is named by point and by the
 * UUID of its snapshot: a folder of that name that holds another point, copied or made anew, would give a disk that never
 * was. A chain that leads back to a point that it has passed can only have been forged or damaged, and is refused.
 */
#include "set/chain.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int no_such_disk(const struct set *set, const char *point, const struct manifest *manifest, const char *disk,
                        struct error *err)
{
    char names[LIMIT_ERROR_BYTES / 2] = "";
    for (unsigned i = 0; i < manifest->disk_count; i++) {
        size_t used = strlen(names);
        snprintf(names + used, sizeof names - used, "%s%s", i ? ", " : "", manifest->disks[i].name);
    }
    return error_set(err, ENOENT, "point %s of '%s' has no disk '%.64s'; it has %s", point, set_path(set), disk, names);
}

/* Loads the point that `child` lies over; it must be the one that it was made from. */
static int load_parent(const struct set *set, const struct chain_link *child, struct manifest *manifest,
                       struct error *err)
{
    const struct manifest_parent *parent = &child->disk.parent;
    int status = set_manifest_load(set, parent->point, manifest, err);
    if (status < 0) {
        err->code = EBADMSG; /* not ENOENT: the point that is wanted is there */
        return error_prefix(err, "disk %s of point %s needs point %s", child->disk.name, child->point, parent->point);
    }
    if (strcmp(manifest->snapshot, parent->snapshot) != 0)
        return error_set(
            err, EBADMSG,
            "disk %s of point %s was made over snapshot %s, but point %s is of snapshot %s: it is another one",
            child->disk.name, child->point, parent->snapshot, parent->point, manifest->snapshot);
    if (!manifest_disk_find(manifest, child->disk.name))
        return error_set(err, EBADMSG, "point %s has no disk %s, which point %s needs", parent->point, child->disk.name,
                         child->point);
    return 0;
}

static bool has_passed(const struct chain *chain, const char *point)
{
    for (unsigned i = 0; i < chain->count; i++)
        if (strcmp(chain->links[i].point, point) == 0)
            return true;
    return false;
}

static int add_link(struct chain *chain, unsigned *room, const char *point, const struct manifest *manifest,
                    const char *disk, struct error *err)
{
    if (chain->count == LIMIT_CHAIN_LINKS)
        return error_set(err, E2BIG, "the chain of disk %s of point %s has more than %d images", disk,
                         chain->links[0].point, LIMIT_CHAIN_LINKS);
    if (chain->count == *room) {
        *room = *room ? 2 * *room : 16;
        struct chain_link *links = realloc(chain->links, *room * sizeof *links);
        if (!links)
            return error_set(err, ENOMEM, "no memory for a chain of %u images", *room);
        chain->links = links;
    }
    struct chain_link *link = &chain->links[chain->count++];
    strcpy(link->point, point);
    strcpy(link->snapshot, manifest->snapshot);
    link->disk = *manifest_disk_find(manifest, disk);
    return 0;
}

/* `manifest` is scratch: it is too large for the stack. */
static int resolve(const struct set *set, const char *point, const char *disk, unsigned most, struct manifest *manifest,
                   struct chain *chain, struct error *err)
{
    unsigned room = 0;
    int status = set_manifest_load(set, point, manifest, err);
    if (status == 0 && !manifest_disk_find(manifest, disk))
        status = no_such_disk(set, point, manifest, disk, err);
    if (status == 0)
        status = add_link(chain, &room, point, manifest, disk, err);
    while (status == 0 && chain->count < most && chain->links[chain->count - 1].disk.incremental) {
        const struct chain_link *child = &chain->links[chain->count - 1];
        char parent[POINT_NAME_BYTES];
        strcpy(parent, child->disk.parent.point);
        if (has_passed(chain, parent))
            return error_set(err, EBADMSG, "the chain of disk %s of point %s leads from point %s back to point %s",
                             disk, point, child->point, parent);
        status = load_parent(set, child, manifest, err);
        if (status == 0)
            status = add_link(chain, &room, parent, manifest, disk, err);
    }
    return status;
}

static int resolve_links(const struct set *set, const char *point, const char *disk, unsigned most, struct chain *chain,
                         struct error *err)
{
    struct manifest *manifest = malloc(sizeof *manifest);
    memset(chain, 0, sizeof *chain);
    int status = manifest ? resolve(set, point, disk, most, manifest, chain, err)
                          : error_set(err, ENOMEM, "no memory for a manifest");
    free(manifest);
    if (status < 0)
        chain_free(chain);
    return status;
}

int chain_resolve(const struct set *set, const char *point, const char *disk, struct chain *chain, struct error *err)
{
    return resolve_links(set, point, disk, UINT_MAX, chain, err);
}

int chain_resolve_step(const struct set *set, const char *point, const char *disk, struct chain *chain,
                       struct error *err)
{
    return resolve_links(set, point, disk, 2, chain, err);
}

void chain_free(struct chain *chain)
{
    free(chain->links);
    memset(chain, 0, sizeof *chain);
}

void chain_backing_name(const struct chain *chain, unsigned link, char *name, size_t size)
{
    assert(link < chain->count);
    name[0] = '\0';
    if (chain->links[link].disk.incremental)
        snprintf(name, size, "../%s/%s", chain->links[link + 1].point, chain->links[link + 1].disk.image);
}
