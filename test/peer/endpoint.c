/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "endpoint.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>

#include "loop.h"
#include "script.h"

enum { TICK_MS = 250, HELLO_SECONDS = 10, PING_SECONDS = 15 };

static void (*all_done)(struct endpoint *);

struct window *window_get(struct endpoint *ep, enum use use)
{
    struct window *w = ep->windows[use];
    if (w != NULL) {
        ep->windows[use] = w->next;
        return w;
    }
    w = need(calloc(1, sizeof *w));
    w->use = use;
    w->size = use == FOR_WRITE ? opt.window : (size_t)opt.read_size * READS_MAX;
    w->memory = mmap(NULL, w->size, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (w->memory != MAP_FAILED) {
        w->mr = ibv_reg_mr(ep->pd, w->memory, w->size,
                           use == FOR_WRITE ? IBV_ACCESS_LOCAL_WRITE
                                                  | IBV_ACCESS_REMOTE_WRITE
                                            : IBV_ACCESS_LOCAL_WRITE);
    }
    if (w->mr == NULL) {
        error_note("memory: %s", strerror(errno));
        free(w);
        return NULL;
    }
    return w;
}

void window_put(struct endpoint *ep, struct window *w)
{
    w->next = ep->windows[w->use];
    ep->windows[w->use] = w;
}

static bool from_server(struct rdma_cm_id *id)
{
    const struct sockaddr *peer = rdma_get_peer_addr(id);
    if (peer->sa_family != opt.server.ss_family) {
        return false;
    }
    if (peer->sa_family == AF_INET6) {
        return memcmp(&((const struct sockaddr_in6 *)peer)->sin6_addr,
                      &((struct sockaddr_in6 *)&opt.server)->sin6_addr, 16)
               == 0;
    }
    return ((const struct sockaddr_in *)peer)->sin_addr.s_addr
           == ((struct sockaddr_in *)&opt.server)->sin_addr.s_addr;
}

static bool same_token(const uint8_t *a, const uint8_t *b)
{
    uint8_t differ = 0;
    for (unsigned i = 0; i < TOKEN_SIZE; i++) {
        differ |= a[i] ^ b[i];
    }
    return differ == 0;
}

static int judge(const struct link *l, struct connect_request *r)
{
    const struct cm_event *e = &l->request;
    int why =
        wire_get_request(e->data, e->data_len, e->param.initiator_depth, r);
    bool offered = r->kind == opt.prefer[0] || r->kind == opt.prefer[1];
    if ((why == REJECT_NONE || why == REJECT_DEPTH) && !offered) {
        return REJECT_KIND;
    }
    if (why != REJECT_NONE) {
        return why;
    }
    if (!same_token(r->token, l->ep->token)) {
        return REJECT_TOKEN;
    }
    if (opt.check_address && !from_server(l->id)) {
        return REJECT_ADDRESS;
    }
    return l->ep->alive >= opt.links_max ? REJECT_BUSY : REJECT_NONE;
}

static void reject(struct link *l, int reason)
{
    uint8_t data = (uint8_t)reason;
    trace("client %u rejects: %d", l->ep->number, reason);
    totals.rejected[reason < 8 ? reason : 0]++;
    rdma_reject(l->id, &data, 1);
    rdma_destroy_id(l->id);
    l->id = NULL;
}

static void on_conn_event(struct conn *c, const struct cm_event *e)
{
    struct link *l = c->user;
    switch (e->type) {
    case RDMA_CM_EVENT_ESTABLISHED:
        if (!c->established) {
            c->established = true;
            script_at(ESTABLISHED, l->ep, l, NULL);
        }
        break;
    case RDMA_CM_EVENT_TIMEWAIT_EXIT:
    case RDMA_CM_EVENT_ADDR_CHANGE:
        break;
    default:
        conn_destroy(c, rdma_event_str(e->type));
    }
}

static const char *misplaced(const struct link *l, const struct message *m)
{
    if (!l->said_hello && m->type != HELLO) {
        return "first message is not HELLO";
    }
    switch (m->type) {
    case HELLO:
        return l->said_hello ? "second HELLO" : NULL;
    case WRITTEN:
        return l->kind == KIND_WRITE ? NULL : "WRITTEN in kind read";
    case OFFER:
        return l->kind == KIND_READ ? NULL : "OFFER in kind write";
    case CONSUMED:
        return "CONSUMED from a server";
    }
    return NULL;
}

static void on_message(struct conn *c, const struct message *m)
{
    struct link *l = c->user;
    struct endpoint *ep = l->ep;
    const char *why = wire_judge(m);
    char text[TEXT_MAX];
    trace("client %u conn %u <- %s%s id=%u bytes=%llu len=%u credits=%u",
          ep->number, l->number,
          m->type < MESSAGE_TYPES ? message_names[m->type] : "?",
          (m->flags & FLAG_FIN) != 0 ? " fin" : "", m->id,
          (unsigned long long)m->bytes, m->len, m->credits);
    if (why == NULL) {
        why = misplaced(l, m);
    }
    if (why == NULL && m->type >= WRITTEN && m->type <= ABORT
        && m->id >= opt.first_id + ep->n_requests) {
        why = "id that was not issued";
    }
    if (why != NULL) {
        snprintf(text, sizeof text, "protocol: %s", why);
        conn_destroy(c, text);
        return;
    }
    if (m->type == HELLO) {
        l->said_hello = true;
        link_advance(l);
    }
    else if (m->type == PING) {
        struct message pong = {.type = PONG};
        conn_say(c, &pong);
    }
    else if (m->type != PONG && m->id >= opt.first_id) {
        request_message(ep->requests[m->id - opt.first_id], c, m);
    }
}

static void on_posted(struct conn *c, const struct message *m)
{
    struct link *l = c->user;
    struct endpoint *ep = l->ep;
    trace("client %u conn %u -> %s%s id=%u bytes=%llu credits=%u", ep->number,
          l->number, message_names[m->type],
          (m->flags & FLAG_FIN) != 0 ? " fin" : "", m->id,
          (unsigned long long)m->bytes, m->credits);
    if (m->id >= opt.first_id && m->id < opt.first_id + ep->n_requests) {
        request_posted(ep->requests[m->id - opt.first_id], m);
    }
}

static void on_moved(struct conn *c, void *cookie, bool fine)
{
    struct link *l = c->user;
    if (cookie != NULL) {
        request_moved(cookie, fine);
    }
    for (struct request *r = l->ep->open, *next; r != NULL; r = next) {
        next = r->next;
        if (r->conn == c && r->asked < r->announced) {
            request_advance(r);
        }
    }
}

static void on_lost(struct conn *c, const char *why)
{
    struct link *l = c->user;
    struct endpoint *ep = l->ep;
    l->conn = NULL;
    ep->alive--;
    trace("client %u conn %u lost: %s", ep->number, l->number, why);
    if (!ep->over) {
        totals.lost++;
        if (strncmp(why, "protocol", 8) == 0) {
            error_note("%s", why);
        }
    }
    for (unsigned i = 0; i < MESSAGE_TYPES; i++) {
        totals.in[i] += c->in[i];
        totals.out[i] += c->out[i];
    }
    for (struct request *r = ep->open, *next; r != NULL; r = next) {
        next = r->next;
        if (r->conn == c) {
            r->conn = NULL;
            request_lost(r);
        }
    }
}

static const struct conn_ops ops = {.event = on_conn_event,
                                    .message = on_message,
                                    .posted = on_posted,
                                    .moved = on_moved,
                                    .lost = on_lost};

/* What the script wants to be wrong with an accept. */
static void twist(const char *how, uint8_t *data, uint8_t *len)
{
    if (strcmp(how, "accept-magic") == 0) {
        data[3] ^= 1;
    }
    else if (strcmp(how, "accept-version") == 0) {
        data[4] = 2;
    }
    else if (strcmp(how, "accept-kind") == 0) {
        data[5] ^= 3;
    }
    else if (strcmp(how, "accept-depth") == 0) {
        data[6] = 7;
    }
    else if (strcmp(how, "accept-deep") == 0) {
        data[6] = 255;
    }
    else if (strcmp(how, "accept-conn") == 0) {
        memset(data + 8, 0, 4);
    }
    else if (strcmp(how, "accept-short") == 0) {
        *len = 11;
    }
    else if (strcmp(how, "accept-bare") == 0) {
        *len = 0;
    }
}

static void accept_link(struct link *l, const struct connect_request *r)
{
    struct endpoint *ep = l->ep;
    struct rdma_conn_param param = {.retry_count = 7, .rnr_retry_count = 0};
    uint8_t data[ACCEPT_SIZE], len = ACCEPT_SIZE;
    unsigned reads = l->request.param.initiator_depth;
    reads = r->kind == KIND_READ ? (reads < opt.reads ? reads : opt.reads) : 0;
    l->kind = r->kind;
    l->conn = conn_new(l->id, ep->pd, r->kind, (uint8_t)opt.depth,
                       reads > 0 ? reads : 1, &ops, l);
    if (l->conn == NULL) {
        error_note("no queue pair: %s", strerror(errno));
        reject(l, REJECT_BUSY);
        return;
    }
    ep->links = need(realloc(ep->links, (ep->n_links + 1) * sizeof *ep->links));
    ep->links[ep->n_links++] = l;
    ep->alive++;
    l->number = l->conn->number = ep->n_links;
    conn_peer(l->conn, r->depth);
    wire_put_accept(data, r->kind, (uint8_t)opt.depth, l->number);
    if (l->twist != NULL) {
        twist(l->twist, data, &len);
    }
    param.initiator_depth = (uint8_t)reads;
    param.private_data = len > 0 ? data : NULL;
    param.private_data_len = len;
    l->id = NULL;
    trace("client %u accepts conn %u, kind %u, peer's depth %u", ep->number,
          l->number, r->kind, r->depth);
    if (rdma_accept(l->conn->id, &param) != 0) {
        error_note("accept: %s", strerror(errno));
        conn_destroy(l->conn, "accept");
        return;
    }
    totals.accepted[r->kind]++;
    script_at(ACCEPTED, ep, l, NULL);
}

void link_advance(struct link *l)
{
    if (!l->judged) {
        struct connect_request r = {.kind = 0};
        int why;
        if (!script_at(CONNECT_REQUEST, l->ep, l, NULL)) {
            return;
        }
        l->judged = true;
        why = l->reject >= 0 ? l->reject : judge(l, &r);
        if (why != REJECT_NONE || l->reject == 0) {
            reject(l, why);
        }
        else {
            accept_link(l, &r);
        }
        return;
    }
    if (l->conn == NULL || !script_at(ACCEPTED, l->ep, l, NULL)
        || (l->conn->established && !script_at(ESTABLISHED, l->ep, l, NULL))) {
        return;
    }
    if (l->said_hello && !l->conn->open && script_at(HELLO_COME, l->ep, l, NULL)
        && l->conn != NULL) {
        l->conn->open = true;
        conn_flush(l->conn);
    }
}

static void on_listener(struct cm_owner *owner, const struct cm_event *e)
{
    struct endpoint *ep = (struct endpoint *)owner;
    struct link *l;
    if (e->type != RDMA_CM_EVENT_CONNECT_REQUEST) {
        return;
    }
    if (ep->over) {
        rdma_reject(e->id, NULL, 0);
        rdma_destroy_id(e->id);
        return;
    }
    l = need(calloc(1, sizeof *l));
    l->ep = ep;
    l->id = e->id;
    l->request = *e;
    l->reject = -1;
    link_advance(l);
}

static void tick(void *arg)
{
    struct endpoint *ep = arg;
    double now = loop_now();
    for (uint32_t i = 0; i < ep->n_links; i++) {
        struct conn *c = ep->links[i]->conn;
        bool busy = false;
        if (c == NULL || ep->links[i]->held || c->held) {
            continue;
        }
        for (struct request *r = ep->open; r != NULL; r = r->next) {
            busy = busy || (r->conn == c && !r->held);
        }
        if (!ep->links[i]->said_hello && now - c->last_in > HELLO_SECONDS) {
            conn_destroy(c, "no HELLO");
        }
        else if (busy && c->pinged > 0 && now - c->pinged > PING_SECONDS) {
            conn_destroy(c, "no answer to PING");
        }
        else if (busy && c->pinged <= 0 && c->open
                 && now - c->last_in > opt.progress) {
            struct message ping = {.type = PING};
            c->pinged = now;
            conn_say(c, &ping);
        }
    }
    for (struct request *r = ep->open, *next; r != NULL; r = next) {
        next = r->next;
        request_tick(r, now);
    }
    loop_timer(TICK_MS, tick, ep);
}

static void lane_next(void *arg)
{
    struct lane *lane = arg;
    struct endpoint *ep = lane->ep;
    struct request *r;
    bool kept = true;
    if (ep->over || (lane->again == NULL && ep->begun == opt.requests)) {
        return;
    }
    if (lane->http == NULL || !http_reusable(lane->http)) {
        if (lane->http != NULL) {
            http_close(lane->http, false);
        }
        kept = false;
        lane->http = http_open(&opt.server, &ep->local);
        totals.http_connections++;
    }
    ep->begun += lane->again == NULL;
    r = request_new(lane, ep->n_requests + 1);
    r->kept = kept;
    ep->requests[ep->n_requests++] = r;
    lane->request = r;
    request_advance(r);
}

void lane_finish(struct lane *lane)
{
    struct endpoint *ep = lane->ep;
    lane->request = NULL;
    if (lane->http != NULL && (!opt.keep || !http_reusable(lane->http))) {
        http_close(lane->http, false);
        lane->http = NULL;
    }
    ep->ended += lane->again == NULL;
    if (ep->ended == opt.requests) {
        all_done(ep);
    }
    else {
        loop_timer(0, lane_next, lane);
    }
}

static bool listen_at(struct endpoint *ep)
{
    for (unsigned i = 0; i < 50; i++) {
        ep->listener = cm_new(&ep->owner);
        if (ep->listener != NULL
            && rdma_bind_addr(ep->listener, (struct sockaddr *)&ep->local) == 0
            && ep->listener->verbs != NULL
            && rdma_listen(ep->listener, 128) == 0) {
            return true;
        }
        if (ep->listener != NULL) {
            int saved = errno;
            rdma_destroy_id(ep->listener);
            errno = saved;
        }
        if (errno != EADDRINUSE) {
            break;
        }
    }
    return false;
}

struct endpoint *endpoint_new(unsigned number, void (*done)(struct endpoint *))
{
    struct endpoint *ep = need(calloc(1, sizeof *ep));
    all_done = done;
    ep->owner.event = on_listener;
    ep->number = number;
    ep->local = opt.binds[(number - 1) % opt.n_binds];
    ep->requests = need(calloc(2 * (size_t)opt.requests, sizeof *ep->requests));
    ep->lanes = need(calloc(opt.concurrency, sizeof *ep->lanes));
    if (getrandom(ep->token, TOKEN_SIZE, 0) != TOKEN_SIZE || !listen_at(ep)) {
        fprintf(stderr, "rdma_peer: client %u cannot listen: %s\n", number,
                strerror(errno));
        return NULL;
    }
    ep->port = ntohs(rdma_get_src_port(ep->listener));
    ep->pd = ibv_alloc_pd(ep->listener->verbs);
    if (ep->pd == NULL) {
        perror("rdma_peer: no protection domain");
        return NULL;
    }
    return ep;
}

void endpoint_start(struct endpoint *ep)
{
    loop_timer(TICK_MS, tick, ep);
    for (unsigned i = 0; i < opt.concurrency; i++) {
        ep->lanes[i].ep = ep;
        lane_next(&ep->lanes[i]);
    }
}

void endpoint_end(struct endpoint *ep)
{
    struct window *w;
    ep->over = true;
    loop_cancel(tick, ep);
    for (uint32_t i = 0; i < ep->n_links; i++) {
        if (ep->links[i]->conn != NULL) {
            conn_destroy(ep->links[i]->conn, "the end");
        }
    }
    for (unsigned i = 0; i < opt.concurrency; i++) {
        if (ep->lanes[i].http != NULL) {
            http_close(ep->lanes[i].http, false);
        }
    }
    rdma_destroy_id(ep->listener);
    /* Only now, when nothing can be written into them any more. */
    for (unsigned i = 0; i < ep->n_requests; i++) {
        struct request *r = ep->requests[i];
        if (r->window != NULL) {
            window_put(ep, r->window);
        }
        if (r->sink != NULL) {
            window_put(ep, r->sink);
        }
    }
    if (ep->lies != NULL) {
        window_put(ep, ep->lies);
    }
    for (unsigned use = 0; use < 2; use++) {
        while ((w = ep->windows[use]) != NULL) {
            ep->windows[use] = w->next;
            ibv_dereg_mr(w->mr);
            munmap(w->memory, w->size);
            free(w);
        }
    }
    ibv_dealloc_pd(ep->pd);
}
