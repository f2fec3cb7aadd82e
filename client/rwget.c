/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * rwget: fetch one URL, the body by RDMA where the server can. docs/rwget.1
 * describes it.
 */
#include <curl/curl.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "options.h"
#include "output.h"
#include "rdmahttp.h"
#include "../rdma_version.h"

/* wget's, and one of ours. */
enum {
    EXIT_OK = 0,
    EXIT_OTHER = 1,
    EXIT_USAGE = 2,
    EXIT_FILE = 3,
    EXIT_NETWORK = 4,
    EXIT_TLS = 5,
    EXIT_AUTH = 6,
    EXIT_PROTOCOL = 7,
    EXIT_SERVER = 8,
    EXIT_NO_RDMA = 9
};

typedef struct run {
    const options *set;
    output out;
    const char *name; /* of the file, as far as is known */
    int fresh;        /* and it must not be another file's */
    int cancel_fd;    /* readable: a signal has come */
    int open;
    int error;   /* errno of the file */
    int refused; /* the body came by TCP, and must not */
    int tty;
    int shown; /* a progress line stands on the terminal */
    double next_progress;
    double start;
    uint64_t bytes;
    rdmahttp_result result;
} run;

/* ---- small things ------------------------------------------------------ */

static double seconds(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* ---- the file's name --------------------------------------------------- */

/* The last segment of the URL's path, decoded, and nothing that could name
 * another directory; "index.html" if there is none. To be freed. */
static char *name_from(const char *url)
{
    CURLU *u = curl_url();
    char *path = NULL, *name = NULL, *plain = NULL;
    const char *last;
    int n = 0, i;

    if (u && !curl_url_set(u, CURLUPART_URL, url, CURLU_GUESS_SCHEME)
        && !curl_url_get(u, CURLUPART_PATH, &path, 0)) {
        last = strrchr(path, '/');
        plain = curl_easy_unescape(NULL, last ? last + 1 : path, 0, &n);
    }
    for (i = 0; plain && i < n; i++) {
        unsigned char c = (unsigned char)plain[i];

        if (c < 0x20 || c == 0x7f || c == '/') {
            plain[i] = '_';
        }
    }
    if (!plain || n == 0 || n > 200 || strcmp(plain, ".") == 0
        || strcmp(plain, "..") == 0) {
        name = strdup("index.html");
    }
    else {
        name = strdup(plain);
    }
    curl_free(plain);
    curl_free(path);
    curl_url_cleanup(u);
    return name;
}

/* ---- the body ---------------------------------------------------------- */

static void progress(run *r, const char *end)
{
    double now = seconds(), took = now - r->start;

    if (!r->tty || (!*end && now < r->next_progress) || (*end && !r->shown)) {
        return;
    }
    r->next_progress = now + 0.2;
    r->shown = 1;
    fprintf(stderr, "\r%s: %" PRIu64, r->name, r->bytes);
    if (r->result.has_length) {
        fprintf(stderr, " of %" PRIu64, r->result.length);
    }
    fprintf(stderr, " bytes, %.1f MB/s \033[K%s",
            took > 0 ? (double)r->bytes / took / 1e6 : 0.0, end);
}

/* What it is called in the end is seen when it has been written. */
static void name_it(run *r)
{
    if (r->fresh && r->out.path) {
        r->name = r->out.path;
    }
}

static int sink_head(void *baton, const rdmahttp_result *result)
{
    run *r = baton;

    if (result->http < 200 || result->http > 299) {
        return 1; /* an error's page is not the file */
    }
    if (r->set->require && result->path == RDMAHTTP_BY_TCP
        && !(result->has_length && result->length == 0)) {
        r->refused = 1;
        return -1;
    }
    if (!r->open) {
        r->error = output_open(&r->out, r->name, r->fresh, r->cancel_fd);
        r->open = !r->error;
        name_it(r);
    }
    return r->error ? -1 : 0;
}

static int sink_write(void *baton, const void *bytes, size_t n)
{
    run *r = baton;

    r->error = output_write(&r->out, bytes, n);
    r->bytes += n;
    progress(r, "");
    return r->error ? -1 : 0;
}

static int sink_rewind(void *baton)
{
    run *r = baton;

    r->bytes = 0;
    return r->open ? output_rewind(&r->out) : 0;
}

/* ---- what to say at the end -------------------------------------------- */

static int exit_code(const run *r, rdmahttp_status status)
{
    static const int codes[] = {EXIT_OK,      EXIT_USAGE, EXIT_OTHER,
                                EXIT_NETWORK, EXIT_TLS,   EXIT_PROTOCOL,
                                EXIT_OTHER,   EXIT_OTHER};
    long http = r->result.http;

    if (r->refused) {
        return EXIT_NO_RDMA;
    }
    if (r->error) {
        return EXIT_FILE;
    }
    if (status != RDMAHTTP_OK) {
        return codes[status];
    }
    if (http == 401 || http == 407) {
        return EXIT_AUTH;
    }
    return http >= 200 && http < 300 ? EXIT_OK : EXIT_SERVER;
}

static void report_failure(run *r, int code)
{
    const rdmahttp_result *res = &r->result;
    const char *url = r->set->url;

    progress(r, "\n");
    if (r->refused) {
        options_complain("%s: not by RDMA: %s", url, res->why);
    }
    else if (r->error) {
        options_complain("%s: %s", r->name, strerror(r->error));
    }
    else if (code == EXIT_SERVER || code == EXIT_AUTH) {
        options_complain("%s: the server answered %ld%s", url, res->http,
                         res->redirects >= 20 && res->http < 400
                             ? " after 20 redirects"
                             : "");
    }
    else {
        options_complain("%s: %s", url, res->message);
    }
}

static void report_success(run *r, double took)
{
    static const char *const ways[] = {"TCP", "RDMA, server-write",
                                       "RDMA, client-read"};
    const rdmahttp_result *res = &r->result;

    progress(r, "");
    if (r->shown) {
        fputs("\r\033[K", stderr);
    }
    fprintf(stderr, "%s: %" PRIu64 " bytes by %s in %.3f s, %.1f MB/s", r->name,
            r->bytes, ways[res->path], took,
            took > 0 ? (double)r->bytes / took / 1e6 : 0.0);
    fprintf(stderr, "%s%s\n", res->why[0] ? "; by TCP: " : "", res->why);
}

static void json_string(FILE *to, const char *key, const char *s)
{
    fprintf(to, ",\"%s\":", key);
    if (!s) {
        fputs("null", to);
        return;
    }
    fputc('"', to);
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;

        if (c < 0x20 || c >= 0x7f || c == '"' || c == '\\') {
            fprintf(to, "\\u%04x", c); /* bytes beyond ASCII as if Latin-1 */
        }
        else {
            fputc(c, to);
        }
    }
    fputc('"', to);
}

