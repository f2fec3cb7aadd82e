/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * rwget: fetch one URL, the body by RDMA where the server can. docs/rwget.1
 * describes it.
 */
#include <arpa/inet.h>
#include <curl/curl.h>
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

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

#define HEADERS_MAX 64
#define WINDOW_MAX  ((uint64_t)1 << 40)

typedef struct settings {
    const char *file; /* NULL: from the URL */
    const char *url;
    int quiet;
    int verbose;
    int json;
    int require;
    int done; /* --help or --version has been answered */
    rdmahttp_conf conf;
    const char *headers[HEADERS_MAX + 1];
    size_t nheaders;
} settings;

typedef struct run {
    const settings *set;
    output out;
    const char *name; /* of the file */
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

__attribute__((format(printf, 1, 2))) static void complain(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    fputs("rwget: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
}

/* Digits only, from low to high. 0 or -1. */
static int number(const char *s, size_t n, uint64_t low, uint64_t high,
                  uint64_t *out)
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
    if (n == 0 || v < low || v > high) {
        return -1;
    }
    *out = v;
    return 0;
}

/* ---- options ----------------------------------------------------------- */

static int set_file(settings *set, const char *value)
{
    set->file = value;
    return *value ? 0 : -1;
}

static int set_quiet(settings *set, const char *value)
{
    (void)value;
    set->quiet = 1;
    set->verbose = 0;
    return 0;
}

static int set_verbose(settings *set, const char *value)
{
    (void)value;
    set->verbose++;
    set->quiet = 0;
    return 0;
}

static int set_mode(settings *set, const char *value)
{
    static const char *const names[] = {"auto", "write", "read", "off"};
    size_t i;

    for (i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(value, names[i]) == 0) {
            set->conf.mode = (rdmahttp_mode)i;
            return 0;
        }
    }
    return -1;
}

static int set_require(settings *set, const char *value)
{
    (void)value;
    set->require = 1;
    return 0;
}

static int set_window(settings *set, const char *value)
{
    static const char units[] = "KMG";
    size_t n = strlen(value);
    const char *unit = n > 0 ? strchr(units, value[n - 1]) : NULL;
    unsigned shift = unit ? (unsigned)(unit - units + 1) * 10 : 0;
    uint64_t v;

    if (number(value, unit ? n - 1 : n, 1, WINDOW_MAX >> shift, &v)) {
        return -1;
    }
    set->conf.window = (size_t)(v << shift);
    return 0;
}

static int set_ports(settings *set, const char *value)
{
    const char *dash = strchr(value, '-');
    uint64_t low, high;

    if (!dash || number(value, (size_t)(dash - value), 1024, 65535, &low) ||
        number(dash + 1, strlen(dash + 1), low, 65535, &high)) {
        return -1;
    }
    set->conf.port_min = (uint16_t)low;
    set->conf.port_max = (uint16_t)high;
    return 0;
}

static int set_bind(settings *set, const char *value)
{
    unsigned char buf[sizeof(struct in6_addr)];

    set->conf.bind_address = value;
    return inet_pton(AF_INET, value, buf) == 1 ||
                   inet_pton(AF_INET6, value, buf) == 1
               ? 0
               : -1;
}

static int set_over_tls(settings *set, const char *value)
{
    (void)value;
    set->conf.over_tls = 1;
    return 0;
}

static int set_timeout(settings *set, const char *value)
{
    uint64_t v;

    if (number(value, strlen(value), 1, 86400, &v)) {
        return -1;
    }
    set->conf.timeout_ms = (unsigned)v * 1000;
    return 0;
}

/* "Name: value". What frames the message or carries RDMA is not the user's. */
static int set_header(settings *set, const char *value)
{
    static const char *const ours[] = {"RDMA", "Connection", "Content-Length",
                                       "Transfer-Encoding"};
    const char *colon = strchr(value, ':');
    size_t i;

    if (!colon || colon == value || strpbrk(value, "\r\n") ||
        set->nheaders == HEADERS_MAX) {
        return -1;
    }
    for (i = 0; i < sizeof(ours) / sizeof(ours[0]); i++) {
        if (strncasecmp(value, ours[i], strlen(ours[i])) == 0 &&
            value[strlen(ours[i])] == ':') {
            return -1;
        }
    }
    set->headers[set->nheaders++] = value;
    return 0;
}

static int set_json(settings *set, const char *value)
{
    (void)value;
    set->json = 1;
    return 0;
}

static int set_help(settings *set, const char *value);

static int set_version(settings *set, const char *value)
{
    (void)value;
    printf("rwget %s, %s\n", MOD_RDMA_VERSION, curl_version());
    set->done = 1;
    return 0;
}

