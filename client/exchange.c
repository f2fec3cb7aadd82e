/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "exchange.h"

#include <curl/curl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>

#include "log.h"
#include "../rdma_version.h"

#define HEAD_MAX ((size_t)256 * 1024) /* bytes of all header lines */
#define AGENT    "librdmahttp/" MOD_RDMA_VERSION
#define TICK_MS  250  /* how often deadlines are looked at */
#define LAST_MS  5000 /* for the last chunk, when all has come by RDMA */

struct rdmahttp_exchange {
    const rdmahttp_conf *conf;
    CURL *easy;
    CURLM *multi;
    char error[CURL_ERROR_SIZE];

    /* this request */
    const rdmahttp_ask *ask;
    rdmahttp_head head;
    size_t head_bytes;
    int head_out;   /* the final head has been handed up */
    unsigned sends; /* connections that the request was ready to go out on */
    int stopped;    /* a callback said so */
    int cancelled;
    int broken;
    int wrong_local; /* bound elsewhere than asked */
};

rdmahttp_exchange *rdmahttp_exchange_create(const rdmahttp_conf *conf)
{
    rdmahttp_exchange *x = calloc(1, sizeof(*x));

    if (!x) {
        return NULL;
    }
    x->conf = conf;
    x->easy = curl_easy_init();
    x->multi = curl_multi_init();
    if (!x->easy || !x->multi) {
        rdmahttp_exchange_destroy(x);
        return NULL;
    }
    return x;
}

static void clear_head(rdmahttp_exchange *x)
{
    free(x->head.rdma);
    free(x->head.location);
    memset(&x->head, 0, sizeof(x->head));
}

void rdmahttp_exchange_destroy(rdmahttp_exchange *x)
{
    clear_head(x);
    curl_easy_cleanup(x->easy);
    curl_multi_cleanup(x->multi);
    free(x);
}

/* ---- header lines ------------------------------------------------------ */

/* Is the line, n bytes, a field of this name? Then *value is its trimmed value
 * of *vn bytes. */
static int is_field(const char *line, size_t n, const char *name,
                    const char **value, size_t *vn)
{
    size_t k = strlen(name);

    if (n <= k || line[k] != ':' || strncasecmp(line, name, k) != 0) {
        return 0;
    }
    line += k + 1;
    n -= k + 1;
    while (n > 0 && (*line == ' ' || *line == '\t')) {
        line++;
        n--;
    }
    while (n > 0 && (line[n - 1] == ' ' || line[n - 1] == '\t')) {
        n--;
    }
    *value = line;
    *vn = n;
    return 1;
}

/* Does the comma-separated list, n bytes, have this option, in any case? */
static int has_option(const char *list, size_t n, const char *option)
{
    const char *end = list + n;

    while (list < end) {
        const char *comma = memchr(list, ',', (size_t)(end - list));
        const char *stop = comma ? comma : end;
        const char *last = stop;

        while (list < last && (*list == ' ' || *list == '\t')) {
            list++;
        }
        while (last > list && (last[-1] == ' ' || last[-1] == '\t')) {
            last--;
        }
        if ((size_t)(last - list) == strlen(option)
            && strncasecmp(list, option, strlen(option)) == 0) {
            return 1;
        }
        list = comma ? comma + 1 : end;
    }
    return 0;
}

/* Digits only, no overflow. 0 or -1. */
static int digits(const char *s, size_t n, uint64_t *out)
{
    uint64_t v = 0;
    size_t i;

    for (i = 0; i < n; i++) {
        unsigned d = (unsigned)(unsigned char)s[i] - '0';

        if (d > 9 || v > (UINT64_MAX - d) / 10) {
            return -1;
        }
        v = v * 10 + d;
    }
    *out = v;
    return n > 0 ? 0 : -1;
}

/* One more line of the field; several are joined as RFC 9110, 5.3 says. */
static int add_rdma(rdmahttp_head *head, const char *value, size_t n)
{
    size_t comma = head->rdma ? 2 : 0;
    char *joined = realloc(head->rdma, head->rdma_len + comma + n + 1);

    if (!joined) {
        return -1;
    }
    memcpy(joined + head->rdma_len, ", ", comma);
    memcpy(joined + head->rdma_len + comma, value, n);
    head->rdma = joined;
    head->rdma_len += comma + n;
    joined[head->rdma_len] = '\0';
    return 0;
}

