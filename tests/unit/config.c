/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Files of options: what a line says, however long it is, and the sentence with file and line for everything else. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/config.h"
#include "daemon/options.h"

static char folder[] = "/tmp/fleece-unit-config-XXXXXX", path[64];

static int set_up(void **state)
{
    (void)state;
    if (!mkdtemp(folder))
        return -1;
    snprintf(path, sizeof path, "%s/vm.conf", folder);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(folder);
}

static void put(const char *text, size_t length)
{
    FILE *file = fopen(path, "w");
    assert_int_equal(fwrite(text, 1, length, file), length);
    fclose(file);
}

struct found {
    unsigned count;
    char word[64], value[LIMIT_CONFIG_LINE_BYTES];
};

static int take(void *context, const char *word, char *value, struct error *err)
{
    struct found *found = context;
    found->count++;
    snprintf(found->word, sizeof found->word, "%s", word);
    snprintf(found->value, sizeof found->value, "%s", value);
    return strcmp(value, "wrong") == 0 ? error_set(err, EINVAL, "'%s' is wrong", word) : 0;
}

/* The sentence must end with `expected`, behind the file's name. */
static void wrong_bytes(const char *expected, const char *text, size_t length)
{
    static struct found found;
    struct error err = {0};
    put(text, length);
    assert_int_equal(config_read(path, take, &found, &err), -EINVAL);
    if (strncmp(err.text, path, strlen(path)) != 0 || strcmp(err.text + strlen(path), expected) != 0)
        fail_msg("\"%s\" is not \"%s%s\"", err.text, path, expected);
}

static void wrong(const char *expected, const char *text)
{
    wrong_bytes(expected, text, strlen(text));
}

static void wrong_lines(void **state)
{
    (void)state;
    struct error err;
    struct found found;
    static char longest[LIMIT_CONFIG_LINE_BYTES + 1];
    wrong(":3: 'b' is wrong", "\n# about b\nb = wrong\nc = wrong\n");
    wrong(":2: it is not WORD = VALUE", "a = 1\nnonsense\nb = 2");
    wrong(":1: it is not WORD = VALUE", "= 2");
    wrong(":1: it is not WORD = VALUE", "disk: a=b");
    wrong(":2: the line begins with a blank: a value is one line, WORD = VALUE", "a = 1\n  more\n");
    wrong(":2: there are no sections: a line is WORD = VALUE, with the words of the options", "\n[vm]\n");
    wrong_bytes(":1: there is a byte 0 in the line", "a = 1\0 2\n", 9);
    wrong_bytes(":2: there is a byte 0 in the line", "a = 1\nb\0", 8);
    memset(longest, 'x', sizeof longest);
    memcpy(longest, "a =", 3);
    wrong_bytes(":1: the line is too long: 16382 bytes are right at most", longest, sizeof longest);
    longest[LIMIT_CONFIG_LINE_BYTES - 2] = '\n';
    put(longest, LIMIT_CONFIG_LINE_BYTES - 1);
    assert_int_equal(config_read(path, take, &found, &err), 0);
    assert_int_equal(strlen(found.value), LIMIT_CONFIG_LINE_BYTES - 2 - 3);
    unlink(path);
    assert_int_equal(config_read(path, take, &found, &err), -ENOENT);
    assert_non_null(strstr(err.text, "vm.conf can't be opened: No such file or directory"));
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(config_read(path, take, &found, &err), -EINVAL);
    assert_non_null(strstr(err.text, "vm.conf is not a regular file"));
    unlink(path);
}