typedef struct option_row {
    char letter; /* 0: none */
    const char *name;
    const char *arg; /* NULL: none */
    const char *help;
    int (*set)(settings *set, const char *value); /* 0, or -1: a bad value */
} option_row;

static const option_row rows[] = {
    {'O', "output-document", "FILE", "write to FILE; - is standard output",
     set_file},
    {'q', "quiet", NULL, "say nothing but errors", set_quiet},
    {'v', "verbose", NULL,
     "show the fields, heads and connections; twice: more", set_verbose},
    {0, "rdma", "MODE", "auto (the default), write, read or off: what to offer",
     set_mode},
    {0, "rdma-require", NULL, "fail with 9 when the body comes by TCP",
     set_require},
    {0, "rdma-window", "SIZE", "bytes to offer, also 64K, 4M (default), 1G",
     set_window},
    {0, "rdma-ports", "A-B", "RDMA listener's port, from 1024 to 65535",
     set_ports},
    {0, "rdma-over-tls", NULL, "offer RDMA, which is plaintext, with https too",
     set_over_tls},
    {0, "bind-address", "ADDR", "local IPv4 or IPv6 address", set_bind},
    {0, "timeout", "SECONDS", "give up without progress, default 30",
     set_timeout},
    {0, "header", "LINE", "send this field too; may be repeated", set_header},
    {0, "json", NULL, "one line for programs: to stdout, or stderr with -O -",
     set_json},
    {'h', "help", NULL, "show this", set_help},
    {'V', "version", NULL, "show the version", set_version},
};

#define NROWS (sizeof(rows) / sizeof(rows[0]))

static int set_help(settings *set, const char *value)
{
    size_t i;

    (void)value;
    printf("Usage: rwget [OPTION]... URL\n"
           "Fetch URL; the body by RDMA where the server can.\n\n");
    for (i = 0; i < NROWS; i++) {
        char left[64];

        snprintf(left, sizeof(left), "--%s%s%s", rows[i].name,
                 rows[i].arg ? "=" : "", rows[i].arg ? rows[i].arg : "");
        printf("  %c%c%c %-24s %s\n", rows[i].letter ? '-' : ' ',
               rows[i].letter ? rows[i].letter : ' ',
               rows[i].letter ? ',' : ' ', left, rows[i].help);
    }
    printf("\nExit status: 0 complete, 1 other, 2 usage, 3 file, 4 network, 5 "
           "TLS,\n6 authentication, 7 protocol, 8 server's error, 9 RDMA "
           "required, not used.\n");
    set->done = 1;
    return 0;
}

static int apply(settings *set, const option_row *row, const char *value)
{
    if (row->set(set, value)) {
        complain("--%s: bad value '%s' (%s)", row->name, value ? value : "",
                 row->help);
        return -1;
    }
    return 0;
}

/* "--name", "--name=value" or "--name value". 0 or -1. */
static int long_option(settings *set, char **argv, int *i)
{
    const char *name = argv[*i] + 2;
    size_t n = strcspn(name, "=");
    const char *value = name[n] ? name + n + 1 : NULL;
    size_t k;

    for (k = 0; k < NROWS; k++) {
        if (strlen(rows[k].name) == n && strncmp(rows[k].name, name, n) == 0) {
            break;
        }
    }
    if (k == NROWS) {
        complain("unknown option --%.*s", (int)n, name);
        return -1;
    }
    if (!rows[k].arg && value) {
        complain("--%s takes no value", rows[k].name);
        return -1;
    }
    if (rows[k].arg && !value) {
        value = argv[++*i];
        if (!value) {
            --*i;
            complain("--%s needs a value", rows[k].name);
            return -1;
        }
    }
    return apply(set, &rows[k], value);
}

/* "-q", "-O FILE", "-OFILE", "-qO-". 0 or -1. */
static int short_options(settings *set, char **argv, int *i)
{
    const char *p;
    size_t k;

    for (p = argv[*i] + 1; *p; p++) {
        for (k = 0; k < NROWS && rows[k].letter != *p; k++) {
        }
        if (k == NROWS) {
            complain("unknown option -%c", *p);
            return -1;
        }
        if (!rows[k].arg) {
            if (apply(set, &rows[k], NULL)) {
                return -1;
            }
            continue;
        }
        if (!p[1] && !argv[*i + 1]) {
            complain("-%c needs a value", *p);
            return -1;
        }
        return apply(set, &rows[k], p[1] ? p + 1 : argv[++*i]);
    }
    return 0;
}

