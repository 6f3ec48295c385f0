/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A message of a front-end, checked for its form before anybody looks into it: what it may be, how long, how many
 * descriptors come with it, and whether the feature that it belongs to was negotiated. What it means is device.h's. No I/O.
 */
#ifndef FLEECE_EXPORT_VHOST_USER_MESSAGE_H
#define FLEECE_EXPORT_VHOST_USER_MESSAGE_H

#include <stdbool.h>

#include "base/error.h"
#include "export/vhost_user/wire.h"

struct vhost_message {
    enum vhost_request_id id;
    const char *name; /* as in the protocol's text, without VHOST_USER_ */
    bool need_reply;  /* the front-end waits for 0 or 1, unless the message has a reply of its own */
    bool has_own_reply;
    uint32_t size; /* of the payload */
    union {
        uint64_t word;
        struct vhost_vring_state state;
        struct vhost_vring_addr addr;
        struct vhost_log log;
        struct vhost_one_region region;
        struct {
            struct vhost_memory memory;
            struct vhost_region regions[LIMIT_PACKET_DESCRIPTORS];
        };
        struct {
            struct vhost_config config;
            uint8_t config_bytes[LIMIT_VHOST_CONFIG_BYTES];
        };
        struct vhost_inflight inflight;
        uint8_t payload[sizeof(struct vhost_config) + LIMIT_VHOST_CONFIG_BYTES];
    };
};

/* Of the header alone: sets everything but the payload, of which message->size bytes are to be received into
 * message->payload. -EPROTO, with a sentence: nothing that could be believed follows. */
int vhost_message_begin(struct vhost_message *message, const struct vhost_header *header, struct error *err);
/* Of the whole: with what came along, under the protocol features that were negotiated. 0 or -EPROTO with a sentence. */
int vhost_message_check(const struct vhost_message *message, unsigned fd_count, uint64_t protocol_features,
                        struct error *err);

#endif
