/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * Bodies of stamps: GET /SEED/SIZE?OPTION&OPTION...
 *
 *   write, read   only this kind
 *   stream        W2 or R2 with a total, also where one pass would do
 *   unknown       the same without
 *   part=N        length of parts (256k)
 *   dry           the end is not known before its last byte was announced
 *   late=MS       the head of W1 comes so much later
 *   bare          W1's head comes after all is over by RDMA, without field
 *   decline=TOKEN D1 with this reason
 *   fail          D3 after a part of it was written, with the body by TCP
 *   abort         ABORT in the middle of a stream, and HTTP is cut
 *   revoke=MS     ABORT so long after R1
 *   lie=NAME      what the protocol forbids, see --help; early: the head first
 *   turn          what goes by TCP is a redirect to the same body, honestly
 */
#include "job.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "jobs.h"
#include "lie.h"
#include "loop.h"
#include "peer.h"

enum { ONE_PASS = 16777216, MOVES = 64, CONNECT_MS = 5000 };

static struct remote *remotes;
static struct job *jobs;

static void run(struct job *j);

const char *job_option(const struct job *j, const char *name)
{
    const char *at = j->query;
    size_t len = strlen(name);
    while (*at != '\0') {
        size_t n = strcspn(at, "&");
        if (n >= len && memcmp(at, name, len) == 0
            && (at[len] == '=' || n == len)) {
            return at + len + (at[len] == '=');
        }
        at += n + (at[n] == '&');
    }
    return NULL;
}

void job_stamps(uint8_t *out, uint64_t from, uint64_t n, uint64_t seed)
{
    for (uint64_t i = from; i < from + n; i++) {
        uint64_t word = (i & ~UINT64_C(7)) ^ seed;
        *out++ = (uint8_t)(word >> (56 - 8 * (i & 7)));
    }
}

void job_left(struct job *j)
{
    j->session = NULL;
    if (j->remote != NULL && j->remote->conn != NULL && !j->server_last
        && j->stage == RUNNING) {
        struct message m = {.type = ABORT, .id = j->offer.id, .len = 1};
        j->server_last = true;
        conn_say(j->remote->conn, &m);
    }
}

static void head(struct job *j, const char *status, const char *field,
                 const char *rest)
{
    char text[1024];
    int n;
    if (j->session == NULL) {
        return;
    }
    trace("serve id %u: %s, %s, %s", j->offer.id, status, field, rest);
    n = snprintf(text, sizeof text, "HTTP/1.1 %s\r\n%s%s%s%s\r\n\r\n", status,
                 *field != '\0' ? "Connection: RDMA\r\nRDMA: " : "", field,
                 *field != '\0' ? "\r\n" : "", rest);
    j->head_sent = true;
    session_send(j->session, text, (size_t)n);
}

void job_head(struct job *j, const char *field, const char *framing)
{
    head(j, "200 OK", field, framing);
}

void job_http_over(struct job *j)
{
    struct session *s = j->session;
    j->session = NULL;
    if (s != NULL) {
        session_done(s);
    }
}

static void by_tcp(struct job *j, const char *field)
{
    bool turn = job_option(j, "turn") != NULL;
    uint64_t size = turn ? 0 : j->size;
    uint8_t *body = need(malloc(size + 1));
    char rest[128];
    if (turn) {
        snprintf(rest, sizeof rest, "Location: /%lld/%llu\r\nContent-Length: 0",
                 (long long)j->seed, (unsigned long long)j->size);
    }
    else {
        snprintf(rest, sizeof rest, "Content-Length: %llu",
                 (unsigned long long)size);
    }
    head(j, turn ? "302 Found" : "200 OK", field, rest);
    if (j->session != NULL) {
        job_stamps(body, 0, size, j->seed);
        session_send(j->session, body, size);
        job_http_over(j);
    }
    free(body);
}

static void decline(struct job *j, const char *token)
{
    char field[80];
    snprintf(field, sizeof field, "v=1, id=%u, declined=%s", j->offer.id,
             token);
    j->stage = ENDED;
    by_tcp(j, field);
}

/* RDMA. */

static void say(struct job *j, uint8_t type, bool fin, struct message m)
{
    m.type = type;
    m.flags = fin ? FLAG_FIN : 0;
    m.id = j->offer.id;
    j->server_last = j->server_last || fin || type == ABORT;
    conn_say(j->remote->conn, &m);
}

static void put_away(struct job *j)
{
    if (j->mr != NULL) {
        ibv_dereg_mr(j->mr);
        munmap(j->memory, j->length);
        j->mr = NULL;
    }
    j->stage = ENDED;
}

