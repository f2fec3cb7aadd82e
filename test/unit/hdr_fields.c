/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * For the tests of rdma_hdr; see hdr_fields.h.
 */
#include "hdr_fields.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

const uint8_t hdr_token[RDMA_HDR_TOKEN_LEN] = {
    0xab, 0xcd, 0xef, 0x12, 0x34, 0x56, 0x78, 0x90,
    0xab, 0xcd, 0xef, 0x12, 0x34, 0x56, 0x78, 0x90};

rdma_hdr_request a_request(void)
{
    rdma_hdr_request r;

    memset(&r, 0, sizeof(r));
    r.port = 41234;
    memcpy(r.token, hdr_token, RDMA_HDR_TOKEN_LEN);
    r.id = 17;
    r.prefer[0] = RDMA_HDR_WRITE;
    r.prefer[1] = RDMA_HDR_READ;
    r.stag = 0x8f3a2b00;
    r.to = 0x7f12a4000000;
    r.len = 4194304;
    return r;
}

int untouched(const void *out, size_t n)
{
    const uint8_t *p = out;

    while (n > 0 && p[n - 1] == FILL)
        n--;
    return n == 0;
}

void *exact_copy(const void *data, size_t n)
{
    void *copy = malloc(n > 0 ? n : 1);

    ck_assert_ptr_nonnull(copy);
    memcpy(copy, data, n);
    return copy;
}

rdma_hdr_status parse_request(const char *text, size_t n, rdma_hdr_request *r)
{
    char *copy = exact_copy(text, n);
    rdma_hdr_status status;

    memset(r, FILL, sizeof(*r));
    status = rdma_hdr_parse_request(copy, n, r);
    ck_assert_msg(status == RDMA_HDR_OK || untouched(r, sizeof(*r)), "%.*s",
                  (int)n, text);
    free(copy);
    return status;
}

rdma_hdr_status parse_response(const char *text, size_t n, rdma_hdr_response *r)
{
    char *copy = exact_copy(text, n);
    rdma_hdr_status status;

    memset(r, FILL, sizeof(*r));
    status = rdma_hdr_parse_response(copy, n, r);
    ck_assert_msg(status == RDMA_HDR_OK || untouched(r, sizeof(*r)), "%.*s",
                  (int)n, text);
    free(copy);
    return status;
}

const char *canonical(const char *text, size_t n, int request,
                      char buf[RDMA_HDR_FORMAT_MAX])
{
    rdma_hdr_request req;
    rdma_hdr_response resp;

    if (request) {
        if (parse_request(text, n, &req) != RDMA_HDR_OK)
            return NULL;
        ck_assert_int_eq(
            rdma_hdr_format_request(&req, buf, RDMA_HDR_FORMAT_MAX), 0);
        return buf;
    }
    if (parse_response(text, n, &resp) != RDMA_HDR_OK)
        return NULL;
    ck_assert_int_eq(rdma_hdr_format_response(&resp, buf, RDMA_HDR_FORMAT_MAX),
                     0);
    return buf;
}
