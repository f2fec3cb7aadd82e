/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * rdma_hdr: every byte on the wire. See rdma_hdr.h, and docs/PROTOCOL.md for
 * the layouts. From top to bottom: writing fields, addresses, the request
 * field, the response field, private data, messages.
 *
 * Reading a field goes in two steps. rdma_sfv walks the whole of it by the
 * grammar and remembers the last value of each name; then the values are
 * judged. Judging on the way would be wrong: a value that a later duplicate
 * overwrites does not count, and a later version must be told from nonsense.
 */
#include "rdma_hdr.h"
#include "rdma_sfv.h"

#include <arpa/inet.h> /* inet_pton: a pure function */
#include <string.h>

/* ---- judging fields ----------------------------------------------------- */

/* Read a field into slots, of which the first is "v", and judge that. */
static rdma_hdr_status read_field(const char *field, size_t n, rdma_sfv_slot *s,
                                  size_t count)
{
    uint64_t version;

    if (n > RDMA_HDR_FIELD_MAX || !rdma_sfv_read(field, n, s, count) ||
        !rdma_sfv_integer(&s[0].v, 1, UINT64_MAX, &version))
        return RDMA_HDR_MALFORMED;
    return version > RDMA_HDR_VERSION ? RDMA_HDR_UNVERSION : RDMA_HDR_OK;
}

/* A stretch of remote memory: both Strings, and an Integer that fits. */
static int get_memory(const rdma_sfv_value *stag, const rdma_sfv_value *to,
                      const rdma_sfv_value *len, uint64_t max,
                      uint32_t *stag_out, uint64_t *to_out, uint64_t *len_out)
{
    uint64_t key;

    if (!rdma_sfv_hex(stag, 8, &key) || !rdma_sfv_hex(to, 16, to_out) ||
        !rdma_sfv_integer(len, 1, max, len_out))
        return 0;
    *stag_out = (uint32_t)key;
    return *len_out <= UINT64_MAX - *to_out;
}

/* ---- writing fields ----------------------------------------------------- */

static void put_memory(rdma_sfv_writer *w, uint32_t stag, uint64_t to,
                       uint64_t len)
{
    rdma_sfv_put_text(w, ";stag=\"");
    rdma_sfv_put_hex(w, stag, 8);
    rdma_sfv_put_text(w, "\";to=\"");
    rdma_sfv_put_hex(w, to, 16);
    rdma_sfv_put_text(w, "\";len=");
    rdma_sfv_put_decimal(w, len);
}

static rdma_sfv_writer start_field(char *buf, size_t size)
{
    rdma_sfv_writer w = rdma_sfv_start(buf, size);

    rdma_sfv_put_text(&w, "v=");
    rdma_sfv_put_decimal(&w, RDMA_HDR_VERSION);
    return w;
}

static rdma_hdr_status end_field(const rdma_sfv_writer *w, char *buf,
                                 size_t size)
{
    if (w->p != NULL)
        return RDMA_HDR_OK;
    if (size > 0)
        buf[0] = '\0';
    return RDMA_HDR_NOSPACE;
}

/* ---- addresses ---------------------------------------------------------- */

/* RFC 5952, 4. Not inet_ntop, which writes ::1.2.3.4 for ::102:304. */
static void put_ipv6(rdma_sfv_writer *w, const uint8_t a[16])
{
    unsigned group[8], i, run = 0, best = 8, best_len = 1;

    for (i = 0; i < 8; i++)
        group[i] = (unsigned)a[2 * i] << 8 | a[2 * i + 1];
    for (i = 0; i < 8; i++) {
        run = group[i] == 0 ? run + 1 : 0;
        if (run > best_len) {
            best_len = run;
            best = i + 1 - run;
        }
    }
    for (i = 0; i < 8; i++) {
        unsigned digits = 1;

        if (i == best) {
            rdma_sfv_put_text(w, "::");
            i += best_len - 1;
            continue;
        }
        if (i > 0 && i != best + best_len)
            rdma_sfv_put_text(w, ":");
        while (digits < 4 && group[i] >> 4 * digits != 0)
            digits++;
        rdma_sfv_put_hex(w, group[i], digits);
    }
}

