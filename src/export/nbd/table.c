/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A list, looked through by name: a VM has a few dozen exports, and a name is asked for once in a connection's life. An
 * entry lives as long as its export; whoever looks for it later has its serial number, which is never used again.
 * A crash ends it.
 */
#include "export/nbd/table.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "export/nbd/wire.h"

void nbd_table_init(struct nbd_table *table)
{
    list_init(&table->entries);
    table->count = 0;
    table->last_serial = 0;
}

/* A flush of one connection covers the writes of all, since all of them are at the same node. */
static uint16_t transmission_flags(const struct nbd_export *export)
{
    uint16_t flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_CAN_MULTI_CONN |
                     NBD_FLAG_SEND_CACHE;
    if (!export->read_only && export->node->can_release) /* clients send no TRIM to what says it is read-only */
        return flags | NBD_FLAG_SEND_TRIM;
    if (export->read_only || export->node->read_only)
        return flags | NBD_FLAG_READ_ONLY;
    flags |= NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
    if (export->node->can_discard)
        flags |= NBD_FLAG_SEND_TRIM;
    return flags;
}

static struct nbd_entry *find_name(const struct nbd_table *table, struct nbd_text name)
{
    list_each (node, &table->entries) {
        struct nbd_entry *entry = container_of(node, struct nbd_entry, link);
        if (nbd_text_equals(name, entry->name))
            return entry;
    }
    return NULL;
}

int nbd_entry_create(const struct nbd_table *table, const struct nbd_export *export, struct nbd_entry **made,
                     struct error *err)
{
    struct nbd_text name = {(const uint8_t *)export->name, strlen(export->name)};
    const char *description = export->description ? export->description : "";
    if (name.length == 0 || name.length > NBD_EXPORT_NAME_BYTES)
        return error_set(err, name.length ? ENAMETOOLONG : EINVAL, "export name \"%.100s\" must have 1 to %d bytes",
                         export->name, NBD_EXPORT_NAME_BYTES);
    if (strlen(description) > NBD_DESCRIPTION_BYTES)
        return error_set(err, ENAMETOOLONG, "description of export \"%s\" is longer than %d bytes", export->name,
                         NBD_DESCRIPTION_BYTES);
    if (find_name(table, name))
        return error_set(err, EEXIST, "there is an export \"%s\" already", export->name);
    struct nbd_entry *entry = calloc(1, sizeof *entry);
    if (!entry)
        return error_set(err, ENOMEM, "no memory for export \"%s\"", export->name);
    strcpy(entry->name, export->name);
    strcpy(entry->description, description);
    entry->flags = transmission_flags(export);
    entry->home.node = export->node;
    entry->releases = !(entry->flags & NBD_FLAG_READ_ONLY) && export->node->can_release;
    list_init(&entry->home.sessions);
    list_init(&entry->home.waiting);
    list_init(&entry->home.leaving);
    list_init(&entry->home.read_once);
    *made = entry;
    return 0;
}

void nbd_table_append(struct nbd_table *table, struct nbd_entry *entry)
{
    entry->serial = ++table->last_serial;
    list_append(&table->entries, &entry->link);
    table->count++;
}

void nbd_table_remove(struct nbd_table *table, struct nbd_entry *entry)
{
    list_remove(&entry->link);
    table->count--;
}

struct nbd_entry *nbd_table_find(struct nbd_table *table, struct nbd_text name)
{
    if (name.length == 0)
        return table->count == 1 ? list_first(&table->entries, struct nbd_entry, link) : NULL;
    return find_name(table, name);
}

struct nbd_entry *nbd_table_find_serial(struct nbd_table *table, uint64_t serial)
{
    struct nbd_entry *entry = nbd_table_after(table, serial - 1);
    return entry && entry->serial == serial ? entry : NULL;
}

struct nbd_entry *nbd_table_after(struct nbd_table *table, uint64_t serial)
{
    list_each (node, &table->entries) {
        struct nbd_entry *entry = container_of(node, struct nbd_entry, link);
        if (entry->serial > serial)
            return entry;
    }
    return NULL;
}
