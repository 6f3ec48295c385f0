/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Any bytes as the line files of a backup set: the hashes of a full and of an incremental image, and one line of a log that
 * an interrupted backup goes on with. What is taken is written again, and must come out the same.
 */
#include <assert.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <gnutls/crypto.h>

#include "set/hashes.h"
#include "set/resume.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);

#define SIZE (3 * MIB + 5000)

/* A folder in memory that goes with the process. */
static int folder(void)
{
    static int fd = -1;
    char path[] = "/dev/shm/fleece-fuzz-XXXXXX";
    if (fd < 0) {
        assert(mkdtemp(path));
        fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        assert(fd >= 0);
    }
    return fd;
}

static void remove_folder(void)
{
    char link[64], path[256];
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder());
    ssize_t got = readlink(link, path, sizeof path - 1);
    unlinkat(folder(), "in", 0);
    unlinkat(folder(), "out", 0);
    if (got > 0) {
        path[got] = '\0';
        rmdir(path);
    }
}

static void check_hashes(const char *sha256, bool incremental)
{
    struct hashes hashes;
    struct error err = {0};
    char again[SHA256_TEXT_BYTES];
    assert(hashes_init(&hashes, SIZE, incremental, &err) == 0);
    if (hashes_read(folder(), "in", "it", sha256, &hashes, &err) == 0) {
        unlinkat(folder(), "out", 0);
        assert(hashes_write(folder(), "out", "it", &hashes, again, &err) == 0 && strcmp(again, sha256) == 0);
        assert(hashes_captured_bytes(&hashes) <= SIZE);
    } else {
        assert(err.text[0]);
    }
    hashes_fini(&hashes);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length)
{
    static bool begun;
    struct resume_line line;
    uint8_t hash[COPY_HASH_BYTES];
    char sha256[SHA256_TEXT_BYTES], text[RESUME_LINE_BYTES];
    if (!begun)
        atexit(remove_folder);
    begun = true;
    assert(gnutls_hash_fast(GNUTLS_DIG_SHA256, bytes, length, hash) == 0);
    for (unsigned i = 0; i < sizeof hash; i++)
        snprintf(sha256 + 2 * i, 3, "%02x", hash[i]);
    int fd = openat(folder(), "in", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert(fd >= 0 && write(fd, bytes, length) == (ssize_t)length);
    close(fd);
    check_hashes(sha256, false);
    check_hashes(sha256, true);
    if (resume_line_parse((const char *)bytes, length, &line))
        assert(resume_line_make(text, &line) == length && memcmp(text, bytes, length) == 0 && line.count > 0);
    return 0;
}
