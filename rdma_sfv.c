/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * rdma_sfv: reads a Dictionary of RFC 9651. See rdma_sfv.h. The numbers in the
 * comments are sections of that RFC: each function is one parsing algorithm.
 */
#include "rdma_sfv.h"

#include <string.h>

typedef rdma_sfv_value value;
typedef rdma_sfv_slot slot;

/* Every function that reads moves p, never beyond end. */
typedef struct cursor {
    const unsigned char *p;
    const unsigned char *end;
} cursor;

/* Where the values go. */
typedef struct wanted {
    slot *slots;
    size_t count;
    unsigned members; /* known ones that have been seen */
} wanted;

static int is_digit(unsigned c) { return c >= '0' && c <= '9'; }

static int is_lower(unsigned c) { return c >= 'a' && c <= 'z'; }

static int is_alpha(unsigned c)
{
    return is_lower(c) || (c >= 'A' && c <= 'Z');
}

/* The next byte, or -1 at the end. */
static int peek(const cursor *c) { return c->p < c->end ? *c->p : -1; }

/* Step over byte b if it is next. */
static int skip(cursor *c, int b)
{
    if (peek(c) != b)
        return 0;
    c->p++;
    return 1;
}

static void skip_sp(cursor *c)
{
    while (skip(c, ' '))
        ;
}

static void skip_ows(cursor *c)
{
    while (skip(c, ' ') || skip(c, '\t'))
        ;
}

static int equals(const unsigned char *p, size_t n, const char *name)
{
    return strlen(name) == n && memcmp(p, name, n) == 0;
}

/* ---- bare items. All return 1, or 0 for not the grammar. ---------------- */

/* 4.2.4. At most 15 digits, so int64_t cannot overflow; the value of a Decimal
 * is not kept, nothing here uses one. */
static int read_number(cursor *c, value *v)
{
    size_t whole = 0, fraction = 0;
    int negative = skip(c, '-');
    int64_t num = 0;

    for (; is_digit((unsigned)peek(c)); c->p++) {
        if (++whole > 15)
            return 0;
        num = num * 10 + (*c->p - '0');
    }
    if (whole == 0)
        return 0;
    v->type = RDMA_SFV_INTEGER;
    v->num = negative ? -num : num;
    if (!skip(c, '.'))
        return 1;
    for (; is_digit((unsigned)peek(c)); c->p++)
        fraction++;
    v->type = RDMA_SFV_DECIMAL;
    return whole <= 12 && fraction >= 1 && fraction <= 3;
}

/* 4.2.5. */
static int read_string(cursor *c, value *v)
{
    c->p++;
    v->type = RDMA_SFV_STRING;
    v->p = c->p;
    for (; c->p < c->end; c->p++) {
        if (*c->p == '"') {
            v->n = (size_t)(c->p - v->p);
            c->p++;
            return 1;
        }
        if (*c->p < 0x20 || *c->p > 0x7e)
            return 0;
        if (*c->p == '\\') {
            c->p++;
            if (peek(c) != '"' && peek(c) != '\\')
                return 0;
        }
    }
    return 0;
}

/* 4.2.6; tchar is that of RFC 9110, 5.6.2. */
static int read_token(cursor *c, value *v)
{
    v->type = RDMA_SFV_TOKEN;
    v->p = c->p;
    while (c->p < c->end &&
           (is_alpha(*c->p) || is_digit(*c->p) ||
            (*c->p != 0 && strchr("!#$%&'*+-.^_`|~:/", *c->p))))
        c->p++;
    v->n = (size_t)(c->p - v->p);
    return 1;
}

