/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
/* The RDMA field of requests and responses: RFC 9651 and the protocol's rules
 * on top of it. */
#ifndef FIELD_H
#define FIELD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "wire.h"

enum { FIELD_MAX = 4096 };
enum field_verdict { FIELD_OK, FIELD_VERSION, FIELD_MALFORMED };

/* A request field. `prefer` has kinds, 0 where there is none. */
struct offer {
    uint16_t port;
    bool has_addr;
    char addr[48];
    uint8_t token[TOKEN_SIZE];
    uint32_t id;
    uint8_t prefer[2];
    uint32_t stag;
    uint64_t to, len;
};

/* A response field. */
struct answer {
    bool has_id, has_conn, has_total, fin;
    uint32_t id, conn;
    uint8_t kind; /* 0 where it is `declined` */
    char declined[16];
    uint64_t total;
    uint32_t stag, len;
    uint64_t to;
};

enum field_verdict field_get_offer(const char *value, size_t len,
                                   struct offer *o);
enum field_verdict field_get_answer(const char *value, size_t len,
                                    struct answer *a);
/* The request field; `out` has FIELD_MAX bytes. */
void field_put_offer(char *out, const struct offer *o);

/* `out` has 25 bytes; the text of a token. */
void field_put_token(char *out, const uint8_t token[TOKEN_SIZE]);

#endif
