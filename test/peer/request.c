/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
/* One id: what is heard of it is noted, and request_advance does what is due.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "endpoint.h"
#include "loop.h"
#include "script.h"

static bool at(struct request *r, enum step step)
{
    struct link *l = r->conn != NULL ? r->conn->user : NULL;
    return script_at(step, r->ep, l, r);
}

static bool offers(const struct request *r, uint8_t kind)
{
    return r->raw || opt.prefer[0] == kind || opt.prefer[1] == kind;
}

struct request *request_new(struct lane *lane, unsigned seq)
{
    struct request *r = need(calloc(1, sizeof *r));
    struct endpoint *ep = lane->ep;
    r->ep = ep;
    r->lane = lane;
    r->seq = seq;
    r->id = opt.first_id + seq - 1;
    r->path = opt.paths.of[(seq - 1 + ep->number - 1) % opt.paths.n];
    r->raw = opt.fields.n > 0 || opt.field != NULL;
    check_init(&r->by_rdma);
    check_init(&r->by_tcp);
    r->next = ep->open;
    ep->open = r;
    r->plain = lane->again != NULL;
    if (r->plain) {
        r->path = lane->again;
        lane->again = NULL;
    }
    totals.requests += !r->plain;
    return r;
}

bool request_window_free(const struct request *r)
{
    return r->server_last || (r->bound && r->lost)
           || (!r->bound && r->head == HEAD_TCP);
}

static void save_as(const struct request *r, const char *suffix,
                    const void *data, size_t len)
{
    char path[4096];
    FILE *f;
    snprintf(path, sizeof path, "%s/%u.%s", opt.save, r->id, suffix);
    f = fopen(path, "w");
    if (f == NULL || fwrite(data, 1, len, f) != len || fclose(f) != 0) {
        perror(path);
        exit(1);
    }
}

static void save(const struct request *r, const struct check *c)
{
    size_t len = 0;
    const char *heads = r->lane != NULL && r->lane->http != NULL
                            ? http_heads(r->lane->http, &len)
                            : "";
    save_as(r, "head", heads, len);
    save_as(r, "body", c->bytes, c->offset);
}

static void settle(struct request *r, enum result result, const char *why)
{
    if (r->result != PENDING) {
        return;
    }
    r->result = result;
    r->ended = loop_now();
    if (opt.save != NULL && r->ep->number == 1) {
        save(r, r->tcp ? &r->by_tcp : &r->by_rdma);
    }
    if (result == OK) {
        const struct check *c = r->tcp ? &r->by_tcp : &r->by_rdma;
        r->path_used = r->tcp                  ? PATH_TCP
                       : r->kind == KIND_WRITE ? PATH_WRITE
                                               : PATH_READ;
        totals.ok++;
        totals.path[r->path_used]++;
        totals.bytes[r->path_used] += c->offset;
        if ((opt.expect_path != PATH_NONE && opt.expect_path != r->path_used)
            || (opt.expect_declined != NULL
                && strcmp(opt.expect_declined, r->answer.declined) != 0)) {
            totals.unexpected++;
        }
    }
    else {
        totals.failed++;
        error_note("%s", why);
    }
    trace("client %u id %u %s: %s", r->ep->number, r->id,
          result == OK ? "ok" : "failed", result == OK ? "" : why);
}

/* A body has come to its end: is it the right one? */
static void deliver(struct request *r, const struct check *c, bool empty)
{
    totals.wrong += c->wrong;
    if (opt.expect_status > 0 ? r->status != opt.expect_status
                              : r->status >= 400 && !r->raw
                                    && opt.asks.n == 0) {
        char why[40];
        snprintf(why, sizeof why, "status %d", r->status);
        settle(r, FAILED, why);
    }
    else if (!empty && opt.has_bytes && c->offset != opt.bytes) {
        char why[TEXT_MAX];
        snprintf(why, sizeof why, "%llu bytes, not %llu",
                 (unsigned long long)c->offset, (unsigned long long)opt.bytes);
        settle(r, FAILED, why);
    }
    else if (!empty && !check_fine(c)) {
        settle(r, FAILED, "the body differs");
    }
    else {
        settle(r, OK, NULL);
    }
}

void request_give_up(struct request *r, uint32_t reason, const char *why)
{
    if (!r->given_up) {
        r->given_up = true;
        r->gave_up = loop_now();
        r->give_up_reason = reason;
    }
    if (!r->tcp) {
        settle(r, FAILED, why);
    }
    request_advance(r);
}

