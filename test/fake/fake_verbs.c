/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * libibverbs: memory, completion queues, queue pairs.
 */
#include "fake_private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#undef ibv_reg_mr

static int poll_cq(struct ibv_cq *cq, int n, struct ibv_wc *wc);
static int req_notify_cq(struct ibv_cq *cq, int solicited_only);
static int post_send(struct ibv_qp *qp, struct ibv_send_wr *wr,
                     struct ibv_send_wr **bad);
static int post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr,
                     struct ibv_recv_wr **bad);

static struct ibv_device device = {.node_type = IBV_NODE_RNIC,
                                   .transport_type = IBV_TRANSPORT_IWARP,
                                   .name = "fake0"};
struct ibv_context fake_context = {.device = &device,
                                   .cmd_fd = -1,
                                   .async_fd = -1,
                                   .ops = {.poll_cq = poll_cq,
                                           .req_notify_cq = req_notify_cq,
                                           .post_send = post_send,
                                           .post_recv = post_recv}};

/* ---- small things ------------------------------------------------------ */

int ibv_fork_init(void)
{
    return 0;
}

const char *ibv_get_device_name(struct ibv_device *d)
{
    return d->name;
}

const char *ibv_wc_status_str(enum ibv_wc_status status)
{
    return status == IBV_WC_SUCCESS          ? "success"
           : status == IBV_WC_WR_FLUSH_ERR   ? "flushed"
           : status == IBV_WC_REM_ACCESS_ERR ? "remote access error"
                                             : "failed";
}

/* NULL after this: the call is to fail, errno is set. */
static void *made(const char *function, size_t size)
{
    void *p;
    int error = fake_trip(function);

    p = error ? NULL : calloc(1, size);
    if (!p) {
        errno = error ? error : ENOMEM;
    }
    return p;
}

/* ---- protection domains and memory ------------------------------------- */

int ibv_query_device(struct ibv_context *context, struct ibv_device_attr *attr)
{
    (void)context;
    memset(attr, 0, sizeof(*attr)); /* nobody's device, least of all siw's */
    return fake_trip("ibv_query_device");
}

struct ibv_pd *ibv_alloc_pd(struct ibv_context *context)
{
    fake_pd *p = made("ibv_alloc_pd", sizeof(*p));

    if (!p) {
        return NULL;
    }
    p->pd.context = context;
    fake_lock();
    fake.pds++;
    fake_unlock();
    return &p->pd;
}

int ibv_dealloc_pd(struct ibv_pd *pd)
{
    fake_pd *p = (fake_pd *)pd;

    fake_lock();
    if (p->users > p->kept) {
        fake_fault("ibv_dealloc_pd: it has %u MRs and QPs", p->users);
    }
    if (p->kept) {
        fake_unlock();
        return EBUSY;
    }
    fake.pds--;
    fake_unlock();
    free(p);
    return 0;
}

static struct ibv_mr *reg_mr(struct ibv_pd *pd, void *addr, size_t len,
                             unsigned access)
{
    fake_mr *m = made("ibv_reg_mr", sizeof(*m));
    int full;

    if (!m) {
        return NULL;
    }
    m->mr.context = pd->context;
    m->mr.pd = pd;
    m->mr.addr = addr;
    m->mr.length = len;
    m->access = access;
    fake_lock();
    full = fake.memlock && fake.registered + len > fake.memlock;
    if (!full) {
        do { /* 24 random bits, as siw; unique */
            m->mr.lkey = m->mr.rkey = (1 + fake_random(0xffffff)) << 8;
        } while (fake_find_mr(NULL, m->mr.lkey, 0, 0, 0));
        m->next = fake.mrs;
        fake.mrs = m;
        fake.nmrs++;
        fake.registered += len;
        ((fake_pd *)pd)->users++;
    }
    fake_unlock();
    if (full) {
        free(m);
        errno = ENOMEM;
        return NULL;
    }
    return &m->mr;
}