static void put_address(rdma_sfv_writer *w, int family, const uint8_t addr[16])
{
    unsigned i;

    if (family == 6) {
        put_ipv6(w, addr);
        return;
    }
    for (i = 0; i < 4; i++) {
        if (i > 0)
            rdma_sfv_put_text(w, ".");
        rdma_sfv_put_decimal(w, addr[i]);
    }
}

static int is_mapped(const uint8_t addr[16])
{
    static const uint8_t prefix[12] = {[10] = 0xff, [11] = 0xff};

    return memcmp(addr, prefix, sizeof(prefix)) == 0;
}

int rdma_hdr_names_a_host(const rdma_hdr_request *req)
{
    static const uint8_t zero[15];
    const uint8_t *a = req->addr;

    if (req->family == 4)
        return a[0] != 0 && a[0] != 127 && a[0] < 224 &&
               !(a[0] == 169 && a[1] == 254);
    return req->family == 6 && /* neither :: nor ::1 */
           (memcmp(a, zero, sizeof(zero)) != 0 || a[15] > 1) && a[0] != 0xff &&
           !(a[0] == 0xfe && (a[1] & 0xc0) == 0x80);
}

/* There is one spelling of each address: read it, write it, compare. */
static int get_address(const rdma_sfv_value *v, int *family, uint8_t addr[16])
{
    char text[RDMA_HDR_ADDR_MAX], canonical[RDMA_HDR_ADDR_MAX];
    rdma_sfv_writer w = rdma_sfv_start(canonical, sizeof(canonical));

    if (v->type != RDMA_SFV_STRING || v->n == 0 || v->n >= sizeof(text))
        return 0;
    memcpy(text, v->p, v->n);
    text[v->n] = '\0';
    *family = memchr(text, ':', v->n) != NULL ? 6 : 4;
    if (inet_pton(*family == 6 ? AF_INET6 : AF_INET, text, addr) != 1)
        return 0;
    put_address(&w, *family, addr);
    return strcmp(text, canonical) == 0;
}

/* ---- the request field -------------------------------------------------- */

/* What every request satisfies; whatever its source. */
static int request_is_good(const rdma_hdr_request *r)
{
    const rdma_hdr_kind *prefer = r->prefer;

    if (r->port < RDMA_HDR_PORT_MIN || r->id < 1 || r->id > RDMA_HDR_ID_MAX)
        return 0;
    if ((r->family != 0 && r->family != 4 && r->family != 6) ||
        (r->family == 6 && is_mapped(r->addr)))
        return 0;
    if ((prefer[0] != RDMA_HDR_WRITE && prefer[0] != RDMA_HDR_READ) ||
        (prefer[1] != RDMA_HDR_NONE && prefer[1] != RDMA_HDR_WRITE &&
         prefer[1] != RDMA_HDR_READ) ||
        prefer[0] == prefer[1])
        return 0;
    return !rdma_hdr_offers(r, RDMA_HDR_WRITE) ||
           (r->len >= 1 && r->len <= RDMA_HDR_WINDOW_MAX &&
            r->len <= UINT64_MAX - r->to);
}

