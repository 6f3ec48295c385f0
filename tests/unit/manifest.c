/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Manifests: what is written is read back the same, and anything else is refused with a sentence that names the field. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "set/json_file.h"
#include "set/manifest.h"

#define HASH "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
#define DISK                                                                                                        \
    "{\"name\":\"vda\",\"size\":1048577,\"data\":4096,\"format\":\"raw\",\"image\":\"vda.raw\",\"extent\":1048576," \
    "\"hashes\":\"vda.sha256\",\"hashes-sha256\":\"" HASH "\"}"
#define RIGHT                                                                                                     \
    "{\"format\":\"fleece-backup-point\",\"version\":1,\"state\":\"complete\",\"vm\":\"web1\",\"tool\":\"fleece " \
    "0.1.0\","                                                                                                    \
    "\"created\":\"2026-11-22T06:05:45Z\",\"snapshot\":\"01234567-89ab-cdef-0123-456789abcdef\",\"disks\":[" DISK "]}"

#define PARENT "{\"point\":\"2026-11-21T06:05:45Z\",\"snapshot\":\"76543210-89ab-cdef-0123-456789abcdef\"}"
#define OVERLAY                                                                                                    \
    "{\"name\":\"vdb\",\"size\":1048577,\"data\":4096,\"format\":\"qcow2\",\"kind\":\"incremental\",\"captured\":" \
    "8192,"                                                                                                        \
    "\"parent\":" PARENT ",\"image-length\":327680,\"tables-sha256\":\"" HASH                                      \
    "\",\"image\":\"vdb.qcow2\",\"extent\":1048576,\"hashes\":\"vdb.sha256\",\"hashes-sha256\":\"" HASH "\"}"
#define WHOLE                                                                                                     \
    "{\"name\":\"vda\",\"size\":1048577,\"data\":4096,\"format\":\"raw\",\"kind\":\"full\",\"captured\":1048577," \
    "\"reason\":\"the disk is "                                                                                   \
    "new\",\"image\":\"vda.raw\",\"extent\":1048576,\"hashes\":\"vda.sha256\",\"hashes-sha256\":\"" HASH "\"}"
#define SECOND                                                                                                    \
    "{\"format\":\"fleece-backup-point\",\"version\":2,\"state\":\"complete\",\"vm\":\"web1\",\"tool\":\"fleece " \
    "0.1.0\","                                                                                                    \
    "\"created\":\"2026-11-22T06:05:45Z\",\"snapshot\":\"01234567-89ab-cdef-0123-456789abcdef\",\"consistent\":"  \
    "\"guest-agent\",\"checkpoint\":{"                                                                            \
    "\"name\":\"fleece-1\",\"uuid\":\"11111111-89ab-cdef-0123-456789abcdef\"},\"disks\":[" WHOLE "," OVERLAY "]}"

static int parse(const char *text, struct manifest *manifest, struct error *err)
{
    json_t *json = NULL;
    int status = json_text_load(text, strlen(text), &json, err);
    if (status == 0)
        status = manifest_from_json(json, manifest, err);
    json_decref(json);
    return status;
}

static void what_is_written_is_read(void **state)
{
    (void)state;
    struct manifest first, second;
    struct error err;
    assert_int_equal(parse(RIGHT, &first, &err), 0);
    assert_string_equal(first.vm, "web1");
    assert_int_equal(first.disk_count, 1);
    assert_int_equal(first.disks[0].size_bytes, 1048577);
    assert_string_equal(first.disks[0].hashes, "vda.sha256");
    assert_string_equal(first.disks[0].hashes_sha256, HASH);
    json_t *json = manifest_to_json(&first);
    assert_int_equal(manifest_from_json(json, &second, &err), 0);
    assert_memory_equal(&first, &second, sizeof first);
    /* Any change of any field is found, even where the value still looks right. */
    assert_int_equal(manifest_check_hash(json, &err), 0);
    json_object_set_new(json, "created", json_string("2026-11-22T06:05:46Z"));
    assert_int_equal(manifest_check_hash(json, &err), -EBADMSG);
    json_object_set_new(json, "created", json_string("2026-11-22T06:05:45Z"));
    assert_int_equal(manifest_check_hash(json, &err), 0);
    json_object_set_new(json_array_get(json_object_get(json, "disks"), 0), "name", json_string("vdb"));
    assert_int_equal(manifest_check_hash(json, &err), -EBADMSG);
    json_object_del(json, "sha256");
    assert_int_equal(manifest_check_hash(json, &err), -EINVAL);
    json_decref(json);
    assert_non_null(manifest_disk_find(&first, "vda"));
    assert_null(manifest_disk_find(&first, "vdb"));
}

