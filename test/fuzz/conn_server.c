/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * The server's end: one connection, up to four workers with a body each, the
 * progress thread. Never may
 *
 *   - a SEND go without a credit, or a credit be given twice
 *   - a WRITE leave its window, or overtake what the client has consumed
 *   - anything be posted for an id after the last word for it
 *   - memory be filled again that a device or the client still has
 *   - a client that keeps to the protocol be accused of breaking it
 *   - a response be "declined, nothing has happened" when something was posted
 *   - anything be left: blocks, parts, leases, objects of the device
 */
#include "conn_stub.h"

#include <string.h>

#include "../../rdma_body_private.h"
#include "../../rdma_conn_private.h"
#include "../../rdma_count.h"

#define BLOCKS       6 /* of the pool */
#define WORKERS      4
#define IDS          32
#define PARTS        4
#define NESTED       3    /* sleepers on the fuzzer's one stack */
#define STEPS        4000 /* a run that takes more does not end */
#define TIMEOUT      1000000
#define LEASE        2000000
#define CALLS_OF_ONE 8
/* Where windows begin, and how far apart. */
#define WINDOW ((uint64_t)0x10000000)

typedef struct part {
    uint64_t to, len, end;
} part;

/* What has happened to an id, as somebody sees it who sees all. */
typedef struct id_model {
    uint64_t total, window;
    uint64_t written;   /* by WRITE */
    uint64_t announced; /* to the client */
    uint64_t consumed;  /* as the client has said */
    int touched;        /* something was posted for it */
    int head;
    int fin, aborted; /* the server has said so */
    int client_said;  /* its last word */
    unsigned nparts;
    part parts[PARTS]; /* that may be read */
} id_model;

typedef struct worker {
    rdma_body *body;
    uint32_t id;
    int busy; /* it sleeps, further down on the stack */
} worker;

static rdma_mem *mem;
static struct ibv_pd *pd;
static rdma_mem_pool *pool;
static size_t arenas; /* bytes */
static size_t of_pool; /* the same */

static struct server {
    rdma_hdr_kind kind;
    struct ibv_comp_channel *channel;
    struct rdma_event_channel *events;
    rdma_conn *c;
    rdma_body_set *set;
    conn_qp *q;
    unsigned peer_depth;
    unsigned sent;     /* SENDs of the server */
    unsigned granted;  /* credits that the client has given */
    unsigned returned; /* credits that the server has given */
    unsigned said;     /* messages of the client that have arrived */
    unsigned owed;     /* by the client */
    int hostile;       /* the client has broken a rule, perhaps */
    int gone;
    uint32_t nids; /* so far; the first is 1 */
    id_model ids[IDS + 1];
    worker workers[WORKERS];
    unsigned depth; /* of sleeping workers */
    unsigned steps;
} s;

static id_model *model(uint32_t id)
{
    FUZZ_ASSERT(id >= 1 && id <= s.nids);
    return &s.ids[id];
}

/* ---- what the server posts --------------------------------------------- */

static void check_write(const conn_wr *w)
{
    id_model *m = model(w->rkey);
    uint64_t base = WINDOW * w->rkey;
    uint64_t at = m->written % m->window;

    FUZZ_ASSERT(s.kind == RDMA_HDR_WRITE && !m->fin && !m->aborted);
    FUZZ_ASSERT(w->len > 0 && w->lkey == rdma_mem_pool_lkey(pool));
    FUZZ_ASSERT(w->to - base == at && w->len <= m->window - at);
    m->written += w->len;
    m->touched = 1;
    FUZZ_ASSERT(m->written <= m->consumed
                || m->written - m->consumed <= m->window);
    FUZZ_ASSERT(m->written <= m->total);
}

static void add_part(id_model *m, uint64_t to, uint64_t len, uint64_t end)
{
    unsigned i;
    unsigned n = 0;

    for (i = 0; i < m->nparts; i++) { /* those that are the server's again */
        if (m->parts[i].end > m->consumed) {
            m->parts[n++] = m->parts[i];
        }
    }
    m->nparts = n;
    FUZZ_ASSERT(n < 2);
    m->parts[m->nparts++] = (part){to, len, end};
}

