/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "sfv.h"

#include <stdlib.h>
#include <string.h>

#include "loop.h"

struct key {
    const char *text;
    size_t len;
};

struct param {
    struct key key;
    struct sfv_item item;
    int member;
};

struct member {
    struct key key;
    struct sfv_item item;
};

struct sfv_dict {
    struct member *members;
    struct param *params;
    int n_members, n_params;
    char *arena;
    size_t used;
};

struct reader {
    const char *p, *end;
    struct sfv_dict *dict;
};

static bool item(struct reader *r, struct sfv_item *out);

/* The next character, or 0; a 0 in the field is no character of the grammar. */
static char peek(const struct reader *r)
{
    return r->p < r->end ? *r->p : '\0';
}

static bool take(struct reader *r, char c)
{
    if (r->p < r->end && *r->p == c) {
        r->p++;
        return true;
    }
    return false;
}

static bool among(char c, const char *set)
{
    return c != '\0' && strchr(set, c) != NULL;
}

#define DIGIT "0123456789"
#define LOWER "abcdefghijklmnopqrstuvwxyz"
#define UPPER "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

static bool read_key(struct reader *r, struct key *key)
{
    if (!among(peek(r), LOWER "*")) {
        return false;
    }
    key->text = r->p;
    while (among(peek(r), LOWER DIGIT "_-.*")) {
        r->p++;
    }
    key->len = (size_t)(r->p - key->text);
    return true;
}

static bool number(struct reader *r, struct sfv_item *out)
{
    bool minus = take(r, '-');
    unsigned whole = 0, fraction = 0;
    out->type = SFV_INTEGER;
    out->number = 0;
    if (!among(peek(r), DIGIT)) {
        return false;
    }
    while (among(peek(r), DIGIT)) {
        if (++whole > 15) {
            return false;
        }
        out->number = out->number * 10 + (*r->p++ - '0');
    }
    if (minus) {
        out->number = -out->number;
    }
    if (take(r, '.')) {
        out->type = SFV_DECIMAL;
        while (among(peek(r), DIGIT)) {
            fraction++;
            r->p++;
        }
        return whole <= 12 && fraction >= 1 && fraction <= 3;
    }
    return true;
}

static void begin(struct reader *r, struct sfv_item *out, enum sfv_type type)
{
    out->type = type;
    out->text = r->dict->arena + r->dict->used;
    out->len = 0;
}

static void add(struct reader *r, struct sfv_item *out, char c)
{
    r->dict->arena[r->dict->used++] = c;
    out->len++;
}

static bool finish(struct reader *r)
{
    r->dict->arena[r->dict->used++] = '\0';
    return true;
}

static bool string(struct reader *r, struct sfv_item *out)
{
    begin(r, out, SFV_STRING);
    while (r->p < r->end) {
        char c = *r->p++;
        if (c == '"') {
            return finish(r);
        }
        if (c == '\\') {
            c = peek(r);
            if (!among(c, "\"\\")) {
                return false;
            }
            r->p++;
        }
        else if (c < 0x20 || c > 0x7e) {
            return false;
        }
        add(r, out, c);
    }
    return false;
}

static bool token(struct reader *r, struct sfv_item *out)
{
    begin(r, out, SFV_TOKEN);
    while (among(peek(r), LOWER UPPER DIGIT "!#$%&'*+-.^_`|~:/")) {
        add(r, out, *r->p++);
    }
    return finish(r);
}

static bool bytes(struct reader *r, struct sfv_item *out)
{
    static const char digits[] = UPPER LOWER DIGIT "+/";
    unsigned have = 0, count = 0, pads = 0;
    uint32_t bits = 0;
    begin(r, out, SFV_BYTES);
    while (peek(r) != ':') {
        char c = peek(r);
        if (c == '=') {
            pads++;
        }
        else if (pads > 0 || !among(c, digits)) {
            return false;
        }
        else {
            bits = bits << 6 | (uint32_t)(strchr(digits, c) - digits);
            have += 6;
            count++;
            if (have >= 8) {
                have -= 8;
                add(r, out, (char)(uint8_t)(bits >> have));
            }
        }
        r->p++;
    }
    r->p++;
    if (count % 4 == 1 || (pads > 0 && (count + pads) % 4 != 0) || pads > 2) {
        return false;
    }
    return finish(r);
}

static bool hex_digit(struct reader *r, unsigned *value)
{
    static const char digits[] = "0123456789abcdef";
    char c = peek(r);
    if (!among(c, digits)) {
        return false;
    }
    *value = *value << 4 | (unsigned)(strchr(digits, c) - digits);
    r->p++;
    return true;
}

static bool utf8(const char *text, size_t len)
{
    const uint8_t *p = (const uint8_t *)text, *end = p + len;
    while (p < end) {
        unsigned more = *p < 0x80   ? 0
                        : *p < 0xc2 ? 9
                        : *p < 0xe0 ? 1
                        : *p < 0xf0 ? 2
                        : *p < 0xf5 ? 3
                                    : 9;
        if (more == 9 || (size_t)(end - p) <= more
            || (*p == 0xe0 && p[1] < 0xa0) || (*p == 0xed && p[1] > 0x9f)
            || (*p == 0xf0 && p[1] < 0x90) || (*p == 0xf4 && p[1] > 0x8f)) {
            return false;
        }
        for (unsigned i = 1; i <= more; i++) {
            if ((p[i] & 0xc0) != 0x80) {
                return false;
            }
        }
        p += more + 1;
    }
    return true;
}

