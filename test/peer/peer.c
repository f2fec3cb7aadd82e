/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
/* rdma_peer: the other end of the wire, for tests. */
#include "peer.h"

#include <arpa/inet.h>
#include <getopt.h>
#include <netdb.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "endpoint.h"
#include "examples.h"
#include "lie.h"
#include "loop.h"
#include "result.h"
#include "script.h"
#include "serve.h"

enum { EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_UNEXPECTED = 3, EXIT_SETUP = 4 };

struct options opt = {.method = "GET",
                      .clients = 1,
                      .requests = 1,
                      .concurrency = 1,
                      .prefer = {KIND_WRITE, KIND_READ},
                      .window = 1048576,
                      .first_id = 1,
                      .depth = 32,
                      .reads = 4,
                      .read_size = 262144,
                      .links_max = 256,
                      .timeout = 60,
                      .progress = 15,
                      .linger = 2000,
                      .nominate = true,
                      .check_address = true,
                      .keep = true,
                      .expect_ok = -1};

static struct endpoint **endpoints;
static unsigned clients_left;
static bool all_over;
static double linger_until;

static void usage(void)
{
    puts("usage: rdma_peer --server ADDRESS:PORT --bind ADDRESS [OPTION...]\n"
         "       rdma_peer --serve --bind ADDRESS --port PORT\n"
         "       rdma_peer --examples PROTOCOL.md\n"
         "\n"
         "  --server A:P         IPv6 in brackets\n"
         "  --bind A             repeatable: clients take turns\n"
         "  --host NAME          (the server's address)\n"
         "  --clients N          endpoints at once (1)\n"
         "  --requests N         of each client (1)\n"
         "  --concurrency N      HTTP connections of each client (1)\n"
         "  --share              as many of them as requests\n"
         "  --mode M             write, read, write,read (both), read,write or"
         " none\n"
         "  --window SIZE        (1m; k, m, g)\n"
         "  --path P             repeatable: requests take turns\n"
         "  --paths FILE         one a line\n"
         "  --header 'N: V'      repeatable\n"
         "  --method M  --http10  --no-nominate  --close\n"
         "  --field VALUE        sent as it is; {port} {token} {id} {stag}"
         " {to} {len}\n"
         "                       are filled in\n"
         "  --fields FILE        one such value a line, one request each\n"
         "  --asks FILE          one whole request a line, sent as it is; a tab"
         " ends a line of\n"
         "                       it, two end its head; {rdma} becomes the "
         "field's"
         " value\n"
         "  --save DIR           keep what the first client gets: ID.head, with"
         " trailers, and\n"
         "                       ID.body\n"
         "  --addr A  --port P   advertised\n"
         "  --id N               the first one (1)\n"
         "  --depth N            receives (32)\n"
         "  --reads N            READs in flight on a connection (4)\n"
         "  --read-size SIZE     (256k)\n"
         "  --links N            connections of a client (256)\n"
         "  --no-address-check   accept from everywhere\n"
         "  --verify sha256:HEX | stamp:SEED[@OFFSET] | sparse:SEED\n"
         "  --bytes N            length of every body\n"
         "  --timeout S          of a request (60)\n"
         "  --retry              ask again, without the field, when a kept"
         " connection\n"
         "                       was closed before the head\n"
         "  --progress S         silence until PING, and wait for a last word"
         " (15)\n"
         "  --linger MS          wait for ids to be closed at the end (2000)\n"
         "  --hold S             how long stop and stall stop; without it"
         " until a\n"
         "                       line on stdin, or its end\n"
         "  --expect-path write|read|tcp  --expect-declined TOKEN\n"
         "  --expect-ok N        so many requests succeed (all)\n"
         "  --expect-status N    (2xx, 3xx)\n"
         "  --json[=full]  --verbose\n"
         "  --step STEP=ACTION   repeatable");
    script_help();
    lie_help();
    puts("\nExit: 0 all as expected; 1 a request failed, or other than"
         " --expect-ok of them\nsucceeded; 2 usage; 3 another path or reason"
         " than expected, or messages after a\nlast word; 4 no device, no"
         " listener, no memory.");
}

static uint64_t size_of(const char *text)
{
    char *end;
    uint64_t n = strtoull(text, &end, 0);
    switch (*end) {
    case 'k':
        return n << 10;
    case 'm':
        return n << 20;
    case 'g':
        return n << 30;
    }
    return n;
}

static void add(struct list *list, const char *text)
{
    list->of = need(realloc(list->of, (list->n + 1) * sizeof *list->of));
    list->of[list->n++] = need(strdup(text));
}

