/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * Fuzzes rdma_hdr. The first byte picks what the rest is given to. Checked, as
 * well as what the sanitizers see: what is parsed is in range and survives
 * writing and parsing; what can be written can be parsed; a failure leaves the
 * output alone.
 */
#include "fuzz.h"
#include "rdma_hdr.h"

#include <string.h>

/* Of the outputs, before; no parser leaves it there by chance. */
#define FILL 0xa5

static int untouched(const void *out, size_t n)
{
    const uint8_t *p = out;

    while (n > 0 && p[n - 1] == FILL)
        n--;
    return n == 0;
}

/* Whether memory lies within 64 bits. */
static int fits(uint64_t to, uint64_t len) { return to + len >= to; }

/* ---- fields ------------------------------------------------------------- */

/* The canonical text names every value: equal texts, equal requests. */
static void round_request(const rdma_hdr_request *r)
{
    char first[RDMA_HDR_FORMAT_MAX], second[RDMA_HDR_FORMAT_MAX];
    rdma_hdr_request again;
    size_t n;

    FUZZ_ASSERT(!rdma_hdr_format_request(r, first, sizeof(first)));
    n = strlen(first);
    FUZZ_ASSERT(!rdma_hdr_parse_request(first, n, &again));
    FUZZ_ASSERT(!rdma_hdr_format_request(&again, second, sizeof(second)));
    FUZZ_ASSERT(strcmp(first, second) == 0);
    FUZZ_ASSERT(r->port == again.port && r->id == again.id &&
                r->family == again.family && r->prefer[0] == again.prefer[0] &&
                r->prefer[1] == again.prefer[1] &&
                memcmp(r->token, again.token, RDMA_HDR_TOKEN_LEN) == 0);
    /* One byte of room less is no room. */
    FUZZ_ASSERT(rdma_hdr_format_request(r, second, n) == RDMA_HDR_NOSPACE);
    FUZZ_ASSERT(n == 0 || second[0] == '\0');
}

static void fuzz_request(const uint8_t *data, size_t size)
{
    rdma_hdr_request r;
    rdma_hdr_status status;

    memset(&r, FILL, sizeof(r));
    status = rdma_hdr_parse_request((const char *)data, size, &r);
    if (status != RDMA_HDR_OK) {
        FUZZ_ASSERT(status == RDMA_HDR_MALFORMED ||
                    status == RDMA_HDR_UNVERSION);
        FUZZ_ASSERT(untouched(&r, sizeof(r)));
        return;
    }
    FUZZ_ASSERT(size <= RDMA_HDR_FIELD_MAX);
    FUZZ_ASSERT(r.port >= RDMA_HDR_PORT_MIN);
    FUZZ_ASSERT(r.id >= 1 && r.id <= RDMA_HDR_ID_MAX);
    FUZZ_ASSERT(r.family == 0 || r.family == 4 || r.family == 6);
    FUZZ_ASSERT(rdma_hdr_offers(&r, RDMA_HDR_WRITE) ||
                rdma_hdr_offers(&r, RDMA_HDR_READ));
    if (rdma_hdr_offers(&r, RDMA_HDR_WRITE))
        FUZZ_ASSERT(r.len >= 1 && r.len <= RDMA_HDR_WINDOW_MAX &&
                    fits(r.to, r.len));
    else
        FUZZ_ASSERT(r.len == 0 && r.to == 0 && r.stag == 0);
    round_request(&r);
}

static void round_response(const rdma_hdr_response *r)
{
    char first[RDMA_HDR_FORMAT_MAX], second[RDMA_HDR_FORMAT_MAX];
    rdma_hdr_response again;
    size_t n;

    FUZZ_ASSERT(!rdma_hdr_format_response(r, first, sizeof(first)));
    n = strlen(first);
    FUZZ_ASSERT(!rdma_hdr_parse_response(first, n, &again));
    FUZZ_ASSERT(!rdma_hdr_format_response(&again, second, sizeof(second)));
    FUZZ_ASSERT(strcmp(first, second) == 0);
    FUZZ_ASSERT(r->id == again.id && r->conn == again.conn &&
                r->kind == again.kind && r->declined == again.declined);
    FUZZ_ASSERT(rdma_hdr_format_response(r, second, n) == RDMA_HDR_NOSPACE);
}

static void fuzz_response(const uint8_t *data, size_t size)
{
    rdma_hdr_response r;
    rdma_hdr_status status;

    memset(&r, FILL, sizeof(r));
    status = rdma_hdr_parse_response((const char *)data, size, &r);
    if (status != RDMA_HDR_OK) {
        FUZZ_ASSERT(status == RDMA_HDR_MALFORMED ||
                    status == RDMA_HDR_UNVERSION);
        FUZZ_ASSERT(untouched(&r, sizeof(r)));
        return;
    }
    FUZZ_ASSERT(size <= RDMA_HDR_FIELD_MAX);
    FUZZ_ASSERT((r.kind == RDMA_HDR_NONE) ==
                (rdma_hdr_declined_name(r.declined) != NULL));
    FUZZ_ASSERT((r.conn != 0) ==
                (r.kind != RDMA_HDR_NONE || r.declined == RDMA_HDR_FAILED));
    if (r.kind == RDMA_HDR_READ)
        FUZZ_ASSERT(r.len >= 1 && r.len <= UINT32_MAX && fits(r.to, r.len) &&
                    (!r.has_total || r.total >= r.len));
    round_response(&r);
}