/* Values of any length and content come out as they are, without blanks around them and without the remark behind. */
static void any_value(void **state)
{
    (void)state;
    static const char letters[] = "abc/=:,#;; \t\"'[]\\";
    static struct found found;
    struct error err;
    srand(1);
    for (unsigned round = 0; round < 3000; round++) {
        char line[3100], expected[3200];
        size_t length = (size_t)rand() % (round % 2 ? 250 : 3000);
        unsigned blanks = (unsigned)rand() % 4;
        for (size_t i = 0; i < length; i++)
            line[i] = (unsigned)rand() % 4 < blanks ? letters[(unsigned)rand() % (sizeof letters - 1)] : 'x';
        line[length] = '\0';
        snprintf(expected, sizeof expected, " %s", line); /* the blank in front of the value */
        for (char *at = expected + 1; *at; at++)
            if (*at == ';' && (at[-1] == ' ' || at[-1] == '\t'))
                *at-- = '\0';
        size_t end = strlen(expected), start = strspn(expected, " \t");
        while (end > start && (expected[end - 1] == ' ' || expected[end - 1] == '\t'))
            expected[--end] = '\0';
        char text[3300];
        snprintf(text, sizeof text, "# x\nword = %s%s", line, round % 3 ? "\r\n\n" : "");
        put(text, strlen(text));
        found.count = 0;
        memset(&err, 0, sizeof err);
        if (strcmp(expected + start, "wrong") != 0 && config_read(path, take, &found, &err) < 0)
            fail_msg("%s: %s", err.text, line);
        assert_int_equal(found.count, 1);
        assert_string_equal(found.word, "word");
        if (strcmp(found.value, expected + start) != 0)
            fail_msg("'%s'\nbecame\n'%s'", expected + start, found.value);
    }
}

static int parse(struct options *options, struct error *err, const char *more, const char *value)
{
    char *argv[] = {(char *)"fleeced",       (char *)"--config",       path,
                    (char *)(uintptr_t)more, (char *)(uintptr_t)value, NULL};
    return options_parse(options, more ? 5 : 3, argv, err);
}

static void all_options(void **state)
{
    (void)state;
    struct options options;
    struct error err;
    const char *text = "# the disks of web1\nname = web1\ndisk = vda=/a,,b.raw,format=qcow2\ndisk=vdb=/b.raw ; data\n"
                       "nbd = unix:/n.sock\nnbd = tcp:127.0.0.1:10809\ncontrol = /c.sock\nstate-dir = /s\n"
                       "fleece = ram=64M,max=2G,dir=/c\nio-threads = 3\nlock-timeout = 1.5\n";
    put(text, strlen(text));
    if (parse(&options, &err, NULL, NULL) < 0)
        fail_msg("%s", err.text);
    assert_string_equal(options.vm, "web1");
    assert_int_equal(options.disk_count, 2);
    assert_string_equal(options.disks[0].path, "/a,b.raw");
    assert_true(options.disks[0].qcow2);
    assert_string_equal(options.disks[1].path, "/b.raw");
    assert_int_equal(options.nbd_count, 2);
    assert_string_equal(options.state_dir, "/s");
    assert_int_equal(options.ram_bytes, 64 * MIB);
    assert_int_equal(options.io_threads, 3);
    assert_int_equal(options.lock_wait_ns, 3 * NS_PER_S / 2);
    options_fini(&options);
    assert_int_equal(parse(&options, &err, "--io-threads", "5"), 0); /* the later one holds */
    assert_int_equal(options.io_threads, 5);
    options_fini(&options);
}

/* Each is the second line. */
static void wrong_options(void **state)
{
    (void)state;
    static const char *const wrongs[][2] = {
        {"disk = vda=/a,format=vmdk", ":2: --disk vda: format=vmdk is not right: raw or qcow2"},
        {"colour = red", ":2: 'colour' is no option that a file can have; fleeced --help lists them"},
        {"--disk = vda=/a", ":2: '--disk' is no option that a file can have"},
        {"help = on", ":2: 'help' is no option that a file can have"},
        {"config = /x", ":2: 'config' is no option that a file can have"},
        {"io-threads = 99", ":2: --io-threads '99' is not right: from 1 to 32"},
        {"name =", ":2: --name: VM name '' is not valid"},
    };
    for (size_t i = 0; i < sizeof wrongs / sizeof *wrongs; i++) {
        struct options options;
        struct error err;
        char text[256];
        snprintf(text, sizeof text, "name = web1\n%s\ndisk = vdb=/b\n", wrongs[i][0]);
        put(text, strlen(text));
        assert_int_equal(parse(&options, &err, NULL, NULL), -EINVAL);
        if (strncmp(err.text, path, strlen(path)) != 0 || !strstr(err.text, wrongs[i][1]))
            fail_msg("\"%s\" does not say \"%s\"", err.text, wrongs[i][1]);
        options_fini(&options);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrong_lines),
        cmocka_unit_test(any_value),
        cmocka_unit_test(all_options),
        cmocka_unit_test(wrong_options),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
