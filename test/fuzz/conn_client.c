/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * The client's end: an endpoint with its thread, up to four transfers of an
 * application, and whatever servers connect. Never may
 *
 *   - a SEND go without a credit, or a credit be given twice
 *   - CONSUMED cover what was not announced, or not read yet
 *   - anything be posted for an id after the last word for it, or a READ leave
 *     the parts that were offered
 *   - a window be used again that some server may still write to
 *   - a body be complete that is not
 *   - a server that keeps to the protocol be accused of breaking it
 *   - anything be left
 */
#include "conn_stub.h"

#include <string.h>

#include "../../client/endpoint_private.h"

#define CONNS 6
#define IDS   16
#define APPS  4
#define PARTS 8
#define STEPS 4000
#define STAG  0x5000u /* and the id, of offered parts */

typedef struct peer {
    conn_qp *q; /* NULL: gone */
    uint32_t number;
    rdma_hdr_kind kind;
    int hello;
    unsigned depth;             /* of the client */
    unsigned peer_depth;        /* the server's */
    unsigned sent, said;        /* messages of client and server */
    unsigned granted, returned; /* credits by server and client */
    unsigned owed;              /* by the server */
} peer;

typedef struct part {
    uint64_t from, to, len;
} part;

typedef struct id_model {
    const char *base;
    uint64_t len;    /* of the window */
    int conn;        /* index, plus 1; 0: none so far */
    uint64_t first;  /* bytes of the part in the head */
    unsigned offers; /* that were made: each lies somewhere else */
    uint64_t announced;
    int fin, server_last, spoke; /* the server has said so, or anything */
    int head, by_tcp, has_total;
    uint64_t total;
    unsigned nparts;
    part parts[PARTS];
    uint64_t consumed; /* as the client has said */
    int client_last;
    unsigned reads;
    uint64_t read; /* bytes, by READs that have completed */
    uint64_t sunk;
} id_model;

typedef struct app {
    rdmahttp_transfer *t;
    uint32_t id;
    int rdma; /* the head said so */
    rdma_conn_time deadline;
} app;

static struct client {
    rdmahttp_conf conf;
    rdmahttp_endpoint *ep;
    peer peers[CONNS];
    unsigned npeers;
    unsigned nrequests;
    uint32_t nids;
    id_model ids[IDS + 1];
    app apps[APPS];
    int hostile;
    unsigned steps;
} c;

/* ---- what the client posts --------------------------------------------- */

static peer *peer_of(const conn_qp *q)
{
    unsigned i;

    for (i = 0; i < c.npeers; i++) {
        if (c.peers[i].q == q) {
            return &c.peers[i];
        }
    }
    return NULL;
}

static void check_read(const conn_wr *w)
{
    uint32_t id = w->rkey - STAG;
    id_model *d = &c.ids[id];
    uint64_t at = 0;
    int found = 0;
    unsigned i;

    FUZZ_ASSERT(id >= 1 && id <= c.nids && w->len > 0);
    FUZZ_ASSERT(!d->client_last);
    for (i = 0; i < d->nparts; i++) {
        const part *p = &d->parts[i];

        if (w->to >= p->to && w->to + w->len <= p->to + p->len
            && w->to + w->len >= w->to) {
            found = 1;
            at = p->from + (w->to - p->to);
        }
    }
    FUZZ_ASSERT(found);
    FUZZ_ASSERT(c.hostile || at >= d->consumed);
    FUZZ_ASSERT(w->local >= d->base && w->local + w->len <= d->base + d->len);
    d->reads++;
}