rdma_hdr_status rdma_hdr_parse_request(const char *field, size_t n,
                                       rdma_hdr_request *out)
{
    enum { VERSION, PORT, ADDR, TOKEN, ID, WRITE, STAG, TO, LEN, READ, COUNT };
    rdma_sfv_slot s[COUNT] = {
        [VERSION] = {.member = "v"},
        [PORT] = {.member = "port"},
        [ADDR] = {.member = "addr"},
        [TOKEN] = {.member = "token"},
        [ID] = {.member = "id"},
        [WRITE] = {.member = "write"},
        [STAG] = {.member = "write", .param = "stag"},
        [TO] = {.member = "write", .param = "to"},
        [LEN] = {.member = "write", .param = "len"},
        [READ] = {.member = "read"},
    };
    rdma_hdr_request r;
    rdma_hdr_status status = read_field(field, n, s, COUNT);
    uint64_t port, id;
    int write, read;

    if (status != RDMA_HDR_OK)
        return status;
    memset(&r, 0, sizeof(r));
    if (!rdma_sfv_integer(&s[PORT].v, RDMA_HDR_PORT_MIN, RDMA_HDR_PORT_MAX,
                          &port) ||
        !rdma_sfv_integer(&s[ID].v, 1, RDMA_HDR_ID_MAX, &id) ||
        !rdma_sfv_bytes(&s[TOKEN].v, r.token, RDMA_HDR_TOKEN_LEN) ||
        !rdma_sfv_flag(&s[WRITE].v, &write) ||
        !rdma_sfv_flag(&s[READ].v, &read))
        return RDMA_HDR_MALFORMED;
    r.port = (uint16_t)port;
    r.id = (uint32_t)id;
    if (s[ADDR].v.type != RDMA_SFV_ABSENT &&
        !get_address(&s[ADDR].v, &r.family, r.addr))
        return RDMA_HDR_MALFORMED;
    if (write && !get_memory(&s[STAG].v, &s[TO].v, &s[LEN].v,
                             RDMA_HDR_WINDOW_MAX, &r.stag, &r.to, &r.len))
        return RDMA_HDR_MALFORMED;
    r.prefer[0] = write ? RDMA_HDR_WRITE : read ? RDMA_HDR_READ : RDMA_HDR_NONE;
    if (write && read) {
        int read_first = s[READ].order < s[WRITE].order;

        r.prefer[0] = read_first ? RDMA_HDR_READ : RDMA_HDR_WRITE;
        r.prefer[1] = read_first ? RDMA_HDR_WRITE : RDMA_HDR_READ;
    }
    if (!request_is_good(&r))
        return RDMA_HDR_MALFORMED;
    *out = r;
    return RDMA_HDR_OK;
}

rdma_hdr_status rdma_hdr_format_request(const rdma_hdr_request *req, char *buf,
                                        size_t size)
{
    rdma_sfv_writer w;
    int i;

    if (!request_is_good(req))
        return RDMA_HDR_MALFORMED;
    w = start_field(buf, size);
    rdma_sfv_put_text(&w, ", port=");
    rdma_sfv_put_decimal(&w, req->port);
    if (req->family != 0) {
        rdma_sfv_put_text(&w, ", addr=\"");
        put_address(&w, req->family, req->addr);
        rdma_sfv_put_text(&w, "\"");
    }
    rdma_sfv_put_text(&w, ", token=");
    rdma_sfv_put_bytes(&w, req->token, RDMA_HDR_TOKEN_LEN);
    rdma_sfv_put_text(&w, ", id=");
    rdma_sfv_put_decimal(&w, req->id);
    for (i = 0; i < 2; i++) {
        if (req->prefer[i] == RDMA_HDR_WRITE) {
            rdma_sfv_put_text(&w, ", write");
            put_memory(&w, req->stag, req->to, req->len);
        }
        else if (req->prefer[i] == RDMA_HDR_READ) {
            rdma_sfv_put_text(&w, ", read");
        }
    }
    return end_field(&w, buf, size);
}

int rdma_hdr_offers(const rdma_hdr_request *req, rdma_hdr_kind kind)
{
    return kind != RDMA_HDR_NONE &&
           (req->prefer[0] == kind || req->prefer[1] == kind);
}

/* ---- the response field ------------------------------------------------- */

static const char *const declined_names[RDMA_HDR_DECLINED_COUNT] = {
    [RDMA_HDR_SMALL] = "small",
    [RDMA_HDR_POLICY] = "policy",
    [RDMA_HDR_CONNECT] = "connect",
    [RDMA_HDR_BUSY] = "busy",
    [RDMA_HDR_MEMORY] = "memory",
    [RDMA_HDR_TLS] = "tls",
    [RDMA_HDR_DECLINED_MALFORMED] = "malformed",
    [RDMA_HDR_DECLINED_VERSION] = "version",
    [RDMA_HDR_WINDOW] = "window",
    [RDMA_HDR_DEVICE] = "device",
    [RDMA_HDR_FAILED] = "failed",
};

const char *rdma_hdr_declined_name(rdma_hdr_declined why)
{
    /* unsigned: a caller may hand us any integer */
    if ((unsigned)why >= RDMA_HDR_DECLINED_COUNT)
        return NULL;
    return declined_names[why];
}

