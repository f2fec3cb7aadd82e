/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * For the tests of rdma_hdr: fields in pieces, and parsing that watches its
 * bounds.
 */
#ifndef HDR_FIELDS_H
#define HDR_FIELDS_H

#include "rdma_hdr.h"

#define FILL 0xa5 /* of outputs, before a parser has them */

/* A request field in pieces, so that a row of a table shows what is odd. */
#define V     "v=1"
#define PORT  ", port=41234"
#define TOKEN ", token=:q83vEjRWeJCrze8SNFZ4kA==:"
#define ID    ", id=17"
#define MEM   ";stag=\"8f3a2b00\";to=\"00007f12a4000000\""
#define WRITE ", write" MEM ";len=4194304"
#define READ  ", read"
/* and a response field */
#define RID  "v=1, id=17"
#define CONN ", conn=5"
#define PART ", read;stag=\"5e01a700\";to=\"00007f90c0000000\""

/* TOKEN, decoded */
extern const uint8_t hdr_token[RDMA_HDR_TOKEN_LEN];

/* The request V PORT TOKEN ID WRITE READ. */
rdma_hdr_request a_request(void);

/* Filled with FILL from end to end: a parser has not touched it. */
int untouched(const void *out, size_t n);

/* A copy to be freed, that ends where the input ends, for AddressSanitizer. */
void *exact_copy(const void *data, size_t n);

/* The parsers, on an exact copy; fails the test when *r was touched although
 * the status is not OK. */
rdma_hdr_status parse_request(const char *text, size_t n, rdma_hdr_request *r);
rdma_hdr_status parse_response(const char *text, size_t n,
                               rdma_hdr_response *r);

/* What a field says, as its canonical text in buf; NULL if it is not good. */
const char *canonical(const char *text, size_t n, int request,
                      char buf[RDMA_HDR_FORMAT_MAX]);

#endif /* HDR_FIELDS_H */