static int take_field(rdmahttp_exchange *x, const char *line, size_t n)
{
    rdmahttp_head *head = &x->head;
    const char *value;
    size_t vn;

    if (is_field(line, n, "RDMA", &value, &vn)) {
        return add_rdma(head, value, vn);
    }
    if (is_field(line, n, "Connection", &value, &vn)) {
        head->nominated |= has_option(value, vn, "RDMA");
    }
    else if (is_field(line, n, "Content-Length", &value, &vn)) {
        head->has_length = digits(value, vn, &head->length) == 0;
    }
    else if (is_field(line, n, "Transfer-Encoding", &value, &vn)) {
        head->chunked = has_option(value, vn, "chunked");
    }
    else if (is_field(line, n, "Location", &value, &vn) && !head->location) {
        head->location = strndup(value, vn);
        return head->location ? 0 : -1;
    }
    return 0;
}

/* "HTTP/1.1 200 OK" starts a head, final or not. */
static int take_status(rdmahttp_exchange *x, const char *line, size_t n)
{
    uint64_t status;
    const char *space = memchr(line, ' ', n);

    clear_head(x);
    if (!space || (size_t)(line + n - space) < 4
        || digits(space + 1, 3, &status)) {
        return -1;
    }
    x->head.status = (long)status;
    x->head.http11 = n > 9 && memcmp(line, "HTTP/1.1 ", 9) == 0;
    return 0;
}

static void show(const rdmahttp_exchange *x, const char *line, size_t n)
{
    char copy[900];

    snprintf(copy, sizeof(copy), "%.*s",
             (int)(n < sizeof(copy) ? n : sizeof(copy) - 1), line);
    if (strncasecmp(copy, "RDMA:", 5) == 0) {
        rdmahttp_log_mask(copy);
    }
    rdmahttp_log(x->conf, RDMAHTTP_LOG_INFO, "< %s", copy);
}

/* libcurl: one complete header line, with its line end. */
static size_t on_header(char *line, size_t size, size_t count, void *arg)
{
    rdmahttp_exchange *x = arg;
    size_t all = size * count, n = all;

    while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r')) {
        n--;
    }
    x->head_bytes += all;
    if (x->head_bytes > HEAD_MAX) {
        x->broken = 1;
        return 0;
    }
    if (n > 0) {
        int status = n >= 5 && memcmp(line, "HTTP/", 5) == 0;

        show(x, line, n);
        if (status ? take_status(x, line, n) : take_field(x, line, n)) {
            x->broken = 1;
            return 0;
        }
        return all;
    }
    if (x->head.status < 200 || x->head_out) { /* not yet, or trailers */
        return all;
    }
    x->head_out = 1;
    if (x->ask->head(x->ask->baton, &x->head)) {
        x->stopped = 1;
        return 0;
    }
    return all;
}

static size_t on_body(char *bytes, size_t size, size_t count, void *arg)
{
    rdmahttp_exchange *x = arg;

    if (size * count > 0 && x->ask->body(x->ask->baton, bytes, size * count)) {
        x->stopped = 1;
        return 0;
    }
    return size * count;
}

/* libcurl: connected, and about to send. It comes again when libcurl repeats a
 * request because a kept-alive connection had died: with the field that must
 * not be, for two processes of the server could be at work for one id. */
static int on_ready(void *arg, char *server, char *local, int server_port,
                    int local_port)
{
    rdmahttp_exchange *x = arg;

    (void)server_port;
    (void)local_port;
    x->sends++;
    if (!x->ask->field) {
        return CURL_PREREQFUNC_OK;
    }
    if (x->sends > 1) {
        return CURL_PREREQFUNC_ABORT;
    }
    if (x->ask->address && strcmp(local, x->ask->address) != 0) {
        x->wrong_local = 1;
        return CURL_PREREQFUNC_ABORT;
    }
    if (x->ask->connected) {
        x->ask->connected(x->ask->baton, server);
    }
    return CURL_PREREQFUNC_OK;
}

/* ---- the request ------------------------------------------------------- */

static int add(struct curl_slist **list, const char *line)
{
    struct curl_slist *longer = curl_slist_append(*list, line);

    if (!longer) {
        return -1;
    }
    *list = longer;
    return 0;
}

static int is_private(const char *line)
{
    const char *value;
    size_t n = strlen(line), vn;

    return is_field(line, n, "Authorization", &value, &vn)
           || is_field(line, n, "Cookie", &value, &vn);
}

static int make_headers(const rdmahttp_ask *ask, struct curl_slist **list)
{
    char line[8192];
    const char *const *h;

    for (h = ask->headers; h && *h; h++) {
        if (!(ask->keep_private && is_private(*h)) && add(list, *h)) {
            return -1;
        }
    }
    if (!ask->field) {
        return 0;
    }
    snprintf(line, sizeof(line), "RDMA: %s", ask->field);
    return add(list, line) || add(list, "Connection: RDMA") ? -1 : 0;
}

