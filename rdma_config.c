/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * rdma_config: see rdma_config.h. One table says all there is to say about the
 * numbers; one function parses each kind of value.
 */
#include <arpa/inet.h>
#include <stddef.h>
#include <string.h>

#include <httpd.h>
#include <http_config.h>
#include <http_core.h>
#include <apr_lib.h>
#include <apr_network_io.h>
#include <apr_strings.h>
#include <apr_tables.h>

#include "rdma_config.h"

extern module AP_MODULE_DECLARE_DATA rdma_module;

#define UNSET (-1)

struct rdma_config_dir {
    int enable;
    int mode; /* rdma_config_mode */
    int over_tls;
    apr_int64_t min_size;
    apr_array_header_t *allow; /* of apr_ipsubnet_t *; empty: peer */
};

/* All numbers are apr_int64_t, so that one table can describe them. */
typedef struct server_conf {
    int enabled; /* RdmaEnable On was seen; not inherited */
    apr_int64_t memory;
    apr_int64_t connect_timeout;
    apr_int64_t timeout;
    apr_int64_t lease_timeout;
    apr_int64_t idle_timeout;
    apr_int64_t max_connections;
    apr_int64_t max_connections_per_client;
} server_conf;

typedef enum number_kind { NUMBER_COUNT, NUMBER_SIZE, NUMBER_TIME } number_kind;

typedef struct number {
    const char *directive;
    number_kind kind;
    size_t offset; /* in server_conf, or rdma_config_dir for RdmaMinSize */
    apr_int64_t unset_is;
    apr_int64_t min, max;
    const char *range; /* min and max, for people */
} number;

#define K             ((apr_int64_t)1024)
#define M             (K * K)
#define T             (M * M)
#define SECONDS(s)    ((apr_int64_t)(s) * APR_USEC_PER_SEC)
#define IN_SERVER(m)  offsetof(server_conf, m)
#define TIME(d, m, s)                                                         \
    {                                                                         \
        d, NUMBER_TIME, IN_SERVER(m), SECONDS(s), 10000, SECONDS(3600),       \
            "10ms to 1h"                                                      \
    }

static const number min_size = {
    "RdmaMinSize", NUMBER_SIZE, offsetof(rdma_config_dir, min_size),
    16384, 0, T, "0 to 1T"
};

static const number engine[] = {
    {"RdmaMemory", NUMBER_SIZE, IN_SERVER(memory), 64 * M, M, T, "1M to 1T"},
    TIME("RdmaConnectTimeout", connect_timeout, 2),
    TIME("RdmaTimeout", timeout, 15),
    TIME("RdmaLeaseTimeout", lease_timeout, 30),
    TIME("RdmaIdleTimeout", idle_timeout, 60),
    {"RdmaMaxConnections", NUMBER_COUNT, IN_SERVER(max_connections), 256, 1,
     65536, "1 to 65536"},
    {"RdmaMaxConnectionsPerClient", NUMBER_COUNT,
     IN_SERVER(max_connections_per_client), 16, 1, 65536, "1 to 65536"}
};
#define ENGINE_N (sizeof(engine) / sizeof(engine[0]))

static apr_int64_t *number_at(void *conf, const number *n)
{
    return (apr_int64_t *)(void *)((char *)conf + n->offset);
}

static apr_int64_t number_get(const void *conf, const number *n)
{
    apr_int64_t v;

    memcpy(&v, (const char *)conf + n->offset, sizeof(v));
    return v == UNSET ? n->unset_is : v;
}

/* ---- create and merge -------------------------------------------------- */

void *rdma_config_dir_create(apr_pool_t *p, char *path)
{
    rdma_config_dir *dir = apr_pcalloc(p, sizeof(*dir));

    (void)path;
    dir->enable = dir->mode = dir->over_tls = UNSET;
    dir->min_size = UNSET;
    return dir;
}