static rdma_hdr_declined declined_value(const rdma_sfv_value *v)
{
    unsigned i;

    if (v->type != RDMA_SFV_TOKEN)
        return RDMA_HDR_NOT_DECLINED;
    for (i = RDMA_HDR_NOT_DECLINED + 1; i < RDMA_HDR_DECLINED_COUNT; i++) {
        if (strlen(declined_names[i]) == v->n &&
            memcmp(declined_names[i], v->p, v->n) == 0)
            return (rdma_hdr_declined)i;
    }
    return RDMA_HDR_NOT_DECLINED;
}

/* The table of forms, PROTOCOL.md, 4.1. */
static int response_is_good(const rdma_hdr_response *r)
{
    int no_id = r->declined == RDMA_HDR_DECLINED_MALFORMED ||
                r->declined == RDMA_HDR_DECLINED_VERSION;
    int no_conn =
        r->declined != RDMA_HDR_NOT_DECLINED && r->declined != RDMA_HDR_FAILED;

    if ((unsigned)r->declined >= RDMA_HDR_DECLINED_COUNT ||
        r->id > RDMA_HDR_ID_MAX || no_id != (r->id == 0) ||
        no_conn != (r->conn == 0))
        return 0;
    if (r->declined != RDMA_HDR_NOT_DECLINED)
        return r->kind == RDMA_HDR_NONE;
    if (r->has_total && (r->total < 1 || r->total > RDMA_HDR_TOTAL_MAX))
        return 0;
    if (r->kind != RDMA_HDR_READ)
        return r->kind == RDMA_HDR_WRITE;
    if (r->len < 1 || r->len > UINT32_MAX || r->len > UINT64_MAX - r->to)
        return 0;
    return !r->has_total || (r->fin ? r->total == r->len : r->total >= r->len);
}

/* The names of a response field; the parameter total has two places. */
enum response_slot {
    R_VERSION,
    R_ID,
    R_CONN,
    R_DECLINED,
    R_WRITE,
    R_WRITE_TOTAL,
    R_READ,
    R_STAG,
    R_TO,
    R_LEN,
    R_READ_TOTAL,
    R_FIN,
    R_COUNT
};

/* The part of a response that write and read say. */
static int get_offer(const rdma_sfv_slot *s, rdma_hdr_response *r)
{
    const rdma_sfv_value *total;
    int write, read;

    if (!rdma_sfv_flag(&s[R_WRITE].v, &write) ||
        !rdma_sfv_flag(&s[R_READ].v, &read) || (write && read))
        return 0;
    if (!write && !read)
        return 1;
    r->kind = write ? RDMA_HDR_WRITE : RDMA_HDR_READ;
    total = write ? &s[R_WRITE_TOTAL].v : &s[R_READ_TOTAL].v;
    r->has_total = total->type != RDMA_SFV_ABSENT;
    if (r->has_total &&
        !rdma_sfv_integer(total, 1, RDMA_HDR_TOTAL_MAX, &r->total))
        return 0;
    if (write)
        return 1;
    return get_memory(&s[R_STAG].v, &s[R_TO].v, &s[R_LEN].v, UINT32_MAX,
                      &r->stag, &r->to, &r->len) &&
           rdma_sfv_flag(&s[R_FIN].v, &r->fin);
}

/* An Integer that may be absent, which is 0. */
static int get_optional(const rdma_sfv_value *v, uint64_t max, uint32_t *out)
{
    uint64_t num;

    if (v->type == RDMA_SFV_ABSENT)
        return 1;
    if (!rdma_sfv_integer(v, 1, max, &num))
        return 0;
    *out = (uint32_t)num;
    return 1;
}

