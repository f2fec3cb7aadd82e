/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * libibverbs and librdmacm.
 */
#include "conn_stub.h"

#include <arpa/inet.h>
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>

#undef ibv_reg_mr

/* ---- objects ----------------------------------------------------------- */

typedef struct conn_cq {
    struct ibv_cq cq;
    struct conn_cq *next;
    unsigned pending, read, acked, users;
    int armed;
    unsigned head, n, size;
    struct ibv_wc *ring;
} conn_cq;

typedef struct conn_event {
    struct rdma_cm_event event;
    struct conn_event *next;
    uint8_t data[CONN_DATA];
} conn_event;

unsigned conn_objects;
void (*conn_posted)(conn_qp *q, const conn_wr *w);
void (*conn_completed)(conn_qp *q, const conn_wr *w, int ok);
void (*conn_gone)(conn_qp *q);
void (*conn_accepted)(conn_qp *q, const void *data, size_t len);
enum rdma_cm_event_type conn_answer;
uint8_t conn_answer_data[CONN_DATA];
uint8_t conn_answer_len;

static conn_cq *cqs;
static conn_id *ids;
static conn_event *events;
static unsigned numbers;    /* of QPs and keys */
static int descriptor = -1; /* that all channels have */

static int poll_cq(struct ibv_cq *cq, int n, struct ibv_wc *wc);
static int req_notify_cq(struct ibv_cq *cq, int solicited_only);
static int post_send(struct ibv_qp *qp, struct ibv_send_wr *wr,
                     struct ibv_send_wr **bad);
static int post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr,
                     struct ibv_recv_wr **bad);

static struct ibv_device device = {.name = "fuzz0"};
static struct ibv_context context = {.device = &device,
                                     .ops = {.poll_cq = poll_cq,
                                             .req_notify_cq = req_notify_cq,
                                             .post_send = post_send,
                                             .post_recv = post_recv}};

static void *made(size_t size)
{
    void *p = calloc(1, size);

    FUZZ_ASSERT(p);
    conn_objects++;
    return p;
}

static void unmade(void *p)
{
    conn_objects--;
    free(p);
}

void conn_reset(void)
{
    FUZZ_ASSERT(!cqs && !ids && !events);
    if (descriptor < 0) {
        descriptor = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    }
    conn_calls_reset();
    conn_answer = RDMA_CM_EVENT_ESTABLISHED;
    conn_answer_len = 0;
    conn_completed = NULL;
    conn_gone = NULL;
    conn_accepted = NULL;
}

int ibv_query_device(struct ibv_context *c, struct ibv_device_attr *attr)
{
    (void)c;
    memset(attr, 0, sizeof(*attr)); /* nobody's */
    return 0;
}

const char *ibv_get_device_name(struct ibv_device *d)
{
    return d->name;
}

const char *ibv_wc_status_str(enum ibv_wc_status status)
{
    return status == IBV_WC_SUCCESS ? "success" : "failed";
}

const char *rdma_event_str(enum rdma_cm_event_type type)
{
    (void)type;
    return "event";
}

struct ibv_pd *ibv_alloc_pd(struct ibv_context *c)
{
    struct ibv_pd *pd = made(sizeof(*pd));

    pd->context = c;
    return pd;
}

int ibv_dealloc_pd(struct ibv_pd *pd)
{
    unmade(pd);
    return 0;
}

struct ibv_mr *ibv_reg_mr_iova2(struct ibv_pd *pd, void *addr, size_t len,
                                uint64_t iova, unsigned access)
{
    struct ibv_mr *mr;

    (void)iova;
    (void)access;
    if (conn_trip(CONN_FAIL_MR)) {
        return NULL;
    }
    mr = made(sizeof(*mr));
    mr->context = pd->context;
    mr->pd = pd;
    mr->addr = addr;
    mr->length = len;
    mr->lkey = mr->rkey = 0x10000 + numbers++ % 0x10000;
    return mr;
}

