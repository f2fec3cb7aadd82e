/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * mod_rdma: the module record, its hooks and their order, what happens when
 * httpd and its children start and stop. Everything else is in the rooms.
 *
 * Nothing here outlives a restart: httpd unloads the module. The statics below
 * are set by post_config in the parent and inherited by the children, but for
 * `engine`, which is the child's own.
 */
#include <signal.h>
#include <string.h>
#include <sys/resource.h>

#include <httpd.h>
#include <http_config.h>
#include <http_core.h>
#include <http_log.h>
#include <http_protocol.h>
#include <http_request.h>
#include <ap_mpm.h>
#include <mpm_common.h>
#include <apr_optional_hooks.h>
#include <apr_strings.h>
#include <mod_status.h>

#include <infiniband/verbs.h>

#include "rdma_cache.h"
#include "rdma_config.h"
#include "rdma_filter.h"
#include "rdma_request.h"
#include "rdma_status.h"
#include "rdma_version.h"


#define MIB          ((rlim_t)1024 * 1024)
#define MEMLOCK_MORE (16 * MIB) /* besides RdmaMemory: queues, rounding */
#define NAMES_MAX    8          /* servers in the line that says where */

static int wanted;           /* there is reason for an engine in each child */
static apr_size_t memory;    /* bytes: RdmaMemory, or what memlock allows */
static unsigned connections; /* RdmaMaxConnections, or what descriptors allow */
static server_rec *log_to;   /* the main server */
static rdma_cache *engine;   /* this child's */
static volatile int give_up; /* SIGTERM has come while leases ran */

/* ---- the parent -------------------------------------------------------- */

/* "siw0 siw1", or NULL. Nothing is opened: that is for the children. */
static const char *device_names(apr_pool_t *p)
{
    struct ibv_device **list;
    const char *names = NULL;
    int i, n = 0;

    list = ibv_get_device_list(&n);
    for (i = 0; list && i < n; i++) {
        const char *name = ibv_get_device_name(list[i]);

        names = names ? apr_pstrcat(p, names, " ", name, NULL)
                      : apr_pstrdup(p, name);
    }
    if (list) {
        ibv_free_device_list(list);
    }
    return names;
}

/* "the main server, www.example.com:80", or NULL. */
static const char *server_names(apr_pool_t *p, server_rec *main_server)
{
    const char *names = NULL;
    server_rec *s;
    int n = 0;

    for (s = main_server; s; s = s->next) {
        const char *name = "the main server";

        if (!rdma_config_enabled_in(s)) {
            continue;
        }
        n++;
        if (n > NAMES_MAX) {
            continue;
        }
        if (s->is_virtual) {
            name = apr_psprintf(p, "%s:%u",
                                s->server_hostname ? s->server_hostname : "?",
                                s->addrs ? s->addrs->host_port : s->port);
        }
        names = names ? apr_pstrcat(p, names, ", ", name, NULL) : name;
    }
    return n > NAMES_MAX
               ? apr_psprintf(p, "%s and %d more", names, n - NAMES_MAX)
               : names;
}

static const char *kibibytes(apr_pool_t *p, rlim_t bytes)
{
    return bytes == RLIM_INFINITY
               ? "unlimited"
               : apr_psprintf(p, "%" APR_UINT64_T_FMT " KiB",
                              (apr_uint64_t)(bytes / 1024));
}

/* Raise a limit, which children inherit from here: they themselves may not. 1, or
 * 0: only as far as that is permitted. *limit becomes what holds. */
static int raise_limit(int resource, rlim_t need, struct rlimit *limit)
{
    struct rlimit more = *limit;

    if (limit->rlim_cur >= need) {
        return 1;
    }
    more.rlim_cur = need;
    if (more.rlim_max < need) {
        more.rlim_max = need;
    }
    if (setrlimit(resource, &more) == 0) {
        *limit = more;
        return 1;
    }
    more.rlim_cur = more.rlim_max = limit->rlim_max;
    if (setrlimit(resource, &more) == 0) {
        *limit = more;
    }
    return 0;
}

/* The kernel counts registered memory against RLIMIT_MEMLOCK, some drivers even
 * for root. *limit becomes what holds, `memory` what fits. */
