// worker PORT: an ordinary blocking server that knows nothing of croupier. It runs under it by the
// preload; its work is that of the baselines (work.h).
#define _GNU_SOURCE
#include "work.h"

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: worker PORT\n");
        return 2;
    }
    serve_all(listen_on(argv[1], SO_REUSEADDR, 0));
}