static void both_versions_are_read(void **state)
{
    (void)state;
    static struct manifest first, second;
    struct error err;
    assert_int_equal(parse(RIGHT, &first, &err), 0);
    assert_int_equal(first.version, 1);
    assert_int_equal(first.disks[0].captured_bytes, 1048577);
    assert_false(first.disks[0].incremental);
    assert_string_equal(first.checkpoint.name, "");
    assert_int_equal(first.consistency, MANIFEST_NOT_SAID);
    assert_int_equal(parse(SECOND, &second, &err), 0);
    assert_int_equal(second.version, 2);
    assert_string_equal(second.checkpoint.name, "fleece-1");
    assert_int_equal(second.consistency, MANIFEST_GUEST_AGENT);
    assert_string_equal(second.checkpoint.uuid, "11111111-89ab-cdef-0123-456789abcdef");
    assert_string_equal(second.disks[0].reason, "the disk is new");
    assert_false(second.disks[0].incremental);
    assert_int_equal(second.disks[0].format, MANIFEST_RAW);
    assert_true(second.disks[1].incremental);
    assert_int_equal(second.disks[1].format, MANIFEST_QCOW2);
    assert_int_equal(second.disks[1].captured_bytes, 8192);
    assert_string_equal(second.disks[1].parent.point, "2026-11-21T06:05:45Z");
    assert_int_equal(second.disks[1].image_bytes, 327680);
    assert_string_equal(second.disks[1].tables_sha256, HASH);
    assert_true(second.disks[0].image_bytes == 0 && !second.disks[0].tables_sha256[0]); /* it does not say */
    assert_string_equal(second.disks[1].parent.snapshot, "76543210-89ab-cdef-0123-456789abcdef");
    json_t *json = manifest_to_json(&second);
    assert_int_equal(manifest_from_json(json, &first, &err), 0);
    assert_memory_equal(&first, &second, sizeof first);
    assert_int_equal(manifest_check_hash(json, &err), 0);
    json_object_set_new(json_object_get(json, "checkpoint"), "uuid", json_string("x"));
    assert_int_equal(manifest_check_hash(json, &err), -EBADMSG);
    json_decref(json);
}

/* `right` with its first `from` replaced by `to` must fail and say `words`. */
static void refuse_in(const char *right, const char *from, const char *to, const char *words)
{
    static struct manifest manifest;
    struct error err;
    char text[4096];
    const char *at = strstr(right, from);
    assert_non_null(at);
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - right), right, to, at + strlen(from));
    if (parse(text, &manifest, &err) == 0)
        fail_msg("'%s' was taken instead of '%s'", to, from);
    if (!strstr(err.text, words))
        fail_msg("'%s' for '%s': '%s' does not say '%s'", to, from, err.text, words);
}

static void refuse(const char *from, const char *to, const char *words)
{
    refuse_in(RIGHT, from, to, words);
}

static void wrong_incrementals_are_refused(void **state)
{
    (void)state;
    refuse_in(SECOND, "\"kind\":\"incremental\",", "", "'disks[1].kind' is missing");
    refuse_in(SECOND, "\"guest-agent\"", "\"x\"", "'consistent' is 'x': crash, hooks or guest-agent is right");
    refuse_in(SECOND, "\"incremental\"", "\"x\"", "'disks[1].kind' is 'x', neither 'full' nor 'incremental'");
    refuse_in(SECOND, "\"qcow2\"", "\"qcow\"", "'disks[1].format' is 'qcow', neither 'raw' nor 'qcow2'");
    refuse_in(SECOND, "\"qcow2\"", "\"raw\"", "'disks[1].format' is 'raw', but an incremental image is 'qcow2'");
    refuse_in(SECOND, "\"parent\":" PARENT ",", "", "'disks[1].parent' of an incremental image is not an object");
    refuse_in(SECOND, "2026-11-21T06:05:45Z", "../x", "'disks[1].parent.point' is '../x', not the name of a point");
    refuse_in(SECOND, "76543210", "7654321", "'disks[1].parent.snapshot' is '7654321-89ab");
    refuse_in(SECOND, "\"captured\":8192", "\"captured\":1048578", "'disks[1].captured' is 1048578; 0 to 1048577");
    refuse_in(SECOND, "\"captured\":8192", "\"captured\":4095", "'disks[1].data' is 4096; 0 to 4095");
    refuse_in(SECOND, "\"captured\":1048577", "\"captured\":1", "'disks[0].captured' of a full image is 1, not");
    refuse_in(SECOND, "\"the disk is new\"", "7", "'disks[0].reason' is not a text");
    refuse_in(SECOND, "the disk is new", HASH HASH HASH HASH, "'disks[0].reason' has 256 bytes; at most 255");
    refuse_in(SECOND, "\"image-length\":327680", "\"image-length\":-1", "'disks[1].image-length' is -1");
    refuse_in(SECOND, "\"tables-sha256\":\"0", "\"tables-sha256\":\"g", "'disks[1].tables-sha256' is not a SHA-256");
    refuse_in(SECOND, "\"name\":\"fleece-1\"", "\"name\":\"\"", "'checkpoint.name': '' is not valid");
    refuse_in(SECOND, "11111111-", "1111-", "'checkpoint.uuid' is '1111-");
    refuse_in(SECOND, "\"checkpoint\":{", "\"checkpoint\":7,\"x\":{", "'checkpoint' is not an object");
    refuse_in(SECOND, "\"version\":2", "\"version\":1", "'disks[1].format' is 'qcow2', not 'raw'");
}