rdma_hdr_status rdma_hdr_parse_response(const char *field, size_t n,
                                        rdma_hdr_response *out)
{
    rdma_sfv_slot s[R_COUNT] = {
        [R_VERSION] = {.member = "v"},
        [R_ID] = {.member = "id"},
        [R_CONN] = {.member = "conn"},
        [R_DECLINED] = {.member = "declined"},
        [R_WRITE] = {.member = "write"},
        [R_WRITE_TOTAL] = {.member = "write", .param = "total"},
        [R_READ] = {.member = "read"},
        [R_STAG] = {.member = "read", .param = "stag"},
        [R_TO] = {.member = "read", .param = "to"},
        [R_LEN] = {.member = "read", .param = "len"},
        [R_READ_TOTAL] = {.member = "read", .param = "total"},
        [R_FIN] = {.member = "read", .param = "fin"},
    };
    rdma_hdr_response r;
    rdma_hdr_status status = read_field(field, n, s, R_COUNT);

    if (status != RDMA_HDR_OK)
        return status;
    memset(&r, 0, sizeof(r));
    if (!get_optional(&s[R_ID].v, RDMA_HDR_ID_MAX, &r.id) ||
        !get_optional(&s[R_CONN].v, UINT32_MAX, &r.conn) || !get_offer(s, &r))
        return RDMA_HDR_MALFORMED;
    if (s[R_DECLINED].v.type != RDMA_SFV_ABSENT) {
        r.declined = declined_value(&s[R_DECLINED].v);
        if (r.declined == RDMA_HDR_NOT_DECLINED)
            return RDMA_HDR_MALFORMED;
    }
    if (!response_is_good(&r))
        return RDMA_HDR_MALFORMED;
    *out = r;
    return RDMA_HDR_OK;
}

rdma_hdr_status rdma_hdr_format_response(const rdma_hdr_response *resp,
                                         char *buf, size_t size)
{
    rdma_sfv_writer w;

    if (!response_is_good(resp))
        return RDMA_HDR_MALFORMED;
    w = start_field(buf, size);
    if (resp->id != 0) {
        rdma_sfv_put_text(&w, ", id=");
        rdma_sfv_put_decimal(&w, resp->id);
    }
    if (resp->conn != 0) {
        rdma_sfv_put_text(&w, ", conn=");
        rdma_sfv_put_decimal(&w, resp->conn);
    }
    if (resp->declined != RDMA_HDR_NOT_DECLINED) {
        rdma_sfv_put_text(&w, ", declined=");
        rdma_sfv_put_text(&w, declined_names[resp->declined]);
        return end_field(&w, buf, size);
    }
    rdma_sfv_put_text(&w, resp->kind == RDMA_HDR_WRITE ? ", write" : ", read");
    if (resp->kind == RDMA_HDR_READ)
        put_memory(&w, resp->stag, resp->to, resp->len);
    if (resp->has_total) {
        rdma_sfv_put_text(&w, ";total=");
        rdma_sfv_put_decimal(&w, resp->total);
    }
    if (resp->kind == RDMA_HDR_READ && resp->fin)
        rdma_sfv_put_text(&w, ";fin");
    return end_field(&w, buf, size);
}

/* ---- private data ------------------------------------------------------- */

static void put_be(uint8_t *p, uint64_t num, unsigned n)
{
    while (n-- > 0)
        *p++ = (uint8_t)(num >> 8 * n);
}

static uint64_t get_be(const uint8_t *p, unsigned n)
{
    uint64_t num = 0;

    while (n-- > 0)
        num = num << 8 | *p++;
    return num;
}

/* Connect and accept begin alike:
 *
 *      0        1        2        3        4        5        6        7
 *     +--------+--------+--------+--------+--------+--------+--------+------+
 *     |  'H'   |  'R'   |  'D'   |  'M'   |version |  kind  | depth  |  0   |
 *     +--------+--------+--------+--------+--------+--------+--------+------+
 *
 * and then have the token (16 bytes), or the number of the connection (4). */
static const uint8_t magic[4] = {'H', 'R', 'D', 'M'};

static void put_start(uint8_t *out, rdma_hdr_kind kind, uint8_t depth)
{
    memcpy(out, magic, sizeof(magic));
    out[4] = RDMA_HDR_VERSION;
    out[5] = (uint8_t)kind;
    out[6] = depth;
    out[7] = 0;
}

/* least: the length of the whole. */
static rdma_hdr_reject check_start(const uint8_t *p, size_t n, size_t least)
{
    if (n < least || memcmp(p, magic, sizeof(magic)) != 0)
        return RDMA_HDR_REJECT_MALFORMED;
    if (p[4] != RDMA_HDR_VERSION)
        return RDMA_HDR_REJECT_VERSION;
    if (p[5] != RDMA_HDR_WRITE && p[5] != RDMA_HDR_READ)
        return RDMA_HDR_REJECT_KIND;
    if (p[6] < RDMA_HDR_DEPTH_MIN)
        return RDMA_HDR_REJECT_DEPTH;
    return RDMA_HDR_REJECT_NONE;
}

