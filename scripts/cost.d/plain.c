// plain PORT WORKERS: the plain loop. accept4, sendmsg of one descriptor, close, round robin; an
// edge-triggered epoll around it and nothing else: no window, no load, no supervision. It is the
// least that dealing by hand-off can be without thinking, and what croupier is measured against.
//
// Prints "ready" when it listens, and at SIGTERM what it accepted, refused and how often it woke.
#define _GNU_SOURCE
#include "workers.h"
#include <sys/epoll.h>
#include <sys/signalfd.h>

static int send_descriptor(int channel, int descriptor) {
    char byte = 'c';
    struct iovec data = {&byte, 1};
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr header;
    } control = {0};
    struct msghdr message = {.msg_iov = &data,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof descriptor);
    memcpy(CMSG_DATA(header), &descriptor, sizeof descriptor);
    return sendmsg(channel, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -1 : 0;
}

static int receive_descriptor(int channel) {
    char byte;
    struct iovec data = {&byte, 1};
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr header;
    } control;
    struct msghdr message = {.msg_iov = &data,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    int descriptor = -1;
    if (recvmsg(channel, &message, MSG_CMSG_CLOEXEC) <= 0)
        exit(0); // the primary is gone
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (header && header->cmsg_type == SCM_RIGHTS)
        memcpy(&descriptor, CMSG_DATA(header), sizeof descriptor);
    return descriptor;
}

static void work(int channel) {
    for (;;) {
        int connection = receive_descriptor(channel);
        if (connection >= 0)
            serve(connection);
    }
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: plain PORT WORKERS\n");
        return 2;
    }
    int n = workers_wanted(argv[2]), channel[WORKERS_MAX];
    int listener = listen_on(argv[1], SO_REUSEADDR, SOCK_NONBLOCK);
    for (int i = 0; i < n; i++) {
        int pair[2];
        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
            die("socketpair");
        if (fork_worker() == 0) {
            close(listener);
            close(pair[0]);
            work(pair[1]);
        }
        close(pair[1]);
        channel[i] = pair[0];
    }
    sigset_t term = hold_term();
    int epoll = epoll_create1(EPOLL_CLOEXEC), stop = signalfd(-1, &term, SFD_CLOEXEC), next = 0;
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.fd = listener};
    if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event))
        die("epoll");
    event = (struct epoll_event){.events = EPOLLIN, .data.fd = stop};
    if (stop < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, stop, &event))
        die("signalfd");
    unsigned long accepted = 0, refused = 0, turns = 0;
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        if (epoll_wait(epoll, &event, 1, -1) <= 0)
            continue;
        if (event.data.fd == stop)
            break;
        turns++;
        for (;;) {
            int connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
            if (connection < 0)
                break;
            accepted++;
            // A full channel (278 connections behind one worker) passes the turn on.
            int tried = 0;
            while (tried < n && send_descriptor(channel[next], connection)) {
                next = (next + 1) % n;
                tried++;
            }
            if (tried == n)
                refused++;
            next = (next + 1) % n;
            close(connection);
        }
    }
    printf("accepted %lu refused %lu turns %lu\n", accepted, refused, turns);
}
