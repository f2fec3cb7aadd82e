/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "field.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

#include "sfv.h"

static bool number_in(const struct sfv_item *item, int64_t low, int64_t high)
{
    return item != NULL && item->type == SFV_INTEGER && item->number >= low
           && item->number <= high;
}

static bool truth(const struct sfv_item *item)
{
    return item->type == SFV_BOOLEAN && item->number == 1;
}

static bool hex(const struct sfv_item *item, size_t digits, uint64_t *out)
{
    static const char set[] = "0123456789abcdef";
    if (item == NULL || item->type != SFV_STRING || item->len != digits) {
        return false;
    }
    *out = 0;
    for (size_t i = 0; i < digits; i++) {
        const char *at = strchr(set, item->text[i]);
        if (at == NULL || *at == '\0') {
            return false;
        }
        *out = *out << 4 | (uint64_t)(at - set);
    }
    return true;
}

static const struct sfv_item *member(const struct sfv_dict *d, const char *key)
{
    int place = sfv_find(d, key);
    return place < 0 ? NULL : sfv_member(d, place);
}

static enum field_verdict version(const struct sfv_dict *d)
{
    const struct sfv_item *v = member(d, "v");
    if (!number_in(v, 1, INT64_MAX)) {
        return FIELD_MALFORMED;
    }
    return v->number > 1 ? FIELD_VERSION : FIELD_OK;
}

/* inet_ntop writes what RFC 5952 wants, IPv4 tails apart. */
static bool canonical(const struct sfv_item *item, char *out, size_t size)
{
    struct in_addr a4;
    struct in6_addr a6;
    char text[INET6_ADDRSTRLEN];
    if (item->type != SFV_STRING || item->len >= size
        || strlen(item->text) != item->len) {
        return false;
    }
    if (inet_pton(AF_INET, item->text, &a4) == 1) {
        inet_ntop(AF_INET, &a4, text, sizeof text);
    }
    else if (inet_pton(AF_INET6, item->text, &a6) == 1
             && !IN6_IS_ADDR_V4MAPPED(&a6)) {
        inet_ntop(AF_INET6, &a6, text, sizeof text);
        if (strchr(text, '.') != NULL) {
            uint16_t high = (uint16_t)(a6.s6_addr[12] << 8 | a6.s6_addr[13]);
            uint16_t low = (uint16_t)(a6.s6_addr[14] << 8 | a6.s6_addr[15]);
            snprintf(text, sizeof text, "::%x:%x", high, low);
        }
    }
    else {
        return false;
    }
    memcpy(out, item->text, item->len + 1);
    return strcmp(text, item->text) == 0;
}

static bool window(const struct sfv_dict *d, int place, struct offer *o)
{
    uint64_t stag;
    const struct sfv_item *len = sfv_param(d, place, "len");
    if (!truth(sfv_member(d, place))
        || !hex(sfv_param(d, place, "stag"), 8, &stag)
        || !hex(sfv_param(d, place, "to"), 16, &o->to)
        || !number_in(len, 1, INT64_C(1) << 40)) {
        return false;
    }
    o->stag = (uint32_t)stag;
    o->len = (uint64_t)len->number;
    return o->to <= UINT64_MAX - o->len;
}

static bool offer(const struct sfv_dict *d, struct offer *o)
{
    const struct sfv_item *port = member(d, "port"), *id = member(d, "id");
    const struct sfv_item *token = member(d, "token");
    const struct sfv_item *addr = member(d, "addr");
    int write = sfv_find(d, "write"), read = sfv_find(d, "read");
    if (!number_in(port, 1024, 65535) || !number_in(id, 1, 2147483647)
        || token == NULL || token->type != SFV_BYTES || token->len != TOKEN_SIZE
        || (write < 0 && read < 0) || (write >= 0 && !window(d, write, o))
        || (read >= 0 && !truth(sfv_member(d, read)))) {
        return false;
    }
    o->port = (uint16_t)port->number;
    o->id = (uint32_t)id->number;
    memcpy(o->token, token->text, TOKEN_SIZE);
    o->has_addr = addr != NULL;
    if (addr != NULL && !canonical(addr, o->addr, sizeof o->addr)) {
        return false;
    }
    if (write >= 0 && read >= 0) {
        o->prefer[0] = write < read ? KIND_WRITE : KIND_READ;
        o->prefer[1] = write < read ? KIND_READ : KIND_WRITE;
    }
    else {
        o->prefer[0] = write >= 0 ? KIND_WRITE : KIND_READ;
    }
    return true;
}

enum field_verdict field_get_offer(const char *value, size_t len,
                                   struct offer *o)
{
    struct sfv_dict *d = len > FIELD_MAX ? NULL : sfv_parse(value, len);
    enum field_verdict verdict = FIELD_MALFORMED;
    memset(o, 0, sizeof *o);
    if (d != NULL) {
        verdict = version(d);
        if (verdict == FIELD_OK && !offer(d, o)) {
            verdict = FIELD_MALFORMED;
        }
        sfv_free(d);
    }
    return verdict;
}