struct ibv_mr *ibv_reg_mr(struct ibv_pd *pd, void *addr, size_t len, int access)
{
    return reg_mr(pd, addr, len, (unsigned)access);
}

struct ibv_mr *ibv_reg_mr_iova2(struct ibv_pd *pd, void *addr, size_t len,
                                uint64_t iova, unsigned access)
{
    (void)iova;
    return reg_mr(pd, addr, len, access);
}

static int is_posted(uint64_t at, uint64_t len);

int ibv_dereg_mr(struct ibv_mr *mr)
{
    fake_mr *m = (fake_mr *)mr;
    fake_mr **link = &fake.mrs;
    int error = fake_trip("ibv_dereg_mr");

    fake_lock();
    while (*link && *link != m) {
        link = &(*link)->next;
    }
    if (!*link) {
        fake_fault("ibv_dereg_mr: no such MR");
    }
    if (error) { /* the device keeps it */
        ((fake_pd *)mr->pd)->kept += !m->kept;
        m->kept = 1;
        fake_unlock();
        return error;
    }
    if (is_posted((uintptr_t)mr->addr, mr->length)) {
        fake_fault("ibv_dereg_mr: work requests need it");
    }
    ((fake_pd *)mr->pd)->kept -= m->kept != 0;
    *link = m->next;
    fake.nmrs--;
    fake.registered -= mr->length;
    ((fake_pd *)mr->pd)->users--;
    fake_unlock();
    free(m);
    return 0;
}

size_t fake_free_kept(void)
{
    size_t bytes = 0;
    fake_mr *m;
    fake_mr *next;

    for (m = fake.mrs; m; m = next) {
        next = m->next;
        if (m->kept) {
            struct ibv_pd *pd = m->mr.pd;

            bytes += m->mr.length;
            munmap(m->mr.addr, m->mr.length);
            ibv_dereg_mr(&m->mr);
            if (((fake_pd *)pd)->users == 0) {
                ibv_dealloc_pd(pd);
            }
        }
    }
    return bytes;
}

/* pd NULL: the key alone. */
const fake_mr *fake_find_mr(const struct ibv_pd *pd, uint32_t key,
                            uint64_t base, uint64_t len, unsigned access)
{
    const fake_mr *m = fake.mrs;
    uint64_t from;

    while (m && m->mr.lkey != key) {
        m = m->next;
    }
    if (!m || !pd) {
        return m;
    }
    from = (uintptr_t)m->mr.addr;
    if (m->mr.pd != pd || (m->access & access) != access || base < from
        || len > m->mr.length || base - from > m->mr.length - len) {
        return NULL;
    }
    return m;
}

size_t fake_registered_with(unsigned access)
{
    const fake_mr *m;
    size_t n = 0;

    fake_lock();
    for (m = fake.mrs; m; m = m->next) {
        n += (m->access & access) == access ? m->mr.length : 0;
    }
    fake_unlock();
    return n;
}

int fake_may_be_read(const void *at, uint32_t rkey)
{
    const fake_mr *m;
    int may;

    fake_lock();
    m = fake_find_mr(NULL, rkey, 0, 0, 0);
    may = m && (m->access & IBV_ACCESS_REMOTE_READ)
          && fake_find_mr(m->mr.pd, rkey, (uintptr_t)at, 1, 0) == m;
    fake_unlock();
    return may;
}

static int overlap(uint64_t a, uint64_t alen, uint64_t b, uint64_t blen)
{
    return a < b + blen && b < a + alen;
}

/* [locked] What is read at the other end is read only as long as both are there. */
static int has_in_hand(const fake_qp *q, const fake_wr *w, uint64_t at,
                       uint64_t len)
{
    const fake_id *peer = q->id->peer;

    if (!w->completed && overlap((uintptr_t)w->local, w->len, at, len)) {
        return 1;
    }
    return w->opcode == IBV_WR_RDMA_READ && !w->landed
           && q->qp.state == IBV_QPS_RTS && peer && peer->id.qp
           && peer->id.qp->state == IBV_QPS_RTS
           && overlap(w->to, w->len, at, len);
}