static void check_message(const conn_wr *w)
{
    rdma_hdr_msg m;
    id_model *d;

    FUZZ_ASSERT(rdma_hdr_get_msg((const uint8_t *)w->local, w->len, &m)
                == RDMA_HDR_OK);
    FUZZ_ASSERT((s.sent == 0) == (m.type == RDMA_HDR_HELLO));
    FUZZ_ASSERT(s.peer_depth + s.granted - s.sent >= (m.credits ? 1 : 2));
    s.sent++;
    s.owed++;
    s.returned += m.credits;
    FUZZ_ASSERT(s.returned <= s.said);
    if (m.type == RDMA_HDR_HELLO || m.type == RDMA_HDR_PING
        || m.type == RDMA_HDR_PONG) {
        return;
    }
    d = model(m.id);
    d->touched = 1;
    FUZZ_ASSERT(!d->aborted); /* it was the last word, or its end */
    if (m.type == RDMA_HDR_ABORT) {
        d->aborted = 1;
        return;
    }
    FUZZ_ASSERT(!d->fin && m.bytes >= d->announced && m.bytes <= d->total);
    FUZZ_ASSERT(
        m.type
        == (s.kind == RDMA_HDR_WRITE ? RDMA_HDR_WRITTEN : RDMA_HDR_OFFER));
    if (s.kind == RDMA_HDR_WRITE) {
        FUZZ_ASSERT(m.bytes <= d->written);
    }
    else {
        FUZZ_ASSERT(d->head && m.bytes - m.len == d->announced);
        if (m.len > 0) {
            add_part(d, m.to, m.len, m.bytes);
        }
    }
    d->announced = m.bytes;
    d->fin = (m.flags & RDMA_HDR_FIN) != 0;
    FUZZ_ASSERT(!d->fin || s.kind == RDMA_HDR_READ || m.bytes == d->written);
}

static void posted(conn_qp *q, const conn_wr *w)
{
    s.q = q;
    FUZZ_ASSERT(w->opcode == IBV_WR_SEND || w->opcode == IBV_WR_RDMA_WRITE);
    if (w->opcode == IBV_WR_SEND) {
        check_message(w);
    }
    else {
        check_write(w);
    }
}

static void qp_gone(conn_qp *q)
{
    (void)q;
    s.gone = 1;
}

/* A worker is about to fill this: nobody else has it. */
static void check_space(const char *at, size_t room)
{
    uint32_t i;
    unsigned k;

    FUZZ_ASSERT(room > 0 && !conn_in_flight(s.q, at, room));
    for (i = 1; i <= s.nids; i++) {
        const id_model *m = &s.ids[i];

        for (k = 0; k < m->nparts && !m->client_said; k++) {
            const part *p = &m->parts[k];

            FUZZ_ASSERT(p->end <= m->consumed || (uintptr_t)at >= p->to + p->len
                        || (uintptr_t)at + room <= p->to);
        }
    }
}

static void heed_head(uint32_t id, const rdma_hdr_response *head)
{
    char text[RDMA_HDR_FORMAT_MAX];
    id_model *m = model(id);

    FUZZ_ASSERT(!m->head && head->id == id && head->kind == s.kind);
    FUZZ_ASSERT(rdma_hdr_format_response(head, text, sizeof(text))
                == RDMA_HDR_OK);
    m->head = 1;
    if (s.kind == RDMA_HDR_READ) {
        FUZZ_ASSERT(m->announced == 0);
        m->announced = head->len;
        m->fin = head->fin;
        add_part(m, head->to, head->len, head->len);
    }
}

/* ---- what the owner of a connection does ------------------------------- */

static void remind(void *baton, rdma_conn_time when)
{
    (void)baton;
    (void)when;
}

static void reclaim(void *baton)
{
    (void)baton;
    rdma_conn_lock(s.c);
    rdma_body_reclaim(s.set);
    rdma_conn_unlock(s.c);
}

static int hold(void *baton)
{
    (void)baton;
    return 0;
}

