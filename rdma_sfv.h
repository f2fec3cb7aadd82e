/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * rdma_sfv: reads a Dictionary of RFC 9651 (structured field values), and
 * writes what we send of one.
 *
 * The caller owns a table of slots, one for each name that it knows. Reading
 * walks the whole field strictly by the grammar, unknown names included, and
 * leaves in each slot the last value that the field has for it. Nothing is
 * copied: values point into the field. Pure, as rdma_hdr is: no I/O, no
 * allocation, no state; any thread.
 */
#ifndef RDMA_SFV_H
#define RDMA_SFV_H

#include <stddef.h>
#include <stdint.h>

typedef enum rdma_sfv_type {
    RDMA_SFV_ABSENT = 0,
    RDMA_SFV_INTEGER,
    RDMA_SFV_DECIMAL,
    RDMA_SFV_STRING,
    RDMA_SFV_TOKEN,
    RDMA_SFV_BYTES,
    RDMA_SFV_BOOLEAN,
    RDMA_SFV_DATE,
    RDMA_SFV_DISPLAY,
    RDMA_SFV_LIST
} rdma_sfv_type;

typedef struct rdma_sfv_value {
    rdma_sfv_type type;
    const unsigned char *p; /* STRING, TOKEN, BYTES: what stands between the */
    size_t n;               /* delimiters; escapes and base64 are not undone */
    int64_t num;            /* INTEGER, BOOLEAN */
} rdma_sfv_value;

/* Set member, and param or NULL for the member itself; all else to 0. */
typedef struct rdma_sfv_slot {
    const char *member;
    const char *param;
    rdma_sfv_value v;
    unsigned order; /* of a member: 1 for the first known one in the field */
} rdma_sfv_slot;

/* Read field, n bytes, into slots. 1, or 0 when it is not the grammar; then
 * the slots' values mean nothing. An empty field is an empty Dictionary. */
int rdma_sfv_read(const char *field, size_t n, rdma_sfv_slot *slots,
                  size_t count);

/* Judges of one value. 1 if it is of that type and range, and then *out is
 * set; else 0. */
int rdma_sfv_integer(const rdma_sfv_value *v, uint64_t min, uint64_t max,
                     uint64_t *out);
/* A String of exactly that many lower-case hexadecimal digits, at most 16. */
int rdma_sfv_hex(const rdma_sfv_value *v, size_t digits, uint64_t *out);
/* A Byte Sequence of exactly n bytes. */
int rdma_sfv_bytes(const rdma_sfv_value *v, uint8_t *out, size_t n);
/* A flag: absent (*out = 0) or Boolean true (*out = 1). */
int rdma_sfv_flag(const rdma_sfv_value *v, int *out);

/* Writes into a buffer, NUL-terminated after each call. When there is no room p
 * becomes NULL, and stays so. */
typedef struct rdma_sfv_writer {
    char *p;
    char *end;
} rdma_sfv_writer;

rdma_sfv_writer rdma_sfv_start(char *buf, size_t size);
void rdma_sfv_put_text(rdma_sfv_writer *w, const char *text);
void rdma_sfv_put_decimal(rdma_sfv_writer *w, uint64_t num);
/* Exactly that many digits, the last ones of num. */
void rdma_sfv_put_hex(rdma_sfv_writer *w, uint64_t num, unsigned digits);
/* A whole Byte Sequence, colons and padding included. */
void rdma_sfv_put_bytes(rdma_sfv_writer *w, const uint8_t *data, size_t n);

#endif /* RDMA_SFV_H */
