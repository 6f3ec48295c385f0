/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The command line of fleeced: what is right, and the sentence for everything that is not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "daemon/options.h"

enum { ARGUMENTS_MAX = 200 };

/* Parses "fleeced" and the arguments up to NULL. */
static int parse(struct options *options, struct error *err, const char *first, va_list more)
{
    char *argv[ARGUMENTS_MAX + 2] = {(char *)"fleeced"};
    int argc = 1;
    for (const char *next = first; next; next = va_arg(more, const char *)) {
        assert_true(argc <= ARGUMENTS_MAX);
        argv[argc++] = (char *)(uintptr_t)next;
    }
    *err = (struct error){0};
    return options_parse(options, argc, argv, err);
}

static void right(struct options *options, const char *first, ...)
{
    struct error err;
    va_list more;
    va_start(more, first);
    int status = parse(options, &err, first, more);
    va_end(more);
    if (status)
        fail_msg("%s", err.text);
}

/* The sentence must hold `expected`. */
static void wrong(const char *expected, const char *first, ...)
{
    struct options options;
    struct error err;
    va_list more;
    va_start(more, first);
    int status = parse(&options, &err, first, more);
    va_end(more);
    options_fini(&options);
    assert_int_equal(status, -EINVAL);
    if (!strstr(err.text, expected))
        fail_msg("\"%s\" does not say \"%s\"", err.text, expected);
}

static void whole_line(void **state)
{
    (void)state;
    struct options options;
    right(&options, "--name", "web1", "--disk", "vda=/a.raw,format=raw,cache=writeback,read-only=on",
          "--disk=vdb=b=c,,d.raw", "--disk", "n=,driver=null,size=1G", "--nbd", "unix:/run/x.sock", "--nbd",
          "tcp:127.0.0.1:10809", "--nbd=unix:rel", "--fleece", "ram=64M,dir=/c,,d,max=2G", "--fleece",
          "cbw-timeout=2.5,copy-on-read=on", "--disk", "g=/g,granularity=1M", "--control", "/c.sock", "--io-threads",
          "3", "--lock-timeout", "1.5", "--state-dir", "/var", NULL);
    assert_int_equal(options.action, OPTIONS_SERVE);
    assert_string_equal(options.vm, "web1");
    assert_int_equal(options.disk_count, 4);
    assert_string_equal(options.disks[0].name, "vda");
    assert_string_equal(options.disks[0].path, "/a.raw");
    assert_true(options.disks[0].page_cache && options.disks[0].read_only && !options.disks[0].null_driver);
    assert_string_equal(options.disks[1].path, "b=c,d.raw");
    assert_false(options.disks[1].page_cache || options.disks[1].read_only);
    assert_true(options.disks[2].null_driver);
    assert_int_equal(options.disks[2].size_bytes, GIB);
    assert_int_equal(options.nbd_count, 3);
    assert_string_equal(options.nbd[1], "tcp:127.0.0.1:10809");
    char folder[4096], expected[4200];
    assert_non_null(getcwd(folder, sizeof folder));
    snprintf(expected, sizeof expected, "unix:%s/rel", folder);
    assert_string_equal(options.nbd[2], expected);
    assert_int_equal(options.ram_bytes, 64 * MIB);
    assert_int_equal(options.cache_bytes, 2 * GIB);
    assert_string_equal(options.cache_dir, "/c,d");
    assert_int_equal(options.cbw_timeout_ns, 5 * NS_PER_S / 2);
    assert_true(options.copy_on_read && options_want_cache_files(&options));
    assert_int_equal(options.disks[0].block_bytes, 0);
    assert_int_equal(options.disks[3].block_bytes, MIB);
    assert_string_equal(options.control, "/c.sock");
    assert_int_equal(options.io_threads, 3);
    assert_int_equal(options.lock_wait_ns, 3 * NS_PER_S / 2);
    options_fini(&options);
}

static void defaults(void **state)
{
    (void)state;
    struct options options;
    right(&options, "--name", "x", "--disk", "a=b", NULL);
    assert_int_equal(options.ram_bytes, FLEECE_RAM_DEFAULT);
    assert_int_equal(options.lock_wait_ns, LOCK_WAIT_DEFAULT_NS);
    assert_int_equal(options.nbd_count, 0);
    assert_false(options_want_cache_files(&options) || options.copy_on_read);
    assert_int_equal(options.cbw_timeout_ns, 0);
    assert_null(options.control);
    options_fini(&options);
    right(&options, "--help", NULL);
    assert_int_equal(options.action, OPTIONS_HELP);
    options_fini(&options);
    right(&options, "--version", NULL);
    assert_int_equal(options.action, OPTIONS_VERSION);
    options_fini(&options);
}

