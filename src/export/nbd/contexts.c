/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The names of metadata contexts, and what clients mean by their queries: a query of LIST may be a whole namespace, one of
 * SET is a name, as QEMU's server takes them. Queries are a stranger's bytes: they are compared, never kept. No states.
 */
#include "export/nbd/contexts.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#define DIRTY_PREFIX "qemu:dirty-bitmap:"
_Static_assert(sizeof DIRTY_PREFIX - 1 + LIMIT_NAME_BYTES == NBD_CONTEXT_NAME_BYTES, "the longest name fits");

uint32_t nbd_contexts_of(const struct node *node)
{
    assert(node->dirty_map_count <= LIMIT_DIRTY_MAPS);
    uint32_t contexts = NBD_CONTEXT_BIT(NBD_CONTEXT_BASE_ALLOCATION);
    if (node->block_bytes > 0) /* a snapshot's view */
        contexts |= NBD_CONTEXT_BIT(NBD_CONTEXT_RESIDENCE);
    for (unsigned i = 0; i < node->dirty_map_count; i++)
        contexts |= NBD_CONTEXT_BIT(NBD_CONTEXT_DIRTY + i);
    return contexts;
}

size_t nbd_context_name(const struct node *node, unsigned context, char name[NBD_CONTEXT_NAME_BYTES + 1])
{
    static const char *const fixed[NBD_CONTEXT_DIRTY] = {"base:allocation", "fleece:residence"};
    int length;
    if (context < NBD_CONTEXT_DIRTY)
        length = snprintf(name, NBD_CONTEXT_NAME_BYTES + 1, "%s", fixed[context]);
    else
        length = snprintf(name, NBD_CONTEXT_NAME_BYTES + 1, DIRTY_PREFIX "%s",
                          node->dirty_maps[context - NBD_CONTEXT_DIRTY]);
    assert(length > 0 && length <= NBD_CONTEXT_NAME_BYTES);
    return (size_t)length;
}

/* Whether it names a namespace that the context is in. */
static bool query_is_prefix_of(struct nbd_text query, const char *context)
{
    return query.length > 0 && query.length < strlen(context) && query.bytes[query.length - 1] == ':' &&
           memcmp(query.bytes, context, query.length) == 0;
}

uint32_t nbd_contexts_asked_for(const struct node *node, const struct nbd_meta_request *request, bool list)
{
    uint32_t all = nbd_contexts_of(node), asked_for = list && request->query_count == 0 ? all : 0;
    for (unsigned context = 0; context < NBD_CONTEXT_COUNT; context++) {
        char name[NBD_CONTEXT_NAME_BYTES + 1];
        if (!(all & NBD_CONTEXT_BIT(context)))
            continue;
        nbd_context_name(node, context, name);
        const uint8_t *at = request->queries;
        for (uint32_t i = 0; i < request->query_count; i++) {
            struct nbd_text query = nbd_meta_next_query(&at);
            if (nbd_text_equals(query, name) || (list && query_is_prefix_of(query, name)))
                asked_for |= NBD_CONTEXT_BIT(context);
        }
    }
    return asked_for;
}