static void check_message(peer *p, const conn_wr *w)
{
    rdma_hdr_msg m;
    id_model *d;

    FUZZ_ASSERT(rdma_hdr_get_msg((const uint8_t *)w->local, w->len, &m)
                == RDMA_HDR_OK);
    FUZZ_ASSERT(p->hello);
    FUZZ_ASSERT(p->peer_depth + p->granted - p->sent >= (m.credits ? 1 : 2));
    p->sent++;
    p->owed++;
    p->returned += m.credits;
    FUZZ_ASSERT(p->returned <= p->said);
    if (m.type == RDMA_HDR_PING || m.type == RDMA_HDR_PONG) {
        return;
    }
    FUZZ_ASSERT(m.id >= 1 && m.id <= c.nids);
    FUZZ_ASSERT(m.type == RDMA_HDR_CONSUMED || m.type == RDMA_HDR_ABORT);
    d = &c.ids[m.id];
    FUZZ_ASSERT(!d->client_last);
    FUZZ_ASSERT(c.hostile || d->conn == 1 + (int)(p - c.peers));
    if (m.type == RDMA_HDR_ABORT) {
        FUZZ_ASSERT(d->reads == 0);
        d->client_last = 1;
        return;
    }
    FUZZ_ASSERT(m.bytes >= d->consumed && m.bytes <= d->announced);
    FUZZ_ASSERT(p->kind == RDMA_HDR_WRITE || m.bytes <= d->read);
    d->consumed = m.bytes;
    d->client_last = (m.flags & RDMA_HDR_FIN) != 0;
    FUZZ_ASSERT(!d->client_last || d->fin);
    FUZZ_ASSERT(!d->client_last || c.hostile || m.bytes == d->announced);
}

static void posted(conn_qp *q, const conn_wr *w)
{
    peer *p = peer_of(q);

    FUZZ_ASSERT(p
                && (w->opcode == IBV_WR_SEND
                    || (w->opcode == IBV_WR_RDMA_READ && p->hello)));
    if (w->opcode == IBV_WR_SEND) {
        check_message(p, w);
    }
    else {
        check_read(w);
    }
}

static void read_over(const conn_wr *w, int ok)
{
    if (w->opcode == IBV_WR_RDMA_READ) {
        id_model *d = &c.ids[w->rkey - STAG];

        d->reads--;
        d->read += ok ? w->len : 0;
    }
}

static void completed(conn_qp *q, const conn_wr *w, int ok)
{
    (void)q;
    read_over(w, ok);
}

static void qp_gone(conn_qp *q)
{
    peer *p = peer_of(q);
    unsigned i;

    for (i = 0; i < q->n; i++) {
        const conn_wr *w = &q->sends[(q->head + i) % CONN_SENDS];

        if (!w->refused) {
            read_over(w, 0);
        }
    }
    if (p) {
        p->q = NULL;
    }
}

static void accepted(conn_qp *q, const void *data, size_t len)
{
    rdma_hdr_accept acc;
    peer *p = &c.peers[c.npeers++];

    FUZZ_ASSERT(c.npeers <= CONNS);
    FUZZ_ASSERT(rdma_hdr_get_accept(data, len, &acc) == RDMA_HDR_REJECT_NONE);
    *p = (peer){.q = q,
                .number = acc.conn,
                .kind = acc.kind,
                .depth = acc.depth,
                .peer_depth = q->id->depth};
}

static void log_line(void *baton, int level, const char *line)
{
    (void)baton;
    (void)level;
    FUZZ_ASSERT(c.hostile || conn_has_failed
                || !strstr(line, "protocol error"));
}

/* ---- servers ----------------------------------------------------------- */

static void connect_to_us(void)
{
    uint8_t how = conn_byte();
    uint8_t data[CONN_DATA];
    uint8_t len = RDMA_HDR_CONNECT_LEN;
    rdma_hdr_connect req = {.kind = how & 1 ? RDMA_HDR_READ : RDMA_HDR_WRITE,
                            .depth = how & 2 ? 8 : 32};

    if (c.nrequests == CONNS) {
        return;
    }
    c.nrequests++;
    memcpy(req.token, c.ep->token, sizeof(req.token));
    rdma_hdr_put_connect(&req, data);
    if ((how & 0xf0) == 0xf0) {
        len = conn_byte() % CONN_DATA;
        conn_bytes(data + 4, (size_t)(len < 8 ? 0 : 4));
    }
    conn_request(data, len, how >> 2 & 3);
}

