/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
/* The binary parts of the protocol: messages and private data. */
#ifndef WIRE_H
#define WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    MESSAGE_SIZE = 32,
    TOKEN_SIZE = 16,
    REQUEST_SIZE = 24,
    ACCEPT_SIZE = 12
};
enum { KIND_WRITE = 1, KIND_READ = 2 };
enum { FLAG_FIN = 1 };
enum message_type {
    HELLO = 1,
    WRITTEN,
    OFFER,
    CONSUMED,
    ABORT,
    PING,
    PONG,
    MESSAGE_TYPES
};
enum reject_reason {
    REJECT_NONE,
    REJECT_MALFORMED,
    REJECT_VERSION,
    REJECT_TOKEN,
    REJECT_KIND,
    REJECT_DEPTH,
    REJECT_BUSY,
    REJECT_ADDRESS
};

struct message {
    uint8_t type, flags;
    uint16_t credits;
    uint32_t id;
    uint64_t bytes;
    uint32_t stag, len;
    uint64_t to;
};

extern const char *const message_names[MESSAGE_TYPES];

void wire_put(uint8_t out[MESSAGE_SIZE], const struct message *m);
void wire_get(const uint8_t in[MESSAGE_SIZE], struct message *m);

/* What is wrong with a message by itself, or NULL. */
const char *wire_judge(const struct message *m);

struct connect_request {
    uint8_t kind, depth;
    uint8_t token[TOKEN_SIZE];
};
void wire_put_request(uint8_t out[REQUEST_SIZE],
                      const struct connect_request *r);
/* The reason to reject it, token, address and offers apart. `reads` is the
 * depth of READs that the event says. */
int wire_get_request(const uint8_t *in, size_t len, unsigned reads,
                     struct connect_request *r);

void wire_put_accept(uint8_t out[ACCEPT_SIZE], uint8_t kind, uint8_t depth,
                     uint32_t conn);
bool wire_get_accept(const uint8_t *in, size_t len, uint8_t kind,
                     uint8_t *depth, uint32_t *conn);

uint64_t get_be(const uint8_t *in, unsigned bytes);
void put_be(uint8_t *out, unsigned bytes, uint64_t value);

#endif