static int is_posted(uint64_t at, uint64_t len)
{
    const fake_qp *q;
    const fake_wr *w;

    for (q = fake.qps; q; q = q->next) {
        for (w = q->first; w; w = w->next) {
            if (has_in_hand(q, w, at, len)) {
                return 1;
            }
        }
    }
    return 0;
}

int fake_is_posted(const void *at, size_t len)
{
    int posted;

    fake_lock();
    posted = is_posted((uintptr_t)at, len);
    fake_unlock();
    return posted;
}

/* ---- completion channels ----------------------------------------------- */

struct ibv_comp_channel *ibv_create_comp_channel(struct ibv_context *context)
{
    fake_comp *h = made("ibv_create_comp_channel", sizeof(*h));

    if (!h) {
        return NULL;
    }
    h->channel.context = context;
    h->channel.fd = fake_fd_make();
    if (h->channel.fd < 0) {
        free(h);
        return NULL;
    }
    fake_lock();
    fake.comps++;
    fake_unlock();
    return &h->channel;
}

int ibv_destroy_comp_channel(struct ibv_comp_channel *channel)
{
    fake_comp *h = (fake_comp *)channel;

    fake_lock();
    if (channel->refcnt) {
        fake_fault("ibv_destroy_comp_channel: %d CQs use it", channel->refcnt);
    }
    fake.comps--;
    fake_unlock();
    close(channel->fd);
    free(h);
    fake_trip("ibv_destroy_comp_channel"); /* it cannot fail */
    return 0;
}

/* [locked] */
static void channel_unlink(fake_comp *h, const fake_cq *q)
{
    fake_cq **link = &h->first;

    while (*link && *link != q) {
        link = &(*link)->next;
    }
    if (*link) {
        *link = q->next;
    }
    fake_fd_set(h->channel.fd, h->first != NULL);
}

/* [locked] One event of this CQ. */
static void channel_event(fake_cq *q)
{
    fake_comp *h = (fake_comp *)q->cq.channel;
    fake_cq **link;

    q->armed = 0;
    if (!h || q->pending++ > 0) {
        return;
    }
    link = &h->first;
    while (*link) {
        link = &(*link)->next;
    }
    q->next = NULL;
    *link = q;
    fake_fd_set(h->channel.fd, 1);
}

int ibv_get_cq_event(struct ibv_comp_channel *channel, struct ibv_cq **cq,
                     void **context)
{
    fake_comp *h = (fake_comp *)channel;
    fake_cq *q;
    int error = fake_trip("ibv_get_cq_event");

    if (error) {
        errno = error;
        return -1;
    }
    fake_lock();
    while (!h->first) {
        fake_unlock();
        if (!fake_fd_wait(channel->fd)) {
            errno = EAGAIN;
            return -1;
        }
        fake_lock();
    }
    q = h->first;
    q->read++;
    if (--q->pending == 0) {
        channel_unlink(h, q);
    }
    fake_unlock();
    *cq = &q->cq;
    *context = q->cq.cq_context;
    return 0;
}

void ibv_ack_cq_events(struct ibv_cq *cq, unsigned n)
{
    fake_cq *q = (fake_cq *)cq;

    fake_lock();
    q->acked += n;
    if (q->acked > q->read) {
        fake_fault("ibv_ack_cq_events: %u of %u", q->acked, q->read);
    }
    pthread_cond_broadcast(&fake.acked);
    fake_unlock();
}

/* ---- completion queues ------------------------------------------------- */

struct ibv_cq *ibv_create_cq(struct ibv_context *context, int cqe,
                             void *cq_context, struct ibv_comp_channel *channel,
                             int vector)
{
    fake_cq *q = made("ibv_create_cq", sizeof(*q));

    (void)vector;
    if (!q) {
        return NULL;
    }
    q->cq.context = context;
    q->cq.cq_context = cq_context;
    q->cq.channel = channel;
    q->cq.cqe = cqe;
    q->size = (unsigned)cqe;
    q->ring = calloc(q->size, sizeof(*q->ring));
    if (!q->ring) {
        free(q);
        return NULL;
    }
    fake_lock();
    fake.cqs++;
    if (channel) {
        channel->refcnt++;
    }
    fake_unlock();
    return &q->cq;
}

