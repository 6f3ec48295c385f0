/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One row for each message that we take. A front-end that sends another one has negotiated something that was not offered,
 * and what it expects of us from then on is unknown: so every mistake of form ends its connection, with one sentence.
 */
#include "export/vhost_user/message.h"

#include <errno.h>
#include <stddef.h>

#define ANY (-1) /* no protocol feature is needed */

struct form {
    const char *name;
    uint16_t size_min, size_max;
    uint8_t fds_min, fds_max;
    int feature;
    bool replies;
};

enum {
    STATE = sizeof(struct vhost_vring_state),
    WORD = sizeof(uint64_t),
    REGION = sizeof(struct vhost_one_region),
    LOG = sizeof(struct vhost_log),
    MEMORY = sizeof(struct vhost_memory),
    MEMORY_MAX = MEMORY + LIMIT_PACKET_DESCRIPTORS * sizeof(struct vhost_region),
    CONFIG = sizeof(struct vhost_config),
    CONFIG_MAX = CONFIG + LIMIT_VHOST_CONFIG_BYTES,
    INFLIGHT_MAX = sizeof(struct vhost_inflight),
};

static const struct form forms[] = {
    [VHOST_GET_FEATURES] = {"GET_FEATURES", 0, 0, 0, 0, ANY, true},
    [VHOST_SET_FEATURES] = {"SET_FEATURES", WORD, WORD, 0, 0, ANY, false},
    [VHOST_SET_OWNER] = {"SET_OWNER", 0, 0, 0, 0, ANY, false},
    [VHOST_RESET_OWNER] = {"RESET_OWNER", 0, 0, 0, 0, ANY, false},
    [VHOST_SET_MEM_TABLE] = {"SET_MEM_TABLE", MEMORY, MEMORY_MAX, 0, LIMIT_PACKET_DESCRIPTORS, ANY, false},
    [VHOST_SET_LOG_BASE] = {"SET_LOG_BASE", LOG, LOG, 1, 1, VHOST_PROTOCOL_LOG_SHMFD, true},
    [VHOST_SET_LOG_FD] = {"SET_LOG_FD", 0, WORD, 1, 1, ANY, false},
    [VHOST_SET_VRING_NUM] = {"SET_VRING_NUM", STATE, STATE, 0, 0, ANY, false},
    [VHOST_SET_VRING_ADDR] = {"SET_VRING_ADDR", sizeof(struct vhost_vring_addr), sizeof(struct vhost_vring_addr), 0, 0,
                              ANY, false},
    [VHOST_SET_VRING_BASE] = {"SET_VRING_BASE", STATE, STATE, 0, 0, ANY, false},
    [VHOST_GET_VRING_BASE] = {"GET_VRING_BASE", STATE, STATE, 0, 0, ANY, true},
    [VHOST_SET_VRING_KICK] = {"SET_VRING_KICK", WORD, WORD, 0, 1, ANY, false},
    [VHOST_SET_VRING_CALL] = {"SET_VRING_CALL", WORD, WORD, 0, 1, ANY, false},
    [VHOST_SET_VRING_ERR] = {"SET_VRING_ERR", WORD, WORD, 0, 1, ANY, false},
    [VHOST_GET_PROTOCOL_FEATURES] = {"GET_PROTOCOL_FEATURES", 0, 0, 0, 0, ANY, true},
    [VHOST_SET_PROTOCOL_FEATURES] = {"SET_PROTOCOL_FEATURES", WORD, WORD, 0, 0, ANY, false},
    [VHOST_GET_QUEUE_NUM] = {"GET_QUEUE_NUM", 0, 0, 0, 0, VHOST_PROTOCOL_MQ, true},
    [VHOST_SET_VRING_ENABLE] = {"SET_VRING_ENABLE", STATE, STATE, 0, 0, ANY, false},
    [VHOST_SET_BACKEND_REQ_FD] = {"SET_BACKEND_REQ_FD", 0, 0, 1, 1, VHOST_PROTOCOL_BACKEND_REQ, false},
    [VHOST_GET_CONFIG] = {"GET_CONFIG", CONFIG, CONFIG_MAX, 0, 0, VHOST_PROTOCOL_CONFIG, true},
    [VHOST_SET_CONFIG] = {"SET_CONFIG", CONFIG, CONFIG_MAX, 0, 0, VHOST_PROTOCOL_CONFIG, false},
    [VHOST_GET_INFLIGHT_FD] = {"GET_INFLIGHT_FD", VHOST_INFLIGHT_BYTES, INFLIGHT_MAX, 0, 0, VHOST_PROTOCOL_INFLIGHT,
                               true},
    [VHOST_SET_INFLIGHT_FD] = {"SET_INFLIGHT_FD", VHOST_INFLIGHT_BYTES, INFLIGHT_MAX, 1, 1, VHOST_PROTOCOL_INFLIGHT,
                               false},
    [VHOST_RESET_DEVICE] = {"RESET_DEVICE", 0, 0, 0, 0, VHOST_PROTOCOL_RESET_DEVICE, false},
    [VHOST_GET_MAX_MEM_SLOTS] = {"GET_MAX_MEM_SLOTS", 0, 0, 0, 0, VHOST_PROTOCOL_MEM_SLOTS, true},
    [VHOST_ADD_MEM_REG] = {"ADD_MEM_REG", REGION, REGION, 1, 1, VHOST_PROTOCOL_MEM_SLOTS, false},
    /* One descriptor must be borne, says the text, for the sake of old front-ends. */
    [VHOST_REM_MEM_REG] = {"REM_MEM_REG", REGION, REGION, 0, 1, VHOST_PROTOCOL_MEM_SLOTS, false},
    [VHOST_SET_STATUS] = {"SET_STATUS", WORD, WORD, 0, 0, VHOST_PROTOCOL_STATUS, false},
    [VHOST_GET_STATUS] = {"GET_STATUS", 0, 0, 0, 0, VHOST_PROTOCOL_STATUS, true},
};