static void unhold(void *baton)
{
    (void)baton;
}

static void log_body(void *baton, int level, const char *line)
{
    (void)baton;
    (void)level;
    FUZZ_ASSERT(strlen(line) > 0);
}

static void on_opened(void *baton, rdma_conn *c)
{
    rdma_body_conf conf = {.mem = mem,
                           .pool = s.kind == RDMA_HDR_WRITE ? pool : NULL,
                           .arena_max = 128 * 1024,
                           .arenas_max = 256 * 1024,
                           .arenas = &arenas,
                           .blocks_max = SIZE_MAX,
                           .blocks = &of_pool,
                           .hold = hold,
                           .unhold = unhold,
                           .timeout = TIMEOUT,
                           .lease_timeout = LEASE,
                           .remind = remind,
                           .reclaim = reclaim,
                           .log = log_body};

    (void)baton;
    s.c = c;
    s.set = rdma_body_set_create(c, &conf);
}

static int on_message(void *baton, rdma_conn *c, const rdma_hdr_msg *m)
{
    (void)baton;
    (void)c;
    return s.set ? rdma_body_message(s.set, m) : 0;
}

static void on_closed(void *baton, rdma_conn *c)
{
    (void)baton;
    FUZZ_ASSERT(s.hostile || conn_has_failed
                || rdma_conn_cause_get(c) != RDMA_CONN_CAUSE_PROTOCOL);
    if (s.set) {
        rdma_body_closed(s.set);
    }
}

static void on_stalled(void *baton, rdma_conn *c)
{
    (void)baton;
    (void)c;
}

static const rdma_conn_handler handler = {.message = on_message,
                                          .opened = on_opened,
                                          .closed = on_closed,
                                          .stalled = on_stalled};

static struct ibv_comp_channel *channel_of(void *baton, struct rdma_cm_id *id)
{
    (void)baton;
    (void)id;
    return s.channel;
}

static struct ibv_pd *domain_of(void *baton, struct rdma_cm_id *id)
{
    (void)baton;
    (void)id;
    return pd;
}

static void look_at_receives(void)
{
    struct ibv_cq *cq;
    void *c;

    while (ibv_get_cq_event(s.channel, &cq, &c) == 0) {
        rdma_conn_receive(c);
        ibv_ack_cq_events(cq, 1);
    }
}

static void look_at_events(void)
{
    struct rdma_cm_event *event;

    while (rdma_get_cm_event(s.events, &event) == 0) {
        rdma_conn_event(s.c, event->event, event->status);
        rdma_ack_cm_event(event);
    }
}

static void expire(int64_t after)
{
    unsigned trims = 2;

    conn_clock += after;
    rdma_conn_lock(s.c);
    rdma_body_expire(s.set, rdma_conn_now(), &trims);
    rdma_conn_unlock(s.c);
}

/* ---- workers ----------------------------------------------------------- */

static void see_to_head(const worker *w)
{
    rdma_hdr_response head;

    if (rdma_body_head(w->body, &head)) {
        heed_head(w->id, &head);
        FUZZ_ASSERT(!head.fin);
    }
}

static void abandon(worker *w)
{
    uint32_t conn = rdma_body_abandon(w->body, RDMA_HDR_ABORT_CONTENT);
    const id_model *m = model(w->id);

    FUZZ_ASSERT(conn || !(m->touched || m->head));
    FUZZ_ASSERT(conn == 0 || conn == rdma_conn_number(s.c));
    w->body = NULL;
}

static void open_body(worker *w)
{
    uint8_t how = conn_byte();
    uint64_t window = conn_size((uint64_t)1 << 21) + 1;
    uint64_t total = conn_size((uint64_t)1 << 21) + 1;
    rdma_hdr_request req = {.len = window};
    rdma_hdr_declined why;
    uint32_t id = s.nids + 1;

    if (s.nids == IDS) {
        return;
    }
    s.nids++;
    /* The rest stays: it may have been lied about before. */
    s.ids[id].total = how & 1 ? UINT64_MAX : total;
    s.ids[id].window = window;
    req.id = req.stag = id;
    req.to = WINDOW * id;
    why = rdma_body_open(s.set, &req, s.ids[id].total, how & 2, &w->body);
    FUZZ_ASSERT((why == RDMA_HDR_NOT_DECLINED) == (w->body != NULL));
    FUZZ_ASSERT(w->body || !s.ids[id].touched);
    w->id = id;
    if (w->body) {
        see_to_head(w);
    }
}

