/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * The client's endpoint and servers that lie or reach for what is not theirs: it
 * costs them their connection, and nobody else anything. PROTOCOL.md, 11.
 */
#include "client_kit.h"

#include <string.h>
#include <unistd.h>

#define WINDOW ((uint64_t)64 * 1024)
#define SOME   ((uint64_t)500) /* bytes that are said before the lie */
#define MINE   1               /* the id of the transfer that is lied to */
#define LARGE  (WINDOW + 1000) /* a part that stays: nobody takes it */

/* A server that has said SOME of a stream in truth. */
typedef struct lie {
    const char *what;
    rdma_hdr_kind kind;
    rdma_hdr_msg msg;
    size_t len; /* raw, so many bytes; 0: as rdma_conn says it */
} lie;

#define W   RDMA_HDR_WRITE
#define R   RDMA_HDR_READ
#define FIN RDMA_HDR_FIN
static const lie lies[] = {
    {"WRITTEN falls", W, {RDMA_HDR_WRITTEN, 0, 0, MINE, SOME - 1, 0, 0, 0}, 0},
    {"WRITTEN falls at the end",
     W,
     {RDMA_HDR_WRITTEN, FIN, 0, MINE, SOME - 1, 0, 0, 0},
     0},
    {"WRITTEN beyond the window",
     W,
     {RDMA_HDR_WRITTEN, 0, 0, MINE, SOME + WINDOW + 1, 0, 0, 0},
     0},
    {"WRITTEN far beyond",
     W,
     {RDMA_HDR_WRITTEN, FIN, 0, MINE, UINT64_MAX, 0, 0, 0},
     0},
    {"WRITTEN, no such id", W, {RDMA_HDR_WRITTEN, 0, 0, 77, 1, 0, 0, 0}, 0},
    {"ABORT, no such id", W, {RDMA_HDR_ABORT, 0, 0, 77, 0, 0, 0, 0}, 0},
    {"OFFER, kind write",
     W,
     {RDMA_HDR_OFFER, 0, 0, MINE, SOME + 1, 1, 1, 0},
     0},
    {"CONSUMED", W, {RDMA_HDR_CONSUMED, 0, 0, MINE, SOME, 0, 0, 0}, 0},
    {"a second HELLO", W, {RDMA_HDR_HELLO, 0, 0, 0, 0, 0, 0, 0}, 0},
    {"credits", W, {RDMA_HDR_PING, 0, 33, 0, 0, 0, 0, 0}, 32},
    {"many credits", W, {RDMA_HDR_PING, 0, 0xffff, 0, 0, 0, 0, 0}, 32},
    {"1 byte", W, {RDMA_HDR_PING, 0, 0, 0, 0, 0, 0, 0}, 1},
    {"31 bytes", W, {RDMA_HDR_PING, 0, 0, 0, 0, 0, 0, 0}, 31},
    {"33 bytes", W, {RDMA_HDR_PING, 0, 0, 0, 0, 0, 0, 0}, 33},
    {"type 0", W, {0, 0, 0, MINE, 0, 0, 0, 0}, 32},
    {"type 8", W, {8, 0, 0, MINE, 0, 0, 0, 0}, 32},
    {"ABORT of id 0", W, {RDMA_HDR_ABORT, 0, 0, 0, 0, 0, 0, 0}, 32},
    {"ABORT of id 2^31", W, {RDMA_HDR_ABORT, 0, 0, 0x80000000, 0, 0, 0, 0}, 32},
    {"WRITTEN, kind read",
     R,
     {RDMA_HDR_WRITTEN, 0, 0, MINE, SOME + 1, 0, 0, 0},
     0},
    {"OFFER with a gap", R, {RDMA_HDR_OFFER, 0, 0, MINE, SOME + 2, 1, 1, 0}, 0},
    {"OFFER of what was there",
     R,
     {RDMA_HDR_OFFER, 0, 0, MINE, SOME, 1, 1, 0},
     0},
    {"OFFER falls at the end",
     R,
     {RDMA_HDR_OFFER, FIN, 0, MINE, SOME - 1, 0, 0, 0},
     0},
    {"OFFER of nothing", R, {RDMA_HDR_OFFER, 0, 0, MINE, SOME, 1, 0, 0}, 0},
    {"OFFER of more than there is",
     R,
     {RDMA_HDR_OFFER, 0, 0, MINE, SOME, 1, SOME + 1, 0},
     0},
    {"OFFER that wraps",
     R,
     {RDMA_HDR_OFFER, 0, 0, MINE, SOME + 10, 1, 10, UINT64_MAX - 5},
     0}};