#define SET(option, value)                                                     \
    do {                                                                       \
        if (curl_easy_setopt(x->easy, option, value) != CURLE_OK) {            \
            return -1;                                                         \
        }                                                                      \
    } while (0)

static int set_options(rdmahttp_exchange *x, const rdmahttp_ask *ask,
                       struct curl_slist *headers)
{
    long seconds =
        (long)(x->conf->timeout_ms / 1000 ? x->conf->timeout_ms / 1000 : 1);
    char local[128];

    curl_easy_reset(x->easy); /* connections stay */
    SET(CURLOPT_URL, ask->url);
    SET(CURLOPT_PROTOCOLS_STR, "http,https");
    SET(CURLOPT_FOLLOWLOCATION, 0L); /* another origin, another endpoint */
    SET(CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L); /* a proxy's are no answer */
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_ERRORBUFFER, x->error);
    SET(CURLOPT_USERAGENT, x->conf->user_agent ? x->conf->user_agent : AGENT);
    SET(CURLOPT_HTTPHEADER, headers);
    SET(CURLOPT_HEADERFUNCTION, on_header);
    SET(CURLOPT_HEADERDATA, x);
    SET(CURLOPT_WRITEFUNCTION, on_body);
    SET(CURLOPT_WRITEDATA, x);
    SET(CURLOPT_PREREQFUNCTION, on_ready);
    SET(CURLOPT_PREREQDATA, x);
    SET(CURLOPT_BUFFERSIZE, 256L * 1024);
    SET(CURLOPT_CONNECTTIMEOUT_MS, (long)x->conf->timeout_ms);
    SET(CURLOPT_LOW_SPEED_LIMIT, 1L);
    SET(CURLOPT_LOW_SPEED_TIME, seconds);
    SET(CURLOPT_TCP_KEEPALIVE, 1L);
    if (ask->field) {
        SET(CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    }
    if (ask->no_proxy) {
        SET(CURLOPT_PROXY, "");
    }
    if (ask->address) {
        snprintf(local, sizeof(local), "host!%s", ask->address);
        SET(CURLOPT_INTERFACE, local);
    }
    if (ask->family) {
        SET(CURLOPT_IPRESOLVE,
            (long)(ask->family == AF_INET6 ? CURL_IPRESOLVE_V6
                                           : CURL_IPRESOLVE_V4));
    }
    return 0;
}

static rdmahttp_outcome translate(const rdmahttp_exchange *x, CURLcode code)
{
    if (code == CURLE_OK) {
        return x->head_out ? RDMAHTTP_HTTP_OK : RDMAHTTP_HTTP_CUT;
    }
    if (x->cancelled) {
        return RDMAHTTP_HTTP_CANCELLED;
    }
    if (x->stopped) {
        return RDMAHTTP_HTTP_STOPPED;
    }
    if (x->ask->field && x->sends > 1) {
        return RDMAHTTP_HTTP_REPEATED;
    }
    if (x->wrong_local) {
        return RDMAHTTP_HTTP_ELSEWHERE;
    }
    if (x->broken) {
        return RDMAHTTP_HTTP_BROKEN;
    }
    switch (code) {
    case CURLE_URL_MALFORMAT:
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_BAD_FUNCTION_ARGUMENT:
        return RDMAHTTP_HTTP_USAGE;
    case CURLE_OUT_OF_MEMORY:
        return RDMAHTTP_HTTP_MEMORY;
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_SSL_CIPHER:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_ENGINE_INITFAILED:
    case CURLE_SSL_ISSUER_ERROR:
    case CURLE_SSL_INVALIDCERTSTATUS:
        return RDMAHTTP_HTTP_TLS;
    case CURLE_WEIRD_SERVER_REPLY:
    case CURLE_BAD_CONTENT_ENCODING:
        return RDMAHTTP_HTTP_BROKEN;
    default: /* the field has its way to the server prescribed */
        return x->sends        ? RDMAHTTP_HTTP_CUT
               : x->ask->field ? RDMAHTTP_HTTP_ELSEWHERE
                               : RDMAHTTP_HTTP_NOT_SENT;
    }
}

void rdmahttp_exchange_wake(rdmahttp_exchange *x)
{
    curl_multi_wakeup(x->multi);
}

/* Has HTTP come to its end? Then *code says how. */
static int http_over(rdmahttp_exchange *x, CURLcode *code)
{
    CURLMsg *msg;
    int left;

    if (curl_multi_perform(x->multi, &left) != CURLM_OK) {
        *code = CURLE_FAILED_INIT;
        return 1;
    }
    while ((msg = curl_multi_info_read(x->multi, &left)) != NULL) {
        if (msg->msg == CURLMSG_DONE) {
            *code = msg->data.result;
            return 1;
        }
    }
    return 0;
}

