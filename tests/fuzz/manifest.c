/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Any bytes as the manifest of a point. What is taken must keep its promises, and be written and read back the same. */
#include <assert.h>
#include <string.h>

#include "set/json_file.h"
#include "set/manifest.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);

static void check_disk(const struct manifest_disk *disk)
{
    assert(disk->name[0] && !strchr(disk->name, '/'));
    assert(disk->size_bytes <= LIMIT_DISK_BYTES && disk->data_bytes <= disk->captured_bytes);
    assert(disk->captured_bytes <= disk->size_bytes);
    assert(disk->incremental == point_name_valid(disk->parent.point));
    assert(disk->incremental ? disk->format == MANIFEST_QCOW2 && !disk->reason[0]
                             : disk->captured_bytes == disk->size_bytes);
    assert(disk->image[0] && !strchr(disk->image, '/') && strcmp(disk->image, "..") != 0 &&
           strcmp(disk->image, ".") != 0);
    assert(disk->hashes[0] && !strchr(disk->hashes, '/') && strcmp(disk->image, disk->hashes) != 0);
    assert(strlen(disk->hashes_sha256) == SHA256_TEXT_BYTES - 1);
    assert(!disk->tables_sha256[0] ||
           (strlen(disk->tables_sha256) == SHA256_TEXT_BYTES - 1 && disk->format == MANIFEST_QCOW2));
    assert(disk->image_bytes <= INT64_MAX);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length)
{
    static struct manifest manifest, again;
    struct manifest_unfinished unfinished;
    struct error err = {0};
    json_t *json = NULL;
    int status = json_text_load((const char *)bytes, length, &json, &err);
    if (status == 0) {
        manifest_recognise(json, &unfinished);
        manifest_check_hash(json, &err);
        status = manifest_from_json(json, &manifest, &err);
        json_decref(json);
    }
    if (status < 0) {
        assert(err.text[0]);
        return 0;
    }
    assert(manifest.disk_count >= 1 && manifest.disk_count <= LIMIT_DISKS);
    for (unsigned i = 0; i < manifest.disk_count; i++)
        check_disk(&manifest.disks[i]);
    json = manifest_to_json(&manifest);
    assert(json && manifest_from_json(json, &again, &err) == 0 && manifest_check_hash(json, &err) == 0);
    assert(memcmp(&manifest, &again, sizeof manifest) == 0);
    json_decref(json);
    return 0;
}