static void protocol_error(struct request *r, const char *why)
{
    char text[TEXT_MAX];
    snprintf(text, sizeof text, "protocol: %s", why);
    if (r->conn != NULL) {
        conn_destroy(r->conn, text);
    }
}

/* The HTTP side. */

static void on_sent(void *user)
{
    struct request *r = user;
    r->sent = true;
    request_advance(r);
}

static const char *bind_to(struct request *r, uint32_t number)
{
    struct endpoint *ep = r->ep;
    struct link *l;
    if (number > ep->n_links) {
        return "head: a conn that was not given";
    }
    l = ep->links[number - 1];
    if (r->bound && r->number != number) {
        if (l->conn != NULL) {
            conn_destroy(l->conn, "protocol: head names another conn");
        }
        return "head: another conn";
    }
    if (!r->bound) {
        r->bound = true;
        r->number = number;
        r->kind = l->kind;
        r->conn = l->conn;
        r->lost = l->conn == NULL;
    }
    return NULL;
}

/* The last part of any client, and the last of any other one. */
static struct {
    const struct endpoint *ep;
    struct part part;
} newest, before;

static void shown(struct request *r, unsigned at, struct part part)
{
    r->parts[at] = r->last_part = part;
    if (newest.ep != r->ep) {
        before = newest;
    }
    newest.ep = r->ep;
    newest.part = part;
}

const struct part *part_of_another(const struct endpoint *ep)
{
    if (newest.ep != ep) {
        return newest.ep != NULL ? &newest.part : NULL;
    }
    return before.ep != NULL ? &before.part : NULL;
}

static const char *take_rdma(struct request *r, const struct http_head *head)
{
    const struct answer *a = &r->answer;
    bool single = a->kind == KIND_READ ? a->fin : head->framing == FRAME_LENGTH;
    const char *why;
    if (!offers(r, a->kind)) {
        return "head: a mode that was not offered";
    }
    if (single ? head->framing != FRAME_LENGTH || head->length != 0
               : head->framing != FRAME_CHUNKED) {
        return "head: another framing";
    }
    if (single && a->kind == KIND_WRITE && !a->has_total) {
        return "head: no total";
    }
    why = bind_to(r, a->conn);
    if (why != NULL) {
        return why;
    }
    if (r->kind != a->kind) {
        return "head: a conn of the other kind";
    }
    r->head = HEAD_RDMA;
    if (a->kind == KIND_READ) {
        if (r->offered && (a->fin || r->offers_from != a->len)) {
            protocol_error(r, "OFFER does not follow the head");
            return NULL;
        }
        memmove(r->parts + 1, r->parts, r->n_parts * sizeof *r->parts);
        r->n_parts++;
        shown(r, 0,
              (struct part){
                  .stag = a->stag, .len = a->len, .to = a->to, .end = a->len});
        if (!r->offered) {
            r->announced = a->len;
        }
        if (a->fin) {
            r->fin = r->server_last = true;
        }
    }
    return NULL;
}

/* The body there is the answer; nothing more is done by RDMA. */
static void take_tcp(struct request *r)
{
    r->tcp = true;
    r->head = HEAD_TCP;
    if (r->bound) {
        r->given_up = true;
        r->gave_up = loop_now();
        r->give_up_reason = 7;
    }
}

static const char *judge_head(struct request *r, const struct http_head *head)
{
    enum field_verdict verdict;
    /* Who has not asked does not look. */
    if (!head->has_rdma || *r->field == '\0') {
        r->bare = *r->field != '\0';
        take_tcp(r);
        return NULL;
    }
    if (!head->nominated) {
        return "head: not nominated";
    }
    verdict = field_get_answer(head->rdma, strlen(head->rdma), &r->answer);
    if (verdict != FIELD_OK) {
        return verdict == FIELD_VERSION ? "head: version" : "head: malformed";
    }
    if (r->answer.has_id && r->answer.id != r->id && !r->raw) {
        return "head: another id";
    }
    if (r->answer.kind != 0) {
        return take_rdma(r, head);
    }
    declined_note(r->answer.declined);
    if (r->answer.has_conn) {
        const char *why = bind_to(r, r->answer.conn);
        if (why != NULL) {
            return why;
        }
    }
    take_tcp(r);
    return NULL;
}