static void wrong_disks(void **state)
{
    (void)state;
    wrong("--disk is missing", "--name", "x", NULL);
    wrong("'vda' is not NAME=FILE", "--disk", "vda", NULL);
    wrong("'' is not NAME=FILE", "--disk", "", NULL);
    wrong("disk name 'v/a' is not valid", "--disk", "v/a=f", NULL);
    wrong("disk name '' is not valid", "--disk", "=f", NULL);
    wrong("--disk vda: the name of the file is missing", "--disk", "vda=", NULL);
    wrong("--disk vda: two disks have this name", "--disk", "vda=a", "--disk", "vda=b", NULL);
    wrong("format=vmdk is not right: raw or qcow2", "--disk", "vda=a,format=vmdk", NULL);
    wrong("format=qcow2 is for files", "--disk", "vda=,driver=null,size=1M,format=qcow2", NULL);
    wrong("cache=unsafe is not right: none or writeback", "--disk", "vda=a,cache=unsafe", NULL);
    wrong("read-only=yes is not right: off or on", "--disk", "vda=a,read-only=yes", NULL);
    wrong("driver=rbd is not right: file or null", "--disk", "vda=a,driver=rbd", NULL);
    wrong("size= is for driver=null", "--disk", "vda=a,size=1G", NULL);
    wrong("driver=null wants size=SIZE", "--disk", "vda=,driver=null", NULL);
    wrong("driver=null uses no file, but 'f' is given", "--disk", "vda=f,driver=null,size=1G", NULL);
    wrong("size '1X' is not a size", "--disk", "vda=,driver=null,size=1X", NULL);
    wrong("size=0 is not right", "--disk", "vda=,driver=null,size=0", NULL);
    wrong("size=5000T is not right", "--disk", "vda=,driver=null,size=5000T", NULL);
    wrong("granularity=2K is not right: a power of two from 4K to 4M", "--disk", "vda=a,granularity=2K", NULL);
    wrong("granularity=8M is not right", "--disk", "vda=a,granularity=8M", NULL);
    wrong("granularity=12K is not right", "--disk", "vda=a,granularity=12K", NULL);
    wrong("--disk vda: granularity 'big' is not a size", "--disk", "vda=a,granularity=big", NULL);
    wrong("track=maybe is not right: off or on", "--disk", "vda=a,track=maybe", NULL);
    wrong("track=on is for disks that can be written", "--disk", "vda=a,track=on,read-only=on", NULL);
    wrong("track=on is for disks that can be written", "--disk", "vda=,driver=null,size=1M,track=on", NULL);
    wrong("track-granularity=3K is not right: a power of two from 4K to 4M", "--disk", "vda=a,track-granularity=3K",
          NULL);
    wrong("unknown option 'colour'", "--disk", "vda=a,colour=red", NULL);
    wrong("'ro' is not NAME=VALUE", "--disk", "vda=a,ro", NULL);
    wrong("'' is not NAME=VALUE", "--disk", "vda=a,", NULL);
}

static void too_many(void **state)
{
    (void)state;
    struct options options;
    struct error err = {0};
    char texts[LIMIT_DISKS + 1][24], *argv[2 * LIMIT_DISKS + 4] = {(char *)"fleeced"};
    int argc = 1;
    for (int i = 0; i <= LIMIT_DISKS; i++) {
        snprintf(texts[i], sizeof texts[i], "--disk=d%d=f", i);
        argv[argc++] = texts[i];
    }
    assert_int_equal(options_parse(&options, argc, argv, &err), -EINVAL);
    assert_non_null(strstr(err.text, "more than 64 disks"));
    options_fini(&options);
    wrong("--nbd: more than 8 addresses", "--nbd", "unix:/a", "--nbd", "unix:/a", "--nbd", "unix:/a", "--nbd",
          "unix:/a", "--nbd", "unix:/a", "--nbd", "unix:/a", "--nbd", "unix:/a", "--nbd", "unix:/a", "--nbd", "unix:/a",
          NULL);
}

