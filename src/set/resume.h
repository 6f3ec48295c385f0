/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What an interrupted backup leaves for the next one to go on with, in the folder of its unfinished point:
 * `resume.json`, what was to be copied from which snapshot, and for each disk `DISK.resume`, which extents are safe in
 * the image.
 */
#ifndef FLEECE_SET_RESUME_H
#define FLEECE_SET_RESUME_H

#include <limits.h>

#include "set/point.h"

#define RESUME_FILE "resume.json"
#define RESUME_SUFFIX ".resume"
#define RESUME_FORMAT "fleece-backup-resume"
#define RESUME_VERSION 1

struct resume_plan {
    char snapshot_name[LIMIT_NAME_BYTES + 1];
    bool finished;            /* everything was copied, and is durable: the snapshot is not needed any more */
    struct manifest manifest; /* of the point that is being made; if not finished, what is known before it is copied */
};

/* Writes it into the folder of the point, durably. */
int resume_plan_save(const struct point *point, const struct resume_plan *plan, struct error *err);
/* Checks every field. -EINVAL, -EBADMSG with a sentence that names the field. */
int resume_plan_from_json(const json_t *json, struct resume_plan *plan, struct error *err);
json_t *resume_plan_to_json(const struct resume_plan *plan); /* NULL: no memory */
/* That of an unfinished point of the set. -ENOENT: it has none. */
int resume_plan_load(const struct set *set, const char *folder, struct resume_plan *plan, struct error *err);
/* Looks for an unfinished point of the set, which is open to add, that has a plan. -ENOENT: there is none. */
int resume_find(const struct set *set, char folder[UNFINISHED_NAME_BYTES], struct resume_plan *plan, struct error *err);

/* How far one disk has come; the arrays are the caller's, and those that the copy engine fills in. */
struct resume_log {
    int file;
    struct hashes *hashes; /* of hashes_init() */
    uint32_t *data;        /* for each extent, how many of its bytes are not zero */
    bool *already;         /* for each extent, whether the image has it for good */
    char shown[PATH_MAX];  /* its path, for sentences */
};

/* Reads what is noted so far, and goes on behind it. A line that is cut off or not right ends it: it was on its way
 * when the writer died. *found: how many extents are there. */
int resume_log_open(struct point *point, const struct manifest_disk *disk, struct hashes *hashes, uint32_t *data,
                    bool *already, struct resume_log *log, uint64_t *found, struct error *err);
/* Notes these extents, durably. Blocks; any thread, one at a time. 0 or -errno. */
int resume_log_add(struct resume_log *log, const struct copy_run *runs, uint64_t count);
void resume_log_close(struct resume_log *log);

/* One line about `count` extents from `first` on that are all alike, into line[RESUME_LINE_BYTES]; returns its length.
 * And back: false: it is not one. For the log and its tests. */
struct resume_line {
    uint64_t first, count;
    uint32_t data; /* bytes of each that are not zero */
    uint8_t mask[COPY_MASK_BYTES], sha256[COPY_HASH_BYTES];
};
size_t resume_line_make(char *text, const struct resume_line *line);
bool resume_line_parse(const char *text, size_t length, struct resume_line *line);

#endif