struct ibv_mr *ibv_reg_mr(struct ibv_pd *pd, void *addr, size_t len, int access)
{
    return ibv_reg_mr_iova2(pd, addr, len, 0, (unsigned)access);
}

int ibv_dereg_mr(struct ibv_mr *mr)
{
    unmade(mr);
    return 0;
}

struct ibv_comp_channel *ibv_create_comp_channel(struct ibv_context *c)
{
    struct ibv_comp_channel *channel = made(sizeof(*channel));

    channel->context = c;
    channel->fd = descriptor;
    return channel;
}

int ibv_destroy_comp_channel(struct ibv_comp_channel *channel)
{
    FUZZ_ASSERT(channel->refcnt == 0);
    unmade(channel);
    return 0;
}

/* ---- completion queues ------------------------------------------------- */

struct ibv_cq *ibv_create_cq(struct ibv_context *c, int cqe, void *cq_context,
                             struct ibv_comp_channel *channel, int vector)
{
    conn_cq *q = made(sizeof(*q));

    (void)vector;
    q->cq.context = c;
    q->cq.cq_context = cq_context;
    q->cq.channel = channel;
    q->size = (unsigned)cqe;
    q->ring = calloc(q->size, sizeof(*q->ring));
    FUZZ_ASSERT(q->ring);
    channel->refcnt++;
    q->next = cqs;
    cqs = q;
    return &q->cq;
}

int ibv_destroy_cq(struct ibv_cq *cq)
{
    conn_cq *q = (conn_cq *)cq;
    conn_cq **link = &cqs;

    FUZZ_ASSERT(q->users == 0 && q->acked == q->read);
    while (*link != q) {
        link = &(*link)->next;
    }
    *link = q->next;
    cq->channel->refcnt--;
    free(q->ring);
    unmade(q);
    return 0;
}

static void complete(struct ibv_cq *cq, const struct ibv_wc *wc)
{
    conn_cq *q = (conn_cq *)cq;

    FUZZ_ASSERT(q->n < q->size); /* an overrun */
    q->ring[(q->head + q->n++) % q->size] = *wc;
    if (q->armed) {
        q->armed = 0;
        q->pending++;
    }
}

static int poll_cq(struct ibv_cq *cq, int n, struct ibv_wc *wc)
{
    conn_cq *q = (conn_cq *)cq;

    FUZZ_ASSERT(n == 1);
    if (q->n == 0) {
        return 0;
    }
    *wc = q->ring[q->head];
    q->head = (q->head + 1) % q->size;
    q->n--;
    return 1;
}

static int req_notify_cq(struct ibv_cq *cq, int solicited_only)
{
    (void)solicited_only;
    if (conn_trip(CONN_FAIL_NOTIFY)) {
        return ENOMEM;
    }
    ((conn_cq *)cq)->armed = 1;
    return 0;
}

int ibv_get_cq_event(struct ibv_comp_channel *channel, struct ibv_cq **cq,
                     void **cq_context)
{
    conn_cq *q = cqs;

    while (q && (q->cq.channel != channel || q->pending == 0)) {
        q = q->next;
    }
    if (!q) {
        errno = EAGAIN;
        return -1;
    }
    q->pending--;
    q->read++;
    *cq = &q->cq;
    *cq_context = q->cq.cq_context;
    return 0;
}

void ibv_ack_cq_events(struct ibv_cq *cq, unsigned n)
{
    conn_cq *q = (conn_cq *)cq;

    q->acked += n;
    FUZZ_ASSERT(q->acked <= q->read);
}

/* ---- queue pairs ------------------------------------------------------- */

conn_qp *conn_qp_of(const struct rdma_cm_id *id)
{
    return (conn_qp *)id->qp;
}

int rdma_create_qp(struct rdma_cm_id *id, struct ibv_pd *pd,
                   struct ibv_qp_init_attr *attr)
{
    conn_qp *q = made(sizeof(*q));

