// Forked workers of the baselines: they die with their parent, whatever way it goes.
#ifndef WORKERS_H
#define WORKERS_H
#include "work.h"
#include <signal.h>
#include <sys/prctl.h>

enum { WORKERS_MAX = 512 };

// How many workers to fork, from the command line.
static inline int workers_wanted(const char *text) {
    int n = atoi(text);
    if (n < 1 || n > WORKERS_MAX) {
        fprintf(stderr, "WORKERS must be 1 to %d\n", WORKERS_MAX);
        exit(2);
    }
    return n;
}

// fork(2); in the child the parent's death is SIGKILL, also if it came before prctl(2).
static inline pid_t fork_worker(void) {
    pid_t parent = getpid(), child = fork();
    if (child < 0)
        die("fork");
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            exit(1);
    }
    return child;
}

// After the last fork: TERM waits to be read, from the set that this returns.
static inline sigset_t hold_term(void) {
    sigset_t term;
    sigemptyset(&term);
    sigaddset(&term, SIGTERM);
    if (sigprocmask(SIG_BLOCK, &term, NULL))
        die("sigprocmask");
    return term;
}
#endif
