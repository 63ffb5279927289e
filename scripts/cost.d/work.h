// What every worker of this measurement does with a connection: the smallest HTTP answer there is.
// One definition for the worker under croupier and for both baselines, so that the engines differ
// in nothing but in how a connection gets to its worker.
#ifndef WORK_H
#define WORK_H
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BACKLOG = 4096 };

static inline void die(const char *what) {
    perror(what);
    exit(1);
}

// One read is one request: the load generators send theirs in one segment. A client that is gone
// is not this server's concern, so a short write is not looked at further.
static inline void serve(int connection) {
    static const char reply[] =
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n";
    char request[4096];
    if (read(connection, request, sizeof request) > 0 &&
        write(connection, reply, sizeof reply - 1) < 0) {
    }
    close(connection);
}

// Accepts and serves one connection after another, blocking, for ever.
static inline void serve_all(int listener) {
    for (;;) {
        int connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (connection >= 0)
            serve(connection);
        else if (errno != EINTR && errno != ECONNABORTED)
            die("accept4");
    }
}

// A TCP socket that listens on 127.0.0.1:port, with SO_REUSEADDR and one more option (may be the
// same).
static inline int listen_on(const char *port, int option, int flags) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0), one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)atoi(port)),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) ||
        setsockopt(listener, SOL_SOCKET, option, &one, sizeof one))
        die("socket");
    if (bind(listener, (struct sockaddr *)&address, sizeof address))
        die("bind");
    if (listen(listener, BACKLOG))
        die("listen");
    return listener;
}
#endif
