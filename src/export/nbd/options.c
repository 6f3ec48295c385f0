/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Lengths come first and are checked against what is left before a byte behind them is looked at; what is left over at the
 * end makes the whole option wrong. No states, no memory: fuzzed as it is.
 */
#include "export/nbd/options.h"

#include <assert.h>
#include <string.h>

#include "export/nbd/wire.h"

bool nbd_text_equals(struct nbd_text text, const char *string)
{
    return text.length == strlen(string) && memcmp(text.bytes, string, text.length) == 0;
}

static bool take_bytes(struct nbd_text *data, size_t length, const uint8_t **bytes)
{
    if (data->length < length)
        return false;
    *bytes = data->bytes;
    data->bytes += length;
    data->length -= length;
    return true;
}

static bool take_number(struct nbd_text *data, size_t size, uint32_t *number)
{
    const uint8_t *bytes;
    if (!take_bytes(data, size, &bytes))
        return false;
    *number = size == 2 ? wire_get16(bytes) : wire_get32(bytes);
    return true;
}

/* A string behind its length. */
static bool take_text(struct nbd_text *data, struct nbd_text *text)
{
    uint32_t length;
    if (!take_number(data, 4, &length) || length > NBD_STRING_BYTES)
        return false;
    text->length = length;
    return take_bytes(data, length, &text->bytes);
}

bool nbd_option_parse_header(const uint8_t *bytes, struct nbd_option_header *header)
{
    header->option = wire_get32(bytes + 8);
    header->length = wire_get32(bytes + 12);
    return wire_get64(bytes) == NBD_OPTION_MAGIC;
}

bool nbd_option_parse_info(struct nbd_text data, struct nbd_info_request *request)
{
    uint32_t count;
    memset(request, 0, sizeof *request);
    if (!take_text(&data, &request->name) || !take_number(&data, 2, &count))
        return false;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t info;
        if (!take_number(&data, 2, &info))
            return false;
        request->wants_name |= info == NBD_INFO_NAME;
        request->wants_description |= info == NBD_INFO_DESCRIPTION;
        request->wants_block_size |= info == NBD_INFO_BLOCK_SIZE;
    }
    return data.length == 0;
}

bool nbd_option_parse_meta(struct nbd_text data, struct nbd_meta_request *request)
{
    memset(request, 0, sizeof *request);
    if (!take_text(&data, &request->name) || !take_number(&data, 4, &request->query_count))
        return false;
    request->queries = data.bytes;
    /* Each query takes four bytes at least: the data ends before a huge count does. */
    for (uint32_t i = 0; i < request->query_count; i++) {
        struct nbd_text query;
        if (!take_text(&data, &query))
            return false;
    }
    return data.length == 0;
}

struct nbd_text nbd_meta_next_query(const uint8_t **at)
{
    struct nbd_text query = {*at + 4, wire_get32(*at)};
    *at = query.bytes + query.length;
    return query;
}
