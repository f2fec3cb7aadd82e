/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "script.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "loop.h"

/* Where a script acts. `link` and `request` may be NULL, and a link may have
 * no conn. */
struct point {
    enum step step;
    struct endpoint *ep;
    struct link *link;
    struct request *request;
    const char *argument;
};

enum verdict { GO, HOLD, OVER };

static const char *const steps[STEPS] = {
    "before-request", "request-sent", "connect-request", "accepted",
    "established",    "hello",        "first-message",   "written-fin",
    "head",           "before-read",  "during-read",     "before-consumed",
    "consumed-sent",  "done"};

/* Connections of their own: held links and requests, until told. */
struct held {
    struct held *next;
    struct link *link;
    struct request *request;
};
static struct held *all_held;
static bool told_all;

static struct conn *conn_of(const struct point *p)
{
    return p->request != NULL && p->request->conn != NULL ? p->request->conn
           : p->link != NULL                              ? p->link->conn
                                                          : NULL;
}

/* Messages as they are, with credits of theirs and without any rule. */
static void raw(const struct point *p, const struct message *m)
{
    uint8_t data[MESSAGE_SIZE];
    struct conn *c = conn_of(p);
    if (c != NULL) {
        wire_put(data, m);
        conn_post_raw(c, data, sizeof data);
        c->avail -= c->avail > 0;
        trace("client %u lies: type=%u id=%u bytes=%llu credits=%u",
              p->ep->number, m->type, m->id, (unsigned long long)m->bytes,
              m->credits);
    }
}

static void lie_message(const struct point *p, uint8_t type, uint8_t flags,
                        uint32_t id, uint64_t bytes)
{
    struct message m = {.type = type, .flags = flags, .id = id, .bytes = bytes};
    raw(p, &m);
}

static uint32_t id_of(const struct point *p)
{
    return p->request != NULL ? p->request->id : opt.first_id;
}

static uint64_t announced(const struct point *p)
{
    return p->request != NULL ? p->request->announced : 0;
}

static void bad_type(const struct point *p)
{
    lie_message(p, 9, 0, id_of(p), 0);
}

static void wrong_type(const struct point *p)
{
    lie_message(p, WRITTEN, FLAG_FIN, id_of(p), 1);
}

static void bad_hello(const struct point *p)
{
    lie_message(p, HELLO, 0, 0, 0);
}

static void zero_id(const struct point *p)
{
    lie_message(p, CONSUMED, 0, 0, 0);
}

static void huge_id(const struct point *p)
{
    lie_message(p, ABORT, 0, 0x80000000u, 0);
}

static void unknown_id(const struct point *p)
{
    lie_message(p, CONSUMED, 0, 2147483646, 1);
}

static void unknown_abort(const struct point *p)
{
    lie_message(p, ABORT, 0, 2147483646, 0);
}

static void consumed_beyond(const struct point *p)
{
    lie_message(p, CONSUMED, 0, id_of(p), announced(p) + 1);
}

static void consumed_falls(const struct point *p)
{
    lie_message(p, CONSUMED, 0, id_of(p), announced(p));
    lie_message(p, CONSUMED, 0, id_of(p), announced(p) / 2);
}

static void early_fin(const struct point *p)
{
    lie_message(p, CONSUMED, FLAG_FIN, id_of(p), announced(p));
}

static void wrong_fin(const struct point *p)
{
    lie_message(p, CONSUMED, FLAG_FIN, id_of(p),
                announced(p) > 0 ? announced(p) - 1 : 7);
}

static void extra_credits(const struct point *p)
{
    struct message m = {.type = PONG, .credits = 255};
    raw(p, &m);
}

static void short_message(const struct point *p)
{
    uint8_t data[MESSAGE_SIZE + 1] = {PONG};
    if (conn_of(p) != NULL) {
        conn_post_raw(conn_of(p), data, MESSAGE_SIZE - 1);
    }
}

static void long_message(const struct point *p)
{
    uint8_t data[MESSAGE_SIZE + 1] = {PONG};
    if (conn_of(p) != NULL) {
        conn_post_raw(conn_of(p), data, MESSAGE_SIZE + 1);
    }
}