    FUZZ_ASSERT(attr->cap.max_send_wr <= CONN_SENDS
                && attr->cap.max_recv_wr <= CONN_RECVS);
    (void)pd;
    q->qp.context = id->verbs;
    q->qp.send_cq = attr->send_cq;
    q->qp.recv_cq = attr->recv_cq;
    q->qp.state = IBV_QPS_INIT;
    q->max_recv = attr->cap.max_recv_wr;
    q->id = (conn_id *)id;
    ((conn_cq *)attr->send_cq)->users++;
    ((conn_cq *)attr->recv_cq)->users++;
    id->qp = &q->qp;
    return 0;
}

void rdma_destroy_qp(struct rdma_cm_id *id)
{
    conn_qp *q = conn_qp_of(id);

    if (conn_gone) {
        conn_gone(q);
    }
    ((conn_cq *)q->qp.send_cq)->users--;
    ((conn_cq *)q->qp.recv_cq)->users--;
    id->qp = NULL;
    unmade(q);
}

static int post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr,
                     struct ibv_recv_wr **bad)
{
    conn_qp *q = (conn_qp *)qp;
    unsigned i = (q->rhead + q->nrecv) % q->max_recv;

    *bad = wr;
    if (conn_trip(CONN_FAIL_RECV) || qp->state == IBV_QPS_ERR) {
        return ENOTCONN;
    }
    FUZZ_ASSERT(q->nrecv < q->max_recv);
    q->recv[i].wr_id = wr->wr_id;
    q->recv[i].base = (char *)(uintptr_t)wr->sg_list->addr;
    q->recv[i].len = wr->sg_list->length;
    q->nrecv++;
    return 0;
}

static int post_send(struct ibv_qp *qp, struct ibv_send_wr *wr,
                     struct ibv_send_wr **bad)
{
    conn_qp *q = (conn_qp *)qp;
    conn_wr *w = &q->sends[(q->head + q->n) % CONN_SENDS];

    *bad = wr;
    FUZZ_ASSERT(wr->num_sge == 1 && q->n < CONN_SENDS);
    w->wr_id = wr->wr_id;
    w->opcode = wr->opcode;
    w->local = (char *)(uintptr_t)wr->sg_list->addr;
    w->len = wr->sg_list->length;
    w->lkey = wr->sg_list->lkey;
    w->to = wr->wr.rdma.remote_addr;
    w->rkey = wr->wr.rdma.rkey;
    w->refused = conn_trip(CONN_FAIL_SEND) || qp->state != IBV_QPS_RTS;
    FUZZ_ASSERT(!conn_in_flight(q, w->local, w->len));
    if (w->refused) {
        q->n += conn_keeps_refused != 0;
        conn_break(q, 0, 0);
        return ENOTCONN;
    }
    if (w->opcode == IBV_WR_RDMA_READ) {
        FUZZ_ASSERT(q->reads < q->max_reads);
        q->reads++;
    }
    conn_posted(q, w);
    q->n++;
    return 0;
}

int conn_in_flight(const conn_qp *q, const char *base, size_t len)
{
    unsigned i;

    for (i = 0; i < q->n; i++) {
        const conn_wr *w = &q->sends[(q->head + i) % CONN_SENDS];

        if (base < w->local + w->len && w->local < base + len) {
            return 1;
        }
    }
    return 0;
}

static void finish_send(conn_qp *q, enum ibv_wc_status status)
{
    const conn_wr *w = &q->sends[q->head];
    struct ibv_wc wc = {.wr_id = w->wr_id, .status = status};

    wc.opcode = status                          ? IBV_WC_RECV
                : w->opcode == IBV_WR_SEND      ? IBV_WC_SEND
                : w->opcode == IBV_WR_RDMA_READ ? IBV_WC_RDMA_READ
                                                : IBV_WC_RDMA_WRITE;
    if (!w->refused && conn_completed) {
        conn_completed(q, w, status == IBV_WC_SUCCESS);
    }
    q->reads -= !w->refused && w->opcode == IBV_WR_RDMA_READ;
    q->head = (q->head + 1) % CONN_SENDS;
    q->n--;
    complete(q->qp.send_cq, &wc);
}