static void add_lines(struct list *list, const char *path)
{
    static char line[65536];
    FILE *f = strcmp(path, "-") == 0 ? stdin : fopen(path, "r");
    if (f == NULL) {
        perror(path);
        exit(EXIT_USAGE);
    }
    while (fgets(line, sizeof line, f) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        if (*line != '\0') {
            add(list, line);
        }
    }
    fclose(f);
}

static void address(const char *host, const char *port,
                    struct sockaddr_storage *out)
{
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV};
    struct addrinfo *info;
    if (getaddrinfo(host, port, &hints, &info) != 0) {
        fprintf(stderr, "rdma_peer: %s is no address\n", host);
        exit(EXIT_USAGE);
    }
    memcpy(out, info->ai_addr, info->ai_addrlen);
    freeaddrinfo(info);
}

static void server(const char *text)
{
    char *copy = need(strdup(text)), *colon = strrchr(copy, ':');
    char *host = copy;
    if (colon == NULL) {
        fputs("rdma_peer: --server ADDRESS:PORT\n", stderr);
        exit(EXIT_USAGE);
    }
    *colon = '\0';
    if (*host == '[') {
        host++;
        host[strcspn(host, "]")] = '\0';
    }
    address(host, colon + 1, &opt.server);
    if (opt.host == NULL) {
        opt.host = need(strdup(text));
    }
    free(copy);
}

static bool mode(const char *text)
{
    static const struct {
        const char *name;
        uint8_t prefer[2];
    } modes[] = {{"write", {KIND_WRITE, 0}},
                 {"read", {KIND_READ, 0}},
                 {"write,read", {KIND_WRITE, KIND_READ}},
                 {"both", {KIND_WRITE, KIND_READ}},
                 {"read,write", {KIND_READ, KIND_WRITE}},
                 {"none", {0, 0}}};
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        if (strcmp(text, modes[i].name) == 0) {
            memcpy(opt.prefer, modes[i].prefer, 2);
            return true;
        }
    }
    return false;
}

static bool verify(const char *text)
{
    if (strncmp(text, "sha256:", 7) == 0 && strlen(text) == 7 + 64) {
        opt.verify = VERIFY_SHA;
        memcpy(opt.sha, text + 7, 65);
        return true;
    }
    if (strncmp(text, "stamp:", 6) == 0) {
        const char *at = strchr(text, '@');
        opt.verify = VERIFY_STAMP;
        opt.seed = strtoull(text + 6, NULL, 0);
        opt.base = at != NULL ? size_of(at + 1) : 0;
        return true;
    }
    if (strncmp(text, "sparse:", 7) == 0) {
        opt.verify = VERIFY_SPARSE;
        opt.seed = strtoull(text + 7, NULL, 0);
        return true;
    }
    return false;
}

static bool path(const char *text)
{
    for (unsigned i = PATH_WRITE; i < PATHS; i++) {
        if (strcmp(text, path_names[i]) == 0) {
            opt.expect_path = (enum path)i;
            return true;
        }
    }
    return false;
}

enum option_code {
    O_SERVER = 256,
    O_BIND,
    O_HOST,
    O_CLIENTS,
    O_REQUESTS,
    O_CONCURRENCY,
    O_SHARE,
    O_MODE,
    O_WINDOW,
    O_PATH,
    O_PATHS,
    O_HEADER,
    O_METHOD,
    O_HTTP10,
    O_NOMINATE,
    O_CLOSE,
    O_FIELD,
    O_FIELDS,
    O_ASKS,
    O_SAVE,
    O_ADDR,
    O_PORT,
    O_ID,
    O_DEPTH,
    O_READS,
    O_READ_SIZE,
    O_LINKS,
    O_ADDRESS,
    O_VERIFY,
    O_BYTES,
    O_TIMEOUT,
    O_PROGRESS,
    O_LINGER,
    O_HOLD,
    O_EXPECT_PATH,
    O_EXPECT_DECLINED,
    O_EXPECT_OK,
    O_EXPECT_STATUS,
    O_JSON,
    O_VERBOSE,
    O_STEP,
    O_RETRY,
    O_SERVE,
    O_EXAMPLES,
    O_HELP
};