int ibv_destroy_cq(struct ibv_cq *cq)
{
    fake_cq *q = (fake_cq *)cq;

    fake_lock();
    if (q->users) {
        fake_fault("ibv_destroy_cq: a QP uses it");
    }
    if (cq->channel) { /* events that nobody has read are no more */
        q->pending = 0;
        channel_unlink((fake_comp *)cq->channel, q);
        cq->channel->refcnt--;
    }
    while (q->acked < q->read) {
        if (fake_wait_acked()) {
            fake_fault("ibv_destroy_cq: %u of %u events acked", q->acked,
                       q->read);
        }
    }
    fake.cqs--;
    fake_unlock();
    free(q->ring);
    free(q);
    return 0;
}

void fake_complete(struct ibv_cq *cq, const struct ibv_wc *wc)
{
    fake_cq *q = (fake_cq *)cq;

    if (q->n == q->size) {
        fake_fault("a CQ of %u is overrun", q->size);
    }
    q->ring[(q->head + q->n++) % q->size] = *wc;
    if (q->armed) {
        channel_event(q);
    }
}

static int poll_cq(struct ibv_cq *cq, int n, struct ibv_wc *wc)
{
    fake_cq *q = (fake_cq *)cq;
    int any;
    int i;

    fake_lock();
    any = q->n > 0;
    fake_unlock();
    if (any && fake_trip("ibv_poll_cq")) {
        __atomic_store_n(&q->broken, 1, __ATOMIC_RELAXED);
    }
    if (__atomic_load_n(&q->broken, __ATOMIC_RELAXED)) {
        return -1;
    }
    fake_lock();
    for (i = 0; i < n && q->n > 0; i++) {
        wc[i] = q->ring[q->head];
        q->head = (q->head + 1) % q->size;
        q->n--;
    }
    fake_unlock();
    return i;
}

/* What completes just before raises no event: who does not poll once more
 * sleeps for ever. It happens here more often than elsewhere. */
static int req_notify_cq(struct ibv_cq *cq, int solicited_only)
{
    int error = fake_trip("ibv_req_notify_cq");

    (void)solicited_only;
    if (error) {
        return error;
    }
    fake_lock();
    fake_thaw(cq);
    if (fake_random(2)) {
        fake_hurry(cq);
    }
    ((fake_cq *)cq)->armed = 1;
    fake_unlock();
    return 0;
}

/* ---- queue pairs ------------------------------------------------------- */

fake_qp *fake_qp_make(fake_id *id, struct ibv_pd *pd,
                      const struct ibv_qp_init_attr *attr)
{
    fake_qp *q = calloc(1, sizeof(*q));

    if (!q) {
        return NULL;
    }
    q->recv = calloc(attr->cap.max_recv_wr, sizeof(*q->recv));
    if (!q->recv) {
        free(q);
        return NULL;
    }
    q->qp.context = pd->context;
    q->qp.pd = pd;
    q->qp.send_cq = attr->send_cq;
    q->qp.recv_cq = attr->recv_cq;
    q->qp.qp_type = attr->qp_type;
    q->qp.qp_num = ++fake.number;
    q->qp.state = IBV_QPS_INIT;
    q->id = id;
    q->max_send = attr->cap.max_send_wr;
    q->max_recv = attr->cap.max_recv_wr;
    q->next = fake.qps;
    fake.qps = q;
    fake.nqps++;
    ((fake_pd *)pd)->users++;
    ((fake_cq *)attr->send_cq)->users++;
    ((fake_cq *)attr->recv_cq)->users++;
    return q;
}