static int fill(const worker *w, uint64_t n)
{
    unsigned calls;

    for (calls = 0; n > 0 && calls < CALLS_OF_ONE; calls++) {
        size_t room = 0;
        char *at = rdma_body_space(w->body, &room);

        if (!at) {
            return -1;
        }
        check_space(at, room);
        room = room < n ? room : (size_t)n;
        at[0] = at[room - 1] = (char)w->id;
        n -= room;
        if (rdma_body_commit(w->body, room)) {
            return -1;
        }
        see_to_head(w);
    }
    return 0;
}

static int finish(worker *w)
{
    id_model *m = model(w->id);
    int whole = !m->head;
    rdma_hdr_response head;

    if (m->total == UINT64_MAX && w->body->committed == 0) {
        return -1; /* the filter answers empty bodies by TCP */
    }
    if (rdma_body_finish(w->body, &head)) {
        return -1;
    }
    if (whole) {
        heed_head(w->id, &head);
    }
    FUZZ_ASSERT(!whole || m->fin || m->client_said);
    w->body = NULL;
    return 0;
}

static int flush(const worker *w)
{
    if (rdma_body_flush(w->body)) {
        return -1;
    }
    see_to_head(w);
    return 0;
}

static void work(uint8_t op)
{
    worker *w = &s.workers[conn_byte() % WORKERS];
    int rc = 0;

    if (w->busy || s.depth == NESTED) {
        return;
    }
    w->busy = 1;
    s.depth++;
    if (op == 0) {
        if (!w->body) {
            open_body(w);
        }
    }
    else if (w->body) {
        switch (op) {
        case 1:
            rc = fill(w, conn_size((uint64_t)1 << 20) + 1);
            break;
        case 2:
            rc = flush(w);
            break;
        case 3: /* as the filter does, of a body that goes whole */
            if (!rdma_body_streamed(w->body)
                && rdma_body_stream(w->body) == 0) {
                rc = flush(w);
            }
            break;
        case 4:
            rc = finish(w);
            break;
        default:
            rc = -1;
        }
        if (rc) {
            abandon(w);
        }
    }
    s.depth--;
    w->busy = 0;
}

/* ---- the client -------------------------------------------------------- */

/* The client speaks, by the rules or around them. */
static void say(rdma_hdr_msg *m, int honest)
{
    uint8_t bytes[RDMA_HDR_MSG_LEN];
    unsigned may = s.c->depth + s.returned - s.said;

    if (s.q->qp.state != IBV_QPS_RTS) {
        return;
    }
    if (honest) {
        m->credits = (uint16_t)s.owed;
        if (may < (m->credits ? 1 : 2)) {
            return; /* it would wait */
        }
        FUZZ_ASSERT(s.q->nrecv > 0 || conn_has_failed || s.hostile);
    }
    s.said++;
    s.granted += m->credits;
    s.owed -= m->credits;
    rdma_hdr_put_msg(m, bytes);
    conn_deliver(s.q, bytes, sizeof(bytes));
}