static peer *some_peer(void)
{
    uint8_t i = conn_byte();

    return c.npeers && c.peers[i % c.npeers].q ? &c.peers[i % c.npeers] : NULL;
}

static int say(peer *p, rdma_hdr_msg *m, int honest)
{
    uint8_t bytes[RDMA_HDR_MSG_LEN];
    unsigned may = p->depth + p->returned - p->said;

    if (p->q->qp.state != IBV_QPS_RTS) {
        return 0;
    }
    if (honest) {
        m->credits = (uint16_t)p->owed;
        if (may < (m->credits ? 1 : 2)) {
            return 0;
        }
        FUZZ_ASSERT(p->q->nrecv > 0 || conn_has_failed || c.hostile);
    }
    p->said++;
    p->granted += m->credits;
    p->owed -= m->credits;
    p->hello = p->hello || m->type == RDMA_HDR_HELLO;
    rdma_hdr_put_msg(m, bytes);
    conn_deliver(p->q, bytes, sizeof(bytes));
    return 1;
}

static void add_part(id_model *d, uint64_t from, uint64_t to, uint64_t len)
{
    unsigned i;
    unsigned n = 0;

    for (i = 0; i < d->nparts; i++) {
        if (d->parts[i].from + d->parts[i].len > d->consumed) {
            d->parts[n++] = d->parts[i];
        }
    }
    if (n < PARTS) {
        d->parts[n++] = (part){from, to, len};
    }
    d->nparts = n;
}

static unsigned outstanding(const id_model *d)
{
    unsigned n = d->head ? 0 : 1; /* the part in the head */
    unsigned i;

    for (i = 0; i < d->nparts; i++) {
        n += d->parts[i].from + d->parts[i].len > d->consumed;
    }
    return n;
}

/* 1: that is all that there may be. */
static int at_end(const id_model *d, uint64_t bytes, int want)
{
    return d->has_total ? bytes == d->total : want;
}

static uint64_t first_of(id_model *d)
{
    if (d->first == 0) {
        d->first = conn_size(100000) + 1;
    }
    return d->first;
}

static void announce(peer *p, uint32_t id)
{
    id_model *d = &c.ids[id];
    uint8_t want = conn_byte();
    rdma_hdr_msg m = {.id = id};
    uint64_t most = d->has_total ? d->total : UINT64_MAX;
    uint64_t from = d->announced;

    if (p->kind == RDMA_HDR_WRITE) {
        m.type = RDMA_HDR_WRITTEN;
        most = most < d->consumed + d->len ? most : d->consumed + d->len;
        m.bytes = from + conn_size(most - from);
    }
    else {
        m.type = RDMA_HDR_OFFER;
        if (!d->head && from == 0) {
            from = first_of(d);
        }
        if (!d->head && d->has_total) {
            return;
        }
        most = most - from < 100000 ? most - from : 100000;
        m.len = outstanding(d) < 2 ? (uint32_t)conn_size(most) : 0;
        m.bytes = from + m.len;
        m.stag = STAG + id;
        m.to = ((uint64_t)id << 32) + ++d->offers * 1000000;
    }
    m.flags = at_end(d, m.bytes, want & 1) ? RDMA_HDR_FIN : 0;
    if ((m.type == RDMA_HDR_OFFER && m.len == 0 && !m.flags)
        || (m.type == RDMA_HDR_WRITTEN && m.bytes == 0)) {
        return;
    }
    if (say(p, &m, 1)) {
        d->announced = m.bytes;
        d->fin = d->server_last = m.flags;
        if (m.len > 0) {
            add_part(d, from, m.to, m.len);
        }
    }
}