static void on_head(void *user, const struct http_head *head)
{
    struct request *r = user;
    const char *why;
    r->status = head->status;
    totals.status[head->status > 0 && head->status < 1000 ? head->status : 0]++;
    memcpy(r->answer_text, head->rdma, sizeof r->answer_text - 1);
    trace("client %u id %u head %d RDMA: %s", r->ep->number, r->id,
          head->status, head->has_rdma ? head->rdma : "-");
    why = judge_head(r, head);
    if (why != NULL) {
        r->head = HEAD_BAD;
        request_give_up(r, 0, why);
    }
    request_advance(r);
}

static void on_body(void *user, const uint8_t *data, size_t len)
{
    struct request *r = user;
    if (r->tcp) {
        check_feed(&r->by_tcp, data, len);
    }
    else if (r->head == HEAD_RDMA) {
        request_give_up(r, 0, "head: data where none belongs");
    }
}

static void on_end(void *user, const char *why)
{
    struct request *r = user;
    r->http_ended = true;
    if (r->result == PENDING && r->tcp) {
        if (why != NULL) {
            settle(r, FAILED, why);
        }
        else if (r->bare && r->by_tcp.offset == 0 && r->announced > 0) {
            settle(r, FAILED, "head: empty, and its field was lost");
        }
        else {
            bool empty = r->status == 304 || r->status == 204
                         || strcmp(opt.method, "HEAD") == 0;
            deliver(r, &r->by_tcp, empty);
        }
    }
    else if (r->head == HEAD_NONE && r->kept && opt.retry
             && r->result == PENDING) {
        /* A server may close a connection that was kept. */
        r->result = REPEATED;
        r->ended = loop_now();
        totals.repeated++;
        r->lane->again = r->path;
        request_give_up(r, 1, "repeated");
    }
    else if (r->head == HEAD_NONE) {
        request_give_up(r, 1, why != NULL ? why : "HTTP ended");
    }
    request_advance(r);
}

const struct http_ops request_http_ops = {
    .sent = on_sent, .head = on_head, .body = on_body, .end = on_end};

/* The RDMA side. */

static void take_written(struct request *r, const struct message *m)
{
    if (m->bytes < r->announced) {
        protocol_error(r, "WRITTEN that falls");
    }
    else if (m->bytes - r->posted > opt.window) {
        protocol_error(r, "WRITTEN beyond the window");
    }
    else {
        r->announced = m->bytes;
        r->fin = r->server_last = (m->flags & FLAG_FIN) != 0;
    }
}

static void take_offer(struct request *r, const struct message *m)
{
    uint64_t from = m->bytes - m->len;
    bool first = !r->offered && r->head != HEAD_RDMA;
    unsigned outstanding = r->n_parts + (r->head != HEAD_RDMA);
    if (!first && from != r->announced) {
        protocol_error(r, "OFFER with a gap");
    }
    else if (m->len > 0 && outstanding >= 2) {
        protocol_error(r, "a third part");
    }
    else {
        if (first) {
            r->offers_from = from;
        }
        r->offered = true;
        if (m->len > 0) {
            shown(r, r->n_parts++,
                  (struct part){.stag = m->stag,
                                .len = m->len,
                                .to = m->to,
                                .end = m->bytes});
        }
        r->announced = m->bytes;
        r->fin = r->server_last = (m->flags & FLAG_FIN) != 0;
    }
}

void request_message(struct request *r, struct conn *c, const struct message *m)
{
    if (r->closed || (r->bound && r->server_last && r->client_last)) {
        return;
    }
    if (r->bound && r->conn != c) {
        conn_destroy(c, "protocol: an id on a second connection");
        request_give_up(r, 0, "an id on a second connection");
        return;
    }
    if (!r->bound) {
        r->bound = true;
        r->conn = c;
        r->kind = c->kind;
        r->number = c->number;
        if (r->given_up) {
            r->give_up_reason = 6;
            r->gave_up = loop_now();
        }
    }
    r->heard = true;
    if (m->type == ABORT) {
        r->aborted = r->server_last = true;
    }
    else if (r->client_last || r->given_up) {
        r->server_last = r->server_last || (m->flags & FLAG_FIN) != 0;
    }
    else if (r->server_last) {
        totals.unexpected++;
        error_note("%s after the last word", message_names[m->type]);
    }
    else if (m->type == WRITTEN) {
        take_written(r, m);
    }
    else {
        take_offer(r, m);
    }
    if (!offers(r, c->kind)) {
        request_give_up(r, 0, "a mode that was not offered");
    }
    request_advance(r);
}