static const struct option table[] = {
    {"server", 1, NULL, O_SERVER},
    {"bind", 1, NULL, O_BIND},
    {"host", 1, NULL, O_HOST},
    {"clients", 1, NULL, O_CLIENTS},
    {"requests", 1, NULL, O_REQUESTS},
    {"concurrency", 1, NULL, O_CONCURRENCY},
    {"share", 0, NULL, O_SHARE},
    {"mode", 1, NULL, O_MODE},
    {"window", 1, NULL, O_WINDOW},
    {"path", 1, NULL, O_PATH},
    {"paths", 1, NULL, O_PATHS},
    {"header", 1, NULL, O_HEADER},
    {"method", 1, NULL, O_METHOD},
    {"http10", 0, NULL, O_HTTP10},
    {"no-nominate", 0, NULL, O_NOMINATE},
    {"close", 0, NULL, O_CLOSE},
    {"field", 1, NULL, O_FIELD},
    {"fields", 1, NULL, O_FIELDS},
    {"asks", 1, NULL, O_ASKS},
    {"save", 1, NULL, O_SAVE},
    {"addr", 1, NULL, O_ADDR},
    {"port", 1, NULL, O_PORT},
    {"id", 1, NULL, O_ID},
    {"depth", 1, NULL, O_DEPTH},
    {"reads", 1, NULL, O_READS},
    {"read-size", 1, NULL, O_READ_SIZE},
    {"links", 1, NULL, O_LINKS},
    {"no-address-check", 0, NULL, O_ADDRESS},
    {"verify", 1, NULL, O_VERIFY},
    {"bytes", 1, NULL, O_BYTES},
    {"timeout", 1, NULL, O_TIMEOUT},
    {"progress", 1, NULL, O_PROGRESS},
    {"linger", 1, NULL, O_LINGER},
    {"hold", 1, NULL, O_HOLD},
    {"expect-path", 1, NULL, O_EXPECT_PATH},
    {"expect-declined", 1, NULL, O_EXPECT_DECLINED},
    {"expect-ok", 1, NULL, O_EXPECT_OK},
    {"expect-status", 1, NULL, O_EXPECT_STATUS},
    {"json", 2, NULL, O_JSON},
    {"verbose", 0, NULL, O_VERBOSE},
    {"step", 1, NULL, O_STEP},
    {"retry", 0, NULL, O_RETRY},
    {"serve", 0, NULL, O_SERVE},
    {"examples", 1, NULL, O_EXAMPLES},
    {"help", 0, NULL, O_HELP},
    {NULL, 0, NULL, 0}};

static bool serving;

static bool take(int option, const char *value)
{
    unsigned n = value != NULL ? (unsigned)size_of(value) : 0;
    switch (option) {
    case O_SERVER:
        server(value);
        break;
    case O_BIND:
        if (opt.n_binds == BINDS_MAX) {
            return false;
        }
        address(value, "0", &opt.binds[opt.n_binds++]);
        break;
    case O_HOST:
        opt.host = value;
        break;
    case O_CLIENTS:
        opt.clients = n;
        break;
    case O_REQUESTS:
        opt.requests = n;
        break;
    case O_CONCURRENCY:
        opt.concurrency = n;
        break;
    case O_SHARE:
        opt.concurrency = 0;
        break;
    case O_MODE:
        return mode(value);
    case O_WINDOW:
        opt.window = size_of(value);
        break;
    case O_PATH:
        add(&opt.paths, value);
        break;
    case O_PATHS:
        add_lines(&opt.paths, value);
        break;
    case O_HEADER:
        add(&opt.headers, value);
        break;
    case O_METHOD:
        opt.method = value;
        break;
    case O_HTTP10:
        opt.http10 = true;
        break;
    case O_NOMINATE:
        opt.nominate = false;
        break;
    case O_CLOSE:
        opt.keep = false;
        break;
    case O_FIELD:
        opt.field = value;
        break;
    case O_FIELDS:
        add_lines(&opt.fields, value);
        opt.requests = opt.fields.n;
        opt.full = opt.json = true;
        break;
    case O_ASKS:
        add_lines(&opt.asks, value);
        opt.requests = opt.asks.n;
        opt.full = opt.json = true;
        break;
    case O_SAVE:
        opt.save = value;
        break;
    case O_ADDR:
        opt.addr = value;
        break;
    case O_PORT:
        opt.port = n;
        break;
    case O_ID:
        opt.first_id = n;
        break;
    case O_DEPTH:
        opt.depth = n;
        return n >= 1 && n <= 255;
    case O_READS:
        opt.reads = n;
        break;
    case O_READ_SIZE:
        opt.read_size = n;
        return n >= 1024;
    case O_LINKS:
        opt.links_max = n;
        break;
    case O_ADDRESS:
        opt.check_address = false;
        break;
    case O_VERIFY:
        return verify(value);
    case O_BYTES:
        opt.has_bytes = true;
        opt.bytes = size_of(value);
        break;
    case O_TIMEOUT:
        opt.timeout = n;
        break;
    case O_PROGRESS:
        opt.progress = n;
        break;
    case O_LINGER:
        opt.linger = n;
        break;
    case O_HOLD:
        opt.hold = atof(value);
        break;
    case O_EXPECT_PATH:
        return path(value);
    case O_EXPECT_DECLINED:
        opt.expect_declined = value;
        break;
    case O_EXPECT_OK:
        opt.expect_ok = (long)n;
        break;
    case O_EXPECT_STATUS:
        opt.expect_status = (int)n;
        break;
    case O_JSON:
        opt.json = true;
        opt.full = opt.full || (value != NULL && strcmp(value, "full") == 0);
        return value == NULL || opt.full;
    case O_VERBOSE:
        opt.verbose = true;
        break;
    case O_STEP:
        return script_add(value);
    case O_RETRY:
        opt.retry = true;
        break;
    case O_SERVE:
        serving = true;
        break;
    case O_EXAMPLES:
        exit(examples_run(value));
    case O_HELP:
        usage();
        exit(0);
    default:
        return false;
    }
    return true;
}