void conn_complete(conn_qp *q, unsigned n)
{
    while (n-- > 0 && q->n > 0) {
        finish_send(q, q->qp.state == IBV_QPS_ERR ? IBV_WC_WR_FLUSH_ERR
                                                  : IBV_WC_SUCCESS);
    }
}

void conn_fail_send(conn_qp *q)
{
    if (q->n > 0 && q->qp.state == IBV_QPS_RTS) {
        finish_send(q, IBV_WC_REM_ACCESS_ERR);
        conn_break(q, 0, 0);
    }
}

void conn_deliver(conn_qp *q, const void *bytes, uint32_t len)
{
    struct ibv_wc wc = {.opcode = IBV_WC_RECV, .byte_len = len};

    if (q->qp.state != IBV_QPS_RTS) {
        return;
    }
    if (q->nrecv == 0 || len > q->recv[q->rhead].len) {
        conn_break(q, 1, 1);
        return;
    }
    memcpy(q->recv[q->rhead].base, bytes, len);
    wc.wr_id = q->recv[q->rhead].wr_id;
    q->rhead = (q->rhead + 1) % q->max_recv;
    q->nrecv--;
    complete(q->qp.recv_cq, &wc);
}

void conn_break(conn_qp *q, int tell, int flush)
{
    q->qp.state = IBV_QPS_ERR;
    while (flush && q->nrecv > 0) {
        struct ibv_wc wc = {.wr_id = q->recv[q->rhead].wr_id,
                            .status = IBV_WC_WR_FLUSH_ERR};

        q->rhead = (q->rhead + 1) % q->max_recv;
        q->nrecv--;
        complete(q->qp.recv_cq, &wc);
    }
    if (tell) {
        conn_event_for(&q->id->id, RDMA_CM_EVENT_DISCONNECTED);
    }
}

/* ---- connection manager ------------------------------------------------ */

struct rdma_event_channel *rdma_create_event_channel(void)
{
    struct rdma_event_channel *channel = made(sizeof(*channel));

    channel->fd = descriptor;
    return channel;
}

void rdma_destroy_event_channel(struct rdma_event_channel *channel)
{
    unmade(channel);
}

static conn_event *push(struct rdma_cm_id *id, enum rdma_cm_event_type type)
{
    conn_event *e = made(sizeof(*e));
    conn_event **link = &events;

    e->event.id = id;
    e->event.event = type;
    while (*link) {
        link = &(*link)->next;
    }
    *link = e;
    return e;
}

void conn_event_for(struct rdma_cm_id *id, enum rdma_cm_event_type type)
{
    push(id, type);
}

int rdma_get_cm_event(struct rdma_event_channel *channel,
                      struct rdma_cm_event **event)
{
    conn_event **link = &events;
    conn_event *e;

    while (*link && (*link)->event.id->channel != channel) {
        link = &(*link)->next;
    }
    e = *link;
    if (!e) {
        errno = EAGAIN;
        return -1;
    }
    *link = e->next;
    ((conn_id *)e->event.id)->unacked++;
    *event = &e->event;
    return 0;
}

int rdma_ack_cm_event(struct rdma_cm_event *event)
{
    ((conn_id *)event->id)->unacked--;
    unmade(event);
    return 0;
}

int rdma_create_id(struct rdma_event_channel *channel, struct rdma_cm_id **id,
                   void *id_context, enum rdma_port_space ps)
{
    conn_id *c = made(sizeof(*c));
    struct sockaddr_in *peer = (struct sockaddr_in *)&c->id.route.addr.dst_addr;

    (void)ps;
    peer->sin_family = AF_INET;
    peer->sin_addr.s_addr = htonl(0xc0000201);
    c->id.channel = channel;
    c->id.context = id_context;
    c->next = ids;
    ids = c;
    *id = &c->id;
    return 0;
}

