/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A backup set: a folder with `fleece.json` (format, version, id, VM) and one folder for each backup point.
 * Everything in set/ makes plain blocking calls and belongs to one thread.
 */
#ifndef FLEECE_SET_SET_H
#define FLEECE_SET_SET_H

#include "base/error.h"
#include "set/hashes.h"
#include "set/manifest.h"

#define SET_FILE "fleece.json"
#define SET_FORMAT "fleece-backup-set"
#define SET_VERSION 2
#define SET_VERSION_OLDEST 1
#define SET_NEW_FILE "fleece.json.new" /* on its way from version 1 to 2 */

struct set;

/* An existing set, to be read. -ENOENT, -ENOTDIR, -EINVAL... with a sentence. */
int set_open(const char *path, struct set **set, struct error *err);
/*
 * To add a point to it: made when it does not exist or is an empty folder, and locked until set_close(). Refused: a folder
 * with other things in it, a set of another VM (EEXIST), one that somebody else adds to (EBUSY; says who). A set of
 * version 1 becomes one of version 2.
 */
int set_open_to_add(const char *path, const char *vm, struct set **set, struct error *err);
/* An existing set, to remove points or make them anew: locked like one to add to, and nobody reads it meanwhile. -EBUSY. */
int set_open_to_prune(const char *path, struct set **set, struct error *err);
/* By whoever reads images of the set, before the first manifest and until set_close(): what is read belongs together.
 * -EBUSY: it is being pruned. */
int set_begin_reading(struct set *set, struct error *err);
/* A set that was made by this set_open_to_add() and got no point disappears again. */
void set_close(struct set *set);

const char *set_path(const struct set *set);
const char *set_vm(const struct set *set);
const char *set_id(const struct set *set); /* a UUID; empty: a set of version 1 */

struct set_points {
    unsigned count;
    char (*names)[POINT_NAME_BYTES]; /* oldest first */
};
/* Free with set_points_free(). */
int set_points_list(const struct set *set, struct set_points *points, struct error *err);
void set_points_free(struct set_points *points);
/* `wanted` is the name of a point, or "latest" or NULL for the newest. -ENOENT. name[POINT_NAME_BYTES]. */
int set_point_find(const struct set *set, const char *wanted, char *name, struct error *err);

/* -ENOTSUP: a later version has written it, and it is not damaged as far as one can see. */
int set_manifest_load(const struct set *set, const char *point, struct manifest *manifest, struct error *err);
/* hashes_fini() on success. -EBADMSG... with a sentence. */
int set_hashes_load(const struct set *set, const char *point, const struct manifest_disk *disk, struct hashes *hashes,
                    struct error *err);
/* The path of an image, which must be a regular file, and of the right size if it is raw. -ENOENT, -EBADMSG. A qcow2 image
 * whose length is not that of the manifest may be good for restoring all the same: only `strict` refuses it. */
int set_image_find(const struct set *set, const char *point, const struct manifest_disk *disk, char *path, size_t size,
                   bool strict, struct error *err);

/* For point.c and leftover.c: the folder; the point that has just become visible. */
int set_directory(const struct set *set);
void set_note_point(struct set *set);

#endif