/* Any structures: what can be written can be read, and there is room. */
static void fuzz_format(const uint8_t *data, size_t size)
{
    rdma_hdr_request req;
    rdma_hdr_response resp;
    char text[RDMA_HDR_FORMAT_MAX];
    rdma_hdr_status status;

    memset(&req, 0, sizeof(req));
    memcpy(&req, data, size < sizeof(req) ? size : sizeof(req));
    status = rdma_hdr_format_request(&req, text, sizeof(text));
    FUZZ_ASSERT(status != RDMA_HDR_NOSPACE);
    if (status == RDMA_HDR_OK)
        round_request(&req);
    memset(&resp, 0, sizeof(resp));
    memcpy(&resp, data, size < sizeof(resp) ? size : sizeof(resp));
    status = rdma_hdr_format_response(&resp, text, sizeof(text));
    FUZZ_ASSERT(status != RDMA_HDR_NOSPACE);
    if (status == RDMA_HDR_OK)
        round_response(&resp);
}

/* ---- private data and messages ------------------------------------------ */

static void fuzz_connect(const uint8_t *data, size_t size)
{
    uint8_t again[RDMA_HDR_CONNECT_LEN];
    rdma_hdr_connect c;

    memset(&c, FILL, sizeof(c));
    if (rdma_hdr_get_connect(data, size, &c) != RDMA_HDR_REJECT_NONE) {
        FUZZ_ASSERT(untouched(&c, sizeof(c)));
        return;
    }
    FUZZ_ASSERT(size >= sizeof(again) && c.depth >= RDMA_HDR_DEPTH_MIN);
    rdma_hdr_put_connect(&c, again);
    again[7] = data[7]; /* ignored */
    FUZZ_ASSERT(memcmp(again, data, sizeof(again)) == 0);
    FUZZ_ASSERT(rdma_hdr_token_equal(c.token, data + 8));
}

static void fuzz_accept(const uint8_t *data, size_t size)
{
    uint8_t again[RDMA_HDR_ACCEPT_LEN];
    rdma_hdr_accept a;

    memset(&a, FILL, sizeof(a));
    if (rdma_hdr_get_accept(data, size, &a) != RDMA_HDR_REJECT_NONE) {
        FUZZ_ASSERT(untouched(&a, sizeof(a)));
        return;
    }
    FUZZ_ASSERT(size >= sizeof(again) && a.depth >= RDMA_HDR_DEPTH_MIN);
    rdma_hdr_put_accept(&a, again);
    again[7] = data[7];
    FUZZ_ASSERT(memcmp(again, data, sizeof(again)) == 0);
}

static void fuzz_reject(const uint8_t *data, size_t size)
{
    rdma_hdr_reject why = rdma_hdr_get_reject(data, size);

    FUZZ_ASSERT(why == RDMA_HDR_REJECT_NONE || why == data[0]);
    FUZZ_ASSERT(rdma_hdr_reject_name(why) != NULL);
    if (size > 0)
        FUZZ_ASSERT(rdma_hdr_reject_name((rdma_hdr_reject)data[0]) != NULL);
}

static void fuzz_message(const uint8_t *data, size_t size)
{
    uint8_t once[RDMA_HDR_MSG_LEN], twice[RDMA_HDR_MSG_LEN];
    rdma_hdr_msg m;

    memset(&m, FILL, sizeof(m));
    if (rdma_hdr_get_msg(data, size, &m) != RDMA_HDR_OK) {
        FUZZ_ASSERT(untouched(&m, sizeof(m)));
        return;
    }
    FUZZ_ASSERT(size == RDMA_HDR_MSG_LEN && m.flags <= RDMA_HDR_FIN &&
                m.id <= RDMA_HDR_ID_MAX && fits(m.to, m.len));
    FUZZ_ASSERT(strcmp(rdma_hdr_type_name(m.type), "?") != 0);
    rdma_hdr_put_msg(&m, once);
    /* Type and credits, always; bytes, if any were taken. */
    FUZZ_ASSERT(once[0] == data[0] && memcmp(once + 2, data + 2, 2) == 0);
    FUZZ_ASSERT(m.bytes == 0 || memcmp(once + 8, data + 8, 8) == 0);
    FUZZ_ASSERT(!rdma_hdr_get_msg(once, sizeof(once), &m));
    rdma_hdr_put_msg(&m, twice);
    FUZZ_ASSERT(memcmp(once, twice, sizeof(once)) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static void (*const parsers[])(const uint8_t *data, size_t size) = {
        fuzz_request, fuzz_response, fuzz_connect, fuzz_accept,
        fuzz_reject,  fuzz_message,  fuzz_format,
    };

    if (size > 0)
        parsers[data[0] % (sizeof(parsers) / sizeof(parsers[0]))](data + 1,
                                                                  size - 1);
    return 0;
}
