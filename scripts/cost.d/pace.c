// pace PORT RATE SECONDS: an open-loop client of 127.0.0.1:PORT. Connection i is due at i/RATE,
// whether or not earlier ones are done; each sends one request, reads to the end and closes.
// Latency counts from the time at which a connection was due, so a slow server cannot hide behind
// a client that waits for it.
//
// Prints "connections N errors N late N p50_us N p99_us N": late ones were opened over 1 ms after
// they were due, which is the client's own failure.
#define _GNU_SOURCE
#include "work.h"
#include <sys/epoll.h>
#include <time.h>

enum { IN_FLIGHT_MAX = 8192, EVENTS_MAX = 256, ANSWER_MAX = 4096 };
static const int64_t SECOND = 1000000000, LATE = 1000000, GRACE = 2000000000;

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}
static int by_value(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

typedef struct {
    int64_t due;
    int fd, sent;
    char start[12]; // "HTTP/1.1 200"
    unsigned got;
} client;

static client clients[IN_FLIGHT_MAX];
static int free_list[IN_FLIGHT_MAX], free_count;
static uint32_t *latencies;
static size_t done, errors;

static void finish(client *c, int ok) {
    if (ok)
        latencies[done++] = (uint32_t)((now() - c->due) / 1000);
    else
        errors++;
    close(c->fd);
    free_list[free_count++] = (int)(c - clients);
}

static void advance(client *c, uint32_t events) {
    static const char request[] = "GET / HTTP/1.1\r\nHost: cost\r\nConnection: close\r\n\r\n";
    if (!c->sent) {
        if (!(events & EPOLLOUT) || (events & (EPOLLERR | EPOLLHUP)))
            return finish(c, 0);
        if (write(c->fd, request, sizeof request - 1) != sizeof request - 1)
            return finish(c, 0);
        c->sent = 1;
    }
    for (;;) {
        char answer[ANSWER_MAX];
        ssize_t n = read(c->fd, answer, sizeof answer);
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0)
            return finish(c, n == 0 && c->got >= sizeof c->start &&
                                 !memcmp(c->start, "HTTP/1.1 200", sizeof c->start));
        for (ssize_t i = 0; i < n && c->got < sizeof c->start; i++)
            c->start[c->got++] = answer[i];
    }
}

static void open_one(int epoll, uint16_t port, int64_t due) {
    if (!free_count) {
        errors++;
        return;
    }
    client *c = &clients[free_list[--free_count]];
    struct sockaddr_in to = {.sin_family = AF_INET,
                             .sin_port = htons(port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    *c = (client){.due = due, .fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)};
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = c};
    if (c->fd < 0)
        die("socket");
    if ((connect(c->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS) ||
        epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event))
        finish(c, 0);
}

int main(int argc, char **argv) {
    if (argc != 4 || atoi(argv[2]) < 1 || atof(argv[3]) <= 0) {
        fprintf(stderr, "usage: pace PORT RATE SECONDS\n");
        return 2;
    }
    int rate = atoi(argv[2]), epoll = epoll_create1(EPOLL_CLOEXEC);
    size_t total = (size_t)(rate * atof(argv[3])), opened = 0, late = 0;
    latencies = calloc(total + 1, sizeof *latencies);
    if (epoll < 0 || !latencies)
        die("start");
    for (free_count = 0; free_count < IN_FLIGHT_MAX; free_count++)
        free_list[free_count] = free_count;
    int64_t start = now(), end = 0;
    while (opened < total || free_count < IN_FLIGHT_MAX) {
        int64_t at = now(), due = start + (int64_t)opened * SECOND / rate;
        while (opened < total && due <= at) {
            late += at - due > LATE;
            open_one(epoll, (uint16_t)atoi(argv[1]), due);
            due = start + (int64_t)++opened * SECOND / rate;
        }
        if (opened == total && !end)
            end = now() + GRACE;
        int64_t wait = (opened < total ? due : end) - now();
        if (opened == total && wait <= 0)
            break; // what is still open is a failure
        struct timespec timeout = {wait > 0 ? wait / SECOND : 0, wait > 0 ? wait % SECOND : 0};
        struct epoll_event events[EVENTS_MAX];
        int n = epoll_pwait2(epoll, events, EVENTS_MAX, &timeout, NULL);
        for (int i = 0; i < n; i++)
            advance(events[i].data.ptr, events[i].events);
    }
    errors += (size_t)(IN_FLIGHT_MAX - free_count);
    qsort(latencies, done, sizeof *latencies, by_value);
    printf("connections %zu errors %zu late %zu p50_us %u p99_us %u\n", done, errors, late,
           done ? latencies[done / 2] : 0, done ? latencies[done * 99 / 100] : 0);
}
