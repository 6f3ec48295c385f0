/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Hashes are kept outside of the manifest because a large disk has millions of them, while manifests are read whole to
 * list a set. Each line can be checked by hand: dd if=vda.raw bs=1M skip=N count=1 | sha256sum.
 *
 * What is read may have been damaged: the length is bounded by the size of the disk before anything is read, every line must
 * be exactly one that hashes_write() makes, and at the end the hash of the file must be the one in the manifest.
 */
#include "set/hashes.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <gnutls/crypto.h>

_Static_assert(COPY_MASK_BYTES == COPY_HASH_BYTES, "a mask is written as a hash is");
#define DIGITS (2 * COPY_HASH_BYTES)
#define NUMBER_DIGITS 9 /* 256 TiB have 2^28 extents */
#define FULL_LINE_BYTES (DIGITS + 1)
#define CAPTURED_LINE_MAX (NUMBER_DIGITS + 1 + DIGITS + 1 + DIGITS + 1)

int hashes_init(struct hashes *hashes, uint64_t size_bytes, bool incremental, struct error *err)
{
    *hashes = (struct hashes){.size_bytes = size_bytes, .count = copy_extent_count(size_bytes)};
    hashes->sha256 = calloc(hashes->count + 1, COPY_HASH_BYTES);
    hashes->masks = incremental ? calloc(hashes->count + 1, COPY_MASK_BYTES) : NULL;
    if (hashes->sha256 && (hashes->masks || !incremental))
        return 0;
    return error_set(err, ENOMEM, "no memory for %" PRIu64 " hashes", hashes->count);
}

void hashes_fini(struct hashes *hashes)
{
    free(hashes->sha256);
    free(hashes->masks);
    *hashes = (struct hashes){0};
}

static uint64_t block_count(const struct hashes *hashes)
{
    return hashes->size_bytes / HASHES_BLOCK_BYTES + (hashes->size_bytes % HASHES_BLOCK_BYTES != 0);
}

bool hashes_has_block(const struct hashes *hashes, uint64_t block)
{
    return block < block_count(hashes) && (!hashes->masks || (hashes->masks[block / 8] >> block % 8 & 1));
}

uint64_t hashes_captured_bytes(const struct hashes *hashes)
{
    uint64_t blocks = block_count(hashes), captured = 0, tail = hashes->size_bytes % HASHES_BLOCK_BYTES;
    if (!hashes->masks)
        return hashes->size_bytes;
    for (uint64_t i = 0; i < hashes->count * COPY_MASK_BYTES; i++)
        captured += (uint64_t)__builtin_popcount(hashes->masks[i]) * HASHES_BLOCK_BYTES;
    return tail && hashes_has_block(hashes, blocks - 1) ? captured - HASHES_BLOCK_BYTES + tail : captured;
}

static bool mask_is_empty(const uint8_t *mask)
{
    static const uint8_t nothing[COPY_MASK_BYTES];
    return memcmp(mask, nothing, sizeof nothing) == 0;
}

/* --- text */

static void to_hexadecimal(char *text, const uint8_t *hash)
{
    static const char digits[] = "0123456789abcdef";
    for (unsigned i = 0; i < COPY_HASH_BYTES; i++) {
        text[2 * i] = digits[hash[i] >> 4];
        text[2 * i + 1] = digits[hash[i] & 15];
    }
}

void hashes_sha256_text(const uint8_t *sha256, char *text)
{
    to_hexadecimal(text, sha256);
    text[SHA256_TEXT_BYTES - 1] = '\0';
}

static int digit_value(char digit)
{
    if (digit >= '0' && digit <= '9')
        return digit - '0';
    return digit >= 'a' && digit <= 'f' ? digit - 'a' + 10 : -1;
}