static void the_rest_is_refused(void **state)
{
    (void)state;
    refuse("{", "", "it is not JSON: line 1");
    refuse(RIGHT, "", "it is not JSON");
    refuse(RIGHT, "[]", "no JSON object");
    refuse("\"vm\":\"web1\"", "\"vm\":\"web1\",\"vm\":\"web2\"", "duplicate");
    refuse("fleece-backup-point", "other", "'format' is 'other', not 'fleece-backup-point'");
    refuse("\"version\":1", "\"version\":3", "version 3; this fleece reads versions 1 to 2");
    refuse("\"version\":1", "\"version\":0", "version 0; this fleece reads versions 1 to 2");
    refuse("\"version\":1", "\"version\":2", "'disks[0].kind' is missing");
    refuse("\"version\":1", "\"version\":\"1\"", "'version' is not a whole number");
    refuse("\"version\":1", "\"version\":-1", "'version' is -1");
    refuse("complete", "unfinished", "'state' is 'unfinished', not 'complete'");
    refuse("\"vm\":\"web1\"", "\"VM\":\"web1\"", "'vm' is missing");
    refuse("web1", "we b1", "'vm': 'we b1' is not valid");
    refuse("web1", "", "'vm': '' is not valid");
    refuse("web1", "\\u0000", "JSON");
    refuse("fleece 0.1.0", HASH HASH, "'tool' has 128 bytes");
    refuse("2026-11-22T06:05:45Z", "2026-02-30T06:05:45Z", "'created' is '2026-02-30T06:05:45Z', not a time");
    refuse("2026-11-22T06:05:45Z", "yesterday", "'created' is 'yesterday'");
    refuse("2026-11-22T06:05:45Z", "2026-11-22T06:05:45Z-2", "'created' has 22 bytes");
    refuse("01234567-89ab", "0123456789-ab", "'snapshot'");
    refuse("01234567-89ab", "g1234567-89ab", "not a UUID");
    refuse(DISK, "", "'disks' is not a list of 1 to 64");
    refuse("[" DISK "]", "{}", "'disks' is not a list");
    refuse(DISK, "1", "'disks[0]' is not an object");
    refuse(DISK, DISK "," DISK, "'disks[0].name' and 'disks[1].name' are both 'vda'");
    refuse("\"name\":\"vda\"", "\"name\":\"a/b\"", "'disks[0].name': 'a/b' is not valid");
    refuse("\"size\":1048577", "\"size\":-1", "'disks[0].size' is -1");
    refuse("\"size\":1048577", "\"size\":9000000000000000000", "'disks[0].size' is 9000000000000000000");
    refuse("\"size\":1048577", "\"size\":1e3", "'disks[0].size' is not a whole number");
    refuse("\"size\":1048577", "\"size\":99999999999999999999", "JSON");
    refuse("\"size\":1048577", "\"size\":1", "'disks[0].data' is 4096; 0 to 1");
    refuse("\"format\":\"raw\"", "\"format\":\"qcow2\"", "'disks[0].format' is 'qcow2', not 'raw'");
    refuse("1048576", "65536", "'disks[0].extent' is 65536, not 1048576");
    const char *names[] = {"", ".", "..", "../vda.raw", "/etc/passwd", "a b", "a\\nb", "manifest.json"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        refuse("vda.raw", names[i], "'disks[0].image'");
        refuse("vda.sha256", names[i], "'disks[0].hashes'");
    }
    refuse("vda.raw", "vda.sha256", "same file 'vda.sha256'");
    refuse("vda.raw", HASH HASH, "'disks[0].image' has 128 bytes");
    refuse("\"image\":\"vda.raw\"", "\"image\":null", "'disks[0].image' is not a text");
    refuse(HASH, "0123", "'disks[0].hashes-sha256' is not a SHA-256");
    refuse("0123456789abcdef0123", "0123456789ABCDEF0123", "'disks[0].hashes-sha256' is not a SHA-256");
}