void *rdma_config_dir_merge(apr_pool_t *p, void *basev, void *addv)
{
    const rdma_config_dir *add = addv;
    rdma_config_dir *dir = apr_pmemdup(p, basev, sizeof(*dir));

    if (add->enable != UNSET) {
        dir->enable = add->enable;
    }
    if (add->mode != UNSET) {
        dir->mode = add->mode;
    }
    if (add->over_tls != UNSET) {
        dir->over_tls = add->over_tls;
    }
    if (add->min_size != UNSET) {
        dir->min_size = add->min_size;
    }
    if (add->allow) {
        dir->allow = add->allow;
    }
    return dir;
}

void *rdma_config_server_create(apr_pool_t *p, server_rec *s)
{
    server_conf *conf = apr_pcalloc(p, sizeof(*conf));
    size_t i;

    (void)s;
    for (i = 0; i < ENGINE_N; i++) {
        *number_at(conf, &engine[i]) = UNSET;
    }
    return conf;
}

/* The numbers cannot be set in a virtual host, and are read from the main
 * server; `enabled` tells about one server alone. */
void *rdma_config_server_merge(apr_pool_t *p, void *basev, void *addv)
{
    (void)p;
    (void)basev;
    return addv;
}

/* ---- values ------------------------------------------------------------ */

static const char *wrong(cmd_parms *cmd, const char *value, const char *range)
{
    return apr_psprintf(cmd->pool, "%s: '%s' is not one of its values: %s",
                        cmd->cmd->name, value, range);
}

/* Decimal digits, at least one; *rest is what follows. 1, or 0: none, or too
 * large. */
static int parse_digits(const char *value, apr_int64_t *out, const char **rest)
{
    apr_int64_t v = 0;
    const char *p = value;

    for (; apr_isdigit(*p); p++) {
        if (v > (APR_INT64_MAX - 9) / 10) {
            return 0;
        }
        v = v * 10 + (*p - '0');
    }
    *out = v;
    *rest = p;
    return p != value;
}

/* 1, or 0: not a size. */
static int parse_size(const char *value, apr_int64_t *out)
{
    static const char units[] = "KMGT";
    const char *rest, *u = units;
    apr_int64_t unit = 1;

    if (!parse_digits(value, out, &rest)) {
        return 0;
    }
    if (*rest) {
        do {
            unit *= K;
        } while (*u != apr_toupper(*rest) && *++u);
        if (!*u || rest[1]) {
            return 0;
        }
    }
    if (*out > APR_INT64_MAX / unit) {
        return 0;
    }
    *out *= unit;
    return 1;
}

/* httpd's own parser looks no further than it must: "10sec" and "-0" are good
 * to it. 1, or 0: not a time. */
static int parse_time(const char *value, apr_int64_t *out)
{
    static const char *const units[] = {"", "ms", "s", "mi", "min", "h"};
    apr_interval_time_t t;
    const char *rest;
    size_t i;

    if (!parse_digits(value, out, &rest)) {
        return 0;
    }
    for (i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
        if (!strcmp(rest, units[i])
            && ap_timeout_parameter_parse(value, &t, "s") == APR_SUCCESS) {
            *out = t;
            return 1;
        }
    }
    return 0;
}

static const char *set_number(cmd_parms *cmd, void *conf, const number *n,
                              const char *value)
{
    const char *rest;
    apr_int64_t v;
    int ok = 0;

    switch (n->kind) {
    case NUMBER_COUNT:
        ok = parse_digits(value, &v, &rest) && !*rest;
        break;
    case NUMBER_SIZE:
        ok = parse_size(value, &v);
        break;
    case NUMBER_TIME:
        ok = parse_time(value, &v);
        break;
    }
    if (!ok || v < n->min || v > n->max) {
        return wrong(cmd, value, n->range);
    }
    *number_at(conf, n) = v;
    return NULL;
}

