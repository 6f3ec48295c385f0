/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Nothing is cut off; the last column, which may be a sentence, is not padded. A character counts as wide as one. */
#include "cli/table.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"

static json_t *cut(const char *text)
{
    json_t *row = json_array();
    for (const char *at = text, *end; at; at = end ? end + 1 : NULL) {
        end = strchr(at, '\t');
        json_array_append_new(row, json_stringn(at, end ? (size_t)(end - at) : strlen(at)));
    }
    return row;
}

void table_init(struct table *table, const char *head)
{
    table->head = head;
    table->rows = json_array();
}

void table_add(struct table *table, const char *format, ...)
{
    char *text = NULL;
    va_list args;
    va_start(args, format);
    int length = vasprintf(&text, format, args);
    va_end(args);
    if (length >= 0)
        json_array_append_new(table->rows, cut(text));
    free(text);
}

static const char *cell(const json_t *row, size_t column)
{
    const char *text = json_string_value(json_array_get(row, column));
    return text ? text : "-";
}

/* Characters of UTF-8. */
static unsigned width(const char *text)
{
    unsigned count = 0;
    for (; *text; text++)
        count += ((unsigned char)*text & 0xc0) != 0x80;
    return count;
}

static void print_row(const json_t *row, size_t columns, const unsigned *widths, const bool *right, unsigned skip)
{
    for (size_t i = 0; i < columns; i++) {
        const char *text = cell(row, i) + (right[i] ? skip : 0);
        int blanks = (int)(widths[i] - width(text));
        if (i + 1 == columns && !right[i])
            blanks = 0;
        printf("%s%*s%s%*s", i ? "  " : "", right[i] ? blanks : 0, "", text, right[i] ? 0 : blanks, "");
    }
    putchar('\n');
}

static void print(const struct table *table)
{
    json_t *head = cut(table->head), *row;
    size_t columns = json_array_size(head), i;
    unsigned widths[LIMIT_TABLE_COLUMNS];
    bool right[LIMIT_TABLE_COLUMNS];
    assert(columns <= LIMIT_TABLE_COLUMNS);
    for (size_t j = 0; j < columns; j++) {
        right[j] = cell(head, j)[0] == '>';
        widths[j] = width(cell(head, j)) - right[j];
        json_array_foreach (table->rows, i, row)
            widths[j] = width(cell(row, j)) > widths[j] ? width(cell(row, j)) : widths[j];
    }
    print_row(head, columns, widths, right, 1);
    json_array_foreach (table->rows, i, row)
        print_row(row, columns, widths, right, 0);
    json_decref(head);
}

void table_end(struct table *table, bool wanted)
{
    if (wanted)
        print(table);
    json_decref(table->rows);
    table->rows = NULL;
}
