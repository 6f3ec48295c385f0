/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The small JSON files of a backup set: bounded reading, and fields that are checked one by one. Nothing in them is
 * trusted: each error names the file, the field, its value and what would be right. */
#ifndef FLEECE_SET_JSON_FILE_H
#define FLEECE_SET_JSON_FILE_H

#include <jansson.h>

#include "base/error.h"
#include "io/uuid.h"

/* Reads `name` in the folder `directory`, which must be a regular file (no symbolic link) of LIMIT_SET_JSON_BYTES at most
 * that holds one JSON object. `shown` is its path for sentences. -ENOENT, -EINVAL... A new reference. */
int json_file_load(int directory, const char *name, const char *shown, json_t **object, struct error *err);
/* The same for text in memory; *object is a JSON object. */
int json_text_load(const char *text, size_t length, json_t **object, struct error *err);

/* Writes a new file and makes it durable; replaces nothing. 0600. */
int json_file_create(int directory, const char *name, const char *shown, const json_t *object, struct error *err);

/* `where` comes before the key in sentences: "" or "disks[3].". -EINVAL. */
int json_field_text(const json_t *object, const char *where, const char *key, char *text, size_t size,
                    struct error *err);
int json_field_number(const json_t *object, const char *where, const char *key, uint64_t most, uint64_t *number,
                      struct error *err);
/* A UUID, in lower case, into uuid[UUID_TEXT_BYTES]. */
int json_field_uuid(const json_t *object, const char *where, const char *key, char *uuid, struct error *err);
/* A text that must be exactly `right`. */
int json_field_is(const json_t *object, const char *where, const char *key, const char *right, struct error *err);

#endif