static void flood(const struct point *p)
{
    if (conn_of(p) != NULL && !conn_of(p)->floods) {
        conn_flood(conn_of(p));
    }
}

static void silent(const struct point *p)
{
    if (p->request != NULL) {
        p->request->silent = true;
    }
}

static void move_at(const struct point *p, enum ibv_wr_opcode opcode,
                    const struct part *part, uint64_t shift)
{
    struct request *r = p->request;
    struct conn *c = conn_of(p);
    if (c == NULL || part == NULL || part->len == 0) {
        return;
    }
    if (r->ep->lies == NULL) {
        r->ep->lies = window_get(r->ep, FOR_READ);
    }
    if (r->ep->lies != NULL) {
        trace("client %u lies: %s of %u bytes at part + %llu", p->ep->number,
              opcode == IBV_WR_RDMA_READ ? "READ" : "WRITE", LIE_SIZE,
              (unsigned long long)shift);
        uint8_t *data = r->ep->lies->memory;
        memset(data, 0, LIE_SIZE);
        r->lie.r = r;
        r->lie.lie = true;
        r->lies_out += conn_move(c, opcode, data, r->ep->lies->mr, LIE_SIZE,
                                 part->stag, part->to + shift, &r->lie, true);
    }
}

static void move(const struct point *p, enum ibv_wr_opcode opcode,
                 uint64_t shift)
{
    if (p->request != NULL) {
        move_at(p, opcode, &p->request->last_part, shift);
    }
}

static void read_beyond(const struct point *p)
{
    if (p->request != NULL) {
        move(p, IBV_WR_RDMA_READ, p->request->last_part.len);
    }
}

static void read_far(const struct point *p)
{
    move(p, IBV_WR_RDMA_READ, UINT64_C(1) << 30);
}

static void read_other(const struct point *p)
{
    if (p->request != NULL) {
        move_at(p, IBV_WR_RDMA_READ, part_of_another(p->ep), 0);
    }
}

static void read_before(const struct point *p)
{
    move(p, IBV_WR_RDMA_READ, UINT64_MAX - 4095);
}

static void read_again(const struct point *p)
{
    move(p, IBV_WR_RDMA_READ, 0);
}

static void write_attempt(const struct point *p)
{
    move(p, IBV_WR_RDMA_WRITE, 0);
}

static void many_reads(const struct point *p)
{
    for (unsigned i = 0; i < 64; i++) {
        move(p, IBV_WR_RDMA_READ, 0);
    }
}

static void invalidate(const struct point *p, const struct part *part,
                       uint32_t other)
{
    struct conn *c = conn_of(p);
    if (c != NULL && part != NULL) {
        trace("client %u lies: SEND with Invalidate", p->ep->number);
        if (!conn_invalidate(c, part->stag ^ other)) {
            conn_destroy(c, "SEND with Invalidate was refused");
        }
    }
}

static void invalidate_own(const struct point *p)
{
    invalidate(p, p->request != NULL ? &p->request->last_part : NULL, 0);
}

static void invalidate_other(const struct point *p)
{
    invalidate(p, part_of_another(p->ep), 0);
}

/* In kind write there is no part to begin from. */
static void invalidate_guess(const struct point *p)
{
    static const struct part none;
    invalidate(p, &none, 0xdeadbe00u);
}

