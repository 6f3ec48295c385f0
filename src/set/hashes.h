/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The file of hashes beside an image. Of a full image: one line of 64 hexadecimal digits for each extent of 1 MiB, in
 * order. Of an incremental one: a line "EXTENT MASK SHA256" for each extent of which blocks were captured; the mask says
 * which of its 256 blocks of 4 KiB, and the hash is that of their bytes in order.
 */
#ifndef FLEECE_SET_HASHES_H
#define FLEECE_SET_HASHES_H

#include "base/error.h"
#include "set/manifest.h"

#define HASHES_BLOCK_BYTES (MANIFEST_EXTENT_BYTES / (8 * COPY_MASK_BYTES))

/* All of them in memory, as the copy engine makes and takes them. What is not captured costs no memory. */
struct hashes {
    uint64_t size_bytes; /* of the disk */
    uint64_t count;      /* of its extents */
    uint8_t *sha256;     /* COPY_HASH_BYTES each; of an extent of which nothing was captured: zeroes */
    uint8_t *masks;      /* COPY_MASK_BYTES each; all zero: nothing was captured. NULL: everything was (a full image) */
};

/* Room for those of a disk, all zero. -ENOMEM. hashes_fini() in any case; it takes one that is all zero, too. */
int hashes_init(struct hashes *hashes, uint64_t size_bytes, bool incremental, struct error *err);
void hashes_fini(struct hashes *hashes);

/* As 64 digits: text[SHA256_TEXT_BYTES]. */
void hashes_sha256_text(const uint8_t *sha256, char *text);

/* Whether block `block` of the disk was captured. */
bool hashes_has_block(const struct hashes *hashes, uint64_t block);
/* Bytes of the captured blocks; the last one of a disk may be short. */
uint64_t hashes_captured_bytes(const struct hashes *hashes);

/* Writes a new file and makes it durable; sha256[SHA256_TEXT_BYTES] is the hash of the file itself. */
int hashes_write(int directory, const char *name, const char *shown, const struct hashes *hashes, char *sha256,
                 struct error *err);
/*
 * Reads into those of hashes_init(), which says what is expected. `sha256` is what the file itself must have. -EBADMSG: it
 * is not what was written.
 */
int hashes_read(int directory, const char *name, const char *shown, const char *sha256, struct hashes *hashes,
                struct error *err);

#endif
