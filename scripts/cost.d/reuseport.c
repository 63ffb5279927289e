// reuseport PORT WORKERS: no hand-off at all. Each worker has a listening socket of its own on the
// one port (SO_REUSEPORT) and the kernel picks a socket by the hash of the connection's addresses.
//
// Prints "ready" when every worker listens.
#define _GNU_SOURCE
#include "workers.h"

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: reuseport PORT WORKERS\n");
        return 2;
    }
    int n = workers_wanted(argv[2]);
    for (int i = 0; i < n; i++) {
        // Listening before the fork means that "ready" is true; the parent's copy goes at once, so
        // that the worker's is the only one.
        int listener = listen_on(argv[1], SO_REUSEPORT, 0);
        if (fork_worker() == 0)
            serve_all(listener);
        close(listener);
    }
    sigset_t term = hold_term();
    int signal;
    printf("ready\n");
    fflush(stdout);
    sigwait(&term, &signal);
}