void fake_qp_free(fake_qp *q)
{
    fake_qp **link = &fake.qps;

    while (*link != q) {
        link = &(*link)->next;
    }
    *link = q->next;
    fake.nqps--;
    ((fake_pd *)q->qp.pd)->users--;
    ((fake_cq *)q->qp.send_cq)->users--;
    ((fake_cq *)q->qp.recv_cq)->users--;
    while (q->first) { /* without a completion */
        fake_wr *w = q->first;

        q->first = w->next;
        free(w->copy);
        free(w);
    }
    free(q->recv);
    free(q);
}

/* [locked] What becomes of a post to a QP in error: an errno, or 0; *queued: it is
 * flushed. */
static int dead_post(const fake_qp *q, int *queued)
{
    *queued = q->dead_posts == 1 || q->dead_posts == 3;
    if (fake.refuse_dead_posts || q->dead_posts == 0 || q->dead_posts == 3) {
        return ENOTCONN;
    }
    return 0;
}

static fake_wr *copy_wr(const struct ibv_send_wr *wr)
{
    fake_wr *w = calloc(1, sizeof(*w));

    if (!w || wr->num_sge != 1) {
        fake_fault("ibv_post_send: %d SGEs", wr->num_sge);
    }
    w->wr_id = wr->wr_id;
    w->opcode = wr->opcode;
    w->local = (char *)(uintptr_t)wr->sg_list->addr;
    w->len = wr->sg_list->length;
    w->lkey = wr->sg_list->lkey;
    w->to = wr->wr.rdma.remote_addr;
    w->rkey = wr->wr.rdma.rkey;
    w->signaled = (wr->send_flags & IBV_SEND_SIGNALED) != 0;
    return w;
}

static int post_send(struct ibv_qp *qp, struct ibv_send_wr *wr,
                     struct ibv_send_wr **bad)
{
    fake_qp *q = (fake_qp *)qp;
    fake_wr **link;
    int rc = fake_trip("ibv_post_send");
    int queued = rc == 0 || rc == ENOTCONN; /* siw's way to refuse */

    fake_lock();
    if (wr->next) {
        fake_fault("ibv_post_send: a list");
    }
    if (qp->state == IBV_QPS_ERR && rc == 0) {
        rc = dead_post(q, &queued);
    }
    else if (qp->state != IBV_QPS_RTS && rc == 0) {
        rc = EINVAL;
        queued = 0;
    }
    if (queued && q->nsend == q->max_send) {
        fake_fault("a send queue of %u is overrun", q->max_send);
    }
    if (queued) {
        link = &q->first;
        while (*link) {
            link = &(*link)->next;
        }
        *link = copy_wr(wr);
        (*link)->refused = rc != 0;
        q->nsend++;
        fake_work();
    }
    fake_unlock();
    if (rc) {
        *bad = wr;
    }
    return rc;
}

static int post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr,
                     struct ibv_recv_wr **bad)
{
    fake_qp *q = (fake_qp *)qp;
    int rc = fake_trip("ibv_post_recv");
    int queued = 1;

    if (rc) {
        *bad = wr;
        return rc;
    }
    fake_lock();
    if (wr->next || wr->num_sge != 1) {
        fake_fault("ibv_post_recv: a list");
    }
    if (qp->state == IBV_QPS_ERR) {
        rc = dead_post(q, &queued);
    }
    if (queued && q->nrecv == q->max_recv) {
        fake_fault("a receive queue of %u is overrun", q->max_recv);
    }
    if (queued) {
        fake_receive *r = &q->recv[(q->rhead + q->nrecv++) % q->max_recv];

        r->wr_id = wr->wr_id;
        r->base = (char *)(uintptr_t)wr->sg_list->addr;
        r->len = wr->sg_list->length;
        r->lkey = wr->sg_list->lkey;
        if (qp->state == IBV_QPS_ERR) {
            fake_work();
        }
    }
    fake_unlock();
    if (rc) {
        *bad = wr;
    }
    return rc;
}