static void wrong_options(void **state)
{
    (void)state;
    wrong("--name is missing", "--disk", "a=b", NULL);
    wrong("--name: VM name 'a b' is not valid", "--name", "a b", NULL);
    wrong("'stray' is no option", "--name", "x", "--disk", "a=b", "stray", NULL);
    wrong("'--colour' is no option", "--colour", NULL);
    wrong("'-z' is no option", "-z", NULL);
    wrong("--name wants a value", "--name", NULL);
    wrong("--vhost-user 'vda' is not NAME=SOCKET", "--vhost-user", "vda", NULL);
    wrong("--vhost-user: disk name", "--vhost-user", "v d=/s", NULL);
    wrong("--vhost-user: the path is empty", "--vhost-user", "vda=", NULL);
    wrong("--vhost-user vdx: there is no --disk of this name", "--name", "x", "--disk", "vda=f", "--vhost-user",
          "vdx=/s", NULL);
    wrong("--vhost-user vda: a disk has one socket", "--name", "x", "--disk", "vda=f", "--vhost-user", "vda=/s",
          "--vhost-user", "vda=/t", NULL);
    wrong("--vhost-user vdb: socket /s is another disk's", "--name", "x", "--disk", "vda=f", "--disk", "vdb=g",
          "--vhost-user", "vda=/s", "--vhost-user", "vdb=/s", NULL);
    wrong("longer than 107 bytes", "--name", "x", "--disk", "vda=f", "--vhost-user",
          "vda=/0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789"
          "0123456789",
          NULL);
    wrong("--fleece: dir: the path is empty", "--fleece", "ram=64M,dir=", NULL);
    wrong("max=4M is not right: from 8M to 8T", "--fleece", "max=4M", NULL);
    wrong("max=9T is not right", "--fleece", "max=9T", NULL);
    wrong("cbw-timeout=0 is not right: seconds, from 0.1 to 3600", "--fleece", "cbw-timeout=0", NULL);
    wrong("cbw-timeout=soon is not right", "--fleece", "cbw-timeout=soon", NULL);
    wrong("cbw-timeout=3601 is not right", "--fleece", "cbw-timeout=3601", NULL);
    wrong("--fleece: copy-on-read=yes is not right: off or on", "--fleece", "copy-on-read=yes", NULL);
    wrong("ram=1M is not right: from 4M to 1T", "--fleece", "ram=1M", NULL);
    wrong("ram=2T is not right", "--fleece", "ram=2T", NULL);
    wrong("--fleece: ram 'lots' is not a size", "--fleece", "ram=lots", NULL);
    wrong("unknown option 'rom'", "--fleece", "rom=64M", NULL);
    wrong("--nbd 'localhost' is not an address: unix:PATH or tcp:HOST:PORT", "--nbd", "localhost", NULL);
    wrong("--nbd 'tcp:localhost' is not an address", "--nbd", "tcp:localhost", NULL);
    wrong("--nbd 'tcp:h:0' is not an address", "--nbd", "tcp:h:0", NULL);
    wrong("--nbd 'tcp:h:65536' is not an address", "--nbd", "tcp:h:65536", NULL);
    wrong("--nbd 'tcp:h:-1' is not an address", "--nbd", "tcp:h:-1", NULL);
    wrong("--nbd 'tcp:h:1x' is not an address", "--nbd", "tcp:h:1x", NULL);
    wrong("--nbd: the path is empty", "--nbd", "unix:", NULL);
    wrong("--control: the path is empty", "--control", "", NULL);
    wrong("--io-threads '0' is not right: from 1 to 32", "--io-threads", "0", NULL);
    wrong("--io-threads '33' is not right", "--io-threads", "33", NULL);
    wrong("--io-threads '-1' is not right", "--io-threads", "-1", NULL);
    wrong("--freeze-timeout '0' is not right: seconds, from 0.1 to 600", "--guest-agent", "/a", "--freeze-timeout", "0",
          NULL);
    wrong("--freeze-timeout goes with --guest-agent or --hook-dir", "--name", "x", "--disk", "a=b", "--freeze-timeout",
          "5", NULL);
    wrong("--hook-dir: the path is empty", "--hook-dir", "", NULL);
    wrong("--guest-agent: the path has a line break in it", "--guest-agent", "/a\nb", NULL);
    wrong("--lock-timeout 'soon' is not right: seconds, from 0 to 3600", "--lock-timeout", "soon", NULL);
    wrong("--lock-timeout '9999' is not right", "--lock-timeout", "9999", NULL);
    wrong("--lock-timeout 'nan' is not right", "--lock-timeout", "nan", NULL);
    wrong("--incoming 'yes' is not right: on or off", "--incoming", "yes", NULL);
    wrong("--incoming on without --vhost-user", "--name", "web1", "--disk", "vda=a", "--incoming", "on", NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole_line), cmocka_unit_test(defaults),      cmocka_unit_test(wrong_disks),
        cmocka_unit_test(too_many),   cmocka_unit_test(wrong_options),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
