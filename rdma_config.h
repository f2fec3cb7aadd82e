/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * rdma_config: the directives of mod_rdma.
 *
 *   dir     what holds for a directory, a virtual host or the server: whether,
 *           how and for whom a body goes by RDMA
 *   engine  what holds for each child as a whole; set in the main server only
 *
 * httpd makes and merges both while it reads its configuration (dir also for
 * .htaccess, while it serves). A value that is not set is -1 or NULL and never
 * leaves this file: the getters below fill in the defaults. Everything is
 * constant once read, so any thread may call them.
 */
#ifndef RDMA_CONFIG_H
#define RDMA_CONFIG_H

#include <httpd.h>
#include <http_config.h>

#include "rdma_hdr.h"

typedef enum rdma_config_mode {
    RDMA_CONFIG_AUTO, /* the client's preference */
    RDMA_CONFIG_WRITE,
    RDMA_CONFIG_READ
} rdma_config_mode;

typedef struct rdma_config_dir rdma_config_dir;

typedef struct rdma_config_engine {
    apr_size_t memory; /* bytes, per child */
    apr_interval_time_t connect_timeout;
    apr_interval_time_t timeout;
    apr_interval_time_t lease_timeout;
    apr_interval_time_t idle_timeout;
    unsigned max_connections;
    unsigned max_connections_per_client;
} rdma_config_engine;

extern const command_rec rdma_config_commands[];
void *rdma_config_dir_create(apr_pool_t *p, char *path);
void *rdma_config_dir_merge(apr_pool_t *p, void *basev, void *addv);
void *rdma_config_server_create(apr_pool_t *p, server_rec *s);
void *rdma_config_server_merge(apr_pool_t *p, void *basev, void *addv);

const rdma_config_dir *rdma_config_of(const request_rec *r);
int rdma_config_enabled(const rdma_config_dir *dir);
rdma_config_mode rdma_config_mode_get(const rdma_config_dir *dir);
apr_off_t rdma_config_min_size(const rdma_config_dir *dir); /* bytes */
int rdma_config_over_tls(const rdma_config_dir *dir);
/* 1 if RdmaAllow names a range with this address (not the peer's: that one is
 * always allowed). */
int rdma_config_allows(const rdma_config_dir *dir, apr_sockaddr_t *addr);

/* Of the main server. */
void rdma_config_engine_get(server_rec *main_server, rdma_config_engine *out);

/* Is RdmaEnable On anywhere in this server, outside of .htaccess? Known as soon
 * as the configuration has been read. */
int rdma_config_enabled_in(server_rec *s);

#endif /* RDMA_CONFIG_H */