static void allow_memory(apr_pool_t *p, server_rec *s, struct rlimit *limit)
{
    rlim_t need = (rlim_t)memory + MEMLOCK_MORE;

    if (raise_limit(RLIMIT_MEMLOCK, need, limit)) {
        return;
    }
    memory = (apr_size_t)(limit->rlim_cur > 2 * MEMLOCK_MORE
                              ? limit->rlim_cur - MEMLOCK_MORE
                              : limit->rlim_cur / 2);
    ap_log_error(APLOG_MARK, APLOG_WARNING, 0, s,
                 "RDMA0003: the limit of locked memory is %s and cannot be "
                 "raised to the %s that RdmaMemory needs: each child has to do "
                 "with %s. Set LimitMEMLOCK=infinity in httpd's systemd unit "
                 "(or the container's memlock limit), or lower RdmaMemory",
                 kibibytes(p, limit->rlim_cur), kibibytes(p, need),
                 kibibytes(p, memory));
}

/* Each connection has two descriptors, and httpd answers 403 and worse when it has
 * none. So half of them have to do for all connections; `connections` becomes what
 * fits. Of the other half, those that are being taken apart may have a quarter
 * for a while. */
static void allow_descriptors(server_rec *s)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit)
        || raise_limit(RLIMIT_NOFILE, 4 * (rlim_t)connections, &limit)) {
        return;
    }
    connections = limit.rlim_cur > 4 ? (unsigned)(limit.rlim_cur / 4) : 1;
    ap_log_error(APLOG_MARK, APLOG_WARNING, 0, s,
                 "RDMA0008: the limit of descriptors is %" APR_UINT64_T_FMT
                 " and cannot be raised to four times RdmaMaxConnections: each "
                 "child has to do with %u connections. Set LimitNOFILE= in "
                 "httpd's systemd unit, or lower RdmaMaxConnections",
                 (apr_uint64_t)limit.rlim_cur, connections);
}

/* Why no child of this server can use RDMA: said, once. 1, or 0: it can. */
static int is_impossible(server_rec *s, const char *devices)
{
    int threaded = 0;

    if (ap_mpm_query(AP_MPMQ_IS_THREADED, &threaded) != APR_SUCCESS
        || threaded == AP_MPMQ_NOT_SUPPORTED) {
        ap_log_error(APLOG_MARK, APLOG_WARNING, 0, s,
                     "RDMA0004: this MPM runs one request in a process, but "
                     "RDMA connections must serve many: all bodies go over "
                     "TCP. Load mpm_event or mpm_worker instead");
        return 1;
    }
    if (!devices) {
        ap_log_error(APLOG_MARK, APLOG_WARNING, 0, s,
                     "RDMA0002: there is no RDMA device: all bodies go over "
                     "TCP. See 'rdma link show'; 'rdma link add siw0 type siw "
                     "netdev INTERFACE' makes one in software. Then restart "
                     "httpd");
        return 1;
    }
    return 0;
}

/* One line for each start, and at most one warning for each cause. */
static void announce(apr_pool_t *p, server_rec *s, const char *where)
{
    const char *devices = device_names(p);
    rdma_config_engine conf;
    struct rlimit limit = {0, 0};

    rdma_config_engine_get(s, &conf);
    memory = conf.memory;
    connections = conf.max_connections;
    wanted = !is_impossible(s, devices);
    (void)getrlimit(RLIMIT_MEMLOCK, &limit);
    if (wanted) {
        allow_memory(p, s, &limit);
        allow_descriptors(s);
    }
    ap_log_error(APLOG_MARK, APLOG_NOTICE, 0, s,
                 "RDMA0001: mod_rdma %s: devices: %s; RdmaMemory: %s; locked "
                 "memory: %s; RdmaEnable On in: %s",
                 MOD_RDMA_VERSION, devices ? devices : "none",
                 kibibytes(p, memory), kibibytes(p, limit.rlim_cur), where);
}

static int post_config(apr_pool_t *p, apr_pool_t *plog, apr_pool_t *ptemp,
                       server_rec *s)
{
    const char *where = server_names(ptemp, s);

    (void)p;
    (void)plog;
    wanted = 0;
    log_to = s;
    /* The first of the two passes, and -t, are to change nothing. */
    if (ap_state_query(AP_SQ_MAIN_STATE) == AP_SQ_MS_CREATE_PRE_CONFIG
        || ap_state_query(AP_SQ_RUN_MODE) == AP_SQ_RM_CONFIG_TEST) {
        return OK;
    }
    rdma_status_open(s);
    if (where) {
        announce(ptemp, s, where);
    }
    return OK;
}

/* ---- the child --------------------------------------------------------- */

static void log_line(void *baton, int level, int id, const char *line)
{
    server_rec *s = baton;

    ap_log_error(APLOG_MARK, level, 0, s, "RDMA%04d: %s", id, line);
}