static void report_json(const run *r, int code, double took)
{
    const rdmahttp_result *res = &r->result;
    int taken = r->set->file && strcmp(r->set->file, "-") == 0;
    FILE *to = taken ? stderr : stdout;

    fprintf(to,
            "{\"exit\":%d,\"status\":%ld,\"path\":\"%s\",\"bytes\":%" PRIu64
            ",\"bytes_rdma\":%" PRIu64 ",\"bytes_tcp\":%" PRIu64
            ",\"seconds\":%.6f,\"redirects\":%u,\"attempts\":%u",
            code, res->http, rdmahttp_path_name(res->path), r->bytes,
            res->bytes_rdma, res->bytes_tcp, took, res->redirects,
            res->attempts);
    json_string(to, "declined", res->declined);
    json_string(to, "why_tcp", res->why[0] ? res->why : NULL);
    json_string(to, "error", res->message[0] ? res->message : NULL);
    json_string(to, "url", res->url);
    fputs("}\n", to);
    fflush(to);
}

/* ---- main -------------------------------------------------------------- */

static volatile sig_atomic_t signalled; /* the first one that has come */
static int cancel_pipe[2];

/* The server is told that we leave, which takes a moment; whoever does not want
 * to wait for it says so again. */
static void on_signal(int number_of_it)
{
    int error = errno;

    if (signalled || write(cancel_pipe[1], "", 1) != 1) {
        output_forget();
        signal(number_of_it, SIG_DFL);
        raise(number_of_it);
    }
    signalled = number_of_it;
    errno = error;
}