static bool display(struct reader *r, struct sfv_item *out)
{
    begin(r, out, SFV_DISPLAY);
    if (!take(r, '"')) {
        return false;
    }
    while (r->p < r->end) {
        char c = *r->p++;
        if (c == '"') {
            return utf8(out->text, out->len) && finish(r);
        }
        if (c < 0x20 || c > 0x7e) {
            return false;
        }
        if (c == '%') {
            unsigned value = 0;
            if (!hex_digit(r, &value) || !hex_digit(r, &value)) {
                return false;
            }
            c = (char)(uint8_t)value;
        }
        add(r, out, c);
    }
    return false;
}

static bool bare(struct reader *r, struct sfv_item *out)
{
    char c = peek(r);
    if (c == '-' || among(c, DIGIT)) {
        return number(r, out);
    }
    if (take(r, '"')) {
        return string(r, out);
    }
    if (take(r, ':')) {
        return bytes(r, out);
    }
    if (take(r, '%')) {
        return display(r, out);
    }
    if (take(r, '?')) {
        out->type = SFV_BOOLEAN;
        out->number = peek(r) == '1';
        return take(r, '0') || take(r, '1');
    }
    if (take(r, '@')) {
        bool fine = number(r, out) && out->type == SFV_INTEGER;
        out->type = SFV_DATE;
        return fine;
    }
    return among(c, LOWER UPPER "*") && token(r, out);
}

static bool same(const struct key *key, const char *text, size_t len)
{
    return key->len == len && memcmp(key->text, text, len) == 0;
}

/* Parameters of member `of`; -1: only judged. */
static bool params(struct reader *r, int of)
{
    struct sfv_dict *d = r->dict;
    while (take(r, ';')) {
        struct param p = {.member = of,
                          .item = {.type = SFV_BOOLEAN, .number = 1}};
        while (take(r, ' ')) {
        }
        if (!read_key(r, &p.key) || (take(r, '=') && !bare(r, &p.item))) {
            return false;
        }
        if (of >= 0) {
            int i = 0;
            while (i < d->n_params
                   && (d->params[i].member != of
                       || !same(&d->params[i].key, p.key.text, p.key.len))) {
                i++;
            }
            d->params[i] = p;
            d->n_params += i == d->n_params;
        }
    }
    return true;
}

static bool inner_list(struct reader *r, struct sfv_item *out)
{
    out->type = SFV_LIST;
    for (;;) {
        struct sfv_item inner = {.type = SFV_LIST};
        while (take(r, ' ')) {
        }
        if (take(r, ')')) {
            return true;
        }
        if (!bare(r, &inner) || !params(r, -1)
            || (peek(r) != ' ' && peek(r) != ')')) {
            return false;
        }
    }
}

static bool item(struct reader *r, struct sfv_item *out)
{
    return take(r, '(') ? inner_list(r, out) : bare(r, out);
}

static bool blank(struct reader *r)
{
    return take(r, ' ') || take(r, '\t');
}

static bool one(struct reader *r)
{
    struct sfv_dict *d = r->dict;
    struct member m = {.item = {.type = SFV_BOOLEAN, .number = 1}};
    int place = 0;
    if (!read_key(r, &m.key) || (take(r, '=') && !item(r, &m.item))) {
        return false;
    }
    while (place < d->n_members
           && !same(&d->members[place].key, m.key.text, m.key.len)) {
        place++;
    }
    d->members[place] = m;
    d->n_members += place == d->n_members;
    for (int i = 0; i < d->n_params; i++) {
        if (d->params[i].member == place) {
            d->params[i].member = -1; /* overwritten with its member */
        }
    }
    return params(r, place);
}

static bool dictionary(struct reader *r)
{
    while (take(r, ' ')) {
    }
    while (r->end > r->p && r->end[-1] == ' ') {
        r->end--;
    }
    if (r->p == r->end) {
        return true;
    }
    for (;;) {
        if (!one(r)) {
            return false;
        }
        while (blank(r)) {
        }
        if (r->p == r->end) {
            return true;
        }
        if (!take(r, ',')) {
            return false;
        }
        while (blank(r)) {
        }
    }
}

struct sfv_dict *sfv_parse(const char *value, size_t len)
{
    struct sfv_dict *d = need(calloc(1, sizeof *d));
    struct reader r = {.p = value, .end = value + len, .dict = d};
    /* No member and no parameter is shorter than two characters. */
    d->members = need(calloc(len / 2 + 2, sizeof *d->members));
    d->params = need(calloc(len / 2 + 2, sizeof *d->params));
    d->arena = need(malloc(2 * len + 2));
    if (!dictionary(&r)) {
        sfv_free(d);
        return NULL;
    }
    return d;
}

void sfv_free(struct sfv_dict *dict)
{
    free(dict->members);
    free(dict->params);
    free(dict->arena);
    free(dict);
}

int sfv_find(const struct sfv_dict *dict, const char *key)
{
    for (int i = 0; i < dict->n_members; i++) {
        if (same(&dict->members[i].key, key, strlen(key))) {
            return i;
        }
    }
    return -1;
}

const struct sfv_item *sfv_member(const struct sfv_dict *dict, int place)
{
    return &dict->members[place].item;
}

const struct sfv_item *sfv_param(const struct sfv_dict *dict, int place,
                                 const char *key)
{
    for (int i = 0; i < dict->n_params; i++) {
        if (dict->params[i].member == place
            && same(&dict->params[i].key, key, strlen(key))) {
            return &dict->params[i].item;
        }
    }
    return NULL;
}