void rdma_hdr_put_connect(const rdma_hdr_connect *in,
                          uint8_t out[RDMA_HDR_CONNECT_LEN])
{
    put_start(out, in->kind, in->depth);
    memcpy(out + 8, in->token, RDMA_HDR_TOKEN_LEN);
}

rdma_hdr_reject rdma_hdr_get_connect(const void *data, size_t n,
                                     rdma_hdr_connect *out)
{
    const uint8_t *p = data;
    rdma_hdr_reject why = check_start(p, n, RDMA_HDR_CONNECT_LEN);

    if (why != RDMA_HDR_REJECT_NONE)
        return why;
    out->kind = (rdma_hdr_kind)p[5];
    out->depth = p[6];
    memcpy(out->token, p + 8, RDMA_HDR_TOKEN_LEN);
    return RDMA_HDR_REJECT_NONE;
}

void rdma_hdr_put_accept(const rdma_hdr_accept *in,
                         uint8_t out[RDMA_HDR_ACCEPT_LEN])
{
    put_start(out, in->kind, in->depth);
    put_be(out + 8, in->conn, 4);
}

rdma_hdr_reject rdma_hdr_get_accept(const void *data, size_t n,
                                    rdma_hdr_accept *out)
{
    const uint8_t *p = data;
    rdma_hdr_reject why = check_start(p, n, RDMA_HDR_ACCEPT_LEN);

    if (why != RDMA_HDR_REJECT_NONE)
        return why;
    if (get_be(p + 8, 4) == 0)
        return RDMA_HDR_REJECT_MALFORMED;
    out->kind = (rdma_hdr_kind)p[5];
    out->depth = p[6];
    out->conn = (uint32_t)get_be(p + 8, 4);
    return RDMA_HDR_REJECT_NONE;
}

void rdma_hdr_put_reject(rdma_hdr_reject why, uint8_t out[RDMA_HDR_REJECT_LEN])
{
    out[0] = (uint8_t)why;
}

rdma_hdr_reject rdma_hdr_get_reject(const void *data, size_t n)
{
    const uint8_t *p = data;

    if (n < RDMA_HDR_REJECT_LEN || p[0] > RDMA_HDR_REJECT_ADDRESS)
        return RDMA_HDR_REJECT_NONE;
    return (rdma_hdr_reject)p[0];
}

const char *rdma_hdr_reject_name(rdma_hdr_reject why)
{
    static const char *const names[] = {
        [RDMA_HDR_REJECT_NONE] = "no reason given",
        [RDMA_HDR_REJECT_MALFORMED] = "malformed private data",
        [RDMA_HDR_REJECT_VERSION] = "unknown protocol version",
        [RDMA_HDR_REJECT_TOKEN] = "wrong token",
        [RDMA_HDR_REJECT_KIND] = "wrong kind of connection",
        [RDMA_HDR_REJECT_DEPTH] = "receive depth out of range",
        [RDMA_HDR_REJECT_BUSY] = "too many connections",
        [RDMA_HDR_REJECT_ADDRESS] = "unexpected address",
    };

    if ((unsigned)why >= sizeof(names) / sizeof(names[0]))
        return "unknown reason";
    return names[why];
}

int rdma_hdr_token_equal(const uint8_t a[RDMA_HDR_TOKEN_LEN],
                         const uint8_t b[RDMA_HDR_TOKEN_LEN])
{
    /* volatile: no compiler may stop at the first difference */
    volatile uint8_t difference = 0;
    size_t i;

    for (i = 0; i < RDMA_HDR_TOKEN_LEN; i++)
        difference = (uint8_t)(difference | (a[i] ^ b[i]));
    return difference == 0;
}

/* ---- messages ----------------------------------------------------------- */

/*      0        1        2        3        4        5        6        7
 *     +--------+--------+--------+--------+--------+--------+--------+------+
 *   0 |  type  | flags  |     credits     |               id                |
 *     +--------+--------+--------+--------+--------+--------+--------+------+
 *   8 |                                bytes                                |
 *     +--------+--------+--------+--------+--------+--------+--------+------+
 *  16 |               stag                |               len               |
 *     +--------+--------+--------+--------+--------+--------+--------+------+
 *  24 |                                 to                                  |
 *     +--------+--------+--------+--------+--------+--------+--------+------+
 */
