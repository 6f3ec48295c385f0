/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Files of hashes, with masks and without: what is written is read back, and any other byte is found. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "set/hashes.h"

#define SIZE (12 * MIB + 5000) /* the last extent has two blocks, the last one 904 bytes */
#define FILE_NAME "vda.sha256"

static char path[64];
static int folder;
static char text[4096]; /* of the file */
static char sha256[SHA256_TEXT_BYTES];

static int begin(void **state)
{
    (void)state;
    strcpy(path, "/dev/shm/fleece-hashes-XXXXXX");
    folder = mkdtemp(path) ? open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    return folder < 0 ? -1 : 0;
}

static int end(void **state)
{
    (void)state;
    unlinkat(folder, FILE_NAME, 0);
    close(folder);
    return rmdir(path);
}

static void make(struct hashes *hashes, bool incremental)
{
    struct error err;
    assert_int_equal(hashes_init(hashes, SIZE, incremental, &err), 0);
    assert_int_equal(hashes->count, 13);
    for (uint64_t i = 0; i < hashes->count; i++)
        if (!incremental || i == 2 || i == 10 || i == 12)
            memset(hashes->sha256 + i * COPY_HASH_BYTES, (int)(0xa0 + i), COPY_HASH_BYTES);
    if (!incremental)
        return;
    memset(hashes->masks + 2 * COPY_MASK_BYTES, 0xff, COPY_MASK_BYTES); /* all of extent 2 */
    hashes->masks[10 * COPY_MASK_BYTES + 1] = 0x81;                     /* blocks 8 and 15 of extent 10 */
    hashes->masks[12 * COPY_MASK_BYTES] = 2;                            /* the short one at the end */
}

static void write_and_load(const struct hashes *hashes)
{
    struct error err;
    unlinkat(folder, FILE_NAME, 0);
    assert_int_equal(hashes_write(folder, FILE_NAME, "it", hashes, sha256, &err), 0);
    int fd = openat(folder, FILE_NAME, O_RDONLY | O_CLOEXEC);
    ssize_t length = read(fd, text, sizeof text - 1);
    assert_true(length > 0);
    text[length] = '\0';
    close(fd);
}

/* The file as it is: 0, or the error, which must say `words`. */
static int load(bool incremental, const char *words)
{
    struct hashes found;
    struct error err = {0};
    assert_int_equal(hashes_init(&found, SIZE, incremental, &err), 0);
    int status = hashes_read(folder, FILE_NAME, "it", sha256, &found, &err);
    hashes_fini(&found);
    if (!strstr(err.text, words))
        fail_msg("'%s' does not say '%s'", err.text, words);
    return status;
}

static void store(const char *content)
{
    int fd = openat(folder, FILE_NAME, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_int_equal(write(fd, content, strlen(content)), strlen(content));
    close(fd);
}

static void what_is_written_is_read(void **state)
{
    (void)state;
    for (int incremental = 0; incremental < 2; incremental++) {
        struct hashes hashes, found;
        struct error err;
        make(&hashes, incremental);
        write_and_load(&hashes);
        assert_int_equal(hashes_init(&found, SIZE, incremental, &err), 0);
        assert_int_equal(hashes_read(folder, FILE_NAME, "it", sha256, &found, &err), 0);
        assert_memory_equal(hashes.sha256, found.sha256, hashes.count * COPY_HASH_BYTES);
        if (incremental)
            assert_memory_equal(hashes.masks, found.masks, hashes.count * COPY_MASK_BYTES);
        hashes_fini(&hashes);
        hashes_fini(&found);
    }
    assert_int_equal(strncmp(text, "2 ffffffff", 10), 0);
    assert_non_null(strstr(text, "\n10 0081000000"));
    assert_non_null(strstr(text, "\n12 0200000000"));
}

static void captured_blocks_are_counted(void **state)
{
    (void)state;
    struct hashes hashes;
    make(&hashes, false);
    assert_int_equal(hashes_captured_bytes(&hashes), SIZE);
    assert_true(hashes_has_block(&hashes, 12 * 256 + 1));
    assert_false(hashes_has_block(&hashes, 12 * 256 + 2));
    hashes_fini(&hashes);
    make(&hashes, true);
    assert_int_equal(hashes_captured_bytes(&hashes), MIB + 2 * 4096 + 904);
    assert_true(hashes_has_block(&hashes, 10 * 256 + 15));
    assert_false(hashes_has_block(&hashes, 10 * 256 + 14));
    hashes_fini(&hashes);
}

/* Every byte of both kinds of file, changed to others, and every length. */
static void damage_is_found(void **state)
{
    (void)state;
    static char changed[sizeof text];
    for (int incremental = 0; incremental < 2; incremental++) {
        struct hashes hashes;
        make(&hashes, incremental);
        write_and_load(&hashes);
        hashes_fini(&hashes);
        size_t length = strlen(text);
        for (size_t i = 0; i < length; i++) {
            static const char others[] = "0f9 \nA-";
            for (const char *other = others; *other; other++) {
                if (text[i] == *other)
                    continue;
                strcpy(changed, text);
                changed[i] = *other;
                store(changed);
                assert_int_equal(load(incremental, "it"), -EBADMSG);
            }
        }
        for (size_t i = 0; i < length; i++) {
            strcpy(changed, text);
            changed[i] = '\0';
            store(changed);
            assert_int_equal(load(incremental, "it"), -EBADMSG);
        }
        store(text);
        assert_int_equal(load(incremental, ""), 0);
    }
}

/* What is right in itself, but not what is ever written. */
static void one_text_for_each_state(void **state)
{
    (void)state;
    static const char *const wrong[] = {
        "02 ", /* a number in another way */
        "+2 ",
        "-2 ", /* signs */
        "13 ", /* behind the last extent */
        "18446744073709551618 ",
    };
    struct hashes hashes;
    char line[256], twice[2 * sizeof line];
    make(&hashes, true);
    write_and_load(&hashes);
    hashes_fini(&hashes);
    snprintf(line, sizeof line, "%.*s", (int)(strchr(text, '\n') + 1 - text), text);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        snprintf(twice, sizeof twice, "%s%s", wrong[i], line + 2);
        store(twice);
        assert_int_equal(load(true, "line 1 is not the next extent"), -EBADMSG);
    }
    snprintf(twice, sizeof twice, "%s%s", line, line);
    store(twice);
    assert_int_equal(load(true, "line 2 is not the next extent"), -EBADMSG);
    memset(line + 2, '0', 64); /* nothing captured */
    store(line);
    assert_int_equal(load(true, "line 1 is not the next extent"), -EBADMSG);
    snprintf(twice, sizeof twice, "12 04%s", line + 4); /* behind the end of the disk */
    store(twice);
    assert_int_equal(load(true, "line 1 is not the next extent"), -EBADMSG);
    store("");
    assert_int_equal(load(true, "its SHA-256 is not the one"), -EBADMSG);
    assert_int_equal(load(false, "it has not the 845 bytes"), -EBADMSG);
    for (unsigned i = 0; i < 13; i++) /* a file of the other kind that is too long */
        memset(text + i * 145, 'a', 145);
    text[13 * 145] = '\0';
    store(text);
    assert_int_equal(load(true, "bytes; 1820 are right at most"), -EBADMSG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_is_written_is_read, begin, end),
        cmocka_unit_test_setup_teardown(captured_blocks_are_counted, begin, end),
        cmocka_unit_test_setup_teardown(damage_is_found, begin, end),
        cmocka_unit_test_setup_teardown(one_text_for_each_state, begin, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
