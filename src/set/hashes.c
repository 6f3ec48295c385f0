/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Hashes are kept outside of the manifest because a large disk has millions of them, while manifests are read whole to
 * list a set. Each line can be checked by hand: dd if=vda.raw bs=1M skip=N count=1 | sha256sum.
 */
#include "set/hashes.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <gnutls/crypto.h>

#define HASH_BYTES 32
#define LINE_BYTES (2 * HASH_BYTES + 1)

static void to_hexadecimal(char *text, const uint8_t *hash)
{
    static const char digits[] = "0123456789abcdef";
    for (unsigned i = 0; i < HASH_BYTES; i++) {
        text[2 * i] = digits[hash[i] >> 4];
        text[2 * i + 1] = digits[hash[i] & 15];
    }
}

static int digit_value(char digit)
{
    if (digit >= '0' && digit <= '9')
        return digit - '0';
    return digit >= 'a' && digit <= 'f' ? digit - 'a' + 10 : -1;
}

static bool line_parse(const char *line, uint8_t *hash)
{
    for (unsigned i = 0; i < HASH_BYTES; i++) {
        int high = digit_value(line[2 * i]), low = digit_value(line[2 * i + 1]);
        if (high < 0 || low < 0)
            return false;
        hash[i] = (uint8_t)(high << 4 | low);
    }
    return line[LINE_BYTES - 1] == '\n';
}

static void finish_sha256(gnutls_hash_hd_t state, char *sha256)
{
    uint8_t hash[HASH_BYTES];
    gnutls_hash_deinit(state, hash);
    to_hexadecimal(sha256, hash);
    sha256[SHA256_TEXT_BYTES - 1] = '\0';
}

static int write_lines(FILE *file, const uint8_t *hashes, uint64_t count, gnutls_hash_hd_t state)
{
    char line[LINE_BYTES];
    line[LINE_BYTES - 1] = '\n';
    for (uint64_t i = 0; i < count; i++) {
        to_hexadecimal(line, hashes + i * HASH_BYTES);
        gnutls_hash(state, line, sizeof line);
        if (fwrite(line, sizeof line, 1, file) != 1)
            return -errno;
    }
    return fflush(file) != 0 || fsync(fileno(file)) < 0 ? -errno : 0;
}

int hashes_write(int directory, const char *name, const char *shown, const uint8_t *hashes, uint64_t count,
                 char *sha256, struct error *err)
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
        status = write_lines(file, hashes, count, state);
        if (fclose(file) != 0 && status == 0)
            status = -errno;
    }
    finish_sha256(state, sha256);
    return status < 0 ? error_set(err, -status, "can't write %s: %s", shown, error_name(status)) : 0;
}

static int read_lines(FILE *file, uint64_t count, uint8_t *hashes, gnutls_hash_hd_t state, struct error *err)
{
    for (uint64_t i = 0; i < count; i++) {
        char line[LINE_BYTES];
        if (fread(line, sizeof line, 1, file) != 1)
            return error_set(err, EIO, "it can't be read to its end");
        gnutls_hash(state, line, sizeof line);
        if (!line_parse(line, hashes + i * HASH_BYTES))
            return error_set(err, EBADMSG, "line %llu is not a SHA-256: 64 digits of 0-9 a-f",
                             (unsigned long long)i + 1);
    }
    return 0;
}

static int read_checked(int fd, const char *sha256, uint64_t count, uint8_t *hashes, struct error *err)
{
    gnutls_hash_hd_t state;
    char found[SHA256_TEXT_BYTES];
    if (!hashes || gnutls_hash_init(&state, GNUTLS_DIG_SHA256) != 0) {
        close(fd);
        return error_set(err, ENOMEM, "no memory for %llu hashes", (unsigned long long)count);
    }
    FILE *file = fdopen(fd, "r");
    int status = file ? read_lines(file, count, hashes, state, err) : error_set(err, errno, "it can't be read");
    if (file)
        fclose(file);
    finish_sha256(state, found);
    if (status == 0 && strcmp(found, sha256) != 0)
        status = error_set(err, EBADMSG, "it is damaged: its SHA-256 is not the one in the manifest");
    return status;
}

int hashes_read(int directory, const char *name, const char *shown, const char *sha256, uint64_t count,
                uint8_t **hashes, struct error *err)
{
    int fd = openat(directory, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    struct stat stat;
    if (fd < 0)
        return error_set(err, errno, "%s can't be opened: %s", shown, error_name(errno));
    if (fstat(fd, &stat) < 0 || !S_ISREG(stat.st_mode) || (uint64_t)stat.st_size != count * LINE_BYTES) {
        close(fd);
        return error_set(err, EBADMSG, "%s is damaged: it has not the %llu bytes that belong to the image", shown,
                         (unsigned long long)(count * LINE_BYTES));
    }
    *hashes = malloc(count * HASH_BYTES + 1);
    int status = read_checked(fd, sha256, count, *hashes, err);
    if (status < 0) {
        free(*hashes);
        *hashes = NULL;
        error_prefix(err, "%s", shown);
    }
    return status;
}