static bool from_hexadecimal(const char *text, uint8_t *hash)
{
    for (unsigned i = 0; i < COPY_HASH_BYTES; i++) {
        int high = digit_value(text[2 * i]), low = digit_value(text[2 * i + 1]);
        if (high < 0 || low < 0)
            return false;
        hash[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}

/* A line of a full image's file, or of an incremental's; returns its length. */
static size_t line_make(char *line, const struct hashes *hashes, uint64_t extent)
{
    size_t length = 0;
    if (hashes->masks) {
        length = (size_t)sprintf(line, "%" PRIu64 " ", extent);
        to_hexadecimal(line + length, hashes->masks + extent * COPY_MASK_BYTES);
        length += DIGITS;
        line[length++] = ' ';
    }
    to_hexadecimal(line + length, hashes->sha256 + extent * COPY_HASH_BYTES);
    length += DIGITS;
    line[length++] = '\n';
    return length;
}

/* --- writing */

static void finish_sha256(gnutls_hash_hd_t state, char *sha256)
{
    uint8_t hash[COPY_HASH_BYTES];
    gnutls_hash_deinit(state, hash);
    hashes_sha256_text(hash, sha256);
}

static int write_lines(FILE *file, const struct hashes *hashes, gnutls_hash_hd_t state)
{
    char line[CAPTURED_LINE_MAX + 1];
    for (uint64_t i = 0; i < hashes->count; i++) {
        if (hashes->masks && mask_is_empty(hashes->masks + i * COPY_MASK_BYTES))
            continue;
        size_t length = line_make(line, hashes, i);
        gnutls_hash(state, line, length);
        if (fwrite(line, length, 1, file) != 1)
            return -errno;
    }
    return fflush(file) != 0 || fsync(fileno(file)) < 0 ? -errno : 0;
}

int hashes_write(int directory, const char *name, const char *shown, const struct hashes *hashes, char *sha256,
                 struct error *err)
{
    gnutls_hash_hd_t state;
    if (gnutls_hash_init(&state, GNUTLS_DIG_SHA256) != 0)
        return error_set(err, ENOMEM, "can't compute a SHA-256 for %s", shown);
    int fd = openat(directory, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600), status = fd < 0 ? -errno : 0;
    FILE *file = fd < 0 ? NULL : fdopen(fd, "w");
    if (fd >= 0 && !file) {
        status = -errno;
        close(fd);
    }
    if (file) {
        status = write_lines(file, hashes, state);
        if (fclose(file) != 0 && status == 0)
            status = -errno;
    }
    finish_sha256(state, sha256);
    return status < 0 ? error_set(err, -status, "can't write %s: %s", shown, error_name(status)) : 0;
}

/* --- reading */

static int read_full(FILE *file, struct hashes *hashes, gnutls_hash_hd_t state, struct error *err)
{
    for (uint64_t i = 0; i < hashes->count; i++) {
        char line[FULL_LINE_BYTES];
        if (fread(line, sizeof line, 1, file) != 1)
            return error_set(err, EIO, "it can't be read to its end");
        gnutls_hash(state, line, sizeof line);
        if (!from_hexadecimal(line, hashes->sha256 + i * COPY_HASH_BYTES) || line[DIGITS] != '\n')
            return error_set(err, EBADMSG, "line %" PRIu64 " is not a SHA-256: 64 digits of 0-9 a-f", i + 1);
    }
    return 0;
}

/* The line must be exactly one that would be written, for an extent behind the last one. */
static bool captured_line(const char *line, size_t length, uint64_t *next, struct hashes *hashes)
{
    char again[CAPTURED_LINE_MAX + 1], *end;
    uint64_t extent = line[0] >= '0' && line[0] <= '9' ? strtoull(line, &end, 10) : UINT64_MAX;
    if (extent < *next || extent >= hashes->count || end + 1 + DIGITS + 1 + DIGITS + 1 != line + length)
        return false;
    uint8_t *mask = hashes->masks + extent * COPY_MASK_BYTES;
    if (!from_hexadecimal(end + 1, mask) ||
        !from_hexadecimal(end + 1 + DIGITS + 1, hashes->sha256 + extent * COPY_HASH_BYTES))
        return false;
    *next = extent + 1;
    uint64_t blocks = block_count(hashes) - extent * 8 * COPY_MASK_BYTES;
    for (uint64_t block = blocks; block < 8 * COPY_MASK_BYTES; block++) /* behind the end of the disk */
        if (mask[block / 8] >> block % 8 & 1)
            return false;
    return !mask_is_empty(mask) && line_make(again, hashes, extent) == length && memcmp(again, line, length) == 0;
}

static int read_captured(FILE *file, struct hashes *hashes, gnutls_hash_hd_t state, struct error *err)
{
    char line[CAPTURED_LINE_MAX + 2];
    uint64_t next = 0, number = 1;
    while (fgets(line, sizeof line, file)) {
        size_t length = strlen(line);
        gnutls_hash(state, line, length);
        if (!captured_line(line, length, &next, hashes))
            return error_set(err, EBADMSG,
                             "line %" PRIu64 " is not the next extent, its mask and its SHA-256: a number and twice "
                             "64 digits of 0-9 a-f",
                             number);
        number++;
    }
    return ferror(file) ? error_set(err, EIO, "it can't be read to its end") : 0;
}

static int read_checked(int fd, const char *sha256, struct hashes *hashes, struct error *err)
{
    gnutls_hash_hd_t state;
    char found[SHA256_TEXT_BYTES];
    if (gnutls_hash_init(&state, GNUTLS_DIG_SHA256) != 0) {
        close(fd);
        return error_set(err, ENOMEM, "no memory for its SHA-256");
    }
    FILE *file = fdopen(fd, "r");
    int status = !file           ? error_set(err, errno, "it can't be read")
                 : hashes->masks ? read_captured(file, hashes, state, err)
                                 : read_full(file, hashes, state, err);
    if (file)
        fclose(file);
    else
        close(fd);
    finish_sha256(state, found);
    if (status == 0 && strcmp(found, sha256) != 0)
        status = error_set(err, EBADMSG, "it is damaged: its SHA-256 is not the one in the manifest");
    return status;
}

/* Whether a file of that length can be the hashes of the disk. */
static int length_check(const struct stat *stat, const char *shown, const struct hashes *hashes, struct error *err)
{
    uint64_t full = hashes->count * FULL_LINE_BYTES, most = hashes->count * CAPTURED_LINE_MAX;
    uint64_t length = (uint64_t)stat->st_size;
    if (!hashes->masks && (!S_ISREG(stat->st_mode) || length != full))
        return error_set(err, EBADMSG, "%s is damaged: it has not the %" PRIu64 " bytes that belong to the image",
                         shown, full);
    if (!S_ISREG(stat->st_mode) || length > most)
        return error_set(err, EBADMSG, "%s is damaged: it has %" PRIu64 " bytes; %" PRIu64 " are right at most", shown,
                         length, most);
    return 0;
}

int hashes_read(int directory, const char *name, const char *shown, const char *sha256, struct hashes *hashes,
                struct error *err)
{
    int fd = openat(directory, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    struct stat stat;
    if (fd < 0)
        return error_set(err, errno, "%s can't be opened: %s", shown, error_name(errno));
    int status = fstat(fd, &stat) < 0 ? error_set(err, errno, "%s can't be read: %s", shown, error_name(errno))
                                      : length_check(&stat, shown, hashes, err);
    if (status < 0) {
        close(fd);
        return status;
    }
    status = read_checked(fd, sha256, hashes, err);
    return status < 0 ? error_prefix(err, "%s", shown) : 0;
}