/* What a good server says about an id, if it is still to be said. */
static void server(int gives_up)
{
    peer *p = some_peer();
    uint32_t id = c.nids ? conn_byte() % c.nids + 1 : 0;
    id_model *d = &c.ids[id];
    rdma_hdr_msg m = {.id = id};
    int conn = p ? 1 + (int)(p - c.peers) : 0;

    if (!p || !id || !p->hello || d->by_tcp || (d->conn && d->conn != conn)
        || (gives_up ? d->server_last > 1 : d->server_last)
        || (c.conf.mode == RDMAHTTP_WRITE && p->kind == RDMA_HDR_READ)
        || (c.conf.mode == RDMAHTTP_READ && p->kind == RDMA_HDR_WRITE)) {
        return;
    }
    d->conn = conn;
    d->spoke = 1;
    if (!gives_up) {
        announce(p, id);
    }
    else {
        m.type = RDMA_HDR_ABORT;
        m.len = conn_byte();
        if (say(p, &m, 1)) {
            d->server_last = 2;
        }
    }
}

static void server_lies(void)
{
    peer *p = some_peer();
    rdma_hdr_msg m = {.type = conn_byte() % 9};
    id_model *d;

    if (!p) {
        return;
    }
    m.flags = conn_byte() & 1;
    m.credits = conn_byte() & 7;
    m.id = conn_byte() % (IDS + 2);
    m.bytes = conn_size(300000);
    m.len = (uint32_t)conn_size(100000);
    m.stag = STAG + m.id;
    m.to = ((uint64_t)m.id << 32) + 0x80000000;
    c.hostile = 1;
    if (m.credits > p->owed) {
        p->owed = m.credits;
    }
    if (m.id && m.id <= IDS && m.type != RDMA_HDR_CONSUMED) {
        d = &c.ids[m.id];
        d->announced = m.bytes > d->announced ? m.bytes : d->announced;
        d->fin |= m.flags;
        d->server_last |= m.flags || m.type == RDMA_HDR_ABORT;
        if (m.type == RDMA_HDR_OFFER && m.bytes >= m.len) {
            add_part(d, m.bytes - m.len, m.to, m.len);
        }
    }
    say(p, &m, 0);
}

static void greet(void)
{
    peer *p = some_peer();
    rdma_hdr_msg m = {.type = RDMA_HDR_PING};

    if (p) {
        m.type = p->hello ? RDMA_HDR_PING + (conn_byte() & 1) : RDMA_HDR_HELLO;
        say(p, &m, 1);
    }
}

/* ---- the application --------------------------------------------------- */

/* Its window is nobody else's any more. */
static void check_window(const id_model *d)
{
    uint32_t i;

    for (i = 1; i < c.nids; i++) {
        const id_model *o = &c.ids[i];

        if (o->base == d->base) {
            FUZZ_ASSERT(o->reads == 0);
            FUZZ_ASSERT(c.hostile || o->server_last || (o->by_tcp && !o->conn)
                        || (o->conn && !c.peers[o->conn - 1].q));
        }
    }
}

static void begin(app *a)
{
    char field[RDMA_HDR_FORMAT_MAX], masked[RDMA_HDR_FORMAT_MAX];
    id_model *d;

    if (a->t || c.nids == IDS) {
        return;
    }
    a->t = rdmahttp_endpoint_begin(c.ep);
    if (!a->t) {
        return;
    }
    FUZZ_ASSERT(a->t->id == c.nids + 1);
    a->id = ++c.nids;
    a->rdma = 0;
    a->deadline = 0;
    d = &c.ids[a->id];
    d->base = a->t->base; /* it may have been lied about before */
    d->len = a->t->len;
    check_window(d);
    FUZZ_ASSERT(rdmahttp_endpoint_field(c.ep, a->t, field, masked) == 0);
}

static void give_up(app *a, const char *why)
{
    rdmahttp_endpoint_give_up(c.ep, a->t, RDMA_HDR_ABORT_CONTENT, why);
    a->rdma = 0;
}

/* As a good server would answer, from what it has said of the id by now. 0, or
 * -1: it would not now. */