static void catch_signals(void)
{
    static const int which[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction sa;
    size_t i;

    memset(&sa, 0, sizeof(sa));
    sigemptyset(&sa.sa_mask);
    sa.sa_handler = on_signal;
    for (i = 0; i < sizeof(which) / sizeof(which[0]); i++) {
        struct sigaction old;

        /* nohup and the like stay as they are */
        if (sigaction(which[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN) {
            sigaction(which[i], &sa, NULL);
        }
    }
    signal(SIGPIPE, SIG_IGN); /* EPIPE says it better */
}

/* Whoever started us may have closed some: nobody else is to get their numbers.
 * Output to them fails, as it should. */
static void have_standard_descriptors(void)
{
    int fd;

    do {
        fd = open("/dev/null", O_RDONLY);
    } while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd > STDERR_FILENO) {
        close(fd);
    }
}

/* A window is locked memory; the soft limit is ours to raise. */
static void raise_memlock(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_MEMLOCK, &limit) == 0
        && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_MEMLOCK, &limit); /* if not: a smaller window */
    }
}

static void show_line(void *baton, int level, const char *line)
{
    const run *r = baton;
    int most = r->set->quiet          ? RDMAHTTP_LOG_WARNING - 1
               : r->set->verbose > 1  ? RDMAHTTP_LOG_DEBUG
               : r->set->verbose == 1 ? RDMAHTTP_LOG_INFO
                                      : RDMAHTTP_LOG_WARNING;

    if (level <= most) {
        fprintf(stderr, "rwget: %s\n", line);
    }
}

static int fetch(run *r)
{
    rdmahttp_conf conf = r->set->conf;
    rdmahttp_options ask = {r->set->headers, r->cancel_fd};
    rdmahttp_sink sink = {sink_head, sink_write, sink_rewind, r};
    rdmahttp_status status;
    rdmahttp *h;
    double took;
    int code;

    conf.log = show_line;
    conf.log_baton = r;
    conf.user_agent = "rwget/" MOD_RDMA_VERSION;
    h = rdmahttp_create(&conf);
    if (!h) {
        options_complain("out of memory");
        return EXIT_OTHER;
    }
    r->start = seconds();
    r->next_progress = r->start + 0.2;
    status = rdmahttp_get(h, r->set->url, &ask, &sink, &r->result);
    took = seconds() - r->start;
    code = exit_code(r, status);
    if (r->open && code == EXIT_OK) {
        r->error = output_commit(&r->out);
        name_it(r);
        code = r->error ? EXIT_FILE : EXIT_OK;
    }
    if (signalled) {
        progress(r, "\n");
    }
    else if (code != EXIT_OK) {
        report_failure(r, code);
    }
    else if (!r->set->quiet) {
        report_success(r, took);
    }
    if (r->set->json && !signalled) {
        report_json(r, code, took);
    }
    output_close(&r->out);
    rdmahttp_destroy(h);
    rdmahttp_result_clear(&r->result);
    return code;
}

int main(int argc, char **argv)
{
    options set = {.conf = RDMAHTTP_CONF_INIT};
    run r = {.set = &set};
    char *name = NULL;
    int code;

    (void)argc;
    have_standard_descriptors();
    if (options_parse(&set, argv)) {
        return EXIT_USAGE;
    }
    if (set.done) {
        return fflush(stdout) ? EXIT_FILE : EXIT_OK;
    }
    if (pipe2(cancel_pipe, O_CLOEXEC | O_NONBLOCK)) {
        options_complain("%s", strerror(errno));
        return EXIT_OTHER;
    }
    catch_signals();
    raise_memlock();
    if (!set.file) {
        name = name_from(set.url);
        if (!name) {
            options_complain("out of memory");
            return EXIT_OTHER;
        }
    }
    r.name = set.file ? set.file : name;
    r.fresh = !set.file;
    r.out.fd = -1;
    r.cancel_fd = cancel_pipe[0];
    r.tty = !set.quiet && isatty(STDERR_FILENO);
    code = fetch(&r);
    free(name);
    if (signalled) {
        signal(signalled, SIG_DFL);
        raise(signalled);
    }
    return code;
}