static void client(uint8_t op)
{
    uint32_t id = s.nids ? conn_byte() % s.nids + 1 : 0;
    id_model *d = &s.ids[id];
    rdma_hdr_msg m = {.id = id};

    switch (op) {
    case 0: /* takes some */
    case 1: /* all, and says so */
        m.type = RDMA_HDR_CONSUMED;
        m.bytes = d->announced;
        if (op == 0) {
            m.bytes = d->consumed + conn_size(d->announced - d->consumed);
        }
        else if (d->fin) {
            m.flags = RDMA_HDR_FIN;
        }
        break;
    case 2:
        m.type = RDMA_HDR_ABORT;
        break;
    case 3:
        m.type = RDMA_HDR_PING;
        break;
    default:
        m.type = RDMA_HDR_PONG;
    }
    if (m.type == RDMA_HDR_CONSUMED || m.type == RDMA_HDR_ABORT) {
        if (!id || d->client_said) {
            return;
        }
        if (s.q->qp.state
            == IBV_QPS_RTS) { /* before: the server may act on it */
            unsigned said = s.said;

            say(&m, 1);
            if (s.said != said) {
                d->consumed =
                    m.type == RDMA_HDR_CONSUMED ? m.bytes : d->consumed;
                d->client_said = m.type == RDMA_HDR_ABORT || m.flags;
            }
        }
        return;
    }
    say(&m, 1);
}

static void client_lies(void)
{
    uint8_t bytes[RDMA_HDR_MSG_LEN + 8];
    uint8_t len = conn_byte();
    rdma_hdr_msg m;

    len = len & 0x80 ? len % sizeof(bytes) : RDMA_HDR_MSG_LEN;
    memset(bytes, 0, sizeof(bytes));
    bytes[0] = conn_byte();
    bytes[1] = conn_byte();
    bytes[3] = conn_byte();
    bytes[7] = conn_byte() % (IDS + 2);
    conn_bytes(bytes + 8, 8);
    s.hostile = 1;
    s.said++;
    if (rdma_hdr_get_msg(bytes, len, &m) == RDMA_HDR_OK) {
        s.granted += m.credits;
        s.owed = m.credits > s.owed ? 0 : s.owed - m.credits;
        if (m.id && m.id <= IDS) { /* whatever it says, it may be taken */
            id_model *d = &s.ids[m.id];

            d->consumed = m.type == RDMA_HDR_CONSUMED && m.bytes > d->consumed
                              ? m.bytes
                              : d->consumed;
            d->client_said |= m.type == RDMA_HDR_ABORT || m.flags;
        }
    }
    conn_deliver(s.q, bytes, len);
}

/* ---- one thing after the other ----------------------------------------- */

/* 1: who sleeps is woken. */
static int step(void)
{
    uint8_t op = conn_byte() % 24;

    FUZZ_ASSERT(++s.steps < STEPS);
    switch (op) {
    default: /* 0 to 5 */
        work(op);
        break;
    case 6:
    case 7:
    case 8:
    case 9:
    case 10:
        client((uint8_t)(op - 6));
        break;
    case 11:
        client_lies();
        break;
    case 12:
    case 13:
        conn_complete(s.q, 1 + conn_byte() % 8);
        break;
    case 14:
    case 15:
        look_at_receives();
        break;
    case 16:
        look_at_events();
        break;
    case 17:
        expire((int64_t)conn_byte() * 20000);
        break;
    case 18:
        return 1;
    case 19: {
        uint8_t how = conn_byte();

        conn_break(s.q, how & 1, how & 2);
        break;
    }
    case 20:
        conn_fail_send(s.q);
        break;
    case 21: {
        uint8_t what = conn_byte();

        conn_fail(what % 5, 1 + what / 5 % 8);
        conn_keeps_refused = what >> 7;
        break;
    }
    case 22:
        reclaim(NULL);
        break;
    case 23:
        rdma_conn_lock(s.c);
        rdma_conn_close(s.c, RDMA_CONN_CAUSE_IDLE);
        rdma_conn_unlock(s.c);
        break;
    }
    return 0;
}

static void asleep(int64_t us)
{
    FUZZ_ASSERT(++s.steps < STEPS); /* it must not wake for nothing for ever */
    if (s.set) {
        while (conn_left() > 0) {
            if (step()) {
                return;
            }
        }
        if (s.q) { /* the last of the input: what still comes by itself */
            conn_complete(s.q, CONN_SENDS);
        }
    }
    conn_clock += us;
}

/* ---- begin and end ----------------------------------------------------- */