static void files_are_not_shared(void **state)
{
    (void)state;
    const char *other =
        "{\"name\":\"vdb\",\"size\":1,\"data\":0,\"format\":\"raw\",\"image\":\"vda.sha256\",\"extent\":1048576,"
        "\"hashes\":\"vdb.sha256\",\"hashes-sha256\":\"" HASH "\"}";
    char both[2048];
    snprintf(both, sizeof both, "%s,%s", DISK, other);
    refuse(DISK, both, "'disks[0]' and 'disks[1]' name the same file");
}

static void too_many_disks(void **state)
{
    (void)state;
    struct manifest *manifest = calloc(1, sizeof *manifest);
    struct error err;
    assert_int_equal(parse(RIGHT, manifest, &err), 0);
    json_t *json = manifest_to_json(manifest), *disks = json_object_get(json, "disks");
    for (unsigned i = 1; i <= LIMIT_DISKS; i++) {
        char name[32];
        json_t *disk = json_deep_copy(json_array_get(disks, 0));
        const char *keys[] = {"name", "image", "hashes"};
        for (unsigned key = 0; key < 3; key++) {
            snprintf(name, sizeof name, "%s%u", keys[key], i);
            json_object_set_new(disk, keys[key], json_string(name));
        }
        json_array_append_new(disks, disk);
        assert_int_equal(manifest_from_json(json, manifest, &err), i < LIMIT_DISKS ? 0 : -EINVAL);
    }
    assert_non_null(strstr(err.text, "1 to 64 disks"));
    json_decref(json);
    free(manifest);
}

static void unfinished_ones_are_recognised(void **state)
{
    (void)state;
    struct manifest_unfinished mark = {.vm = "web1", .host = "h", .started = "2026-11-22T06:05:45Z", .pid = 7}, found;
    json_t *json = manifest_unfinished_to_json(&mark);
    assert_int_equal(manifest_recognise(json, &found), 0);
    assert_string_equal(found.vm, mark.vm);
    assert_string_equal(found.host, mark.host);
    assert_string_equal(found.started, mark.started);
    assert_int_equal(found.pid, mark.pid);
    json_object_set_new(json, "pid", json_string("x"));
    assert_int_equal(manifest_recognise(json, &found), 0);
    assert_int_equal(found.pid, 0);
    json_object_set_new(json, "format", json_string("x"));
    assert_int_equal(manifest_recognise(json, &found), -EINVAL);
    json_decref(json);
}

static void names_of_points(void **state)
{
    (void)state;
    const char *right[] = {"2026-11-22T06:05:45Z",    "2026-11-22T06:05:45Z-2", "2026-11-22T06:05:45Z-10",
                           "2026-11-22T06:05:45Z-99", "2026-11-22T06:05:46Z",   "2028-02-29T23:59:59Z"};
    const char *wrong[] = {"",
                           "latest",
                           "2026-11-22T06:05:45",
                           "2026-11-22T06:05:45Z-",
                           "2026-11-22T06:05:45Z-1",
                           "2026-11-22T06:05:45Z-0",
                           "2026-11-22T06:05:45Z-100",
                           "2026-11-22T06:05:45Z-02",
                           "2026-11-22T06:05:45Zx",
                           "2026-11-22 06:05:45Z",
                           "2026-13-01T00:00:00Z",
                           "2026-11-31T00:00:00Z",
                           "2026-11-22T24:00:00Z",
                           "2026-11-22T06:05:61Z",
                           "1969-12-31T23:59:59Z",
                           " 026-11-22T06:05:45Z",
                           "2026-11-22T06:05:45Z-2 "};
    for (size_t i = 0; i < sizeof right / sizeof *right; i++) {
        assert_true(point_name_valid(right[i]));
        if (i > 0)
            assert_true(point_name_compare(right[i - 1], right[i]) < 0);
    }
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        if (point_name_valid(wrong[i]))
            fail_msg("'%s' was taken", wrong[i]);
    char name[POINT_NAME_BYTES];
    point_time_format(name, 1795327545);
    assert_string_equal(name, "2026-11-22T06:05:45Z");
    point_name_make(name, "2026-11-22T06:05:45Z", 99);
    assert_string_equal(name, "2026-11-22T06:05:45Z-99");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_read),        cmocka_unit_test(the_rest_is_refused),
        cmocka_unit_test(both_versions_are_read),         cmocka_unit_test(wrong_incrementals_are_refused),
        cmocka_unit_test(files_are_not_shared),           cmocka_unit_test(too_many_disks),
        cmocka_unit_test(unfinished_ones_are_recognised), cmocka_unit_test(names_of_points),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