#define LIES ((int)(sizeof(lies) / sizeof(lies[0])))

/* ---- what the endpoint says of it -------------------------------------- */

static unsigned protocol_errors;

static void log_line(void *baton, int level, const char *line)
{
    (void)baton;
    (void)level;
    if (strstr(line, "ended: protocol error")) {
        __atomic_add_fetch(&protocol_errors, 1, __ATOMIC_ACQ_REL);
    }
}

/* ---- the server -------------------------------------------------------- */

/* Around all rules. What goes lies behind the body. */
static void send_raw(lib_server *s, const void *bytes, size_t len)
{
    ck_assert_uint_ge(s->body.len, LIB_BODY + len);
    ck_assert_int_eq(common_send_raw(s->conn, s->body.base + LIB_BODY,
                                     s->body.mr->lkey, bytes, len),
                     0);
}

static int say(lib_server *s, const rdma_hdr_msg *m)
{
    int rc;

    rdma_conn_lock(s->conn);
    rc = rdma_conn_say(s->conn, m, NULL);
    rdma_conn_unlock(s->conn);
    return rc;
}

static void tell(lib_server *s, const lie *l, uint32_t mine)
{
    rdma_hdr_msg m = l->msg;
    uint8_t bytes[64] = {0};

    m.id = m.id == MINE ? mine : m.id;
    if (l->len == 0) {
        say(s, &m);
        return;
    }
    rdma_hdr_put_msg(&m, bytes);
    bytes[0] = m.type; /* whatever that is */
    bytes[4] = (uint8_t)(m.id >> 24);
    send_raw(s, bytes, l->len);
}

/* n bytes more, that end there; the memory begins so far in the server's. */
static int offer(lib_server *s, uint32_t id, uint64_t end, uint64_t n,
                 size_t at)
{
    rdma_hdr_msg m = {.type = RDMA_HDR_OFFER,
                      .id = id,
                      .bytes = end,
                      .stag = s->body.mr->rkey,
                      .len = (uint32_t)n,
                      .to = (uint64_t)(uintptr_t)s->body.base + at};

    return say(s, &m);
}

/* ---- the application --------------------------------------------------- */

/* The head of a stream of this kind; of kind read, with SOME of it. */
static int stream_head(rdmahttp_transfer *t, const lib_server *s)
{
    rdma_hdr_response resp = {.id = t->id,
                              .conn = rdma_conn_number(s->conn),
                              .kind = RDMA_HDR_READ,
                              .stag = s->body.mr->rkey,
                              .to = (uint64_t)(uintptr_t)s->body.base,
                              .len = SOME};

    if (rdma_conn_kind(s->conn) == RDMA_HDR_WRITE) {
        return lib_head(t, resp.conn, 0);
    }
    ck_assert_int_eq(rdmahttp_endpoint_bind(lib.ep, t, resp.conn), 0);
    return rdmahttp_endpoint_head(lib.ep, t, &resp, 1);
}

/* A stream of which SOME has been taken. */
static rdmahttp_transfer *stream(lib_server *s, rdma_hdr_kind kind)
{
    rdmahttp_transfer *t = rdmahttp_endpoint_begin(lib.ep);
    size_t n;

    ck_assert_ptr_nonnull(t);
    ck_assert_int_eq(lib_dial(s, kind), 0);
    ck_assert_int_eq(stream_head(t, s), 0);
    if (kind == RDMA_HDR_WRITE) {
        lib_write_body(s, t, SOME, 0);
    }
    ck_assert_int_eq(lib_take_some(t, SOME, &n), RDMAHTTP_TAKE_MORE);
    ck_assert_uint_eq(n, SOME);
    return t;
}