static void last_chunk(struct job *j)
{
    if (j->session != NULL) {
        session_send(j->session, "0\r\n\r\n", 5);
        job_http_over(j);
    }
}

bool job_memory(struct job *j, size_t length, unsigned rights)
{
    j->length = length;
    j->memory = mmap(NULL, length, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    j->mr = j->memory == MAP_FAILED
                ? NULL
                : ibv_reg_mr(j->remote->pd, j->memory, length, rights);
    return j->mr != NULL;
}

static void w1_head(void *arg)
{
    struct job *j = arg;
    char field[128];
    snprintf(field, sizeof field, "v=1, id=%u, conn=%u, write;total=%llu",
             j->offer.id, j->remote->number, (unsigned long long)j->size);
    if (job_option(j, "bare") != NULL) {
        field[0] = '\0';
    }
    if (j->session != NULL) {
        job_head(j, field, "Content-Length: 0");
        job_http_over(j);
    }
}

/* As much as the ring and the queue take. */
static void fill_ring(struct job *j)
{
    struct conn *c = j->remote->conn;
    uint64_t ring = j->offer.len, piece = ring / 4 + (ring % 4 != 0);
    if (!j->stream) {
        piece = 262144; /* no message in between */
    }
    while (j->announced < j->size && j->announced - j->consumed < ring
           && c->moves < MOVES) {
        uint64_t where = j->announced % ring;
        uint64_t n = j->size - j->announced;
        bool fin;
        n = n < piece ? n : piece;
        n = n < ring - where ? n : ring - where;
        n = n < ring - (j->announced - j->consumed)
                ? n
                : ring - (j->announced - j->consumed);
        job_stamps(j->memory + where, j->announced, n, j->seed);
        if (!conn_move(c, IBV_WR_RDMA_WRITE, j->memory + where, j->mr,
                       (uint32_t)n, j->offer.stag, j->offer.to + where, NULL,
                       true)) {
            conn_destroy(c, "a WRITE was refused");
            return;
        }
        j->announced += n;
        fin = j->announced == j->size && !j->dry;
        j->fin = fin;
        if (j->stream || fin) {
            say(j, WRITTEN, fin, (struct message){.bytes = j->announced});
        }
        if (job_option(j, "abort") != NULL && j->announced > j->size / 2) {
            say(j, ABORT, false, (struct message){.len = 4});
            session_end(j->session);
            return;
        }
    }
    if (j->announced == j->size && !j->fin && !j->server_last) {
        j->fin = true;
        say(j, WRITTEN, true, (struct message){.bytes = j->announced});
    }
    if (j->stream && j->fin && j->session != NULL) {
        last_chunk(j);
    }
}

static void take_back(void *arg)
{
    struct job *j = arg;
    if (j->stage == RUNNING && !j->client_last) {
        say(j, ABORT, false, (struct message){.len = 3});
    }
}

/* The next part, into the half that is free. */
static void fill_half(struct job *j)
{
    while (j->head_sent && !j->fin) {
        uint64_t n = j->size - j->announced;
        uint64_t half = j->announced / j->part % 2 * j->part;
        if (j->announced - j->consumed > j->part) {
            return;
        }
        n = n < j->part ? n : j->part;
        job_stamps(j->memory + half, j->announced, n, j->seed);
        j->announced += n;
        j->fin = j->announced == j->size && (!j->dry || n == 0);
        say(j, OFFER, j->fin,
            (struct message){.bytes = j->announced,
                             .len = (uint32_t)n,
                             .stag = n > 0 ? j->mr->rkey : 0,
                             .to = n > 0 ? (uintptr_t)j->memory + half : 0});
        if (job_option(j, "abort") != NULL && j->announced > j->size / 2) {
            j->fin = true;
            say(j, ABORT, false, (struct message){.len = 4});
            session_end(j->session);
            return;
        }
        if (j->dry && n > 0) {
            return; /* it will turn out later */
        }
    }
    if (j->fin && j->stream && j->session != NULL) {
        last_chunk(j);
    }
}

static void start_read(struct job *j)
{
    char field[256], extra[32] = "";
    uint64_t first = j->stream && j->size > j->part ? j->part : j->size;
    if (!job_memory(j, j->stream ? (size_t)j->part * 2 : (size_t)j->size,
                    IBV_ACCESS_REMOTE_READ)) {
        decline(j, "memory");
        return;
    }
    j->stage = RUNNING;
    job_stamps(j->memory, 0, first, j->seed);
    j->announced = first;
    j->fin = j->server_last = !j->stream;
    if (!j->stream) {
        snprintf(extra, sizeof extra, ";fin");
    }
    else if (!j->unknown) {
        snprintf(extra, sizeof extra, ";total=%llu",
                 (unsigned long long)j->size);
    }
    snprintf(field, sizeof field,
             "v=1, id=%u, conn=%u, "
             "read;stag=\"%08x\";to=\"%016llx\";len=%llu%s",
             j->offer.id, j->remote->number, j->mr->rkey,
             (unsigned long long)(uintptr_t)j->memory,
             (unsigned long long)first, extra);
    job_head(j, field,
             j->stream ? "Transfer-Encoding: chunked" : "Content-Length: 0");
    if (j->stream) {
        j->dry = j->dry || first == j->size;
        fill_half(j);
    }
    else {
        const char *ms = job_option(j, "revoke");
        job_http_over(j);
        if (ms != NULL) {
            loop_timer(strtoull(ms, NULL, 10), take_back, j);
        }
    }
}

static void start_write(struct job *j)
{
    char field[128], extra[32] = "";
    uint64_t need_bytes = j->offer.len < j->size ? j->offer.len : j->size;
    if (!job_memory(j, need_bytes > 0 ? need_bytes : 1,
                    IBV_ACCESS_LOCAL_WRITE)) {
        decline(j, "memory");
        return;
    }
    j->stage = RUNNING;
    if (job_option(j, "fail") != NULL) {
        uint64_t n = need_bytes / 2;
        memset(j->memory, 0x5a, n); /* may never be taken for the body */
        conn_move(j->remote->conn, IBV_WR_RDMA_WRITE, j->memory, j->mr,
                  (uint32_t)n, j->offer.stag, j->offer.to, NULL, true);
        say(j, WRITTEN, false, (struct message){.bytes = n});
        say(j, ABORT, false, (struct message){.len = 4});
        snprintf(field, sizeof field, "v=1, id=%u, conn=%u, declined=failed",
                 j->offer.id, j->remote->number);
        by_tcp(j, field);
        return;
    }
    if (j->stream) {
        if (!j->unknown) {
            snprintf(extra, sizeof extra, ";total=%llu",
                     (unsigned long long)j->size);
        }
        snprintf(field, sizeof field, "v=1, id=%u, conn=%u, write%s",
                 j->offer.id, j->remote->number, extra);
        job_head(j, field, "Transfer-Encoding: chunked");
    }
    fill_ring(j);
}

static void run(struct job *j)
{
    uint64_t room = j->remote->kind == KIND_WRITE ? j->offer.len : ONE_PASS;
    if (j->session == NULL) {
        j->stage = ENDED;
        return;
    }
    if (j->lie != NULL && lie_tell(j)) {
        return;
    }
    j->unknown = job_option(j, "unknown") != NULL;
    j->stream = j->unknown || job_option(j, "stream") != NULL
                || job_option(j, "abort") != NULL || j->size > room;
    j->dry = job_option(j, "dry") != NULL;
    j->part = job_option(j, "part") != NULL
                  ? (uint32_t)strtoul(job_option(j, "part"), NULL, 10)
                  : 262144;
    if (j->remote->kind == KIND_WRITE) {
        start_write(j);
    }
    else {
        start_read(j);
    }
}

static void each_job(struct remote *r, void (*act)(struct job *))
{
    for (struct job *j = jobs, *next; j != NULL; j = next) {
        next = j->next;
        if (j->remote == r) {
            act(j);
        }
    }
}

static void go_on(struct job *j)
{
    if (j->stage == CONNECTING) {
        run(j);
    }
    else if (j->stage == RUNNING && !j->server_last && j->lie == NULL) {
        if (j->remote->kind == KIND_WRITE) {
            fill_ring(j);
        }
        else {
            fill_half(j);
        }
    }
}

static void failed(struct job *j)
{
    if (j->stage == CONNECTING) {
        decline(j, "connect");
    }
    else if (j->stage == RUNNING) {
        put_away(j);
        if (j->session != NULL && !j->head_sent) {
            char field[80];
            snprintf(field, sizeof field,
                     "v=1, id=%u, conn=%u, declined=failed", j->offer.id,
                     j->remote->number);
            by_tcp(j, field);
        }
        else if (j->session != NULL) {
            session_end(j->session);
        }
    }
}

static void on_posted(struct conn *c, const struct message *m)
{
    trace("serve conn %u -> %s%s id=%u bytes=%llu credits=%u", c->number,
          message_names[m->type], (m->flags & FLAG_FIN) != 0 ? " fin" : "",
          m->id, (unsigned long long)m->bytes, m->credits);
    for (struct job *j = jobs; j != NULL; j = j->next) {
        if (j->remote == c->user && j->offer.id == m->id && m->type == WRITTEN
            && (m->flags & FLAG_FIN) != 0 && !j->stream && !j->head_sent
            && job_option(j, "bare") == NULL) {
            const char *ms = job_option(j, "late");
            loop_timer(ms != NULL ? strtoull(ms, NULL, 10) : 0, w1_head, j);
        }
    }
}

static void consumed(struct job *j, const struct message *m)
{
    bool fin = (m->flags & FLAG_FIN) != 0;
    if (m->bytes < j->consumed || m->bytes > j->announced
        || (fin && (!j->fin || m->bytes != j->announced))) {
        conn_destroy(j->remote->conn, "protocol: CONSUMED");
        return;
    }
    j->consumed = m->bytes;
    j->client_last = j->client_last || fin;
    if (!fin) {
        go_on(j);
    }
}

static void on_message(struct conn *c, const struct message *m)
{
    const char *why = wire_judge(m);
    trace("serve conn %u <- type %u%s id=%u bytes=%llu credits=%u", c->number,
          m->type, (m->flags & FLAG_FIN) != 0 ? " fin" : "", m->id,
          (unsigned long long)m->bytes, m->credits);
    if (why != NULL || m->type < CONSUMED) {
        conn_destroy(c, "protocol: a message out of place");
        return;
    }
    if (m->type == PING) {
        struct message pong = {.type = PONG};
        conn_say(c, &pong);
    }
    for (struct job *j = jobs, *next; j != NULL; j = next) {
        next = j->next;
        if (j->remote != c->user || j->offer.id != m->id || j->stage != RUNNING
            || m->type == PONG || m->type == PING) {
            continue;
        }
        if (m->type == CONSUMED && !j->client_last && j->lie == NULL) {
            consumed(j, m);
        }
        else if (m->type == ABORT) {
            j->client_last = true;
            if (!j->server_last) {
                say(j, ABORT, false, (struct message){.len = 7});
                if (j->session != NULL && j->head_sent) {
                    session_end(j->session);
                }
            }
        }
        if (j->client_last && j->server_last) {
            if (job_option(j, "bare") != NULL && !j->head_sent) {
                w1_head(j);
            }
            put_away(j);
        }
        return;
    }
}

static void on_moved(struct conn *c, void *cookie, bool fine)
{
    (void)cookie;
    if (fine && !c->gone) {
        each_job(c->user, go_on);
    }
}

static void remote_dead(struct remote *r)
{
    r->dead = true;
    each_job(r, failed);
}

static void on_lost(struct conn *c, const char *why)
{
    struct remote *r = c->user;
    trace("serve conn %u lost: %s", c->number, why);
    r->conn = NULL;
    remote_dead(r);
}

static void on_event(struct conn *c, const struct cm_event *e)
{
    struct remote *r = c->user;
    struct message hello = {.type = HELLO};
    uint8_t depth;
    if (e->type == RDMA_CM_EVENT_ESTABLISHED) {
        if (!wire_get_accept(e->data, e->data_len, r->kind, &depth,
                             &r->number)) {
            conn_destroy(c, "a bad accept");
            return;
        }
        c->number = r->number;
        conn_peer(c, depth);
        c->open = c->established = true;
        if (r->lie == NULL || !lie_is_mute(r->lie)) {
            conn_say(c, &hello);
        }
        each_job(r, go_on);
    }
    else if (e->type != RDMA_CM_EVENT_TIMEWAIT_EXIT) {
        c->disconnect_off = e->type != RDMA_CM_EVENT_DISCONNECTED;
        conn_destroy(c, rdma_event_str(e->type));
    }
}

static const struct conn_ops ops = {.event = on_event,
                                    .message = on_message,
                                    .posted = on_posted,
                                    .moved = on_moved,
                                    .lost = on_lost};

static bool dial(struct remote *r)
{
    struct connect_request request = {.kind = r->kind,
                                      .depth = (uint8_t)opt.depth};
    struct rdma_conn_param param = {.retry_count = 7};
    uint8_t data[REQUEST_SIZE], len = REQUEST_SIZE;
    r->pd = ibv_alloc_pd(r->id->verbs);
    if (r->pd == NULL) {
        return false;
    }
    r->conn =
        conn_new(r->id, r->pd, r->kind, (uint8_t)opt.depth, MOVES, &ops, r);
    if (r->conn == NULL) {
        return false;
    }
    memcpy(request.token, r->token, TOKEN_SIZE);
    wire_put_request(data, &request);
    if (r->lie != NULL) {
        lie_connect(r->lie, data, &len);
    }
    param.private_data = len > 0 ? data : NULL;
    param.private_data_len = len;
    param.responder_resources = r->kind == KIND_READ ? 8 : 0;
    if (rdma_connect(r->id, &param) != 0) {
        r->conn->disconnect_off = true;
        conn_destroy(r->conn, "connect");
    }
    return true;
}

static void on_remote(struct cm_owner *owner, const struct cm_event *e)
{
    struct remote *r = (struct remote *)owner;
    bool fine = false;
    if (e->type == RDMA_CM_EVENT_ADDR_RESOLVED) {
        fine = rdma_resolve_route(r->id, CONNECT_MS) == 0;
    }
    else if (e->type == RDMA_CM_EVENT_ROUTE_RESOLVED) {
        fine = dial(r);
    }
    if (!fine) {
        remote_dead(r);
    }
}

static struct remote *remote_for(const struct job *j, uint8_t kind)
{
    struct sockaddr_storage to = j->peer;
    struct sockaddr_storage from = j->local;
    struct remote *r;
    ((struct sockaddr_in *)&to)->sin_port = htons(j->offer.port);
    ((struct sockaddr_in *)&from)->sin_port = 0;
    for (r = remotes; r != NULL; r = r->next) {
        if (!r->dead && r->lie == NULL && j->lie == NULL && r->kind == kind
            && memcmp(&r->to, &to, sizeof to) == 0
            && memcmp(r->token, j->offer.token, TOKEN_SIZE) == 0) {
            return r;
        }
    }
    r = need(calloc(1, sizeof *r));
    r->owner.event = on_remote;
    r->to = to;
    r->kind = kind;
    r->lie = j->lie;
    memcpy(r->token, j->offer.token, TOKEN_SIZE);
    r->next = remotes;
    remotes = r;
    r->id = cm_new(&r->owner);
    r->dead = r->id == NULL
              || rdma_resolve_addr(r->id, (struct sockaddr *)&from,
                                   (struct sockaddr *)&to, CONNECT_MS)
                     != 0;
    return r;
}

void job_new(struct session *s, const struct sockaddr_storage *peer,
             const struct sockaddr_storage *local, const char *head,
             struct job **place)
{
    struct job *j = need(calloc(1, sizeof *j));
    const char *rdma = strcasestr(head, "\r\nRDMA:"), *end;
    const char *token;
    enum field_verdict verdict = FIELD_OK;
    j->session = s;
    j->next = jobs;
    jobs = j;
    j->peer = *peer;
    j->local = *local;
    *place = j;
    if (sscanf(head, "GET /%lli/%llu?%255[^ ]", (long long *)&j->seed,
               (unsigned long long *)&j->size, j->query)
            < 2
        || rdma == NULL || strcasestr(head, "\r\nConnection: RDMA") == NULL) {
        j->stage = ENDED;
        by_tcp(j, "");
        return;
    }
    rdma += 7 + strspn(rdma + 7, " ");
    end = strstr(rdma, "\r\n");
    verdict = field_get_offer(rdma, (size_t)(end - rdma), &j->offer);
    if (verdict != FIELD_OK) {
        j->stage = ENDED;
        by_tcp(j, verdict == FIELD_VERSION ? "v=1, declined=version"
                                           : "v=1, declined=malformed");
        return;
    }
    token = job_option(j, "decline");
    if (token != NULL || j->size == 0) {
        char word[16] = "small";
        if (token != NULL) {
            snprintf(word, sizeof word, "%.*s", (int)strcspn(token, "&"),
                     token);
        }
        decline(j, word);
        return;
    }
    uint8_t kind = j->offer.prefer[0];
    if (job_option(j, "write") != NULL) {
        kind = KIND_WRITE;
    }
    else if (job_option(j, "read") != NULL) {
        kind = KIND_READ;
    }
    token = job_option(j, "lie");
    if (token != NULL && (j->lie = lie_find(token, kind)) == NULL) {
        fprintf(stderr, "rdma_peer: no such lie: %s\n", token);
        session_end(s);
        return;
    }
    j->remote = remote_for(j, kind);
    if (j->remote->dead) {
        decline(j, "connect");
    }
    else if (j->remote->conn != NULL && j->remote->conn->open) {
        run(j);
    }
}