static void options(int argc, char **argv)
{
    int option, index;
    while ((option = getopt_long(argc, argv, "", table, &index)) != -1) {
        if (!take(option, optarg)) {
            if (option != '?') {
                fprintf(stderr, "rdma_peer: --%s %s?\n", table[index].name,
                        optarg != NULL ? optarg : "");
            }
            exit(EXIT_USAGE);
        }
    }
    if (optind < argc || opt.n_binds == 0
        || (!serving && opt.server.ss_family == 0) || opt.window == 0
        || opt.requests == 0 || opt.clients == 0 || opt.first_id == 0) {
        fputs("rdma_peer: see --help\n", stderr);
        exit(EXIT_USAGE);
    }
    if (opt.paths.n == 0) {
        add(&opt.paths, "/");
    }
    if (opt.concurrency == 0 || opt.concurrency > opt.requests) {
        opt.concurrency = opt.requests;
    }
}

/* Until every id is closed, or for a while. */
static void linger(void *arg)
{
    bool waiting = false;
    (void)arg;
    for (unsigned i = 0; i < opt.clients; i++) {
        struct endpoint *ep = endpoints[i];
        waiting = waiting || ep->open != NULL;
        for (uint32_t j = 0; j < ep->n_links; j++) {
            struct conn *c = ep->links[j]->conn;
            waiting = waiting || (c != NULL && c->sends > 0);
        }
    }
    if (waiting && loop_now() < linger_until) {
        loop_timer(5, linger, NULL);
    }
    else {
        all_over = true;
    }
}

static void client_done(struct endpoint *ep)
{
    (void)ep;
    if (--clients_left == 0) {
        linger_until = loop_now() + opt.linger / 1e3;
        loop_timer(5, linger, NULL);
    }
}

static void limits(void)
{
    static const int kinds[] = {RLIMIT_MEMLOCK, RLIMIT_NOFILE};
    for (unsigned i = 0; i < 2; i++) {
        struct rlimit now, all = {RLIM_INFINITY, RLIM_INFINITY};
        if (i == 1) {
            all.rlim_cur = all.rlim_max = 65536;
        }
        if (setrlimit((__rlimit_resource_t)kinds[i], &all) != 0
            && getrlimit((__rlimit_resource_t)kinds[i], &now) == 0) {
            now.rlim_cur = now.rlim_max;
            setrlimit((__rlimit_resource_t)kinds[i], &now);
        }
    }
}

int main(int argc, char **argv)
{
    double began;
    options(argc, argv);
    setvbuf(stdout, NULL, _IOLBF, 0);
    limits();
    if (serving) {
        return serve(&opt.binds[0], (uint16_t)opt.port);
    }
    endpoints = need(calloc(opt.clients, sizeof *endpoints));
    for (unsigned i = 0; i < opt.clients; i++) {
        endpoints[i] = endpoint_new(i + 1, client_done);
        if (endpoints[i] == NULL) {
            return EXIT_SETUP;
        }
    }
    clients_left = opt.clients;
    script_start();
    began = loop_now();
    for (unsigned i = 0; i < opt.clients; i++) {
        endpoint_start(endpoints[i]);
    }
    loop_run(&all_over);
    for (unsigned i = 0; i < opt.clients; i++) {
        for (struct request *r = endpoints[i]->open; r != NULL; r = r->next) {
            totals.aside += !request_window_free(r);
        }
        endpoint_end(endpoints[i]);
    }
    result_print(endpoints, loop_now() - began);
    if (opt.expect_ok >= 0 ? totals.ok != (unsigned long)opt.expect_ok
                           : totals.failed > 0) {
        return EXIT_FAILED;
    }
    return totals.unexpected > 0 || totals.wrong > 0 ? EXIT_UNEXPECTED : 0;
}