static void on_sigterm(int sig)
{
    (void)sig;
    give_up = 1;
}

/* Children, buckets and threads still live. The handler comes no earlier: event
 * sends itself SIGTERM on every graceful exit. */
static apr_status_t stop(void *unused)
{
    struct sigaction ours, before;

    (void)unused;
    memset(&ours, 0, sizeof(ours));
    ours.sa_handler = on_sigterm;
    sigemptyset(&ours.sa_mask);
    sigaction(SIGTERM, &ours, &before);
    if (rdma_cache_stop(engine, &give_up) == 0) { /* else it is in use */
        rdma_request_engine_set(NULL);
        engine = NULL;
    }
    sigaction(SIGTERM, &before, NULL);
    return APR_SUCCESS;
}

/* Workers of a child; one that cannot be asked has many. */
static unsigned worker_threads(void)
{
    int n = 0;

    return ap_mpm_query(AP_MPMQ_MAX_THREADS, &n) == APR_SUCCESS && n > 1
               ? (unsigned)n
               : 2;
}

static void child_init(apr_pool_t *pchild, server_rec *s)
{
    rdma_config_engine set;
    rdma_cache_conf conf;
    apr_status_t status;

    if (!wanted) {
        return;
    }
    rdma_config_engine_get(s, &set);
    memset(&conf, 0, sizeof(conf));
    conf.memory = memory;
    conf.connect_timeout = set.connect_timeout;
    conf.timeout = set.timeout;
    conf.lease_timeout = set.lease_timeout;
    conf.idle_timeout = set.idle_timeout;
    conf.max_streams = worker_threads() / 2;
    conf.max_connections = connections;
    conf.max_connections_per_client = set.max_connections_per_client;
    conf.log = log_line;
    conf.baton = log_to;
    status = rdma_cache_create(&conf, &engine);
    if (status != APR_SUCCESS) {
        ap_log_error(APLOG_MARK, APLOG_ERR, status, s,
                     "RDMA0005: this child cannot use RDMA: all bodies go "
                     "over TCP");
        return;
    }
    rdma_request_engine_set(engine);
    apr_pool_pre_cleanup_register(pchild, NULL, stop);
}

/* Any thread; workers still run. */
static void child_stopping(apr_pool_t *pchild, int graceful)
{
    (void)pchild;
    if (engine) {
        rdma_cache_stopping(engine, graceful);
    }
}

/* ---- the record -------------------------------------------------------- */

static void register_hooks(apr_pool_t *p)
{
    static const char *const forensic[] = {"mod_log_forensic.c", NULL};

    (void)p;
    rdma_filter_register();
    ap_hook_post_config(post_config, NULL, NULL, APR_HOOK_MIDDLE);
    /* An engine counts from its beginning. */
    ap_hook_child_init(rdma_status_child_init, NULL, NULL, APR_HOOK_FIRST);
    ap_hook_child_init(child_init, NULL, NULL, APR_HOOK_MIDDLE);
    ap_hook_child_stopping(child_stopping, NULL, NULL, APR_HOOK_MIDDLE);
    ap_hook_child_status(rdma_status_child_status, NULL, NULL,
                         APR_HOOK_MIDDLE);
    /* Before anybody writes the request's fields down. */
    ap_hook_post_read_request(rdma_request_post_read, NULL, forensic,
                              APR_HOOK_REALLY_FIRST);
    /* headers_in is complete and nobody has decided anything. */
    ap_hook_post_read_request(rdma_filter_post_read, NULL, NULL, APR_HOOK_LAST);
    /* Access has been checked, no content has been made. */
    ap_hook_handler(rdma_filter_handler, NULL, NULL, APR_HOOK_REALLY_FIRST);
    ap_hook_fixups(rdma_request_fixups, NULL, NULL, APR_HOOK_MIDDLE);
    /* Whoever sees the log's line finds it counted. */
    ap_hook_log_transaction(rdma_request_logged, NULL, NULL, APR_HOOK_FIRST);
    ap_hook_handler(rdma_status_handler, NULL, NULL, APR_HOOK_MIDDLE);
    APR_OPTIONAL_HOOK(ap, status_hook, rdma_status_section, NULL, NULL,
                      APR_HOOK_MIDDLE);
}

AP_DECLARE_MODULE(rdma) = {
    STANDARD20_MODULE_STUFF,
    rdma_config_dir_create,
    rdma_config_dir_merge,
    rdma_config_server_create,
    rdma_config_server_merge,
    rdma_config_commands,
    register_hooks,
    0
};
