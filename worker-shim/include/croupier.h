/*
 * croupier.h: take dealt connections in C (and in whatever can call C).
 *
 * A croupier primary accepts TCP connections and deals each one to one of its workers. A worker that
 * links libcroupier_worker.so asks for its share with croupier_listen() and takes connections with
 * croupier_accept(). Outside croupier both are plain bind(2), listen(2) and accept4(2), so that one
 * binary runs either way. A dynamically linked program that calls accept(2) itself does not need
 * this library: the preload library does the same without a change.
 *
 * Descriptors
 *   The descriptor that croupier_listen() returns is the caller's. It works in poll, select and
 *   epoll, and O_NONBLOCK on it means what it means on a listening socket. Stop listening with
 *   croupier_close(). The descriptor that croupier_accept() returns is the caller's, is an ordinary
 *   connected TCP socket, and nobody else holds a copy: close(2) ends the connection.
 *   The library keeps one descriptor of its own: the doorbell, at a high number. A program that closes
 *   everything loses only early wake-ups.
 *
 * Processes and threads
 *   Every function is thread-safe, and several threads may accept on one descriptor. A forked child
 *   may go on accepting on the descriptor that it inherited. After execve(2), call croupier_listen()
 *   again. None of these functions may be called from a signal handler.
 *
 * Death
 *   The worker dies: what it had not yet taken is dealt to other workers; what it had in hand is
 *   reset or closed by the kernel, as for any server. The primary dies: connections already taken
 *   are served to their end, croupier_accept() takes what is still queued and then finds no more (it
 *   blocks, or says EAGAIN), and once nothing is in hand the process group gets a SIGTERM. Closes are
 *   seen by the preload library only: without it the SIGTERM comes at once, and a program that wants
 *   to finish what it holds does so in its handler.
 *
 * Errors
 *   As in libc: -1 and errno. There are no codes of croupier's own.
 */
#ifndef CROUPIER_H
#define CROUPIER_H

#include <sys/socket.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Listens on a TCP address: "127.0.0.1:8080", "[::1]:8080", "localhost:8080", or ":8080" for every
 * address of this host, IPv4 and IPv6. Sets SO_REUSEADDR and FD_CLOEXEC. Port 0 is never dealt: it
 * stays this process's own. backlog is listen(2)'s; the primary takes the larger of this and its own.
 *
 * Returns a descriptor, or -1 and errno:
 *   EINVAL         address is NULL, not UTF-8, or not HOST:PORT
 *   EADDRNOTAVAIL  the host has no such address, or its name does not resolve
 *   EADDRINUSE, EACCES, EMFILE, ENFILE, ...  from bind(2) and listen(2), here or in the primary
 *   ECONNREFUSED   CROUPIER_CONTROL names a primary that is gone
 *   ECONNRESET     the primary hung up: CROUPIER_CONTROL is not from it, or the worker was given up
 *   EAGAIN         the primary did not answer within ten seconds
 *   EPROTO         the primary is of another version: after an upgrade, stop croupier and start it again
 */
int croupier_listen(const char *address, int backlog);

/*
 * Takes one connection. address and address_length are accept(2)'s: both may be NULL; an address
 * that does not fit is cut off and *address_length says how long it was. flags are accept4(2)'s:
 * SOCK_NONBLOCK, SOCK_CLOEXEC.
 *
 * Returns a descriptor, or -1 and errno:
 *   EAGAIN         nothing queued, and O_NONBLOCK is set on fd
 *   EINTR          a signal came before a connection did
 *   EMFILE         no free descriptor; the connection stays queued, and nothing is lost
 *   EPROTO         the primary sent something that is not a connection; try again
 *   EBADF, ENOTSOCK, EINVAL  fd is not a descriptor that listens, or flags are unknown
 */
int croupier_accept(int fd, struct sockaddr *address, socklen_t *address_length, int flags);

/*
 * Stops listening: says so to the primary, which deals what was queued to others, and closes fd.
 * Returns 0, or -1 and errno as close(2) does. Call it once per croupier_listen(), in the process
 * that called that; in a forked child close(2) is right.
 */
int croupier_close(int fd);

/*
 * Who this worker is. The id counts up from 1 for every worker ever started, the slot is a numbered
 * place that outlives the worker, the generation counts up with every reload. All three are -1, with
 * errno untouched, where no primary started this process.
 */
int croupier_worker_id(void);
int croupier_slot(void);
int croupier_generation(void);

/*
 * Says that this worker is ready, for primaries that were told to wait for it (--ready notify).
 * Returns 0, or -1 and errno: ENOENT outside croupier, else as croupier_listen().
 */
int croupier_ready(void);

/*
 * 1 while the primary drains this worker, which gets no new connections then: a good moment to
 * answer with "Connection: close". 0 otherwise, and outside croupier. The first call may ask the
 * primary; from then on it reads shared memory. Never fails.
 */
int croupier_is_draining(void);

/*
 * A descriptor that becomes readable when the primary drains this worker, or is gone: for poll, select
 * and epoll, so that nobody has to ask again and again. Then finish what is in hand, say "Connection:
 * close", close what is idle, and leave. Do not read it. It is the caller's: close(2) it, or keep it;
 * one for each process is enough. Under the policy "ip", clients that have connections open here may
 * still be dealt.
 * Returns it, or -1 and errno: ENOENT outside croupier, ENOSPC when this worker's processes have 16 of
 * them, else as croupier_listen().
 */
int croupier_draining_fd(void);

#ifdef __cplusplus
}
#endif

#endif
