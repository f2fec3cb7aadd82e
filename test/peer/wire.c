/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "wire.h"

#include <string.h>

const char *const message_names[MESSAGE_TYPES] = {
    "other", "HELLO", "WRITTEN", "OFFER", "CONSUMED", "ABORT", "PING", "PONG"};

static const uint8_t magic[4] = {0x48, 0x52, 0x44, 0x4d};

uint64_t get_be(const uint8_t *in, unsigned bytes)
{
    uint64_t value = 0;
    while (bytes-- > 0) {
        value = value << 8 | *in++;
    }
    return value;
}

void put_be(uint8_t *out, unsigned bytes, uint64_t value)
{
    while (bytes > 0) {
        out[--bytes] = (uint8_t)value;
        value >>= 8;
    }
}

void wire_put(uint8_t out[MESSAGE_SIZE], const struct message *m)
{
    out[0] = m->type;
    out[1] = m->flags;
    put_be(out + 2, 2, m->credits);
    put_be(out + 4, 4, m->id);
    put_be(out + 8, 8, m->bytes);
    put_be(out + 16, 4, m->stag);
    put_be(out + 20, 4, m->len);
    put_be(out + 24, 8, m->to);
}

void wire_get(const uint8_t in[MESSAGE_SIZE], struct message *m)
{
    m->type = in[0];
    m->flags = in[1];
    m->credits = (uint16_t)get_be(in + 2, 2);
    m->id = (uint32_t)get_be(in + 4, 4);
    m->bytes = get_be(in + 8, 8);
    m->stag = (uint32_t)get_be(in + 16, 4);
    m->len = (uint32_t)get_be(in + 20, 4);
    m->to = get_be(in + 24, 8);
}

const char *wire_judge(const struct message *m)
{
    if (m->type < HELLO || m->type > PONG) {
        return "unknown type";
    }
    if (m->type >= WRITTEN && m->type <= ABORT
        && (m->id == 0 || m->id > 2147483647)) {
        return "id out of range";
    }
    if (m->type == OFFER) {
        if (m->len == 0 && (m->flags & FLAG_FIN) == 0) {
            return "OFFER of nothing";
        }
        if (m->len > 0 && m->to > UINT64_MAX - m->len) {
            return "OFFER that wraps";
        }
        if (m->len > m->bytes) {
            return "OFFER before the body";
        }
    }
    return NULL;
}

void wire_put_request(uint8_t out[REQUEST_SIZE],
                      const struct connect_request *r)
{
    memcpy(out, magic, 4);
    out[4] = 1;
    out[5] = r->kind;
    out[6] = r->depth;
    out[7] = 0;
    memcpy(out + 8, r->token, TOKEN_SIZE);
}

int wire_get_request(const uint8_t *in, size_t len, unsigned reads,
                     struct connect_request *r)
{
    if (len < REQUEST_SIZE || memcmp(in, magic, 4) != 0) {
        return REJECT_MALFORMED;
    }
    if (in[4] != 1) {
        return REJECT_VERSION;
    }
    r->kind = in[5];
    r->depth = in[6];
    memcpy(r->token, in + 8, TOKEN_SIZE);
    if (r->kind != KIND_WRITE && (r->kind != KIND_READ || reads == 0)) {
        return REJECT_KIND;
    }
    return r->depth < 8 ? REJECT_DEPTH : REJECT_NONE;
}

void wire_put_accept(uint8_t out[ACCEPT_SIZE], uint8_t kind, uint8_t depth,
                     uint32_t conn)
{
    memcpy(out, magic, 4);
    out[4] = 1;
    out[5] = kind;
    out[6] = depth;
    out[7] = 0;
    put_be(out + 8, 4, conn);
}

bool wire_get_accept(const uint8_t *in, size_t len, uint8_t kind,
                     uint8_t *depth, uint32_t *conn)
{
    if (len < ACCEPT_SIZE || memcmp(in, magic, 4) != 0 || in[4] != 1
        || in[5] != kind || in[6] < 8) {
        return false;
    }
    *depth = in[6];
    *conn = (uint32_t)get_be(in + 8, 4);
    return *conn != 0;
}