enum { USES_ID = 1, USES_BYTES = 2, USES_FIN = 4, USES_LEN = 8, USES_MEM = 16 };

static const struct {
    const char *name;
    unsigned uses;
} types[] = {
    [RDMA_HDR_HELLO] = {"HELLO", 0},
    [RDMA_HDR_WRITTEN] = {"WRITTEN", USES_ID | USES_BYTES | USES_FIN},
    [RDMA_HDR_OFFER] = {"OFFER",
                        USES_ID | USES_BYTES | USES_FIN | USES_LEN | USES_MEM},
    [RDMA_HDR_CONSUMED] = {"CONSUMED", USES_ID | USES_BYTES | USES_FIN},
    [RDMA_HDR_ABORT] = {"ABORT", USES_ID | USES_LEN},
    [RDMA_HDR_PING] = {"PING", 0},
    [RDMA_HDR_PONG] = {"PONG", 0},
};

static int is_type(unsigned type)
{
    return type < sizeof(types) / sizeof(types[0]) && types[type].name != NULL;
}

/* Only what the type uses; the rest is 0, in both directions. */
static rdma_hdr_msg used_fields(const rdma_hdr_msg *m)
{
    unsigned uses = is_type(m->type) ? types[m->type].uses : 0;
    rdma_hdr_msg used;

    memset(&used, 0, sizeof(used));
    used.type = m->type;
    used.credits = m->credits;
    if (uses & USES_FIN)
        used.flags = m->flags & RDMA_HDR_FIN;
    if (uses & USES_ID)
        used.id = m->id;
    if (uses & USES_BYTES)
        used.bytes = m->bytes;
    if (uses & USES_LEN)
        used.len = m->len;
    if ((uses & USES_MEM) && m->len > 0) {
        used.stag = m->stag;
        used.to = m->to;
    }
    return used;
}

void rdma_hdr_put_msg(const rdma_hdr_msg *in, uint8_t out[RDMA_HDR_MSG_LEN])
{
    rdma_hdr_msg m = used_fields(in);

    out[0] = m.type;
    out[1] = m.flags;
    put_be(out + 2, m.credits, 2);
    put_be(out + 4, m.id, 4);
    put_be(out + 8, m.bytes, 8);
    put_be(out + 16, m.stag, 4);
    put_be(out + 20, m.len, 4);
    put_be(out + 24, m.to, 8);
}

rdma_hdr_status rdma_hdr_get_msg(const void *data, size_t n, rdma_hdr_msg *out)
{
    const uint8_t *p = data;
    rdma_hdr_msg m;

    if (n != RDMA_HDR_MSG_LEN || !is_type(p[0]))
        return RDMA_HDR_MALFORMED;
    m.type = p[0];
    m.flags = p[1];
    m.credits = (uint16_t)get_be(p + 2, 2);
    m.id = (uint32_t)get_be(p + 4, 4);
    m.bytes = get_be(p + 8, 8);
    m.stag = (uint32_t)get_be(p + 16, 4);
    m.len = (uint32_t)get_be(p + 20, 4);
    m.to = get_be(p + 24, 8);
    m = used_fields(&m);
    if ((types[m.type].uses & USES_ID) && (m.id < 1 || m.id > RDMA_HDR_ID_MAX))
        return RDMA_HDR_MALFORMED;
    if (m.type == RDMA_HDR_OFFER &&
        ((m.len == 0 && !(m.flags & RDMA_HDR_FIN)) || m.len > m.bytes ||
         m.len > UINT64_MAX - m.to))
        return RDMA_HDR_MALFORMED;
    *out = m;
    return RDMA_HDR_OK;
}

const char *rdma_hdr_type_name(unsigned type)
{
    return is_type(type) ? types[type].name : "?";
}

const char *rdma_hdr_kind_name(rdma_hdr_kind kind)
{
    return kind == RDMA_HDR_WRITE  ? "write"
           : kind == RDMA_HDR_READ ? "read"
                                   : "none";
}