static int good_head(id_model *d, rdma_hdr_response *head, int *stream,
                     const peer *p)
{
    uint8_t how = conn_byte();

    *stream = how & 1;
    head->kind = p->kind;
    head->conn = p->number;
    if (d->server_last > 1) { /* it has given the id up */
        head->kind = RDMA_HDR_NONE;
        head->declined = RDMA_HDR_FAILED;
        return 0;
    }
    if (p->kind == RDMA_HDR_WRITE) {
        head->has_total = !*stream || how & 2;
        if (!*stream && (!d->fin || d->announced > d->len)) {
            return -1;
        }
        head->total = d->fin ? d->announced : d->announced + conn_byte() + 1;
        d->has_total = head->has_total;
        d->total = head->total;
        return 0;
    }
    if (d->announced == 0 && !*stream) {
        head->fin = 1;
    }
    *stream = !head->fin;
    head->len = first_of(d);
    head->stag = STAG + head->id;
    head->to = (uint64_t)head->id << 32;
    return 0;
}

static void heed_head(app *a, const rdma_hdr_response *head, int stream)
{
    id_model *d = &c.ids[a->id];

    if (rdmahttp_endpoint_bind(c.ep, a->t, head->conn)) {
        give_up(a, "an unknown connection");
        return;
    }
    if (head->kind == RDMA_HDR_NONE) {
        rdmahttp_endpoint_declined(c.ep, a->t);
        return;
    }
    if (head->kind == RDMA_HDR_READ) {
        add_part(d, 0, head->to, head->len);
        if (head->len > d->announced) {
            d->announced = head->len;
        }
        d->fin |= head->fin;
        d->server_last |= head->fin;
    }
    if (rdmahttp_endpoint_head(c.ep, a->t, head, stream)) {
        give_up(a, "the head");
    }
    else {
        a->rdma = 1;
    }
}

/* The answer comes over TCP. */
static void answer(app *a)
{
    id_model *d = &c.ids[a->id];
    rdma_hdr_response head = {.id = a->id};
    uint8_t how = conn_byte();
    char text[RDMA_HDR_FORMAT_MAX];
    peer *p;
    int stream = 0;

    if (!a->t || d->head) {
        return;
    }
    if ((how & 3) == 3 && !d->conn) { /* without a connection */
        d->head = d->by_tcp = 1;
        rdmahttp_endpoint_declined(c.ep, a->t);
        return;
    }
    p = d->conn ? &c.peers[d->conn - 1] : some_peer();
    if (!p || (!d->conn && !p->q)) {
        return;
    }
    if ((how & 0xf0) == 0xf0) {
        c.hostile = 1;
        head.conn = conn_byte() % (CONNS + 2);
        head.kind = how & 4 ? RDMA_HDR_READ : RDMA_HDR_WRITE;
        head.total = head.len = conn_size(200000);
        head.stag = STAG + a->id;
        head.to = (uint64_t)a->id << 32;
        head.has_total = how & 8;
        head.fin = head.kind == RDMA_HDR_READ && how & 1;
        stream = how & 2;
    }
    else if ((c.conf.mode == RDMAHTTP_WRITE && p->kind == RDMA_HDR_READ)
             || (c.conf.mode == RDMAHTTP_READ && p->kind == RDMA_HDR_WRITE)
             || !p->hello || good_head(d, &head, &stream, p)) {
        return;
    }
    if (rdma_hdr_format_response(&head, text, sizeof(text)) != RDMA_HDR_OK) {
        return; /* exchange.c would not let it pass */
    }
    d->head = 1;
    if (!d->conn) {
        d->conn = 1 + (int)(p - c.peers);
    }
    d->by_tcp = head.kind == RDMA_HDR_NONE;
    heed_head(a, &head, stream);
}

static int sink(void *baton, const void *bytes, size_t n)
{
    id_model *d = baton;

    FUZZ_ASSERT(n > 0 && (const char *)bytes >= d->base
                && (const char *)bytes + n <= d->base + d->len);
    d->sunk += n;
    return 0;
}