static const struct {
    const char *name;
    void (*tell)(const struct point *p);
    const char *what;
} lies[] = {
    {"bad-type", bad_type, "a message of type 9"},
    {"wrong-type", wrong_type, "WRITTEN, from the client"},
    {"bad-length", short_message, "31 bytes"},
    {"long-message", long_message, "33 bytes"},
    {"bad-hello", bad_hello, "HELLO, from the client"},
    {"zero-id", zero_id, "CONSUMED of id 0"},
    {"huge-id", huge_id, "ABORT of id 2^31"},
    {"unknown-id", unknown_id, "CONSUMED of an id never used (is ignored)"},
    {"unknown-abort", unknown_abort, "ABORT of such an id (is ignored)"},
    {"consumed-beyond", consumed_beyond, "CONSUMED of a byte too many"},
    {"consumed-falls", consumed_falls, "CONSUMED, then half of that"},
    {"early-fin", early_fin, "CONSUMED(fin) now"},
    {"wrong-fin", wrong_fin, "CONSUMED(fin) of another number"},
    {"extra-credits", extra_credits, "PONG with 255 credits"},
    {"flood", flood, "PINGs from now on, and no credit in return"},
    {"silent", silent, "no last word for this id, ever"},
    {"read-beyond", read_beyond, "READ behind the part's end"},
    {"read-before", read_before, "READ before the part"},
    {"read-far", read_far, "READ 1 GiB behind the part"},
    {"read-other", read_other, "READ the last part of another client"},
    {"read-after-done", read_again, "READ the part's begin (at consumed-sent)"},
    {"many-reads", many_reads, "64 READs at once"},
    {"write-attempt", write_attempt, "RDMA WRITE into the part"},
    {"invalidate-own", invalidate_own, "SEND with Invalidate of the part"},
    {"invalidate-other", invalidate_other,
     "of the last part of another client"},
    {"invalidate-guess", invalidate_guess, "of a tag that nobody has told"},
};

static const char *const twists[] = {
    "accept-magic", "accept-version", "accept-kind",  "accept-depth",
    "accept-deep",  "accept-conn",    "accept-short", "accept-bare"};

static void resume(void *arg)
{
    struct held *h = arg;
    loop_cancel(resume, h);
    for (struct held **p = &all_held; *p != NULL; p = &(*p)->next) {
        if (*p == h) {
            *p = h->next;
            break;
        }
    }
    if (h->request != NULL) {
        h->request->held = false;
    }
    if (h->link != NULL) {
        h->link->held = false;
        if (h->link->conn != NULL) {
            conn_hold(h->link->conn, false);
        }
        link_advance(h->link);
    }
    if (h->request != NULL) {
        request_advance(h->request);
    }
    loop_free(h);
}

static struct held *hold(const struct point *p, bool with_conn)
{
    struct held *h = need(calloc(1, sizeof *h));
    h->next = all_held;
    all_held = h;
    if (p->request != NULL) {
        h->request = p->request;
        h->request->held = true;
    }
    if (p->link != NULL && (p->request == NULL || with_conn)) {
        h->link = p->link;
        h->link->held = true;
        if (h->link->conn != NULL) {
            conn_hold(h->link->conn, true);
        }
    }
    return h;
}

static void on_stdin(void *arg, unsigned events)
{
    char text[256];
    ssize_t n = read(0, text, sizeof text);
    (void)arg;
    (void)events;
    if (n <= 0) {
        told_all = true;
        loop_unwatch(0);
    }
    /* All go on that wait now, not those that begin to wait through it. */
    struct held *now = all_held;
    all_held = NULL;
    while (now != NULL) {
        struct held *h = now;
        now = h->next;
        h->next = NULL;
        resume(h);
    }
}

static enum verdict stop(const struct point *p, bool with_conn)
{
    printf("reached %s client=%u id=%u\n", steps[p->step], p->ep->number,
           p->request != NULL ? p->request->id : 0);
    fflush(stdout);
    if (opt.hold > 0) {
        loop_timer((uint64_t)(opt.hold * 1e3), resume, hold(p, with_conn));
        return HOLD;
    }
    if (told_all) {
        return GO;
    }
    hold(p, with_conn);
    return HOLD;
}

static enum verdict act_stop(const struct point *p)
{
    return stop(p, false);
}

static enum verdict act_stall(const struct point *p)
{
    return stop(p, true);
}

static enum verdict act_wait(const struct point *p)
{
    loop_timer(strtoull(p->argument, NULL, 10), resume, hold(p, false));
    return HOLD;
}

static void leave_lane(struct request *r, bool reset)
{
    if (r->lane != NULL && r->lane->http != NULL && !r->http_ended) {
        http_close(r->lane->http, reset);
        r->lane->http = NULL;
        r->http_ended = true;
        if (r->head == HEAD_NONE || r->tcp) {
            r->tcp = false;
            request_give_up(r, 1, "script: HTTP closed");
        }
        else {
            request_advance(r);
        }
    }
}

