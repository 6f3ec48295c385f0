/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The manifest of a backup point: what was captured, and how to prove it. docs/formats/backup-set.md describes the text.
 * Both versions are read; version 1 knows raw full images only, and no checkpoint. */
#ifndef FLEECE_SET_MANIFEST_H
#define FLEECE_SET_MANIFEST_H

#include <jansson.h>

#include "base/error.h"
#include "io/uuid.h"
#include "job/copy.h"
#include "set/point_name.h"

#define MANIFEST_FILE "manifest.json"
#define MANIFEST_FORMAT "fleece-backup-point"
#define MANIFEST_VERSION 2
#define MANIFEST_VERSION_OLDEST 1
#define MANIFEST_EXTENT_BYTES COPY_EXTENT_BYTES
#define SHA256_TEXT_BYTES 65

enum manifest_format { MANIFEST_RAW, MANIFEST_QCOW2 };

struct manifest_parent { /* the point of this set that an incremental image lies over */
    char point[POINT_NAME_BYTES];
    char snapshot[UUID_TEXT_BYTES]; /* that its manifest must name: a point of the same name may have been made anew */
};

struct manifest_disk {
    char name[LIMIT_NAME_BYTES + 1];
    uint64_t size_bytes;     /* of the disk; a qcow2 image is that of whole sectors: up to 511 zeroes more */
    uint64_t captured_bytes; /* that the image holds: all, or of an incremental the blocks that had changed */
    uint64_t data_bytes;     /* of these, not zero */
    enum manifest_format format;
    bool incremental;                       /* else full; an incremental is a qcow2 overlay of the parent's image */
    struct manifest_parent parent;          /* of an incremental; else empty */
    char reason[LIMIT_REASON_BYTES];        /* why it is full, though an incremental was wanted; else empty. UTF-8 */
    char image[LIMIT_IMAGE_NAME_BYTES + 1]; /* file names in the folder of the point */
    char hashes[LIMIT_IMAGE_NAME_BYTES + 1];
    char hashes_sha256[SHA256_TEXT_BYTES]; /* of the file of hashes, in lower-case hexadecimal */
    uint64_t image_bytes;                  /* length of the image's file; 0: the manifest does not say */
    char tables_sha256[SHA256_TEXT_BYTES]; /* of all but the data of a qcow2 image; empty: it does not say */
};

/* At the cut of the point's snapshot: the base of the next incremental (C24: by its UUID, never by its name). */
struct manifest_checkpoint {
    char name[LIMIT_NAME_BYTES + 1]; /* empty: the point has none */
    char uuid[UUID_TEXT_BYTES];
};

/* How consistent the snapshot was: what a loss of power would have left of the guest, or more. */
enum manifest_consistency { MANIFEST_NOT_SAID, MANIFEST_CRASH, MANIFEST_HOOKS, MANIFEST_GUEST_AGENT };

struct manifest {
    unsigned version; /* that it is written in */
    char vm[LIMIT_NAME_BYTES + 1];
    char tool[LIMIT_NAME_BYTES + 1]; /* "fleece 0.1.0" */
    char created[POINT_TIME_BYTES];  /* when the snapshot was cut, UTC */
    char snapshot[UUID_TEXT_BYTES];
    enum manifest_consistency consistency;
    struct manifest_checkpoint checkpoint;
    unsigned disk_count; /* 1 to LIMIT_DISKS */
    struct manifest_disk disks[LIMIT_DISKS];
};

/* Whoever makes a point writes one of these into it first, in the place of the manifest. */
struct manifest_unfinished {
    char vm[LIMIT_NAME_BYTES + 1];
    char host[LIMIT_NAME_BYTES + 1];
    char started[POINT_TIME_BYTES];
    uint64_t pid;
};

/* Checks every field but the hash. -EINVAL with a sentence that names the field (not the file: callers put it before). */
int manifest_from_json(const json_t *json, struct manifest *manifest, struct error *err);
/* "crash", "hooks" or "guest-agent". -EINVAL: none of them. */
int manifest_consistency_parse(const char *name, enum manifest_consistency *consistency);
const char *manifest_consistency_name(enum manifest_consistency consistency); /* "": not said */
/* Sets the field `sha256`, the hash of all other fields; fleece.json has one, too. -ENOMEM. */
int manifest_add_hash(json_t *json);
/* Whether the field `sha256` is the hash of all other fields. -EBADMSG. */
int manifest_check_hash(const json_t *json, struct error *err);
/* New references; NULL: no memory. */
json_t *manifest_to_json(const struct manifest *manifest);
json_t *manifest_unfinished_to_json(const struct manifest_unfinished *unfinished);
/* 0: the JSON is a manifest of ours of any state or version; *unfinished is filled in (pid 0: it is complete). */
int manifest_recognise(const json_t *json, struct manifest_unfinished *unfinished);

/* "raw" or "qcow2". */
const char *manifest_format_name(enum manifest_format format);
/* The disk of that name; NULL: none. */
const struct manifest_disk *manifest_disk_find(const struct manifest *manifest, const char *name);

#endif