static void take(app *a)
{
    id_model *d = &c.ids[a->id];
    uint8_t how = conn_byte();

    if (!a->t || !a->rdma) {
        return;
    }
    switch (
        rdmahttp_endpoint_take(c.ep, a->t, how & 1, &a->deadline, sink, d)) {
    case RDMAHTTP_TAKE_ALL:
        FUZZ_ASSERT(d->fin && d->head);
        FUZZ_ASSERT(c.hostile || d->sunk == d->announced);
        FUZZ_ASSERT(c.hostile || !d->has_total || d->sunk == d->total);
        a->rdma = 0;
        break;
    case RDMAHTTP_TAKE_FAILED:
    case RDMAHTTP_TAKE_LEFT:
        a->rdma = 0;
        break;
    default:
        FUZZ_ASSERT(d->sunk <= d->announced);
    }
}

static void release(app *a)
{
    if (a->t) {
        rdmahttp_endpoint_release(c.ep, a->t);
        a->t = NULL;
    }
}

static void application(uint8_t op)
{
    app *a = &c.apps[conn_byte() % APPS];

    switch (op) {
    case 0:
        begin(a);
        break;
    case 1:
        answer(a);
        break;
    case 2:
        take(a);
        break;
    case 3:
        if (a->t) {
            give_up(a, "a deadline");
        }
        break;
    default:
        release(a);
    }
}

/* ---- one thing after the other ----------------------------------------- */

/* 1: the endpoint's thread wakes. */
static int step(void)
{
    uint8_t op = conn_byte() % 20;
    peer *p;
    uint8_t how;

    FUZZ_ASSERT(++c.steps < STEPS);
    switch (op) {
    default: /* 0 to 4 */
        application(op);
        break;
    case 5:
        connect_to_us();
        break;
    case 6:
    case 7:
        greet();
        break;
    case 8:
    case 9:
    case 10:
        server(0);
        break;
    case 11:
        server(1);
        break;
    case 12:
        server_lies();
        break;
    case 13:
        p = some_peer();
        if (p) {
            conn_complete(p->q, 1 + conn_byte() % 8);
        }
        break;
    case 14:
        p = some_peer();
        how = conn_byte();
        if (p && how & 4) {
            conn_fail_send(p->q);
        }
        else if (p) {
            conn_break(p->q, how & 1, how & 2);
        }
        break;
    case 15:
        how = conn_byte();
        conn_fail(how % CONN_FAILS, 1 + how / CONN_FAILS % 8);
        conn_keeps_refused = how >> 7;
        break;
    case 16:
        conn_clock += (int64_t)conn_byte() * 50000;
        break;
    case 17:
    case 18:
    case 19:
        return 1;
    }
    return 0;
}

static void asleep(int64_t us)
{
    unsigned i;

    FUZZ_ASSERT(++c.steps < STEPS);
    while (conn_left() > 0) {
        if (step()) {
            return;
        }
    }
    conn_clock += us;
    for (i = 0; i < APPS; i++) {
        release(&c.apps[i]);
    }
    rdmahttp_endpoint_lock(c.ep);
    c.ep->stop = 1;
    rdmahttp_endpoint_unlock(c.ep);
}

void conn_fuzz_client(void)
{
    struct sockaddr_storage local = {.ss_family = AF_INET};
    char why[RDMAHTTP_TEXT_MAX];
    unsigned objects = conn_objects;
    uint8_t how = conn_byte();
    unsigned i;

    memset(&c, 0, sizeof(c));
    conn_posted = posted;
    conn_completed = completed;
    conn_gone = qp_gone;
    conn_accepted = accepted;
    conn_sleep = asleep;
    c.conf = (rdmahttp_conf)RDMAHTTP_CONF_INIT;
    c.conf.mode = how % 3;
    c.conf.window = how & 4 ? 65536 : 100000;
    c.conf.windows = 2;
    c.conf.any_peer = 1;
    c.conf.timeout_ms = 3000;
    c.conf.connections = 4;
    c.conf.log = log_line;
    FUZZ_ASSERT(rdmahttp_endpoint_open(&c.conf, &local, &c.ep, why) == 0);
    FUZZ_ASSERT(conn_thread);
    conn_thread(conn_thread_baton);
    rdmahttp_endpoint_close(c.ep);
    for (i = 0; i < c.npeers; i++) {
        FUZZ_ASSERT(!c.peers[i].q);
    }
    FUZZ_ASSERT(conn_objects == objects);
}