/* 0, or -1: said what is wrong. */
static int parse(settings *set, char **argv)
{
    int i, only_urls = 0;

    for (i = 1; argv[i] && !set->done; i++) {
        const char *s = argv[i];
        int rc = 0;

        if (!only_urls && strcmp(s, "--") == 0) {
            only_urls = 1;
        }
        else if (!only_urls && s[0] == '-' && s[1] == '-') {
            rc = long_option(set, argv, &i);
        }
        else if (!only_urls && s[0] == '-' && s[1]) {
            rc = short_options(set, argv, &i);
        }
        else if (set->url) {
            complain("one URL only");
            rc = -1;
        }
        else {
            set->url = s;
        }
        if (rc) {
            return -1;
        }
    }
    if (!set->done && !set->url) {
        complain("no URL; see rwget --help");
        return -1;
    }
    if (set->require && set->conf.mode == RDMAHTTP_OFF) {
        complain("--rdma-require and --rdma=off exclude each other");
        return -1;
    }
    return 0;
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

    if (u && !curl_url_set(u, CURLUPART_URL, url, CURLU_GUESS_SCHEME) &&
        !curl_url_get(u, CURLUPART_PATH, &path, 0)) {
        last = strrchr(path, '/');
        plain = curl_easy_unescape(NULL, last ? last + 1 : path, 0, &n);
    }
    for (i = 0; plain && i < n; i++) {
        unsigned char c = (unsigned char)plain[i];

        if (c < 0x20 || c == 0x7f || c == '/') {
            plain[i] = '_';
        }
    }
    if (!plain || n == 0 || n > 200 || strcmp(plain, ".") == 0 ||
        strcmp(plain, "..") == 0) {
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

static int sink_head(void *baton, const rdmahttp_result *result)
{
    run *r = baton;

    if (result->http < 200 || result->http > 299) {
        return 1; /* an error's page is not the file */
    }
    if (r->set->require && result->path == RDMAHTTP_BY_TCP &&
        !(result->has_length && result->length == 0)) {
        r->refused = 1;
        return -1;
    }
    if (!r->open) {
        r->error = output_open(&r->out, r->name);
        r->open = !r->error;
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
                                EXIT_OTHER};
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
        complain("%s: not by RDMA: %s", url, res->why);
    }
    else if (r->error) {
        complain("%s: %s", r->name, strerror(r->error));
    }
    else if (code == EXIT_SERVER || code == EXIT_AUTH) {
        complain("%s: the server answered %ld%s", url, res->http,
                 res->redirects >= 20 && res->http < 400 ? " after 20 redirects"
                                                         : "");
    }
    else {
        complain("%s: %s", url, res->message);
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
    FILE *to = strcmp(r->name, "-") == 0 ? stderr : stdout;

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

static void on_signal(int number_of_it)
{
    output_forget();
    signal(number_of_it, SIG_DFL);
    raise(number_of_it);
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

/* A window is locked memory; the soft limit is ours to raise. */
static void raise_memlock(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_MEMLOCK, &limit) == 0 &&
        limit.rlim_cur < limit.rlim_max) {
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
    rdmahttp_options options = {r->set->headers};
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
        complain("out of memory");
        return EXIT_OTHER;
    }
    r->start = seconds();
    r->next_progress = r->start + 0.2;
    status = rdmahttp_get(h, r->set->url, &options, &sink, &r->result);
    took = seconds() - r->start;
    code = exit_code(r, status);
    if (r->open && code == EXIT_OK) {
        r->error = output_commit(&r->out);
        code = r->error ? EXIT_FILE : EXIT_OK;
    }
    else if (r->open) {
        output_discard(&r->out);
    }
    if (code != EXIT_OK) {
        report_failure(r, code);
    }
    else if (!r->set->quiet) {
        report_success(r, took);
    }
    if (r->set->json) {
        report_json(r, code, took);
    }
    rdmahttp_destroy(h);
    rdmahttp_result_clear(&r->result);
    return code;
}

int main(int argc, char **argv)
{
    settings set = {.conf = RDMAHTTP_CONF_INIT};
    run r = {.set = &set};
    char *name = NULL, *fresh = NULL;
    int code;

    (void)argc;
    if (parse(&set, argv)) {
        return EXIT_USAGE;
    }
    if (set.done) {
        return fflush(stdout) ? EXIT_FILE : EXIT_OK;
    }
    catch_signals();
    raise_memlock();
    if (!set.file) {
        name = name_from(set.url);
        fresh = name ? output_fresh_name(name) : NULL;
        if (!fresh) {
            complain("out of memory");
            free(name);
            return EXIT_OTHER;
        }
    }
    r.name = set.file ? set.file : fresh;
    r.out.fd = -1;
    r.tty = !set.quiet && isatty(STDERR_FILENO);
    code = fetch(&r);
    free(name);
    free(fresh);
    return code;
}