/* What all connections of a child share; made once. */
static void set_up_child(void)
{
    if (!mem) {
        mem = rdma_mem_create(8 << 20);
        pd = ibv_alloc_pd(NULL);
        FUZZ_ASSERT(mem && pd);
        FUZZ_ASSERT(
            rdma_mem_pool_create(mem, pd, BLOCKS * RDMA_MEM_BLOCK, &pool) == 0);
    }
}

static void set_up(rdma_hdr_kind kind)
{
    memset(&s, 0, sizeof(s));
    s.kind = kind;
    conn_posted = posted;
    conn_gone = qp_gone;
    conn_sleep = asleep;
    s.channel = ibv_create_comp_channel(NULL);
    s.events = rdma_create_event_channel();
}

static void accept_of(uint8_t how)
{
    rdma_hdr_accept acc = {.kind = s.kind, .conn = 5};

    s.peer_depth = how & 4 ? 8 : 32;
    acc.depth = (uint8_t)s.peer_depth;
    rdma_hdr_put_accept(&acc, conn_answer_data);
    conn_answer_len = RDMA_HDR_ACCEPT_LEN;
    if ((how & 0x38) == 0x38) { /* anything */
        conn_answer_len = conn_byte() % CONN_DATA;
        conn_bytes(conn_answer_data, conn_answer_len);
        s.peer_depth = conn_answer_data[6];
    }
    if ((how & 0xc0) == 0xc0) {
        conn_answer = RDMA_CM_EVENT_REJECTED;
    }
}

static void set_gone(void *arg)
{
    (void)arg;
    FUZZ_ASSERT(s.gone);
    if (s.set) {
        rdma_body_set_destroy(s.set);
        s.set = NULL;
    }
}

static void check_nothing_left(unsigned objects)
{
    char *blocks[BLOCKS];
    rdma_mem_usage u;
    unsigned i;
    int id;

    FUZZ_ASSERT(conn_objects == objects);
    FUZZ_ASSERT(rdma_mem_pool_take(pool, BLOCKS, blocks) == 0);
    for (i = BLOCKS; i > 0; i--) {
        rdma_mem_pool_give(pool, blocks[i - 1]);
    }
    rdma_mem_usage_get(mem, &u);
    FUZZ_ASSERT(u.used == rdma_mem_pool_bytes(pool) && arenas == 0
                && of_pool == 0);
    for (id = 0; id < RDMA_COUNT_N; id++) {
        FUZZ_ASSERT(rdma_count_infos[id].kind != RDMA_COUNT_GAUGE
                    || rdma_count_here->of[id] == 0);
    }
}

static void run(void)
{
    unsigned i;

    s.q = conn_qp_of(rdma_conn_id(s.c));
    while (conn_left() > 0) {
        step();
    }
    for (i = 0; i < WORKERS; i++) {
        if (s.workers[i].body) {
            abandon(&s.workers[i]);
        }
    }
}

void conn_fuzz_server(void)
{
    uint8_t how = conn_byte();
    rdma_conn_conf conf = {.depth = how & 2 ? 8 : 0,
                           .mem = NULL,
                           .channel = channel_of,
                           .own_send_channel = 1,
                           .hang_up_later = 1,
                           .handler = &handler};
    rdma_conn_target to = {.deadline = 1000000000 + TIMEOUT};
    rdma_conn_failure why;
    rdma_conn *c;
    unsigned objects;

    set_up_child();
    objects = conn_objects;
    set_up(how & 1 ? RDMA_HDR_READ : RDMA_HDR_WRITE);
    conf.kind = s.kind;
    conf.mem = mem;
    conf.domain = s.kind == RDMA_HDR_WRITE ? domain_of : NULL;
    to.remote.ss_family = AF_INET;
    accept_of(how);
    if (rdma_conn_connect(&conf, &to, s.events, &c, &why) == 0) {
        FUZZ_ASSERT(c == s.c);
        if (s.set) {
            run();
        }
        rdma_conn_hang_up(c);
        rdma_conn_destroy(c, set_gone, NULL);
    }
    else {
        FUZZ_ASSERT(!s.set);
    }
    rdma_destroy_event_channel(s.events);
    ibv_destroy_comp_channel(s.channel);
    check_nothing_left(objects);
}
