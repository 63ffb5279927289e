/*
 * A blocking worker in C: one request per connection, answered with the worker's id and the request.
 *
 *   cc -I worker-shim/include worker-shim/examples/c/echo.c -L target/release -lcroupier_worker -o echo
 *   croupier run -w 4 -l :8080 -- ./echo :8080
 *
 * Without croupier it serves alone on the same address.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

#include "croupier.h"

/* Reads until the blank line that ends the head of a request; returns how many bytes there are. */
static size_t read_head(int client, char *head, size_t room)
{
    size_t have = 0;
    while (have + 1 < room) {
        ssize_t more = read(client, head + have, room - 1 - have);
        if (more < 0 && errno == EINTR)
            continue;
        if (more <= 0)
            break;
        have += (size_t)more;
        head[have] = '\0';
        if (strstr(head, "\r\n\r\n"))
            break;
    }
    return have;
}

static void write_all(int client, const char *bytes, size_t count)
{
    while (count > 0) {
        ssize_t done = write(client, bytes, count);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return; /* The client has gone; the next one has not. */
        bytes += done;
        count -= (size_t)done;
    }
}

static void serve(int client)
{
    /* A client that connects and says nothing must not hold the worker for ever. */
    struct timeval patience = {.tv_sec = 5, .tv_usec = 0};
    setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);

    char head[8192], body[8192 + 64], status[128];
    size_t have = read_head(client, head, sizeof head);
    if (have == 0)
        return;
    int line = snprintf(body, 64, "worker %d\n", croupier_worker_id());
    memcpy(body + line, head, have);
    size_t length = (size_t)line + have;
    int top = snprintf(status, sizeof status,
                       "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n", length);
    write_all(client, status, (size_t)top);
    write_all(client, body, length);
}

int main(int argc, char **argv)
{
    const char *address = argc > 1 ? argv[1] : "127.0.0.1:8080";
    int listener = croupier_listen(address, 128);
    if (listener < 0) {
        fprintf(stderr, "echo: cannot listen on %s: %s\n", address, strerror(errno));
        return 1;
    }
    signal(SIGPIPE, SIG_IGN);
    for (;;) {
        int client = croupier_accept(listener, NULL, NULL, SOCK_CLOEXEC);
        if (client >= 0) {
            serve(client);
            close(client);
        } else if (errno == EMFILE || errno == ENFILE) {
            usleep(10000); /* Connections of other threads or children must end first. */
        } else if (errno != EINTR && errno != EPROTO && errno != ECONNABORTED) {
            perror("echo: accept");
            return 1;
        }
    }
}
