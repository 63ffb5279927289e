/* What every victim has: it listens on a port, serves by saying its process id, and dies loudly. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define MUST(call) \
	({ \
		long must_ = (long)(call); \
		if (must_ < 0) { \
			fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, strerror(errno)); \
			exit(1); \
		} \
		must_; \
	})
#define WANT(truth) \
	do { \
		if (!(truth)) { \
			fprintf(stderr, "%s:%d: not so: %s (errno %d)\n", __FILE__, __LINE__, #truth, errno); \
			exit(1); \
		} \
	} while (0)

static inline struct sockaddr_in at(int port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(port) };
	a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return a;
}

static inline int bound(int port)
{
	struct sockaddr_in a = at(port);
	int s = MUST(socket(AF_INET, SOCK_STREAM, 0)), one = 1;
	MUST(setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one));
	MUST(bind(s, (struct sockaddr *)&a, sizeof a));
	return s;
}

static inline int listening(int port)
{
	int s = bound(port);
	MUST(listen(s, 5));
	return s;
}

/* Reads a bit, answers, does not close. */
static inline void answer(int c)
{
	char buffer[64];
	MUST(read(c, buffer, sizeof buffer));
	MUST(dprintf(c, "%d", (int)getpid()));
}

static inline void serve(int c)
{
	answer(c);
	MUST(close(c));
}

/* libc's own close: as a raw system call, nothing that can be hooked. */
static inline int unseen_close(int fd)
{
	int (*real)(int) = dlsym(dlopen("libc.so.6", RTLD_LAZY), "close");
	return real(fd);
}