/* At a step of a connection, that of all requests of its client. */
static enum verdict leave_http(const struct point *p, bool reset)
{
    if (p->request != NULL) {
        leave_lane(p->request, reset);
    }
    else {
        for (struct request *r = p->ep->open, *next; r != NULL; r = next) {
            next = r->next;
            leave_lane(r, reset);
        }
    }
    return GO;
}

static enum verdict act_close(const struct point *p)
{
    return leave_http(p, false);
}

static enum verdict act_reset(const struct point *p)
{
    return leave_http(p, true);
}

static enum verdict act_disconnect(const struct point *p)
{
    if (conn_of(p) != NULL) {
        conn_destroy(conn_of(p), "script: disconnect");
        return OVER;
    }
    return GO;
}

static enum verdict act_destroy(const struct point *p)
{
    if (conn_of(p) != NULL) {
        conn_of(p)->disconnect_off = true;
        conn_destroy(conn_of(p), "script: destroy-qp");
        return OVER;
    }
    return GO;
}

static enum verdict act_exit(const struct point *p)
{
    (void)p;
    _exit(0);
}

static enum verdict act_reject(const struct point *p)
{
    if (p->link != NULL) {
        p->link->reject = atoi(p->argument);
    }
    return GO;
}

static enum verdict act_abort(const struct point *p)
{
    if (p->request != NULL) {
        request_give_up(
            p->request,
            *p->argument == '\0' ? 1 : (uint32_t)strtoul(p->argument, NULL, 10),
            "script: abort");
    }
    return GO;
}

static enum verdict act_lie(const struct point *p)
{
    for (size_t i = 0; i < sizeof twists / sizeof *twists; i++) {
        if (strcmp(p->argument, twists[i]) == 0 && p->link != NULL) {
            p->link->twist = twists[i];
        }
    }
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        if (strcmp(p->argument, lies[i].name) == 0) {
            lies[i].tell(p);
        }
    }
    return GO;
}

/* 32 bytes in hex, with credits 0 and outside of all rules. */
static enum verdict act_send(const struct point *p)
{
    uint8_t data[RECEIVE_SIZE];
    size_t n = 0;
    for (const char *s = p->argument;
         s[0] != '\0' && s[1] != '\0' && n < sizeof data; s += 2) {
        char pair[3] = {s[0], s[1], '\0'};
        data[n++] = (uint8_t)strtoul(pair, NULL, 16);
    }
    if (conn_of(p) != NULL) {
        conn_post_raw(conn_of(p), data, n);
    }
    return GO;
}

static const struct action {
    const char *name;
    enum verdict (*act)(const struct point *p);
    const char *what;
} actions[] = {
    {"stop", act_stop, "nothing more for this id or connection until told"},
    {"stall", act_stall, "the same, and nothing on its connection either"},
    {"wait", act_wait, "wait:MS, then go on"},
    {"close-http", act_close, "close the HTTP connection"},
    {"reset-http", act_reset, "reset it"},
    {"disconnect", act_disconnect, "disconnect and destroy the connection"},
    {"destroy-qp", act_destroy, "destroy it without disconnect"},
    {"exit", act_exit, "end the process at once, with 0"},
    {"reject", act_reject, "reject:CODE, at connect-request"},
    {"abort", act_abort, "abort[:REASON], give the id up"},
    {"lie", act_lie, "lie:WHAT, see below"},
    {"send", act_send, "send:HEX, these bytes as one message"},
};

struct rule {
    enum step step;
    const struct action *action;
    unsigned request, client; /* 0: all */
    const char *argument;
};
enum { RULES_MAX = 64 };
static struct rule rules[RULES_MAX];
static unsigned n_rules;

static bool known_lie(const char *name)
{
    for (size_t i = 0; i < sizeof twists / sizeof *twists; i++) {
        if (strcmp(name, twists[i]) == 0) {
            return true;
        }
    }
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        if (strcmp(name, lies[i].name) == 0) {
            return true;
        }
    }
    return false;
}

