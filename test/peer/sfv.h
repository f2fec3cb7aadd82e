/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
/* Structured fields (RFC 9651): Dictionaries. */
#ifndef SFV_H
#define SFV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum sfv_type {
    SFV_INTEGER,
    SFV_DECIMAL,
    SFV_STRING,
    SFV_TOKEN,
    SFV_BYTES,
    SFV_BOOLEAN,
    SFV_DATE,
    SFV_DISPLAY,
    SFV_LIST
};

/* `number` is of Integer, Date and Boolean; `text` of the others, Decimal and
 * Inner List apart; it ends with a NUL that `len` does not count. */
struct sfv_item {
    enum sfv_type type;
    int64_t number;
    const char *text;
    size_t len;
};

struct sfv_dict;

/* NULL when it is not a Dictionary. */
struct sfv_dict *sfv_parse(const char *value, size_t len);
void sfv_free(struct sfv_dict *dict);

/* The place of a member, or -1. */
int sfv_find(const struct sfv_dict *dict, const char *key);
const struct sfv_item *sfv_member(const struct sfv_dict *dict, int place);
const struct sfv_item *sfv_param(const struct sfv_dict *dict, int place,
                                 const char *key);

#endif
