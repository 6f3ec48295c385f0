/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Doubly linked list through a node embedded in its members. A node outside of every list points at nothing. */
#ifndef FLEECE_BASE_LIST_H
#define FLEECE_BASE_LIST_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>

struct list_node {
    struct list_node *next, *prev;
};

struct list {
    struct list_node head; /* head.next: first member; head.prev: last */
};

#define container_of(pointer, type, member) ((type *)(void *)((char *)(pointer)-offsetof(type, member)))

static inline void list_init(struct list *list)
{
    list->head.next = list->head.prev = &list->head;
}

static inline bool list_empty(const struct list *list)
{
    return list->head.next == &list->head;
}

static inline bool list_linked(const struct list_node *node)
{
    return node->next != NULL;
}

static inline void list_insert_before(struct list_node *at, struct list_node *node)
{
    assert(!list_linked(node));
    node->next = at;
    node->prev = at->prev;
    at->prev->next = node;
    at->prev = node;
}

static inline void list_append(struct list *list, struct list_node *node)
{
    list_insert_before(&list->head, node);
}

static inline void list_prepend(struct list *list, struct list_node *node)
{
    list_insert_before(list->head.next, node);
}

static inline void list_remove(struct list_node *node)
{
    assert(list_linked(node));
    node->prev->next = node->next;
    node->next->prev = node->prev;
    node->next = node->prev = NULL;
}

/* Takes the first member out; NULL when empty. */
static inline struct list_node *list_take_first(struct list *list)
{
    if (list_empty(list))
        return NULL;
    struct list_node *node = list->head.next;
    list_remove(node);
    return node;
}

/* Moves all members of `from` behind those of `to`, in order. */
static inline void list_take_all(struct list *to, struct list *from)
{
    if (list_empty(from))
        return;
    from->head.next->prev = to->head.prev;
    to->head.prev->next = from->head.next;
    from->head.prev->next = &to->head;
    to->head.prev = from->head.prev;
    list_init(from);
}

#define list_first(list, type, member) container_of((list)->head.next, type, member)
#define list_last(list, type, member) container_of((list)->head.prev, type, member)

/* `position` is a struct list_node *. The _safe form bears removal of the member it stands on. */
#define list_each(position, list) \
    for (struct list_node *position = (list)->head.next; position != &(list)->head; position = position->next)
#define list_each_safe(position, list)                                                                                 \
    for (struct list_node *position = (list)->head.next, *position##_next = position->next; position != &(list)->head; \
         position = position##_next, position##_next = position->next)

#endif
