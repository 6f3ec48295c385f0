/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Any bytes as an image whose tables are checked, behind one byte that says whether leaks count as damage. The check ends,
 * in a time that the length of the file bounds, says the same twice, and finds no more when leaks are allowed.
 */
#include <assert.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/limits.h"
#include "job/copy.h"
#include "set/qcow2_check.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);

enum { INPUT_MAX = 256 * 1024 };

struct found {
    uint64_t count, offsets;
};

static void note_damage(void *context, uint64_t file_offset, const char *what)
{
    struct found *found = context;
    assert(what[0] && strlen(what) < LIMIT_ERROR_BYTES);
    found->count++;
    found->offsets += file_offset;
}

static int check(int fd, bool allow_leaks, struct found *found, uint8_t *sha256)
{
    struct qcow2_check_options options = {
        .fd = fd, .allow_leaks = allow_leaks, .damage = note_damage, .context = found};
    struct error err = {0};
    int status = qcow2_check(&options, sha256, &err);
    assert(status == 0 || (status < 0 && err.code == -status && err.text[0]));
    return status;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length)
{
    struct found once = {0}, twice = {0}, leaks_allowed = {0};
    uint8_t first[COPY_HASH_BYTES] = {0}, second[COPY_HASH_BYTES] = {0}, third[COPY_HASH_BYTES] = {0};
    if (length < 2 || length > INPUT_MAX)
        return 0;
    int fd = memfd_create("image", MFD_CLOEXEC);
    assert(fd >= 0 && pwrite(fd, bytes + 1, length - 1, 0) == (ssize_t)(length - 1));
    bool allow_leaks = bytes[0] & 1;
    int status = check(fd, allow_leaks, &once, first);
    assert(check(fd, allow_leaks, &twice, second) == status);
    assert(memcmp(&once, &twice, sizeof once) == 0 && memcmp(first, second, sizeof first) == 0);
    assert(check(fd, true, &leaks_allowed, third) == status);
    assert(leaks_allowed.count <= once.count && memcmp(first, third, sizeof first) == 0);
    close(fd);
    return 0;
}