/* Words that go without conn, with id; then those without id. */
static bool known_reason(const struct sfv_item *item, struct answer *a)
{
    static const char *const plain[] = {"small",  "policy", "connect",
                                        "busy",   "memory", "tls",
                                        "window", "device"};
    if (item->type != SFV_TOKEN || item->len >= sizeof a->declined) {
        return false;
    }
    memcpy(a->declined, item->text, item->len + 1);
    if (strcmp(a->declined, "malformed") == 0
        || strcmp(a->declined, "version") == 0) {
        return !a->has_id && !a->has_conn;
    }
    if (strcmp(a->declined, "failed") == 0) {
        return a->has_id && a->has_conn;
    }
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++) {
        if (strcmp(a->declined, plain[i]) == 0) {
            return a->has_id && !a->has_conn;
        }
    }
    return false;
}

static bool part(const struct sfv_dict *d, int place, struct answer *a)
{
    uint64_t stag;
    const struct sfv_item *len = sfv_param(d, place, "len");
    const struct sfv_item *fin = sfv_param(d, place, "fin");
    if (!hex(sfv_param(d, place, "stag"), 8, &stag)
        || !hex(sfv_param(d, place, "to"), 16, &a->to)
        || !number_in(len, 1, UINT32_MAX) || (fin != NULL && !truth(fin))) {
        return false;
    }
    a->stag = (uint32_t)stag;
    a->len = (uint32_t)len->number;
    a->fin = fin != NULL;
    return a->to <= UINT64_MAX - a->len
           && (!a->has_total
               || (a->fin ? a->total == a->len : a->total >= a->len));
}

static bool answer(const struct sfv_dict *d, struct answer *a)
{
    const struct sfv_item *id = member(d, "id"), *conn = member(d, "conn");
    const struct sfv_item *declined = member(d, "declined"), *total;
    int write = sfv_find(d, "write"), read = sfv_find(d, "read");
    int place = write >= 0 ? write : read;
    if ((id != NULL && !number_in(id, 1, 2147483647))
        || (conn != NULL && !number_in(conn, 1, UINT32_MAX))
        || (write >= 0) + (read >= 0) + (declined != NULL) != 1) {
        return false;
    }
    a->has_id = id != NULL;
    a->id = id != NULL ? (uint32_t)id->number : 0;
    a->has_conn = conn != NULL;
    a->conn = conn != NULL ? (uint32_t)conn->number : 0;
    if (declined != NULL) {
        return known_reason(declined, a);
    }
    total = sfv_param(d, place, "total");
    if (!a->has_id || !a->has_conn || !truth(sfv_member(d, place))
        || (total != NULL && !number_in(total, 1, INT64_C(999999999999999)))) {
        return false;
    }
    a->kind = write >= 0 ? KIND_WRITE : KIND_READ;
    a->has_total = total != NULL;
    a->total = total != NULL ? (uint64_t)total->number : 0;
    return a->kind == KIND_WRITE || part(d, place, a);
}

enum field_verdict field_get_answer(const char *value, size_t len,
                                    struct answer *a)
{
    struct sfv_dict *d = len > FIELD_MAX ? NULL : sfv_parse(value, len);
    enum field_verdict verdict = FIELD_MALFORMED;
    memset(a, 0, sizeof *a);
    if (d != NULL) {
        verdict = version(d);
        if (verdict == FIELD_OK && !answer(d, a)) {
            verdict = FIELD_MALFORMED;
        }
        sfv_free(d);
    }
    return verdict;
}

void field_put_token(char *out, const uint8_t token[TOKEN_SIZE])
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                 "abcdefghijklmnopqrstuvwxyz0123456789+/";
    for (unsigned i = 0; i < TOKEN_SIZE; i += 3) {
        unsigned left = TOKEN_SIZE - i;
        uint32_t bits = (uint32_t)token[i] << 16;
        bits |= left > 1 ? (uint32_t)token[i + 1] << 8 : 0;
        bits |= left > 2 ? (uint32_t)token[i + 2] : 0;
        *out++ = digits[bits >> 18];
        *out++ = digits[bits >> 12 & 63];
        *out++ = left > 1 ? digits[bits >> 6 & 63] : '=';
        *out++ = left > 2 ? digits[bits & 63] : '=';
    }
    *out = '\0';
}

void field_put_offer(char *out, const struct offer *o)
{
    char token[25];
    int n;
    field_put_token(token, o->token);
    n = snprintf(out, FIELD_MAX, "v=1, port=%u, token=:%s:, id=%u", o->port,
                 token, o->id);
    if (o->has_addr) {
        n += snprintf(out + n, FIELD_MAX - (size_t)n, ", addr=\"%s\"", o->addr);
    }
    for (unsigned i = 0; i < 2; i++) {
        if (o->prefer[i] == KIND_WRITE) {
            n += snprintf(out + n, FIELD_MAX - (size_t)n,
                          ", write;stag=\"%08x\";to=\"%016llx\";len=%llu",
                          o->stag, (unsigned long long)o->to,
                          (unsigned long long)o->len);
        }
        else if (o->prefer[i] == KIND_READ) {
            n += snprintf(out + n, FIELD_MAX - (size_t)n, ", read");
        }
    }
}
