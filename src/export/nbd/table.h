/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The exports of a server, by name. On the server's thread. */
#ifndef FLEECE_EXPORT_NBD_TABLE_H
#define FLEECE_EXPORT_NBD_TABLE_H

#include "export/nbd/home.h"
#include "export/nbd/options.h"
#include "export/nbd/server.h"

enum { NBD_EXPORT_NAME_BYTES = 2 * LIMIT_NAME_BYTES + 1 }; /* "DISK@SNAPSHOT" */

struct nbd_entry {
    struct list_node link;
    uint64_t serial; /* never used again; grows along the table */
    char name[NBD_EXPORT_NAME_BYTES + 1];
    char description[NBD_DESCRIPTION_BYTES + 1];
    uint16_t flags; /* transmission flags, DF left out */
    bool releases;  /* a snapshot's view: TRIM releases, writes are refused */
    struct nbd_home home;
    void *server; /* for server.c, as the rest */
    void (*removed)(void *argument);
    void *removed_argument;
};

struct nbd_table {
    struct list entries;
    unsigned count;
    uint64_t last_serial;
};

void nbd_table_init(struct nbd_table *table);
/* A new entry for an export, not in the table yet; its home has no reactor. -EINVAL, -ENAMETOOLONG, -EEXIST, -ENOMEM. */
int nbd_entry_create(const struct nbd_table *table, const struct nbd_export *export, struct nbd_entry **entry,
                     struct error *err);
void nbd_table_append(struct nbd_table *table, struct nbd_entry *entry);
void nbd_table_remove(struct nbd_table *table, struct nbd_entry *entry);
/* NULL: none. The empty name means the only export there is, and nothing if there are several. */
struct nbd_entry *nbd_table_find(struct nbd_table *table, struct nbd_text name);
struct nbd_entry *nbd_table_find_serial(struct nbd_table *table, uint64_t serial);
/* The first entry with a higher serial; 0: the first of all. NULL: none. */
struct nbd_entry *nbd_table_after(struct nbd_table *table, uint64_t serial);

#endif