static const char *set_engine(cmd_parms *cmd, void *dirv, const char *value)
{
    const char *err = ap_check_cmd_context(cmd, GLOBAL_ONLY);

    (void)dirv;
    return err ? err
               : set_number(cmd,
                            ap_get_module_config(cmd->server->module_config,
                                                 &rdma_module),
                            cmd->info, value);
}

static const char *set_min_size(cmd_parms *cmd, void *dirv, const char *value)
{
    return set_number(cmd, dirv, &min_size, value);
}

/* 1 On, 0 Off, UNSET neither. */
static int parse_flag(const char *value)
{
    return !ap_cstr_casecmp(value, "On")
               ? 1
               : !ap_cstr_casecmp(value, "Off") ? 0 : UNSET;
}

static const char *set_enable(cmd_parms *cmd, void *dirv, const char *value)
{
    rdma_config_dir *dir = dirv;

    dir->enable = parse_flag(value);
    if (dir->enable == UNSET) {
        return wrong(cmd, value, "On, Off");
    }
    /* A .htaccess file is read while serving, by any thread. */
    if (dir->enable && !ap_check_cmd_context(cmd, NOT_IN_HTACCESS)) {
        server_conf *conf = ap_get_module_config(cmd->server->module_config,
                                                 &rdma_module);
        conf->enabled = 1;
    }
    return NULL;
}

static const char *set_over_tls(cmd_parms *cmd, void *dirv, const char *value)
{
    rdma_config_dir *dir = dirv;

    dir->over_tls = parse_flag(value);
    return dir->over_tls == UNSET ? wrong(cmd, value, "On, Off") : NULL;
}

static const char *set_mode(cmd_parms *cmd, void *dirv, const char *value)
{
    static const char *const names[] = {"auto", "server-write", "client-read"};
    rdma_config_dir *dir = dirv;
    int i;

    for (i = 0; i < 3; i++) {
        if (!ap_cstr_casecmp(value, names[i])) {
            dir->mode = i; /* the order of rdma_config_mode */
            return NULL;
        }
    }
    return wrong(cmd, value, "auto, server-write, client-read");
}

/* ADDRESS or ADDRESS/PREFIX. APR alone would take "10.1" and "1.2.3.4/x". */
static apr_ipsubnet_t *parse_net(apr_pool_t *p, const char *value)
{
    unsigned char bytes[16];
    apr_ipsubnet_t *net = NULL;
    char *addr = apr_pstrdup(p, value);
    char *slash = strchr(addr, '/');
    int bits = strchr(addr, ':') ? 128 : 32;

    if (slash) {
        const char *rest;
        apr_int64_t n;

        *slash++ = '\0';
        if (!parse_digits(slash, &n, &rest) || *rest || n > bits) {
            return NULL;
        }
    }
    if (inet_pton(bits == 128 ? AF_INET6 : AF_INET, addr, bytes) != 1
        || apr_ipsubnet_create(&net, addr, slash, p) != APR_SUCCESS) {
        return NULL;
    }
    return net;
}

static const char *set_allow(cmd_parms *cmd, void *dirv, const char *value)
{
    rdma_config_dir *dir = dirv;
    apr_ipsubnet_t *net;

    if (!dir->allow) {
        dir->allow = apr_array_make(cmd->pool, 2, sizeof(apr_ipsubnet_t *));
    }
    if (!ap_cstr_casecmp(value, "peer")) {
        return NULL; /* always allowed */
    }
    net = parse_net(cmd->pool, value);
    if (!net) {
        return wrong(cmd, value,
                     "peer, an IP address, or one with a prefix length, not 0, "
                     "such as 10.77.0.0/16 or 2001:db8::/32");
    }
    APR_ARRAY_PUSH(dir->allow, apr_ipsubnet_t *) = net;
    return NULL;
}

/* ---- the table --------------------------------------------------------- */

#define ANYWHERE    (RSRC_CONF | ACCESS_CONF | OR_OPTIONS)
#define NO_HTACCESS (RSRC_CONF | ACCESS_CONF)