/* It leaves: from now on the server may count on it. */
void request_posted(struct request *r, const struct message *m)
{
    if (m->type != CONSUMED) {
        return;
    }
    r->posted = m->bytes;
    while (r->n_parts > 0 && r->parts[0].end <= r->posted) {
        r->n_parts--;
        memmove(r->parts, r->parts + 1, r->n_parts * sizeof *r->parts);
    }
}

/* What a forbidden move has come to. */
static void told(struct request *r, bool fine)
{
    const uint8_t *data = r->ep->lies->memory;
    trace("client %u: the forbidden move %s", r->ep->number,
          fine ? "was done" : "was refused");
    r->lies_out -= r->lies_out > 0; /* what was not posted may complete */
    if (!fine) {
        totals.lies_refused++;
        return;
    }
    totals.lies_done++;
    for (unsigned i = 0; i < LIE_SIZE; i++) {
        totals.lies_seen += data[i] != 0;
    }
}

void request_lost(struct request *r)
{
    while (r->lies_out > 0) { /* the device may tell of them too late */
        told(r, false);
    }
    r->lost = true;
    r->conn = NULL;
    r->n_pieces = 0;
    request_advance(r);
}

void request_moved(struct piece *p, bool fine)
{
    struct request *r = p->r;
    uint8_t *data;
    if (p->lie) {
        told(r, fine);
        return;
    }
    data = r->sink->memory + (size_t)(p - r->pieces) * opt.read_size;
    if (!fine || r->n_pieces == 0) {
        return;
    }
    check_feed(&r->by_rdma, data, p->len);
    memset(data, 0xa5, p->len);
    r->taken += p->len;
    r->first_piece = (r->first_piece + 1) % READS_MAX;
    r->n_pieces--;
    request_advance(r);
}

static void say(struct request *r, uint8_t type, bool fin, uint64_t bytes,
                uint32_t len)
{
    struct message m = {.type = type,
                        .flags = fin ? FLAG_FIN : 0,
                        .id = r->id,
                        .bytes = bytes,
                        .len = len};
    conn_say(r->conn, &m);
}

static void say_consumed(struct request *r, uint64_t bytes, bool fin)
{
    if (r->silent || r->client_last || r->conn == NULL
        || !at(r, BEFORE_CONSUMED) || r->conn == NULL || r->silent
        || r->client_last) {
        return;
    }
    r->consumed = bytes;
    r->fin_said = r->client_last = fin;
    say(r, CONSUMED, fin, bytes, 0);
}

static void use_window(struct request *r)
{
    if (r->fin && !at(r, WRITTEN_FIN)) {
        return;
    }
    while (r->taken < r->announced) {
        uint64_t where = r->taken % opt.window;
        uint64_t n = r->announced - r->taken;
        if (n > opt.window - where) {
            n = opt.window - where;
        }
        check_feed(&r->by_rdma, r->window->memory + where, n);
        memset(r->window->memory + where, 0xa5, n);
        r->taken += n;
    }
    if (r->taken > r->consumed || (r->fin && !r->client_last)) {
        say_consumed(r, r->taken, r->fin);
    }
}

static bool post_read(struct request *r)
{
    struct part *p = r->parts;
    unsigned slot = (r->first_piece + r->n_pieces) % READS_MAX;
    struct piece *piece = &r->pieces[slot];
    while (p->end <= r->asked) {
        p++;
    }
    piece->r = r;
    piece->len = opt.read_size;
    if (p->end - r->asked < piece->len) {
        piece->len = (uint32_t)(p->end - r->asked);
    }
    if (r->sink == NULL) {
        r->sink = window_get(r->ep, FOR_READ);
    }
    if (r->sink == NULL
        || !conn_move(r->conn, IBV_WR_RDMA_READ,
                      r->sink->memory + (size_t)slot * opt.read_size,
                      r->sink->mr, piece->len, p->stag,
                      p->to + p->len - (p->end - r->asked), piece, true)) {
        conn_destroy(r->conn, "a READ was refused");
        return false;
    }
    r->asked += piece->len;
    r->n_pieces++;
    return true;
}