bool script_add(const char *text)
{
    size_t name = strcspn(text, "@/=");
    struct rule rule = {.step = STEPS, .argument = ""};
    const char *at = text + name;
    for (unsigned i = 0; i < STEPS; i++) {
        if (strlen(steps[i]) == name && memcmp(steps[i], text, name) == 0) {
            rule.step = (enum step)i;
        }
    }
    if (*at == '@') {
        rule.request = (unsigned)strtoul(at + 1, NULL, 10);
        at += 1 + strcspn(at + 1, "/=");
    }
    if (*at == '/') {
        rule.client = (unsigned)strtoul(at + 1, NULL, 10);
        at += 1 + strcspn(at + 1, "=");
    }
    if (*at++ != '=' || rule.step == STEPS || n_rules == RULES_MAX) {
        return false;
    }
    name = strcspn(at, ":");
    for (size_t i = 0; i < sizeof actions / sizeof *actions; i++) {
        if (strlen(actions[i].name) == name
            && memcmp(actions[i].name, at, name) == 0) {
            rule.action = &actions[i];
        }
    }
    if (at[name] == ':') {
        rule.argument = at + name + 1;
    }
    if (rule.action == NULL
        || (rule.action->act == act_lie && !known_lie(rule.argument))) {
        return false;
    }
    rules[n_rules++] = rule;
    return true;
}

void script_help(void)
{
    puts("\nSteps (NAME[@REQUEST][/CLIENT]=ACTION):");
    for (unsigned i = 0; i < STEPS; i++) {
        printf("%s%s%s", i % 5 == 0 ? "  " : "", steps[i],
               i + 1 == STEPS ? "\n"
               : i % 5 == 4   ? "\n"
                              : " ");
    }
    puts("Actions:");
    for (size_t i = 0; i < sizeof actions / sizeof *actions; i++) {
        printf("  %-12s %s\n", actions[i].name, actions[i].what);
    }
    puts("Lies:");
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        printf("  %-16s %s\n", lies[i].name, lies[i].what);
    }
    puts("  accept with a wrong:");
    for (size_t i = 0; i < sizeof twists / sizeof *twists; i++) {
        printf("  %s%s", twists[i],
               i + 1 == sizeof twists / sizeof *twists ? "\n"
               : i % 4 == 3                            ? "\n"
                                                       : "");
    }
}

bool script_at(enum step step, struct endpoint *ep, struct link *l,
               struct request *r)
{
    uint32_t *fired = r != NULL ? &r->fired : &l->fired;
    bool *held = r != NULL ? &r->held : &l->held;
    unsigned *from = r != NULL ? &r->rule : &l->rule;
    /* Where a wait at this step has ended. */
    unsigned i = *from >> 8 == step ? *from & 255 : 0;
    uint32_t bit = UINT32_C(1) << step;
    uint32_t nth = r != NULL       ? r->seq
                   : l->number > 0 ? l->number
                                   : ep->n_links + 1;
    if (*held) {
        return false;
    }
    if ((*fired & bit) != 0) {
        return true;
    }
    /* Several rules of one step follow each other, also over a wait. */
    for (; i < n_rules; i++) {
        const struct rule *rule = &rules[i];
        struct point p = {step, ep, l, r, rule->argument};
        if (rule->step != step
            || (rule->client != 0 && rule->client != ep->number)
            || (rule->request != 0 && rule->request != nth)) {
            continue;
        }
        trace("client %u id %u at %s: %s", ep->number, r != NULL ? r->id : 0,
              steps[step], rule->action->name);
        *fired |= bit;
        switch (rule->action->act(&p)) {
        case HOLD:
            *from = step << 8 | (i + 1);
            *fired &= ~bit;
            return false;
        case OVER:
            return false;
        case GO:
            break;
        }
    }
    *fired |= bit;
    return true;
}

void script_start(void)
{
    for (unsigned i = 0; i < n_rules; i++) {
        if ((rules[i].action->act == act_stop
             || rules[i].action->act == act_stall)
            && opt.hold <= 0) {
            told_all = !loop_watch(0, EPOLLIN, on_stdin, NULL);
            return;
        }
    }
}