#define ENGINE(i, d, help)                                                    \
    AP_INIT_TAKE1(d, set_engine, (void *)(size_t)&engine[i], RSRC_CONF, help)

const command_rec rdma_config_commands[] = {
    AP_INIT_TAKE1("RdmaEnable", set_enable, NULL, ANYWHERE,
                  "On or Off: send response bodies by RDMA to clients that "
                  "ask for it"),
    AP_INIT_TAKE1("RdmaMode", set_mode, NULL, ANYWHERE,
                  "auto, server-write or client-read: which way bodies go"),
    AP_INIT_TAKE1("RdmaMinSize", set_min_size, NULL, ANYWHERE,
                  "smallest body in bytes that goes by RDMA (0 to 1T)"),
    AP_INIT_ITERATE("RdmaAllow", set_allow, NULL, NO_HTACCESS,
                    "peer, or addresses besides the peer's that a client may "
                    "ask to be connected at"),
    AP_INIT_TAKE1("RdmaOverTLS", set_over_tls, NULL, NO_HTACCESS,
                  "On or Off: send bodies of https requests by RDMA, which "
                  "is not encrypted"),
    ENGINE(0, "RdmaMemory",
           "registered memory of each child in bytes (1M to 1T)"),
    ENGINE(1, "RdmaConnectTimeout",
           "how long to connect to a client (10ms to 1h)"),
    ENGINE(2, "RdmaTimeout",
           "how long a transfer may stand still (10ms to 1h)"),
    ENGINE(3, "RdmaLeaseTimeout",
           "how long a client may keep memory it reads (10ms to 1h)"),
    ENGINE(4, "RdmaIdleTimeout",
           "how long to keep a connection without a transfer (10ms to 1h)"),
    ENGINE(5, "RdmaMaxConnections",
           "RDMA connections of each child (1 to 65536)"),
    ENGINE(6, "RdmaMaxConnectionsPerClient",
           "RDMA connections of each child to one address (1 to 65536)"),
    {.name = NULL}
};

/* ---- what the module asks ---------------------------------------------- */

const rdma_config_dir *rdma_config_of(const request_rec *r)
{
    return ap_get_module_config(r->per_dir_config, &rdma_module);
}

int rdma_config_enabled(const rdma_config_dir *dir)
{
    return dir->enable == 1;
}

rdma_config_mode rdma_config_mode_get(const rdma_config_dir *dir)
{
    return dir->mode == UNSET ? RDMA_CONFIG_AUTO : (rdma_config_mode)dir->mode;
}

apr_off_t rdma_config_min_size(const rdma_config_dir *dir)
{
    return (apr_off_t)number_get(dir, &min_size);
}

int rdma_config_over_tls(const rdma_config_dir *dir)
{
    return dir->over_tls == 1;
}

int rdma_config_allows(const rdma_config_dir *dir, apr_sockaddr_t *addr)
{
    int i;

    for (i = 0; dir->allow && i < dir->allow->nelts; i++) {
        if (apr_ipsubnet_test(APR_ARRAY_IDX(dir->allow, i, apr_ipsubnet_t *),
                              addr)) {
            return 1;
        }
    }
    return 0;
}

void rdma_config_engine_get(server_rec *main_server, rdma_config_engine *out)
{
    const server_conf *conf =
        ap_get_module_config(main_server->module_config, &rdma_module);

    out->memory = (apr_size_t)number_get(conf, &engine[0]);
    out->connect_timeout = number_get(conf, &engine[1]);
    out->timeout = number_get(conf, &engine[2]);
    out->lease_timeout = number_get(conf, &engine[3]);
    out->idle_timeout = number_get(conf, &engine[4]);
    out->max_connections = (unsigned)number_get(conf, &engine[5]);
    out->max_connections_per_client = (unsigned)number_get(conf, &engine[6]);
}

int rdma_config_enabled_in(server_rec *s)
{
    const server_conf *conf =
        ap_get_module_config(s->module_config, &rdma_module);

    return conf->enabled;
}