int vhost_message_begin(struct vhost_message *message, const struct vhost_header *header, struct error *err)
{
    *message = (struct vhost_message){.size = header->size};
    if ((header->flags & VHOST_VERSION_MASK) != VHOST_VERSION)
        return error_set(err, EPROTO, "a message of version %u; only version 1 exists",
                         header->flags & VHOST_VERSION_MASK);
    if (header->flags & VHOST_REPLY)
        return error_set(err, EPROTO, "a reply (message %u) to nothing that was asked", header->request);
    if (header->request >= sizeof forms / sizeof forms[0] || !forms[header->request].name)
        return error_set(err, EPROTO, "message %u, which is unknown or belongs to a feature that was not offered",
                         header->request);
    const struct form *form = &forms[header->request];
    message->id = (enum vhost_request_id)header->request;
    message->name = form->name;
    message->has_own_reply = form->replies;
    message->need_reply = header->flags & VHOST_NEED_REPLY;
    if (header->size < form->size_min || header->size > form->size_max)
        return error_set(err, EPROTO, "%s with %u bytes; it has %u%s", form->name, header->size, form->size_min,
                         form->size_max > form->size_min ? " or more" : "");
    return 0;
}

static int check_memory(const struct vhost_message *message, unsigned fd_count, struct error *err)
{
    uint32_t count = message->memory.count;
    if (count > LIMIT_PACKET_DESCRIPTORS)
        return error_set(err, EPROTO, "%s with %u regions; at most %u fit into it", message->name, count,
                         LIMIT_PACKET_DESCRIPTORS);
    if (message->size < sizeof message->memory + count * sizeof message->regions[0])
        return error_set(err, EPROTO, "%s with %u regions in %u bytes", message->name, count, message->size);
    if (fd_count != count)
        return error_set(err, EPROTO, "%s with %u regions and %u descriptors", message->name, count, fd_count);
    return 0;
}

static int check_event(const struct vhost_message *message, unsigned fd_count, struct error *err)
{
    unsigned wanted = message->word & VHOST_VRING_NO_FD ? 0 : 1;
    if (message->word & ~(uint64_t)(VHOST_VRING_INDEX_MASK | VHOST_VRING_NO_FD))
        return error_set(err, EPROTO, "%s with unknown bits (0x%llx)", message->name,
                         (unsigned long long)message->word);
    if (fd_count != wanted)
        return error_set(err, EPROTO, "%s with %u descriptors; it says that there %s", message->name, fd_count,
                         wanted ? "is one" : "is none");
    return 0;
}

int vhost_message_check(const struct vhost_message *message, unsigned fd_count, uint64_t protocol_features,
                        struct error *err)
{
    const struct form *form = &forms[message->id];
    if (form->feature != ANY && !(protocol_features & VHOST_BIT(form->feature)))
        return error_set(err, EPROTO, "%s without its protocol feature (bit %d)", form->name, form->feature);
    if (fd_count < form->fds_min || fd_count > form->fds_max)
        return error_set(err, EPROTO, "%s with %u descriptors; it has %u%s", form->name, fd_count, form->fds_min,
                         form->fds_max > form->fds_min ? " or more" : "");
    if (message->id == VHOST_SET_MEM_TABLE)
        return check_memory(message, fd_count, err);
    if (message->id == VHOST_SET_VRING_KICK || message->id == VHOST_SET_VRING_CALL ||
        message->id == VHOST_SET_VRING_ERR)
        return check_event(message, fd_count, err);
    if ((message->id == VHOST_GET_CONFIG || message->id == VHOST_SET_CONFIG) &&
        message->config.size != message->size - sizeof message->config)
        return error_set(err, EPROTO, "%s of %u bytes with room for %u", form->name, message->config.size,
                         (unsigned)(message->size - sizeof message->config));
    return 0;
}