int rdma_destroy_id(struct rdma_cm_id *id)
{
    conn_id *c = (conn_id *)id;
    conn_id **link = &ids;
    conn_event **e = &events;

    FUZZ_ASSERT(!id->qp && c->unacked == 0);
    while (*link != c) {
        link = &(*link)->next;
    }
    *link = c->next;
    while (*e) {
        conn_event *gone = *e;

        if (gone->event.id == id) {
            *e = gone->next;
            unmade(gone);
        }
        else {
            e = &gone->next;
        }
    }
    unmade(c);
    return 0;
}

int rdma_migrate_id(struct rdma_cm_id *id, struct rdma_event_channel *channel)
{
    id->channel = channel;
    return 0;
}

int rdma_bind_addr(struct rdma_cm_id *id, struct sockaddr *addr)
{
    (void)addr;
    id->verbs = &context;
    return 0;
}

int rdma_listen(struct rdma_cm_id *id, int backlog)
{
    (void)id;
    (void)backlog;
    return 0;
}

uint16_t rdma_get_src_port(struct rdma_cm_id *id)
{
    (void)id;
    return htons(4711);
}

int rdma_resolve_addr(struct rdma_cm_id *id, struct sockaddr *src,
                      struct sockaddr *dst, int ms)
{
    (void)src;
    (void)dst;
    (void)ms;
    id->verbs = &context;
    push(id, RDMA_CM_EVENT_ADDR_RESOLVED);
    return 0;
}

int rdma_resolve_route(struct rdma_cm_id *id, int ms)
{
    (void)ms;
    push(id, RDMA_CM_EVENT_ROUTE_RESOLVED);
    return 0;
}

static void attach(conn_event *e, const void *data, uint8_t len)
{
    memcpy(e->data, data, len);
    e->event.param.conn.private_data = e->data;
    e->event.param.conn.private_data_len = len;
}

int rdma_connect(struct rdma_cm_id *id, struct rdma_conn_param *param)
{
    conn_qp *q = conn_qp_of(id);

    (void)param;
    q->qp.state =
        conn_answer == RDMA_CM_EVENT_ESTABLISHED ? IBV_QPS_RTS : IBV_QPS_ERR;
    attach(push(id, conn_answer), conn_answer_data, conn_answer_len);
    return 0;
}

void conn_request(const void *data, uint8_t len, unsigned initiator_depth)
{
    conn_id *listener = ids;
    struct rdma_cm_id *id;
    conn_event *e;

    while (listener->next) { /* the oldest id is the one that listens */
        listener = listener->next;
    }
    rdma_create_id(listener->id.channel, &id, listener->id.context,
                   RDMA_PS_TCP);
    id->verbs = &context;
    ((conn_id *)id)->depth = len > 6 ? ((const uint8_t *)data)[6] : 0;
    e = push(id, RDMA_CM_EVENT_CONNECT_REQUEST);
    attach(e, data, len);
    e->event.listen_id = &listener->id;
    e->event.param.conn.initiator_depth = (uint8_t)initiator_depth;
}

int rdma_accept(struct rdma_cm_id *id, struct rdma_conn_param *param)
{
    conn_qp *q = conn_qp_of(id);

    if (conn_trip(CONN_FAIL_ACCEPT)) {
        return -1;
    }
    q->qp.state = IBV_QPS_RTS;
    q->max_reads = param->initiator_depth;
    if (conn_accepted) {
        conn_accepted(q, param->private_data, param->private_data_len);
    }
    push(id, RDMA_CM_EVENT_ESTABLISHED);
    return 0;
}

int rdma_reject(struct rdma_cm_id *id, const void *data, uint8_t len)
{
    (void)id;
    (void)data;
    (void)len;
    return 0;
}

int rdma_disconnect(struct rdma_cm_id *id)
{
    conn_qp *q = conn_qp_of(id);

    FUZZ_ASSERT(q);
    conn_break(q, 1, 0);
    return 0;
}