static int only_the_other(void)
{
    return lib_count_peers() == 1;
}

/* Its connection ends for this reason, and its transfer with it, at once. */
static void is_punished(lib_server *s, rdmahttp_transfer *t, const char *what)
{
    static unsigned punished;
    rdmahttp_taken rc;
    size_t n;

    lib_await(only_the_other, what);
    ck_assert_msg(__atomic_load_n(&protocol_errors, __ATOMIC_ACQUIRE)
                      == ++punished,
                  "%s: for another reason", what);
    rc = lib_take_all(t, &n);
    ck_assert_msg(rc == RDMAHTTP_TAKE_WRONG, "%s: it ends with %d", what, rc);
    ck_assert_uint_eq(n, 0);
    rdmahttp_endpoint_release(lib.ep, t);
    lib_server_free(s);
}

/* The endpoint, and a server that does as it should. Whoever is lied to uses the
 * one window that is left. */
static rdmahttp_transfer *go_with_other(void)
{
    lib.conf.window = WINDOW;
    lib.conf.log = log_line;
    lib_go();
    return stream(&lib.servers[1], RDMA_HDR_WRITE);
}

static void end_other(rdmahttp_transfer *other)
{
    size_t n;

    lib_say(&lib.servers[1], RDMA_HDR_WRITTEN, other->id, SOME, FIN);
    ck_assert_int_eq(lib_take_all(other, &n), RDMAHTTP_TAKE_ALL);
    rdmahttp_endpoint_release(lib.ep, other);
}

START_TEST(server_lies)
{
    rdmahttp_transfer *other = go_with_other();
    int i;

    for (i = 0; i < LIES; i++) {
        lib_server *s = &lib.servers[0];
        rdmahttp_transfer *t = stream(s, lies[i].kind);

        tell(s, &lies[i], t->id);
        is_punished(s, t, lies[i].what);
    }
    end_other(other);
}
END_TEST

/* Two parts may be outstanding. The first stays so: nobody takes what is read. */
START_TEST(too_many_parts)
{
    rdmahttp_transfer *other = go_with_other();
    lib_server *s = &lib.servers[0];
    rdmahttp_transfer *t = stream(s, RDMA_HDR_READ);

    offer(s, t->id, SOME + LARGE, LARGE, 0);
    offer(s, t->id, SOME + LARGE + 1, 1, 0);
    while (rdmahttp_endpoint_announced(lib.ep, t) < SOME + LARGE + 1) {
        ck_assert_uint_eq(lib_count_peers(), 2);
        usleep(1000);
    }
    offer(s, t->id, SOME + LARGE + 2, 1, 0);
    is_punished(s, t, "a third part");
    end_other(other);
}
END_TEST

/* A READ of what is not there fails, and siw may say so twice. Several do. */
START_TEST(part_that_is_none)
{
    rdmahttp_transfer *other = go_with_other();
    lib_server *s = &lib.servers[0];
    unsigned i;

    for (i = 0; i < 3; i++) {
        rdmahttp_transfer *t = stream(s, RDMA_HDR_READ);
        size_t n;

        ck_assert_int_eq(offer(s, t->id, SOME + LARGE, LARGE, LIB_BODY), 0);
        lib_await(only_the_other, "a part that is none");
        ck_assert_int_eq(lib_take_all(t, &n), RDMAHTTP_TAKE_FAILED);
        ck_assert_uint_eq(n, 0);
        rdmahttp_endpoint_release(lib.ep, t);
        lib_server_free(s);
    }
    end_other(other);
}
END_TEST

static void add(Suite *s)
{
    TCase *t = lib_group(s, "hostile");

    tcase_add_test(t, server_lies);
    tcase_add_test(t, too_many_parts);
    tcase_add_test(t, part_that_is_none);
}

int main(void)
{
    return common_main("client, hostile", add);
}
