/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A backup point while it is made. It becomes visible in its set as a whole or not at all. */
#ifndef FLEECE_SET_POINT_H
#define FLEECE_SET_POINT_H

#include "set/leftover.h"
#include "set/set.h"

#define RAW_SUFFIX ".raw"
#define QCOW2_SUFFIX ".qcow2"
#define HASHES_SUFFIX ".sha256"
#define MANIFEST_NEW_FILE "manifest.json.new"

struct point;

/* Makes the folder of a new point of a set that is open to add, with the mark that says whose it is, and then removes what
 * killed backups have left (report; NULL: it stays). `now_seconds`: since 1970. */
int point_begin(struct set *set, uint64_t now_seconds, struct point **point, struct leftover_report *report,
                struct error *err);

/* Takes over one that an interrupted backup has left: it is marked as ours, unless it is finished, and all others are
 * removed. */
int point_resume(struct set *set, const char *folder, bool finished, uint64_t now_seconds, struct point **point,
                 struct leftover_report *report, struct error *err);

/* Fills in name, format, image and hashes of a disk (full: an incremental's kind and parent are for the caller), and says
 * where its image goes: a file that does not exist yet. */
int point_add_disk(struct point *point, const char *name, enum manifest_format format, struct manifest_disk *disk,
                   char *image_path, size_t size, struct error *err);
/* The image of a disk is complete, and closed: looks at it as a file and fills in image_bytes and tables_sha256. -EBADMSG:
 * the tables that have just been written are not right. */
int point_note_image(const struct point *point, struct manifest_disk *disk, struct error *err);
/* Writes the hashes of a disk anew, and fills in hashes_sha256 and captured_bytes. */
int point_write_hashes(struct point *point, struct manifest_disk *disk, const struct hashes *hashes, struct error *err);

/* Makes everything durable: from now on a backup that is killed needs its snapshot no more. The manifest's version, `vm` and
 * `tool` are filled in. */
int point_finish(struct point *point, struct manifest *manifest, struct error *err);
/*
 * Finishes the point if that was not done, and makes it visible. On success it is freed and name[POINT_NAME_BYTES] is what
 * it is called; on failure it is still there to be abandoned, and invisible.
 */
int point_publish(struct point *point, struct manifest *manifest, char *name, struct error *err);
/* Removes it all. */
void point_abandon(struct point *point);
/* Leaves it as it is, for somebody who goes on with it. */
void point_leave(struct point *point);

/* For resume.c: the folder, and the path of a file in it. */
int point_folder(const struct point *point);
void point_file_path(const struct point *point, const char *file, char *path, size_t size);

/*
 * To make a point anew that is there (prune). A disk that stays as it is: its files are linked, so that they are in both.
 */
int point_link_disk(struct point *point, const char *from, const struct manifest_disk *disk, struct error *err);
/*
 * Makes everything durable, and then this point takes the place of the one called `name`, in one step; the old one is
 * removed. As in point_publish(), but `created` and the like are the caller's. On failure the old one is as it was.
 * -EINVAL: the file system can't do that in one step.
 */
int point_replace(struct point *point, struct manifest *manifest, const char *name, struct error *err);
/* Removes a point that is there: it disappears in one step. -EEXIST: there is something in its folder that is not ours. */
int point_remove(struct set *set, const char *name, struct error *err);

#endif