/* Sleep until something happens, or a tick. */
static void idle(rdmahttp_exchange *x)
{
    struct curl_waitfd fd = {x->ask->cancel_fd, CURL_WAIT_POLLIN, 0};

    curl_multi_poll(x->multi, &fd, x->ask->cancel_fd >= 0, TICK_MS, NULL);
}

static int is_cancelled(const rdmahttp_exchange *x)
{
    struct pollfd fd = {x->ask->cancel_fd, POLLIN, 0};

    return x->ask->cancel_fd >= 0 && poll(&fd, 1, 0) > 0;
}

static long long now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (long long)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* HTTP, and what is beside it. */
static CURLcode perform(rdmahttp_exchange *x)
{
    const rdmahttp_ask *ask = x->ask;
    CURLcode code = CURLE_OK;
    long long last = 0; /* when we stop to wait for the last chunk */
    int over = 0, beside_http = 0;

    for (;;) {
        rdmahttp_beside b = RDMAHTTP_BESIDE_NONE;

        over = over || http_over(x, &code);
        if (x->head_out && !x->stopped && !x->broken && ask->beside) {
            b = ask->beside(ask->baton, over);
        }
        if (b == RDMAHTTP_BESIDE_STOP) {
            x->stopped = 1;
            return CURLE_ABORTED_BY_CALLBACK;
        }
        if (b == RDMAHTTP_BESIDE_DONE) {
            last = last ? last : now_ms() + LAST_MS;
            if (over || now_ms() >= last) {
                return CURLE_OK; /* whatever HTTP thinks of it */
            }
        }
        else if (b == RDMAHTTP_BESIDE_NONE && over) {
            return code;
        }
        if (b != RDMAHTTP_BESIDE_NONE && !beside_http) {
            beside_http = 1; /* HTTP may be silent now */
            curl_easy_setopt(x->easy, CURLOPT_LOW_SPEED_TIME, 0L);
        }
        if (b != RDMAHTTP_BESIDE_MORE) {
            idle(x);
        }
        if (is_cancelled(x)) {
            x->cancelled = 1;
            return CURLE_ABORTED_BY_CALLBACK;
        }
    }
}

static rdmahttp_outcome run(rdmahttp_exchange *x, char *message)
{
    rdmahttp_outcome out;
    CURLcode code;

    if (curl_multi_add_handle(x->multi, x->easy) != CURLM_OK) {
        snprintf(message, RDMAHTTP_TEXT_MAX, "cannot set the request up");
        return RDMAHTTP_HTTP_MEMORY;
    }
    code = perform(x);
    curl_multi_remove_handle(x->multi, x->easy); /* cuts what is not over */
    out = translate(x, code);
    if (out == RDMAHTTP_HTTP_OK || x->stopped) {
        message[0] = '\0';
    }
    else if (x->cancelled) {
        snprintf(message, RDMAHTTP_TEXT_MAX, "cancelled");
    }
    else if (x->wrong_local) {
        snprintf(message, RDMAHTTP_TEXT_MAX,
                 "HTTP goes out from another address");
    }
    else if (code == CURLE_OK) {
        snprintf(message, RDMAHTTP_TEXT_MAX, "the answer ends in its head");
    }
    else if (code == CURLE_OPERATION_TIMEDOUT) {
        snprintf(message, RDMAHTTP_TEXT_MAX, "no progress in time");
    }
    else {
        snprintf(message, RDMAHTTP_TEXT_MAX, "%s",
                 x->error[0] ? x->error : curl_easy_strerror(code));
    }
    return out;
}

rdmahttp_outcome rdmahttp_exchange_run(rdmahttp_exchange *x,
                                       const rdmahttp_ask *ask, char *message)
{
    struct curl_slist *headers = NULL;
    rdmahttp_outcome out = RDMAHTTP_HTTP_MEMORY;

    clear_head(x);
    x->ask = ask;
    x->head_bytes = 0;
    x->head_out = 0;
    x->sends = 0;
    x->stopped = x->cancelled = x->broken = x->wrong_local = 0;
    x->error[0] = '\0';
    if (make_headers(ask, &headers) || set_options(x, ask, headers)) {
        snprintf(message, RDMAHTTP_TEXT_MAX, "cannot set the request up");
    }
    else {
        if (ask->field) {
            rdmahttp_log(x->conf, RDMAHTTP_LOG_INFO, "> RDMA: %s", ask->masked);
        }
        out = run(x, message);
    }
    curl_slist_free_all(headers);
    return out;
}