static void use_parts(struct request *r)
{
    uint64_t due = 0;
    bool fin;
    if (r->head != HEAD_RDMA) {
        return;
    }
    if (r->asked < r->announced && !at(r, BEFORE_READ)) {
        return;
    }
    while (r->conn != NULL && r->n_pieces < READS_MAX
           && r->conn->moves < r->conn->moves_max && r->asked < r->announced) {
        if (!post_read(r) || !at(r, DURING_READ)) {
            return;
        }
    }
    for (unsigned i = 0; i < r->n_parts; i++) {
        due = r->parts[i].end <= r->taken ? r->parts[i].end : due;
    }
    due = due > r->consumed ? due : r->consumed;
    fin = r->fin && r->taken == r->announced;
    if (fin && r->answer.has_total && r->answer.total != r->taken) {
        request_give_up(r, 4, "not total bytes");
    }
    else if (due > r->consumed || (fin && !r->client_last)) {
        say_consumed(r, due, fin);
    }
}

/* What the request has come to. */
static void judge(struct request *r)
{
    bool all = r->fin && r->taken == r->announced && r->n_pieces == 0;
    if (r->result != PENDING || r->tcp || r->head != HEAD_RDMA) {
        return;
    }
    if (r->aborted) {
        settle(r, FAILED, "ABORT");
    }
    else if (all && r->answer.has_total && r->answer.total != r->taken) {
        settle(r, FAILED, "not total bytes");
    }
    else if (all && (r->http_ended || r->wait_head)) {
        deliver(r, &r->by_rdma, false);
    }
    else if (!all && r->lost) {
        settle(r, FAILED, "connection lost");
    }
}

static void leave(struct request *r)
{
    struct endpoint *ep = r->ep;
    bool over = (!r->bound && r->head == HEAD_TCP) || (r->bound && r->lost)
                || (r->server_last && r->client_last);
    if (r->result == PENDING) {
        return;
    }
    if (r->lane != NULL) {
        struct lane *lane = r->lane;
        if (!at(r, DONE)) {
            return;
        }
        r->lane = NULL;
        if (!r->http_ended && lane->http != NULL) {
            http_close(lane->http, false);
            lane->http = NULL;
        }
        lane_finish(lane);
    }
    if (!over || r->closed) {
        return;
    }
    r->closed = true;
    for (struct request **p = &ep->open; *p != NULL; p = &(*p)->next) {
        if (*p == r) {
            *p = r->next;
            break;
        }
    }
    if (r->window != NULL) {
        window_put(ep, r->window);
        r->window = NULL;
    }
    if (r->sink != NULL) {
        window_put(ep, r->sink);
        r->sink = NULL;
    }
}

static void step_on(struct request *r)
{
    if (!r->started) {
        if (!at(r, BEFORE_REQUEST)) {
            return;
        }
        r->started = true;
        request_send(r);
    }
    if ((r->sent && !at(r, REQUEST_SENT)) || (r->heard && !at(r, FIRST_MESSAGE))
        || (r->head != HEAD_NONE && !at(r, HEAD_COME))) {
        return;
    }
    if (r->given_up || r->aborted) {
        if (r->bound && r->conn != NULL && !r->client_last && !r->silent
            && r->n_pieces == 0) {
            r->client_last = true;
            say(r, ABORT, false, 0, r->given_up ? r->give_up_reason : 7);
        }
    }
    else if (r->bound && r->kind == KIND_WRITE && r->window != NULL) {
        use_window(r);
    }
    else if (r->bound && r->kind == KIND_READ) {
        use_parts(r);
    }
    if (r->fin_said && !at(r, CONSUMED_SENT)) {
        return;
    }
    if (!r->held) {
        judge(r);
        leave(r);
    }
}

void request_advance(struct request *r)
{
    if (r->advancing) {
        r->again = true;
        return;
    }
    r->advancing = true;
    do {
        r->again = false;
        if (!r->held && !r->closed) {
            step_on(r);
        }
    } while (r->again);
    r->advancing = false;
}

void request_tick(struct request *r, double now)
{
    if (r->held || r->closed || !r->started) {
        return;
    }
    if (r->result == PENDING && now - r->began > opt.timeout) {
        r->wait_head = true; /* a body that is complete is a success */
        request_advance(r);
        if (r->result == PENDING) {
            request_give_up(r, 2, "timeout");
        }
    }
    else if (r->given_up && r->conn != NULL && !r->server_last
             && now - r->gave_up > opt.progress) {
        conn_destroy(r->conn, "no last word");
    }
}