/* A base64 digit's value, or -1. */
static int base64_value(unsigned c)
{
    if (c >= 'A' && c <= 'Z')
        return (int)(c - 'A');
    if (is_lower(c))
        return (int)(c - 'a') + 26;
    if (is_digit(c))
        return (int)(c - '0') + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* 4.2.7. Padding is whole or not there; see PROTOCOL.md, 3.3. v is left with
 * the digits only. */
static int read_bytes(cursor *c, value *v)
{
    size_t pad = 0;

    c->p++;
    v->type = RDMA_SFV_BYTES;
    v->p = c->p;
    while (c->p < c->end && base64_value(*c->p) >= 0)
        c->p++;
    v->n = (size_t)(c->p - v->p);
    while (skip(c, '='))
        pad++;
    if (v->n % 4 == 1 || (pad > 0 && (pad > 2 || (v->n + pad) % 4 != 0)))
        return 0;
    return skip(c, ':');
}

/* 4.2.8. */
static int read_boolean(cursor *c, value *v)
{
    c->p++;
    v->type = RDMA_SFV_BOOLEAN;
    v->num = skip(c, '1');
    return v->num || skip(c, '0');
}

/* 4.2.9. */
static int read_date(cursor *c, value *v)
{
    c->p++;
    if (!read_number(c, v) || v->type != RDMA_SFV_INTEGER)
        return 0;
    v->type = RDMA_SFV_DATE;
    return 1;
}

/* UTF-8 as RFC 3629, 4 has it, byte by byte. */
typedef struct utf8 {
    unsigned need;      /* continuation bytes still to come */
    unsigned low, high; /* the range of the next one */
} utf8;

static int utf8_step(utf8 *u, unsigned b)
{
    if (u->need > 0) {
        if (b < u->low || b > u->high)
            return 0;
        u->need--;
    }
    else if (b >= 0x80) {
        if (b < 0xc2 || b > 0xf4)
            return 0;
        u->need = b < 0xe0 ? 1 : b < 0xf0 ? 2 : 3;
    }
    /* Overlong forms, surrogates and what lies beyond U+10FFFF. */
    u->low = b == 0xe0 ? 0xa0 : b == 0xf0 ? 0x90 : 0x80;
    u->high = b == 0xed ? 0x9f : b == 0xf4 ? 0x8f : 0xbf;
    return 1;
}

static int hex_value(int c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* 4.2.10. */
static int read_display(cursor *c, value *v)
{
    utf8 u = {0, 0x80, 0xbf};

    c->p++;
    if (!skip(c, '"'))
        return 0;
    v->type = RDMA_SFV_DISPLAY;
    while (c->p < c->end) {
        unsigned b = *c->p++;

        if (b == '"')
            return u.need == 0;
        if (b < 0x20 || b > 0x7e)
            return 0;
        if (b == '%') {
            int high = hex_value(peek(c)), low;

            if (high < 0)
                return 0;
            c->p++;
            low = hex_value(peek(c));
            if (low < 0)
                return 0;
            c->p++;
            b = (unsigned)(high * 16 + low);
        }
        if (!utf8_step(&u, b))
            return 0;
    }
    return 0;
}

/* 4.2.3.1. */
static int read_bare_item(cursor *c, value *v)
{
    int b = peek(c);

    if (b == '-' || (b >= 0 && is_digit((unsigned)b)))
        return read_number(c, v);
    if (b == '*' || (b >= 0 && is_alpha((unsigned)b)))
        return read_token(c, v);
    switch (b) {
    case '"':
        return read_string(c, v);
    case ':':
        return read_bytes(c, v);
    case '?':
        return read_boolean(c, v);
    case '@':
        return read_date(c, v);
    case '%':
        return read_display(c, v);
    default:
        return 0;
    }
}

/* ---- keys, parameters, lists, dictionary -------------------------------- */

/* 4.2.3.3. */
static int read_key(cursor *c, const unsigned char **key, size_t *n)
{
    int b = peek(c);

    if (b != '*' && (b < 0 || !is_lower((unsigned)b)))
        return 0;
    *key = c->p;
    for (; c->p < c->end; c->p++) {
        if (!is_lower(*c->p) && !is_digit(*c->p) && *c->p != '_' &&
            *c->p != '-' && *c->p != '.' && *c->p != '*')
            break;
    }
    *n = (size_t)(c->p - *key);
    return 1;
}

/* 4.2.3.2. member: whose parameters these are, in w; NULL if nobody asks. */
static int read_parameters(cursor *c, wanted *w, const char *member)
{
    while (skip(c, ';')) {
        const unsigned char *key;
        size_t n, i;
        value v = {RDMA_SFV_BOOLEAN, NULL, 0, 1};

        skip_sp(c);
        if (!read_key(c, &key, &n))
            return 0;
        if (skip(c, '=') && !read_bare_item(c, &v))
            return 0;
        for (i = 0; member != NULL && i < w->count; i++) {
            slot *s = &w->slots[i];

            if (s->param != NULL && strcmp(s->member, member) == 0 &&
                equals(key, n, s->param))
                s->v = v;
        }
    }
    return 1;
}

/* 4.2.1.2. Lists do not nest. */
static int read_inner_list(cursor *c, value *v)
{
    c->p++;
    v->type = RDMA_SFV_LIST;
    for (;;) {
        value ignored = {RDMA_SFV_ABSENT, NULL, 0, 0};

        skip_sp(c);
        if (skip(c, ')'))
            return 1;
        if (!read_bare_item(c, &ignored) || !read_parameters(c, NULL, NULL))
            return 0;
        if (peek(c) != ' ' && peek(c) != ')')
            return 0;
    }
}

/* One member: key, value, parameters. */
static int read_member(cursor *c, wanted *w)
{
    const unsigned char *key;
    size_t n, i;
    const char *member = NULL; /* its name, if it is a known one */
    slot *self = NULL;
    value v = {RDMA_SFV_BOOLEAN, NULL, 0, 1};

    if (!read_key(c, &key, &n))
        return 0;
    for (i = 0; i < w->count; i++) {
        slot *s = &w->slots[i];

        if (!equals(key, n, s->member))
            continue;
        /* A duplicate overwrites the value, parameters included. */
        s->v.type = RDMA_SFV_ABSENT;
        member = s->member;
        if (s->param == NULL)
            self = s;
    }
    if (skip(c, '=')) {
        if (peek(c) == '(' ? !read_inner_list(c, &v) : !read_bare_item(c, &v))
            return 0;
    }
    if (self != NULL) {
        self->v = v;
        /* ... but it keeps its place. */
        if (self->order == 0)
            self->order = ++w->members;
    }
    return read_parameters(c, w, member);
}

/* 4.2, 4.2.2. */
int rdma_sfv_read(const char *field, size_t n, rdma_sfv_slot *slots,
                  size_t count)
{
    wanted w = {slots, count, 0};
    cursor c;

    if (n == 0)
        return 1;
    c.p = (const unsigned char *)field;
    c.end = c.p + n;
    skip_sp(&c);
    while (c.p < c.end) {
        if (!read_member(&c, &w))
            return 0;
        skip_ows(&c);
        if (c.p == c.end)
            return 1;
        if (!skip(&c, ','))
            return 0;
        skip_ows(&c);
        if (c.p == c.end)
            return 0;
    }
    return 1;
}

/* ---- judging values ----------------------------------------------------- */

int rdma_sfv_integer(const rdma_sfv_value *v, uint64_t min, uint64_t max,
                     uint64_t *out)
{
    if (v->type != RDMA_SFV_INTEGER || v->num < 0 || (uint64_t)v->num < min ||
        (uint64_t)v->num > max)
        return 0;
    *out = (uint64_t)v->num;
    return 1;
}

int rdma_sfv_hex(const rdma_sfv_value *v, size_t digits, uint64_t *out)
{
    uint64_t num = 0;
    size_t i;

    if (v->type != RDMA_SFV_STRING || v->n != digits)
        return 0;
    for (i = 0; i < digits; i++) {
        int digit = hex_value(v->p[i]);

        if (digit < 0)
            return 0;
        num = num << 4 | (unsigned)digit;
    }
    *out = num;
    return 1;
}

int rdma_sfv_bytes(const rdma_sfv_value *v, uint8_t *out, size_t n)
{
    uint32_t bits = 0;
    size_t i, done = 0;

    /* Each digit has 6 bits; the last one may have some to spare. */
    if (v->type != RDMA_SFV_BYTES || v->n != (n * 8 + 5) / 6)
        return 0;
    for (i = 0; i < v->n; i++) {
        bits = bits << 6 | (uint32_t)base64_value(v->p[i]);
        if (i % 4 != 0)
            out[done++] = (uint8_t)(bits >> (6 - 2 * (i % 4)));
    }
    return 1;
}

int rdma_sfv_flag(const rdma_sfv_value *v, int *out)
{
    *out = v->type == RDMA_SFV_BOOLEAN && v->num == 1;
    return *out || v->type == RDMA_SFV_ABSENT;
}

/* ---- writing ------------------------------------------------------------ */

rdma_sfv_writer rdma_sfv_start(char *buf, size_t size)
{
    rdma_sfv_writer w = {NULL, NULL};

    if (size > 0) {
        w.p = buf;
        w.end = buf + size;
    }
    return w;
}

void rdma_sfv_put_text(rdma_sfv_writer *w, const char *text)
{
    size_t n = strlen(text);

    if (w->p == NULL)
        return;
    if (n >= (size_t)(w->end - w->p)) {
        w->p = NULL;
        return;
    }
    memcpy(w->p, text, n + 1);
    w->p += n;
}

void rdma_sfv_put_decimal(rdma_sfv_writer *w, uint64_t num)
{
    char text[21];
    size_t i = sizeof(text) - 1;

    text[i] = '\0';
    do {
        text[--i] = (char)('0' + num % 10);
        num /= 10;
    } while (num > 0);
    rdma_sfv_put_text(w, text + i);
}

void rdma_sfv_put_hex(rdma_sfv_writer *w, uint64_t num, unsigned digits)
{
    char text[2] = {0, 0};

    while (digits-- > 0) {
        text[0] = "0123456789abcdef"[num >> 4 * digits & 15];
        rdma_sfv_put_text(w, text);
    }
}

void rdma_sfv_put_bytes(rdma_sfv_writer *w, const uint8_t *data, size_t n)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                 "abcdefghijklmnopqrstuvwxyz0123456789+/";
    size_t i, j;

    rdma_sfv_put_text(w, ":");
    for (i = 0; i < n; i += 3) {
        uint32_t three = (uint32_t)data[i] << 16;
        char text[5] = "====";

        if (i + 1 < n)
            three |= (uint32_t)data[i + 1] << 8;
        if (i + 2 < n)
            three |= data[i + 2];
        for (j = 0; j < 4 && i + j <= n; j++)
            text[j] = digits[three >> (18 - 6 * j) & 63];
        rdma_sfv_put_text(w, text);
    }
    rdma_sfv_put_text(w, ":");
}
