/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Lines of columns on stdout, each as wide as its longest text: names may have 64 bytes. */
#ifndef FLEECE_CLI_TABLE_H
#define FLEECE_CLI_TABLE_H

#include <stdbool.h>

#include <jansson.h>

struct table {
    const char *head; /* the names of the columns, a tab between two; one that begins with '>' stands to the right */
    json_t *rows;     /* lists of texts, of as many as there are columns */
};

void table_init(struct table *table, const char *head);
/* The texts of a row, as printf() would print them, with a tab between two. */
void table_add(struct table *table, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Prints the head and all rows, if that is wanted, and frees them. */
void table_end(struct table *table, bool wanted);

#endif
