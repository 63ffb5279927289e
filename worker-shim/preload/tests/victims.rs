//! The preload against programs that were not made for it, one behaviour a test.

#[cfg(test)]
mod support;

use croupier_wire::message::{Kind, SocketOption};
use croupier_wire::page::PAGE_MAGIC;
use libc::{IPPROTO_TCP, SOL_SOCKET};
use std::process::Command;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;
use support::{Policy, Primary, Victim, compile, library};

fn victim(primary: &Primary, name: &str, main: &str) -> Victim {
    primary.run(&mut compile(name, main))
}

#[test]
fn a_blocking_server_takes_what_is_dealt() {
    let primary = Primary::new(Policy::Deal);
    let victim = victim(
        &primary,
        "blocking",
        r"int main(void) {
            int s = bound(8080);
            struct sockaddr_in a; socklen_t n = sizeof a;
            MUST(getsockname(s, (struct sockaddr *)&a, &n));
            WANT(n == 16 && a.sin_port == htons(8080));
            MUST(listen(s, 5));
            n = 4; a.sin_port = 0; a.sin_addr.s_addr = 0;
            MUST(getsockname(s, (struct sockaddr *)&a, &n));
            WANT(n == 16 && a.sin_port == htons(8080) && a.sin_addr.s_addr == 0);
            int value; n = sizeof value;
            MUST(getsockopt(s, SOL_SOCKET, SO_TYPE, &value, &n)); WANT(value == SOCK_STREAM && n == 4);
            MUST(getsockopt(s, SOL_SOCKET, SO_DOMAIN, &value, &n)); WANT(value == AF_INET);
            MUST(getsockopt(s, SOL_SOCKET, SO_PROTOCOL, &value, &n)); WANT(value == IPPROTO_TCP);
            MUST(getsockopt(s, SOL_SOCKET, SO_ACCEPTCONN, &value, &n)); WANT(value == 1);
            for (int i = 0; i < 3; i++) {
                n = sizeof a;
                errno = 77;
                int c = MUST(accept(s, (struct sockaddr *)&a, &n));
                WANT(errno == 77);
                struct sockaddr_in peer; socklen_t m = sizeof peer;
                MUST(getpeername(c, (struct sockaddr *)&peer, &m));
                WANT(n == 16 && !memcmp(&a, &peer, 16));
                WANT(fcntl(c, F_GETFD) == 0 && !(fcntl(c, F_GETFL) & O_NONBLOCK));
                serve(c);
            }
            serve(MUST(accept(s, 0, 0)));
            serve(MUST(accept4(s, 0, 0, SOCK_CLOEXEC)));
            return 0;
        }",
    );
    let channel = primary.listening();
    for served in 1..=5 {
        assert_eq!(channel.deal().exchange("hello"), victim.pid().to_string());
        primary.until(served, served);
    }
    assert_eq!(primary.lines(), [(victim.pid(), 5, 5)]);
    assert_eq!(primary.page().waited.iter().map(|n| n.load(SeqCst)).sum::<u32>(), 5);
    victim.succeed();
    primary.nothing_asked();
}

#[test]
fn a_nonblocking_server_gets_would_block_and_its_flags() {
    let primary = Primary::new(Policy::Deal);
    let mut victim = victim(
        &primary,
        "nonblocking",
        r#"int main(void) {
            int s = bound(8080), one = 1;
            MUST(fcntl(s, F_SETFD, FD_CLOEXEC));
            MUST(fcntl(s, F_SETFL, O_NONBLOCK));
            MUST(listen(s, 5));
            WANT(fcntl(s, F_GETFD) == FD_CLOEXEC && fcntl(s, F_GETFL) & O_NONBLOCK);
            WANT(accept4(s, 0, 0, SOCK_NONBLOCK) == -1 && errno == EAGAIN);
            WANT(accept4(s, 0, 0, 1) == -1 && errno == EINVAL);
            puts("empty"); fflush(stdout);
            struct pollfd p = { s, POLLIN };
            WANT(poll(&p, 1, 20000) == 1);
            int c = MUST(accept4(s, 0, 0, SOCK_NONBLOCK | SOCK_CLOEXEC));
            WANT(fcntl(c, F_GETFD) == FD_CLOEXEC && fcntl(c, F_GETFL) & O_NONBLOCK);
            MUST(close(c));
            WANT(poll(&p, 1, 20000) == 1);
            c = MUST(accept4(s, 0, 0, 0));
            WANT(fcntl(c, F_GETFD) == 0 && !(fcntl(c, F_GETFL) & O_NONBLOCK));
            WANT(accept(s, 0, 0) == -1 && errno == EAGAIN);
            one = 0;
            MUST(ioctl(s, FIONBIO, &one));
            puts("now blocking"); fflush(stdout);
            serve(MUST(accept(s, 0, 0)));
            return 0;
        }"#,
    );
    let channel = primary.listening();
    assert_eq!(victim.line(), "empty");
    assert_eq!(channel.deal().rest(), "");
    assert_ne!(primary.page().totals.nonblocking.load(SeqCst), 0);
    let open = channel.deal();
    assert_eq!(victim.line(), "now blocking");
    assert_eq!(channel.deal().exchange("hello"), victim.pid().to_string());
    primary.until(3, 2);
    victim.succeed();
    assert_eq!(open.rest(), "");
}

#[test]
fn epoll_registered_before_listen_still_fires() {
    let primary = Primary::new(Policy::Deal);
    let victim = victim(
        &primary,
        "epoll",
        r"int main(void) {
            int s = bound(8080), sets[2];
            for (int i = 0; i < 2; i++) {
                sets[i] = MUST(epoll_create1(0));
                struct epoll_event other = { EPOLLIN, { .u64 = 1 } };
                MUST(epoll_ctl(sets[i], EPOLL_CTL_ADD, 1, &other));
                struct epoll_event e = { EPOLLIN | (i ? EPOLLET : 0), { .u64 = 0xabcdef0123456789 } };
                MUST(epoll_ctl(sets[i], EPOLL_CTL_ADD, s, &e));
            }
            MUST(listen(s, 5));
            for (int i = 0; i < 4; i++) {
                struct epoll_event e;
                WANT(epoll_wait(sets[i % 2], &e, 1, 20000) == 1);
                WANT(e.data.u64 == 0xabcdef0123456789);
                serve(MUST(accept4(s, 0, 0, 0)));
            }
            struct epoll_event e = { 0 };
            MUST(epoll_ctl(sets[0], EPOLL_CTL_MOD, s, &e));
            MUST(epoll_ctl(sets[1], EPOLL_CTL_DEL, s, 0));
            return 0;
        }",
    );
    let channel = primary.listening();
    for _ in 0..4 {
        assert_eq!(channel.deal().exchange("hello"), victim.pid().to_string());
    }
    primary.until(4, 4);
    victim.succeed();
}

#[test]
fn select_works() {
    let primary = Primary::new(Policy::Deal);
    let victim = victim(
        &primary,
        "select",
        r"int main(void) {
            int s = listening(8080);
            for (int i = 0; i < 2; i++) {
                fd_set set; FD_ZERO(&set); FD_SET(s, &set);
                struct timeval limit = { 20, 0 };
                WANT(select(s + 1, &set, 0, 0, &limit) == 1);
                serve(MUST(accept(s, 0, 0)));
            }
            return 0;
        }",
    );
    let channel = primary.listening();
    for _ in 0..2 {
        assert_eq!(channel.deal().exchange("hello"), victim.pid().to_string());
    }
    primary.until(2, 2);
    victim.succeed();
}

#[test]
fn children_forked_after_listen_share_the_channel_with_lines_of_their_own() {
    let primary = Primary::new(Policy::Deal);
    let victim = victim(
        &primary,
        "fork",
        r"int main(void) {
            int s = listening(8080);
            serve(MUST(accept(s, 0, 0)));
            for (int i = 0; i < 2; i++) {
                pid_t child = MUST(fork());
                if (!child) { serve(MUST(accept(s, 0, 0))); MUST(close(s)); _exit(0); }
                int status; MUST(waitpid(child, &status, 0)); WANT(status == 0);
            }
            serve(MUST(accept(s, 0, 0)));
            return 0;
        }",
    );
    let channel = primary.listening();
    let mut pids: Vec<_> = (0..4).map(|_| channel.deal().exchange("hello")).collect();
    assert_eq!((&pids[0], &pids[3]), (&victim.pid().to_string(), &victim.pid().to_string()));
    pids.dedup();
    assert_eq!(pids.len(), 4, "each child served one: {pids:?}");
    primary.until(4, 4);
    let counts: Vec<_> =
        primary.lines().iter().map(|(_, claims, closes)| (*claims, *closes)).collect();
    assert_eq!(counts, [(2, 2), (1, 1), (1, 1)]);
    victim.succeed();
    // A child that closes its copy does not end its parent's listener.
    primary.nothing_asked();
}

#[test]
fn a_program_that_forks_for_each_connection_is_counted_by_the_parent() {
    let primary = Primary::new(Policy::Deal);
    let victim = victim(
        &primary,
        "fork-each",
        r"int main(void) {
            int s = listening(8080);
            signal(SIGCHLD, SIG_IGN);
            for (int i = 0; i < 2; i++) {
                int c = MUST(accept(s, 0, 0));
                if (!MUST(fork())) { close(s); serve(c); _exit(0); }
                MUST(close(c));
            }
            return 0;
        }",
    );
    let channel = primary.listening();
    assert!((0..2).all(|_| !channel.deal().exchange("hello").is_empty()));
    primary.until(2, 2);
    assert_eq!(primary.lines(), [(victim.pid(), 2, 2)]);
    victim.succeed();
    primary.nothing_asked();
}

#[test]
fn a_program_that_closes_all_descriptors_works_and_the_doorbell_survives() {
    for (way, call) in [
        ("loop", "for (int fd = 3; fd < 4096; fd++) if (fd != keep) close(fd);"),
        (
            "range",
            "if (keep > 3) MUST(close_range(3, keep - 1, 0)); MUST(close_range(keep + 1, ~0U, 0));",
        ),
        (
            "from",
            "if (keep < 0) closefrom(3); else { MUST(dup2(keep, 3)); closefrom(4); keep = 3; }",
        ),
    ] {
        let primary = Primary::new(Policy::Deal);
        let main = format!(
            r"int main(void) {{
                int keep = 2; {call}
                keep = listening(8080); {call}
                int s = keep;
                serve(MUST(accept(s, 0, 0)));
                serve(MUST(accept(s, 0, 0)));
                return 0;
            }}"
        );
        let victim = victim(&primary, &format!("close-all-{way}"), &main);
        let channel = primary.listening();
        for _ in 0..2 {
            primary.page().bell.ring_on_close.store(1, SeqCst);
            assert_eq!(channel.deal().exchange("hello"), victim.pid().to_string(), "{way}");
            assert!(primary.rung(support::PATIENCE), "{way}: the doorbell was closed");
        }
        primary.until(2, 2);
        victim.succeed();
        primary.nothing_asked();
    }
}

#[test]
fn every_way_to_close_counts_once() {
    let primary = Primary::new(Policy::Deal);
    let victim = victim(
        &primary,
        "closes",
        r"int main(void) {
            int s = listening(8080), c;
            c = MUST(accept(s, 0, 0)); MUST(close(c)); WANT(close(c) == -1 && errno == EBADF);
            c = MUST(accept(s, 0, 0)); FILE *f = fdopen(c, `r+`); WANT(f); WANT(fclose(f) == 0);
            c = MUST(accept(s, 0, 0)); MUST(dup2(1, c)); MUST(close(c));
            c = MUST(accept(s, 0, 0)); MUST(dup3(1, c, O_CLOEXEC)); MUST(close(c));
            c = MUST(accept(s, 0, 0)); WANT(dup2(999, c) == -1); MUST(dup2(c, c)); MUST(close(c));
            c = MUST(accept(s, 0, 0)); MUST(close_range(c, c + 10, 0));
            c = MUST(accept(s, 0, 0)); MUST(close_range(c, c, CLOSE_RANGE_CLOEXEC)); closefrom(c);
            c = MUST(accept(s, 0, 0)); MUST(shutdown(c, SHUT_RDWR)); MUST(close(c));
            /* A close that no hook sees is counted when the number comes back. */
            c = MUST(accept(s, 0, 0)); MUST(unseen_close(c));
            WANT(c == MUST(accept(s, 0, 0))); MUST(close(c));
            c = MUST(accept(s, 0, 0)); MUST(syscall(SYS_close, c)); WANT(fcntl(c, F_GETFD) == -1);
            WANT(syscall(SYS_close, c) == -1 && errno == EBADF);
            f = fmemopen(0, 10, `w`); WANT(f && fclose(f) == 0);
            return 0;
        }"
        .replace('`', "\"")
        .as_str(),
    );
    let channel = primary.listening();
    for dealt in 1..=11 {
        assert_eq!(channel.deal_of(7).rest(), "", "{dealt}");
        let closed = if dealt == 9 { 8 } else { dealt };
        primary.until(dealt, closed);
        assert_eq!(primary.holds(7), dealt == 9, "{dealt}");
    }
    victim.succeed();
    primary.nothing_asked();
}

#[test]
fn a_copy_of_the_listener_is_the_listener_until_the_last_is_closed() {
    let primary = Primary::new(Policy::Deal);
    let mut victim = victim(
        &primary,
        "dup",
        r#"int main(void) {
            int s = listening(8080), d = MUST(dup(s)), e = MUST(fcntl(s, F_DUPFD_CLOEXEC, 50));
            MUST(close(s));
            struct sockaddr_in a; socklen_t n = sizeof a;
            MUST(getsockname(e, (struct sockaddr *)&a, &n)); WANT(a.sin_port == htons(8080));
            serve(MUST(accept(d, 0, 0)));
            MUST(dup2(e, 60)); MUST(close(e)); MUST(close(d));
            serve(MUST(accept(60, 0, 0)));
            puts("served"); fflush(stdout);
            getpid();
            MUST(close(60));
            return 0;
        }"#,
    );
    let channel = primary.listening();
    for _ in 0..2 {
        assert_eq!(channel.deal().exchange("hello"), victim.pid().to_string());
    }
    primary.until(2, 2);
    assert_eq!(victim.line(), "served");
    let closed = primary.asked(Kind::Close);
    assert_eq!(closed.request.channel, channel.number);
    victim.succeed();
    primary.nothing_asked();
}

#[test]
fn an_executed_child_finds_the_listener_under_another_number() {
    let primary = Primary::new(Policy::Deal);
    let victim = victim(
        &primary,
        "exec",
        r#"int main(int argc, char **argv) {
            if (argc > 1) {
                struct sockaddr_in a; socklen_t n = sizeof a;
                MUST(getsockname(77, (struct sockaddr *)&a, &n)); WANT(a.sin_port == htons(8080));
                serve(MUST(accept(77, 0, 0)));
                serve(MUST(accept(77, 0, 0)));
                MUST(close(77));
                return 0;
            }
            int s = listening(8080), status;
            if (!MUST(fork())) { MUST(dup2(s, 77)); close(s); execl(argv[0], argv[0], "x", (char *)0); }
            MUST(wait(&status)); WANT(status == 0);
            serve(MUST(accept(s, 0, 0)));
            return 0;
        }"#,
    );
    let channel = primary.listening();
    let first = channel.deal().exchange("hello");
    let attached = primary.asked(Kind::Attach);
    assert_eq!(attached.request.channel, channel.number);
    assert_eq!(first, attached.pid.to_string());
    assert_eq!(channel.deal().exchange("hello"), first);
    assert_eq!(channel.deal().exchange("hello"), victim.pid().to_string());
    primary.until(3, 3);
    victim.succeed();
    // The child's close of 77 ended nothing, and the page was asked for once.
    primary.nothing_asked();
}

#[test]
fn options_reach_the_primary_before_and_after_listen() {
    let primary = Primary::new(Policy::Deal);
    let victim = victim(
        &primary,
        "options",
        r"int main(void) {
            int s = bound(8080), one = 1, seven = 7;
            struct linger l = { 1, 3 };
            MUST(setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one));
            MUST(setsockopt(s, SOL_SOCKET, SO_LINGER, &l, sizeof l));
            MUST(listen(s, 321));
            MUST(listen(s, 5));
            MUST(setsockopt(s, IPPROTO_TCP, TCP_KEEPCNT, &seven, sizeof seven));
            WANT(setsockopt(s, IPPROTO_TCP, TCP_KEEPCNT, &seven, 3) == -1 && errno == EINVAL);
            MUST(setsockopt(s, IPPROTO_IPV6, 9999, &one, sizeof one));
            MUST(setsockopt(s, SOL_SOCKET, SO_PASSCRED, &one, sizeof one));
            struct tcp_info info; socklen_t n = sizeof info;
            MUST(getsockopt(s, IPPROTO_TCP, TCP_INFO, &info, &n)); WANT(info.tcpi_state == TCP_LISTEN);
            struct timeval limit = { 0, 1000 };
            MUST(setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
            WANT(accept(s, 0, 0) == -1 && errno == EAGAIN);
            return 0;
        }",
    );
    let option = |level, name, value, extra| SocketOption { level, name, value, extra };
    let bind = primary.asked(Kind::Bind).request;
    assert_eq!(bind.options()[..1], [option(SOL_SOCKET, libc::SO_REUSEADDR, 1, 0)]);
    assert!(bind.options().len() == 2 && bind.cookie().is_some(), "{:?}", bind.options());
    let listen = primary.asked(Kind::Listen);
    assert_eq!(listen.request.backlog, 321);
    let wanted =
        [option(SOL_SOCKET, libc::SO_LINGER, 1, 3), option(IPPROTO_TCP, libc::TCP_NODELAY, 1, 0)];
    assert_eq!(listen.request.options(), wanted);
    let later = primary.asked(Kind::SetOption).request;
    assert_eq!(later.options(), [option(IPPROTO_TCP, libc::TCP_KEEPCNT, 7, 0)]);
    victim.succeed();
    primary.nothing_asked();
}

#[test]
fn what_is_not_dealt_goes_to_libc() {
    let main = r#"int main(void) {
        struct sockaddr_in a = at(0); socklen_t n = sizeof a;
        int s = MUST(socket(AF_INET, SOCK_STREAM, 0));
        MUST(bind(s, (struct sockaddr *)&a, n));
        MUST(listen(s, 5));
        MUST(getsockname(s, (struct sockaddr *)&a, &n));
        WANT(a.sin_port != 0);
        int u = MUST(socket(AF_INET, SOCK_DGRAM, 0));
        MUST(bind(u, (struct sockaddr *)&a, n));
        int c = MUST(socket(AF_INET, SOCK_STREAM, 0));
        MUST(connect(c, (struct sockaddr *)&a, n));
        int d = MUST(accept(s, (struct sockaddr *)&a, &n));
        MUST(write(d, "x", 1)); char x; WANT(read(c, &x, 1) == 1);
        MUST(close(d)); MUST(close(c)); MUST(close(s)); MUST(close(u));
        WANT(close(s) == -1 && errno == EBADF);
        return 0;
    }"#;
    let primary = Primary::new(Policy::Deal);
    victim(&primary, "port-0", main).succeed();
    primary.nothing_asked();
    assert!(primary.lines().is_empty());
}

/// Calls on everything but a listener, with what they answer: the same with and without croupier.
const ODD_CALLS: &str = r##"
#define SAY(call) do { errno = 0; long r = (long)(call); printf("%s = %ld, %d\n", #call, r, errno); } while (0)
int main(void) {
    struct sockaddr_in a = at(0); socklen_t n = sizeof a; int value = 1, p[2];
    MUST(pipe(p));
    int s = MUST(socket(AF_INET, SOCK_STREAM, 0)), u = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    SAY(accept(-1, 0, 0)); SAY(accept(p[0], 0, 0)); SAY(accept(s, 0, 0)); SAY(accept4(u, 0, 0, 1));
    SAY(accept(1999, 0, 0)); SAY(accept4(s, 0, 0, 0x7fff)); SAY(listen(p[0], 5)); SAY(listen(-1, 5));
    SAY(bind(s, 0, 0)); SAY(bind(s, (struct sockaddr *)&a, 3)); SAY(bind(p[0], (struct sockaddr *)&a, 16));
    SAY(getsockname(p[0], (struct sockaddr *)&a, &n)); SAY(getsockname(s, (struct sockaddr *)&a, &n));
    SAY(getsockname(u, (struct sockaddr *)&a, &n)); SAY(getsockname(1999, (struct sockaddr *)&a, &n));
    SAY(getsockopt(s, SOL_SOCKET, SO_TYPE, &value, &n)); SAY(value); SAY(n);
    SAY(getsockopt(p[0], SOL_SOCKET, SO_TYPE, &value, &n)); SAY(setsockopt(s, 1, 9999, &value, 4));
    SAY(setsockopt(-1, SOL_SOCKET, SO_KEEPALIVE, &value, 4)); SAY(setsockopt(s, SOL_SOCKET, SO_KEEPALIVE, &value, 4));
    SAY(shutdown(s, SHUT_RD)); SAY(shutdown(p[0], 7)); SAY(shutdown(1999, 0));
    SAY(connect(s, 0, 0)); SAY(connect(p[0], (struct sockaddr *)&a, 16));
    SAY(close(-1)); SAY(close(1999)); SAY(close_range(9, 3, 0)); SAY(close_range(1990, 1999, 0));
    SAY(close_range(1990, 1999, 999)); SAY(dup2(-1, 5)); SAY(dup2(p[0], -1)); SAY(dup3(p[0], p[0], 0));
    SAY(dup3(p[0], 40, O_CLOEXEC)); SAY(fcntl(40, F_GETFD)); SAY(dup2(40, 40)); SAY(dup2(p[0], 40)); SAY(fcntl(40, F_GETFD));
    MUST(listen(u = MUST(socket(AF_INET, SOCK_STREAM, 0)), 1)); /* unbound: any port */
    MUST(fcntl(u, F_SETFL, O_NONBLOCK)); SAY(accept(u, 0, 0)); SAY(listen(u, 2));
    SAY(getsockopt(u, SOL_SOCKET, SO_ACCEPTCONN, &value, &n)); SAY(value);
    SAY(shutdown(u, SHUT_RD)); SAY(accept(u, 0, 0)); SAY(close(u)); SAY(close(u));
    errno = 99; MUST(close(s)); WANT(errno == 99); closefrom(3); SAY(fcntl(p[0], F_GETFD));
    return 0;
}"##;

#[test]
fn odd_calls_answer_as_libc_does_with_and_without_croupier() {
    let mut plain = compile("odd", ODD_CALLS);
    let libc = String::from_utf8(plain.env_remove("LD_PRELOAD").output().unwrap().stdout).unwrap();
    assert!(libc.lines().count() > 40, "{libc}");
    assert_eq!(Victim::start(&mut plain).succeed(), libc, "no environment");
    plain.env("CROUPIER_CONTROL", "nonsense");
    assert_eq!(Victim::start(&mut plain).succeed(), libc, "a malformed variable");
    let primary = Primary::new(Policy::Deal);
    assert_eq!(primary.run(&mut plain).succeed(), libc, "under croupier");
    // Of the one that listens without an address: did the worker bind it elsewhere?
    assert!(primary.asked(Kind::Bind).request.address.bytes().is_empty());
    primary.nothing_asked();
}

#[test]
fn without_the_environment_a_server_is_a_plain_server() {
    let main = r#"int main(void) {
        struct sockaddr_in a = at(0); socklen_t n = sizeof a;
        int free = MUST(socket(AF_INET, SOCK_STREAM, 0));
        MUST(bind(free, (struct sockaddr *)&a, n)); MUST(getsockname(free, (struct sockaddr *)&a, &n));
        MUST(close(free));
        int s = listening(ntohs(a.sin_port));
        printf("%d\n", ntohs(a.sin_port)); fflush(stdout);
        serve(MUST(accept(s, 0, 0)));
        return 0;
    }"#;
    let mut victim = Victim::start(&mut compile("plain", main));
    let port: u16 = victim.line().parse().unwrap();
    let client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    assert_eq!(support::Client(client).exchange("hello"), victim.pid().to_string());
    victim.succeed();
}

#[test]
fn bind_says_what_the_primary_says() {
    let main = r#"int main(void) {
        struct sockaddr_in a = at(8080);
        int s = MUST(socket(AF_INET, SOCK_STREAM, 0));
        if (bind(s, (struct sockaddr *)&a, sizeof a) < 0) { printf("%d\n", errno); return 0; }
        puts("bound");
        return 0;
    }"#;
    let refusing = Primary::new(Policy::Refuse(libc::EADDRINUSE));
    let said = victim(&refusing, "refused", main).succeed();
    assert_eq!(said.trim(), libc::EADDRINUSE.to_string());
    // Not asked, not bound: one worker must not take a port from all the others.
    let gone = Primary::new(Policy::Deal);
    gone.stop();
    let said = victim(&gone, "unreachable", main).succeed();
    assert_eq!(said.trim(), libc::EADDRNOTAVAIL.to_string());
}

#[test]
fn a_listener_that_the_primary_does_not_deal_is_bound_for_real() {
    for policy in [Policy::Pass, Policy::PassAtListen] {
        let primary = Primary::new(policy);
        let main = r#"int main(void) {
            struct sockaddr_in a = at(0); socklen_t n = sizeof a;
            int free = MUST(socket(AF_INET, SOCK_STREAM, 0));
            MUST(bind(free, (struct sockaddr *)&a, n)); MUST(getsockname(free, (struct sockaddr *)&a, &n));
            MUST(close(free));
            int s = listening(ntohs(a.sin_port));
            printf("%d\n", ntohs(a.sin_port)); fflush(stdout);
            serve(MUST(accept(s, 0, 0)));
            return 0;
        }"#;
        let mut victim = victim(&primary, &format!("pass-{policy:?}"), main);
        let port: u16 = victim.line().parse().unwrap();
        let client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert_eq!(support::Client(client).exchange("hello"), victim.pid().to_string());
        victim.succeed();
        assert!(primary.lines().is_empty());
    }
}

/// The files were upgraded under a primary that runs.
#[test]
fn a_primary_of_another_version_is_named_once() {
    let primary = Primary::new(Policy::Deal);
    primary.page().head.magic.store(PAGE_MAGIC - 1, SeqCst);
    let main = r#"int main(void) {
        char said[999]; int p[2]; MUST(pipe(p));
        MUST(dup2(p[1], 2));
        for (int i = 0; i < 2; i++) { int s = bound(8080 + i); WANT(listen(s, 5) == -1 && errno == EPROTO); }
        int n = MUST(read(p[0], said, sizeof said));
        return write(1, said, n) != n;
    }"#;
    let said = victim(&primary, "upgraded", main).succeed();
    let line = "croupier: the preload library and the primary are of different versions, as after an \
                upgrade; stop croupier and start it again";
    assert_eq!(said.lines().collect::<Vec<_>>(), [line]);
    for _ in 0..2 {
        let channel = primary.listening();
        // Nobody listens there, and the primary hears of it.
        assert_eq!(primary.asked(Kind::Close).request.channel, channel.number);
    }
    primary.nothing_asked();
}

#[test]
fn a_shared_listener_is_accepted_from_directly() {
    let primary = Primary::new(Policy::Share);
    let main = r#"int main(void) {
        int s = listening(8080);
        struct sockaddr_in a; socklen_t n = sizeof a;
        MUST(getsockname(s, (struct sockaddr *)&a, &n));
        printf("%d\n", ntohs(a.sin_port)); fflush(stdout);
        MUST(listen(s, 7));
        serve(MUST(accept(s, 0, 0)));
        return 0;
    }"#;
    let mut victim = victim(&primary, "share", main);
    let port: u16 = victim.line().parse().unwrap();
    assert_ne!(port, 8080, "the primary's socket, not the program's");
    let client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    assert_eq!(support::Client(client).exchange("hello"), victim.pid().to_string());
    victim.succeed();
}

#[test]
fn a_client_that_binds_its_port_gets_it() {
    let primary = Primary::new(Policy::Deal);
    let main = r"int main(void) {
        struct sockaddr_in a = at(0), b; socklen_t n = sizeof a;
        int s = MUST(socket(AF_INET, SOCK_STREAM, 0));
        MUST(bind(s, (struct sockaddr *)&a, n)); MUST(listen(s, 5)); MUST(getsockname(s, (struct sockaddr *)&a, &n));
        int free = MUST(socket(AF_INET, SOCK_STREAM, 0)); b = at(0);
        MUST(bind(free, (struct sockaddr *)&b, n)); MUST(getsockname(free, (struct sockaddr *)&b, &n));
        MUST(close(free));
        int c = MUST(socket(AF_INET, SOCK_STREAM, 0));
        MUST(bind(c, (struct sockaddr *)&b, n));
        MUST(connect(c, (struct sockaddr *)&a, n));
        struct sockaddr_in peer;
        MUST(accept(s, (struct sockaddr *)&peer, &n)); WANT(peer.sin_port == b.sin_port);
        return 0;
    }";
    let victim = victim(&primary, "client", main);
    primary.asked(Kind::Bind);
    primary.asked(Kind::Unbind);
    victim.succeed();
    primary.nothing_asked();
}

#[test]
fn giving_up_a_listener_is_told_once() {
    let primary = Primary::new(Policy::Deal);
    let main = r"int main(void) {
        MUST(close(bound(8080)));
        int s = listening(8081);
        MUST(shutdown(s, SHUT_WR));
        MUST(shutdown(s, SHUT_RDWR));
        WANT(accept(s, 0, 0) == -1 && errno == EINVAL);
        MUST(close(s));
        for (int i = 0; i < 200; i++) MUST(close(bound(8082)));
        return 0;
    }";
    let victim = victim(&primary, "give-up", main);
    primary.asked(Kind::Bind);
    let unbind = primary.asked(Kind::Unbind).request;
    assert_eq!(unbind.address.bytes()[2..4], 8080_u16.to_be_bytes());
    let channel = primary.listening();
    assert_eq!(primary.asked(Kind::Close).request.channel, channel.number);
    for _ in 0..200 {
        primary.asked(Kind::Bind);
        primary.asked(Kind::Unbind);
    }
    victim.succeed();
    primary.nothing_asked();
}

#[test]
fn a_child_forked_between_bind_and_listen_may_listen() {
    let primary = Primary::new(Policy::Deal);
    let main = r"int main(void) {
        int s = bound(8080), status;
        if (!MUST(fork())) {
            struct sockaddr_in a; socklen_t n = sizeof a;
            MUST(getsockname(s, (struct sockaddr *)&a, &n)); WANT(a.sin_port == htons(8080));
            MUST(listen(s, 5)); serve(MUST(accept(s, 0, 0))); _exit(0);
        }
        MUST(wait(&status)); WANT(status == 0);
        return 0;
    }";
    let victim = victim(&primary, "fork-early", main);
    let channel = primary.listening();
    assert_ne!(channel.deal().exchange("hello"), victim.pid().to_string());
    primary.until(1, 1);
    victim.succeed();
}

/// `uvicorn --workers`: the socket is bound here, and listened on by another program.
#[test]
fn a_program_executed_between_bind_and_listen_may_listen() {
    let primary = Primary::new(Policy::Deal);
    let main = r#"int main(int argc, char **argv) {
        if (argc > 1) {
            struct sockaddr_in a; socklen_t n = sizeof a;
            MUST(getsockname(77, (struct sockaddr *)&a, &n)); WANT(a.sin_port == htons(8080));
            // A copy of it is no end of it.
            int copy = MUST(dup(77)); MUST(close(copy));
            MUST(listen(77, 5)); serve(MUST(accept(77, 0, 0)));
            // One that was never bound gets a port of the kernel's, and one that is named is asked about no more.
            int free = MUST(socket(AF_INET, SOCK_STREAM, 0));
            MUST(listen(free, 5)); n = sizeof a;
            MUST(getsockname(free, (struct sockaddr *)&a, &n)); WANT(a.sin_port != 0);
            return 0;
        }
        int s = bound(8080), status;
        if (!MUST(fork())) { MUST(dup2(s, 77)); close(s); execl(argv[0], argv[0], "x", (char *)0); }
        MUST(wait(&status)); WANT(status == 0);
        return 0;
    }"#;
    let victim = victim(&primary, "exec-early", main);
    let bound = primary.asked(Kind::Bind).request;
    let again = primary.asked(Kind::Bind);
    assert_eq!(again.request.cookie(), bound.cookie());
    assert!(again.request.address.bytes().is_empty() && bound.cookie().is_some());
    let listened = primary.asked(Kind::Listen);
    assert_eq!(listened.request.address, bound.address);
    let channel = listened.channel.unwrap();
    assert_eq!(channel.deal().exchange("hello"), listened.pid.to_string());
    primary.until(1, 1);
    assert_ne!(primary.asked(Kind::Bind).request.cookie(), bound.cookie());
    victim.succeed();
}

/// libc would take any free port.
#[test]
fn what_a_program_executed_between_bind_and_listen_cannot_learn_is_an_error() {
    let primary = Primary::new(Policy::RefuseAgain(libc::EADDRINUSE));
    let main = r#"int main(int argc, char **argv) {
        if (argc > 1) {
            struct sockaddr_in a; socklen_t n = sizeof a;
            MUST(getsockname(77, (struct sockaddr *)&a, &n)); WANT(a.sin_port == 0);
            WANT(listen(77, 5) == -1); WANT(errno == atoi(argv[1]));
            n = sizeof a; MUST(getsockname(77, (struct sockaddr *)&a, &n)); WANT(a.sin_port == 0);
            return 0;
        }
        int s = bound(8080), status;
        MUST(dup2(s, 77));
        for (int lost = 0; lost < 2; lost++) {
            char wanted[9]; sprintf(wanted, "%d", lost ? EADDRNOTAVAIL : EADDRINUSE);
            if (!MUST(fork())) {
                char nobody[99];
                sprintf(nobody, "%.32s@croupier-test/nobody", getenv("CROUPIER_CONTROL"));
                if (lost) MUST(setenv("CROUPIER_CONTROL", nobody, 1));
                execl(argv[0], argv[0], wanted, (char *)0);
            }
            MUST(wait(&status)); WANT(status == 0);
        }
        return 0;
    }"#;
    let victim = victim(&primary, "exec-refused", main);
    let bound = primary.asked(Kind::Bind).request;
    // For its name, and to listen.
    for _ in 0..2 {
        assert_eq!(primary.asked(Kind::Bind).request.cookie(), bound.cookie());
    }
    victim.succeed();
    primary.nothing_asked();
}

/// There are 60 places for listeners.
#[test]
fn a_program_that_only_hands_sockets_on_keeps_no_place_for_them() {
    let primary = Primary::new(Policy::Deal);
    let main = r#"int main(int argc, char **argv) {
        struct sockaddr_in a; socklen_t n;
        if (argc > 1) {
            for (int s = 100; s < 150; s++) {
                n = sizeof a;
                MUST(getsockname(s, (struct sockaddr *)&a, &n)); WANT(a.sin_port == htons(8000 + s));
                if (s % 2) MUST(close(s));
            }
            MUST(close_range(100, 149, 0));
            for (int i = 0; i < 60; i++) bound(9000 + i);
            return 0;
        }
        int status;
        for (int s = 100; s < 150; s++) { int b = bound(8000 + s); MUST(dup2(b, s)); MUST(close(b)); }
        if (!MUST(fork())) { execl(argv[0], argv[0], "x", (char *)0); }
        MUST(wait(&status)); WANT(status == 0);
        return 0;
    }"#;
    let victim = victim(&primary, "hands-on", main);
    let bound: Vec<_> = (0..50).map(|_| primary.asked(Kind::Bind).request.cookie()).collect();
    for cookie in bound {
        assert_eq!(primary.asked(Kind::Bind).request.cookie(), cookie);
    }
    // Their end is not that program's to tell.
    (0..60).for_each(|_| drop(primary.asked(Kind::Bind)));
    victim.succeed();
    primary.nothing_asked();
}

/// The primary ends a worker that asks it a thousand times a second.
#[test]
fn a_client_that_asks_for_names_does_not_ask_the_primary() {
    let primary = Primary::new(Policy::Deal);
    let main = r"int main(void) {
        struct sockaddr_in a; socklen_t n; int status;
        for (int i = 0; i < 2000; i++) {
            int s = MUST(socket(AF_INET, SOCK_STREAM, 0)); n = sizeof a;
            MUST(getsockname(s, (struct sockaddr *)&a, &n)); WANT(n == sizeof a && a.sin_port == 0);
            MUST(close(s));
        }
        // Of these nobody knows where they are from.
        int one = MUST(syscall(SYS_socket, AF_INET, SOCK_STREAM, 0)), copy;
        for (int i = 0; i < 2000; i++) {
            copy = MUST(dup(one)); n = sizeof a;
            MUST(getsockname(copy, (struct sockaddr *)&a, &n)); WANT(a.sin_port == 0);
            MUST(close(copy));
        }
        if (!MUST(fork())) { n = sizeof a; return getsockname(one, (struct sockaddr *)&a, &n); }
        MUST(wait(&status)); WANT(status == 0);
        // A number under which a socket was made is asked about when another comes there.
        copy = MUST(socket(AF_INET, SOCK_STREAM, 0)); MUST(close(copy));
        WANT(MUST(syscall(SYS_socket, AF_INET, SOCK_STREAM, 0)) == copy); n = sizeof a;
        MUST(getsockname(copy, (struct sockaddr *)&a, &n));
        return 0;
    }";
    victim(&primary, "names", main).succeed();
    let [first, second] = [(); 2].map(|()| primary.asked(Kind::Bind).request.cookie());
    assert_ne!(first, second);
    primary.nothing_asked();
}

#[test]
fn at_the_limit_of_descriptors_nothing_is_lost() {
    let primary = Primary::new(Policy::Deal);
    let mut victim = victim(
        &primary,
        "emfile",
        r#"int main(void) {
            struct rlimit limit = { 64, 64 };
            MUST(setrlimit(RLIMIT_NOFILE, &limit));
            int s = listening(8080), all[64], count = 0, c;
            serve(MUST(accept(s, 0, 0)));
            while ((c = dup(1)) >= 0) all[count++] = c;
            WANT(errno == EMFILE);
            puts("full"); fflush(stdout);
            struct pollfd p = { s, POLLIN };
            WANT(poll(&p, 1, 20000) == 1);
            for (int i = 0; i < 100; i++) WANT(accept(s, 0, 0) == -1 && errno == EMFILE);
            puts("refused"); fflush(stdout);
            for (int i = 0; i < 20; i++) { MUST(close(all[--count])); answer(MUST(accept(s, 0, 0))); }
            MUST(fcntl(s, F_SETFL, O_NONBLOCK));
            WANT(accept(s, 0, 0) == -1 && errno == EAGAIN);
            return 0;
        }"#,
    );
    let channel = primary.listening();
    assert_eq!(channel.deal().exchange("hello"), victim.pid().to_string());
    assert_eq!(victim.line(), "full");
    let clients: Vec<_> = (0..20).map(|_| channel.deal()).collect();
    assert_eq!(victim.line(), "refused");
    // It may have taken the next one by now.
    assert!((19..=20).contains(&channel.queued()), "{}", channel.queued());
    let pid = victim.pid().to_string();
    clients.iter().for_each(|client| client.say("hello"));
    primary.until(21, 1);
    victim.succeed();
    for client in clients {
        assert_eq!(client.rest(), pid);
    }
}

/// A worker with a socket of its own has a channel beside it, which the program knows nothing of.
#[test]
fn a_channel_for_mail_is_kept_while_it_is_one_and_the_program_listens() {
    let primary = Primary::new(Policy::Share);
    let main = r"static int mailbox(void) {
            struct stat found;
            for (int fd = 900; fd < 1000; fd++)
                if (fstat(fd, &found) == 0 && S_ISSOCK(found.st_mode)) return fd;
            return -1;
        }
        static int is_open(int fd) { return fcntl(fd, F_GETFD) != -1; }
        int main(void) {
            int s = listening(8080), box = mailbox();
            WANT(box != -1);
            MUST(close(box)); WANT(is_open(box));
            MUST(close_range(900, ~0U, 0)); WANT(is_open(box));
            /* What the program opened there is the program's. */
            MUST(unseen_close(box)); WANT(MUST(dup2(1, box)) == box);
            MUST(close(box)); WANT(!is_open(box));
            WANT(MUST(dup2(1, box)) == box);
            MUST(close_range(900, ~0U, 0)); WANT(!is_open(box));
            MUST(close(s));
            s = listening(8081); box = mailbox();
            WANT(is_open(box));
            MUST(close(s)); WANT(!is_open(box));
            for (int i = 0; i < 40; i++) {
                s = listening(8082); WANT(is_open(mailbox()));
                MUST(close(s)); WANT(mailbox() == -1);
            }
            return 0;
        }";
    victim(&primary, "mailbox", main).succeed();
}

/// What a victim does that has no descriptor left: nothing is taken until there is one again.
const REFUSES_AND_SERVES: &str = r#"
    static int all[2000], count;
    static inline void fill(void) {
        int c;
        while ((c = dup(1)) >= 0) all[count++] = c;
        WANT(errno == EMFILE);
        /* The last look at the limit is over a millisecond old. */
        struct timespec before, now;
        MUST(clock_gettime(CLOCK_MONOTONIC, &before));
        do MUST(clock_gettime(CLOCK_MONOTONIC, &now));
        while ((now.tv_sec - before.tv_sec) * 1000000000L + now.tv_nsec - before.tv_nsec < 2000000);
    }
    static inline void refuse(int s) {
        for (int i = 0; i < 100; i++) WANT(accept(s, 0, 0) == -1 && errno == EMFILE);
        puts("refused"); fflush(stdout);
    }
"#;

fn refuses_and_serves(name: &str, main: &str, clients: u32) {
    let claimed = 1 + u64::from(clients);
    let primary = Primary::new(Policy::Deal);
    let mut victim = victim(&primary, name, &format!("{REFUSES_AND_SERVES}{main}"));
    let channel = primary.listening();
    let pid = victim.pid().to_string();
    assert_eq!(channel.deal().exchange("hello"), pid);
    assert_eq!(victim.line(), "full");
    let clients: Vec<_> = (0..clients).map(|_| channel.deal()).collect();
    clients.iter().for_each(|client| client.say("hello"));
    assert_eq!(victim.line(), "refused");
    for client in clients {
        assert_eq!(client.rest(), pid);
    }
    primary.until(claimed, 1);
    victim.succeed();
}

#[test]
fn descriptors_that_run_out_after_a_roomy_claim_lose_nothing() {
    refuses_and_serves(
        "emfile-later",
        r#"int main(void) {
            struct rlimit limit = { 1024, 1024 };
            MUST(setrlimit(RLIMIT_NOFILE, &limit));
            int s = listening(8080), low;
            serve(MUST(accept(s, 0, 0)));
            fill();
            puts("full"); fflush(stdout);
            /* A low number says nothing: this is the last one. */
            MUST(close(low = all[0]));
            struct pollfd p = { s, POLLIN };
            WANT(poll(&p, 1, 20000) == 1);
            int c = MUST(accept(s, 0, 0)); WANT(c == low);
            answer(c);
            WANT(poll(&p, 1, 20000) == 1);
            refuse(s);
            for (int i = 1; i < 20; i++) { MUST(close(all[i])); answer(MUST(accept(s, 0, 0))); }
            return 0;
        }"#,
        20,
    );
}

#[test]
fn a_limit_that_is_lowered_loses_nothing() {
    refuses_and_serves(
        "emfile-lowered",
        r#"int main(void) {
            struct rlimit limit = { 1024, 2048 };
            MUST(setrlimit(RLIMIT_NOFILE, &limit));
            int s = listening(8080);
            serve(MUST(accept(s, 0, 0)));
            limit.rlim_cur = 300;
            MUST(setrlimit(RLIMIT_NOFILE, &limit));
            fill();
            puts("full"); fflush(stdout);
            struct pollfd p = { s, POLLIN };
            WANT(poll(&p, 1, 20000) == 1);
            refuse(s);
            limit.rlim_cur = 2048;
            MUST(setrlimit(RLIMIT_NOFILE, &limit));
            for (int i = 0; i < 20; i++) answer(MUST(accept(s, 0, 0)));
            return 0;
        }"#,
        20,
    );
}

#[test]
fn descriptors_that_run_out_while_threads_sleep_in_accept_lose_nothing() {
    refuses_and_serves(
        "emfile-asleep",
        r#"static int s, more[2];
        static struct sleeper { volatile int tid, full; } sleepers[4];
        static void *loop(void *x) {
            struct sleeper *me = x; int c;
            me->tid = gettid();
            while ((c = accept(s, 0, 0)) < 0) {
                WANT(errno == EMFILE);
                me->full = 1;
                /* One of them is enough: the message stays for the first that has room. */
                char go; MUST(read(more[0], &go, 1));
            }
            answer(c);
            return 0;
        }
        int main(void) {
            struct rlimit limit = { 1024, 1024 };
            MUST(setrlimit(RLIMIT_NOFILE, &limit));
            s = listening(8080);
            serve(MUST(accept(s, 0, 0)));
            MUST(pipe(more));
            FILE *f; pthread_t t[4];
            for (int i = 0; i < 4; i++) WANT(pthread_create(&t[i], 0, loop, &sleepers[i]) == 0);
            for (int i = 0; i < 4; i++) for (char state = 0; state != 'S';) {
                char path[64];
                snprintf(path, sizeof path, "/proc/self/task/%d/stat", sleepers[i].tid);
                if ((f = fopen(path, "r"))) { if (fscanf(f, "%*d (%*[^)]) %c", &state) != 1) state = 0; fclose(f); }
            }
            fill();
            puts("full"); fflush(stdout);
            for (int i = 0; i < 4; i++) while (!sleepers[i].full);
            puts("refused"); fflush(stdout);
            for (int i = 0; i < 4; i++) MUST(close(all[--count]));
            MUST(write(more[1], "gogo", 4));
            for (int i = 0; i < 4; i++) WANT(pthread_join(t[i], 0) == 0);
            return 0;
        }"#,
        4,
    );
}

#[test]
fn an_idle_worker_goes_when_the_primary_is_gone() {
    let primary = Primary::new(Policy::Deal);
    let victim = victim(
        &primary,
        "gone-idle",
        "int main(void) { int s = listening(8080); for (;;) serve(MUST(accept(s, 0, 0))); }",
    );
    let channel = primary.listening();
    assert_eq!(channel.deal().exchange("hello"), victim.pid().to_string());
    primary.stop();
    drop(channel);
    victim.ended_by(libc::SIGTERM);
}

#[test]
fn a_busy_worker_finishes_first_and_its_event_loop_does_not_spin() {
    let primary = Primary::new(Policy::Deal);
    let mut victim = victim(
        &primary,
        "gone-busy",
        r#"int main(void) {
            int s = bound(8080), e = MUST(epoll_create1(0));
            MUST(fcntl(s, F_SETFL, O_NONBLOCK));
            MUST(listen(s, 5));
            struct epoll_event event = { EPOLLIN, { .fd = s } };
            MUST(epoll_ctl(e, EPOLL_CTL_ADD, s, &event));
            WANT(epoll_wait(e, &event, 1, 20000) == 1);
            int c = MUST(accept(s, 0, 0)), turns = 0;
            puts("claimed"); fflush(stdout);
            while (epoll_wait(e, &event, 1, turns ? 300 : 20000) == 1) {
                WANT(accept(s, 0, 0) == -1 && errno == EAGAIN);
                turns++;
            }
            printf("%d\n", turns); fflush(stdout);
            answer(c);
            close(c);
            for (;;) pause();
        }"#,
    );
    let channel = primary.listening();
    let client = channel.deal();
    assert_eq!(victim.line(), "claimed");
    primary.stop();
    drop(channel);
    assert_eq!(victim.line(), "1", "turns of the event loop after the end");
    assert_eq!(client.exchange("hello"), victim.pid().to_string());
    victim.ended_by(libc::SIGTERM);
}

#[test]
fn connections_of_a_dead_sibling_keep_nobody_here() {
    let primary = Primary::new(Policy::Deal);
    let mut victim = victim(
        &primary,
        "gone-sibling",
        r#"int main(void) {
            int s = listening(8080);
            if (!MUST(fork())) { MUST(accept(s, 0, 0)); _exit(0); }
            MUST(wait(0));
            puts("sibling dead"); fflush(stdout);
            for (;;) serve(MUST(accept(s, 0, 0)));
        }"#,
    );
    let channel = primary.listening();
    assert_eq!(channel.deal().rest(), "");
    assert_eq!(victim.line(), "sibling dead");
    primary.stop();
    drop(channel);
    victim.ended_by(libc::SIGTERM);
}

#[test]
fn a_master_that_replaces_its_workers_goes_too() {
    let primary = Primary::new(Policy::Deal);
    // As root, the master is beyond the signals of its workers, as nginx's is.
    let victim = victim(
        &primary,
        "gone-master",
        r"int main(void) {
            int s = listening(8080);
            for (;;) {
                if (!MUST(fork())) {
                    WANT(setuid(65534) == 0 || geteuid() != 0);
                    for (;;) serve(MUST(accept(s, 0, 0)));
                }
                MUST(wait(0));
            }
        }",
    );
    let channel = primary.listening();
    assert!(!channel.deal().exchange("hello").is_empty());
    primary.until(1, 1);
    primary.stop();
    drop(channel);
    victim.ended_by(libc::SIGTERM);
}

#[test]
fn the_end_of_one_channel_is_not_the_end_of_the_primary() {
    let primary = Primary::new(Policy::Deal);
    let main = r"int main(void) {
        int s = listening(8080);
        WANT(accept(s, 0, 0) == -1 && errno == EINVAL);
        WANT(accept(s, 0, 0) == -1 && errno == EINVAL);
        return 0;
    }";
    let victim = victim(&primary, "one-channel", main);
    drop(primary.listening());
    primary.asked(Kind::Attach);
    victim.succeed();
}

#[test]
fn a_unix_path_is_dealt_by_its_absolute_name() {
    let primary = Primary::new(Policy::Deal);
    let main = r"int main(void) {
        struct sockaddr_un a = { AF_UNIX, `x.sock` }; socklen_t n = sizeof a;
        int s = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
        MUST(bind(s, (struct sockaddr *)&a, sizeof a));
        WANT(access(`x.sock`, F_OK) == -1);
        MUST(listen(s, 5));
        memset(&a, 0, sizeof a);
        MUST(getsockname(s, (struct sockaddr *)&a, &n)); WANT(!strcmp(a.sun_path, `x.sock`));
        int value; n = sizeof value;
        MUST(getsockopt(s, SOL_SOCKET, SO_DOMAIN, &value, &n)); WANT(value == AF_UNIX);
        serve(MUST(accept(s, 0, 0)));
        return 0;
    }"
    .replace('`', "\"");
    let folder = std::env::temp_dir();
    let victim = primary.run(compile("unix", &main).current_dir(&folder));
    let bind = primary.asked(Kind::Bind).request;
    let path = [&[1, 0], folder.join("x.sock").as_os_str().as_encoded_bytes()].concat();
    assert_eq!(bind.address.bytes(), path);
    let listen = primary.asked(Kind::Listen);
    assert_eq!(listen.request.address, bind.address);
    let channel = listen.channel.unwrap();
    assert_eq!(channel.deal().exchange("hello"), victim.pid().to_string());
    primary.until(1, 1);
    victim.succeed();
}

#[test]
fn threads_share_a_listener_and_every_connection_is_served_once() {
    let primary = Primary::new(Policy::Deal);
    let victim = victim(
        &primary,
        "threads",
        r"static int s;
        static void *loop(void *x) { for (;;) serve(MUST(accept(s, 0, 0))); }
        int main(void) {
            s = listening(8080);
            pthread_t t[8];
            for (int i = 0; i < 8; i++) WANT(pthread_create(&t[i], 0, loop, 0) == 0);
            pthread_join(t[0], 0);
        }",
    );
    let channel = primary.listening();
    for _ in 0..10 {
        let clients: Vec<_> = (0..20).map(|_| channel.deal()).collect();
        for client in clients {
            assert_eq!(client.exchange("hello"), victim.pid().to_string());
        }
    }
    primary.until(200, 200);
    assert_eq!(primary.lines(), [(victim.pid(), 200, 200)]);
    drop(victim);
}

// pthread_cancel(3) unwinds the thread's stack through the hook. Built with `panic = "abort"`, as it is
// shipped, the library's frames let that pass; in a development build it ends the program.
#[cfg(not(debug_assertions))]
#[test]
fn a_thread_blocked_in_accept_can_be_cancelled() {
    let primary = Primary::new(Policy::Deal);
    let mut victim = victim(
        &primary,
        "cancel",
        r#"static int s, tid;
        static void *loop(void *x) { tid = gettid(); for (;;) serve(MUST(accept(s, 0, 0))); }
        int main(void) {
            s = listening(8080);
            pthread_t t; void *end; char state = 0;
            WANT(pthread_create(&t, 0, loop, 0) == 0);
            /* Asleep: the state in /proc says so. */
            while (state != 'S') {
                char path[64];
                snprintf(path, sizeof path, "/proc/self/task/%d/stat", *(volatile int *)&tid);
                FILE *f = fopen(path, "r");
                if (f) { if (fscanf(f, "%*d (%*[^)]) %c", &state) != 1) state = 0; fclose(f); }
            }
            WANT(pthread_cancel(t) == 0 && pthread_join(t, &end) == 0 && end == PTHREAD_CANCELED);
            puts("cancelled"); fflush(stdout);
            serve(MUST(accept(s, 0, 0)));
            return 0;
        }"#,
    );
    let channel = primary.listening();
    assert_eq!(victim.line(), "cancelled");
    assert_eq!(channel.deal().exchange("hello"), victim.pid().to_string());
    primary.until(1, 1);
    victim.succeed();
}

#[test]
fn a_stale_entry_is_no_trap() {
    let primary = Primary::new(Policy::Deal);
    let main = r"int main(void) {
        int s = listening(8080);
        MUST(unseen_close(s));
        struct sockaddr_in a = at(0); socklen_t n = sizeof a;
        int t = MUST(socket(AF_INET, SOCK_STREAM, 0)); WANT(t == s);
        MUST(getsockname(t, (struct sockaddr *)&a, &n)); WANT(a.sin_port == 0);
        a = at(0);
        MUST(bind(t, (struct sockaddr *)&a, n)); MUST(listen(t, 5));
        MUST(getsockname(t, (struct sockaddr *)&a, &n)); WANT(a.sin_port != htons(8080));
        int c = MUST(socket(AF_INET, SOCK_STREAM, 0));
        MUST(connect(c, (struct sockaddr *)&a, n));
        MUST(close(MUST(accept(t, 0, 0))));
        return 0;
    }";
    let victim = victim(&primary, "stale", main);
    let channel = primary.listening();
    victim.succeed();
    primary.until(0, 0);
    assert_eq!(channel.queued(), 0);
}

fn python(primary: &Primary, program: &str) -> Victim {
    primary.run(Command::new("python3").env("PYTHONUNBUFFERED", "1").args(["-c", program]))
}

const GET: &str = "GET / HTTP/1.0\r\n\r\n";

#[test]
fn python_http_server_is_unmodified() {
    let primary = Primary::new(Policy::Deal);
    let folder = std::env::temp_dir();
    let mut program = Command::new("python3");
    let program = program.args(["-m", "http.server", "8000", "--bind", "127.0.0.1"]);
    let victim = primary.run(program.current_dir(folder).stderr(std::process::Stdio::null()));
    let channel = primary.listening();
    for _ in 0..3 {
        let answer = channel.deal().exchange(GET);
        assert!(answer.starts_with("HTTP/1.0 200 OK"), "{answer}");
    }
    primary.until(3, 3);
    drop(victim);
}

#[test]
fn python_asyncio_is_unmodified() {
    let primary = Primary::new(Policy::Deal);
    let victim = python(
        &primary,
        "import asyncio\n\
         async def serve(r, w):\n\
         \x20   await r.read(10); w.write(b'served'); await w.drain(); w.close()\n\
         async def main():\n\
         \x20   server = await asyncio.start_server(serve, '127.0.0.1', 8000)\n\
         \x20   await server.serve_forever()\n\
         asyncio.run(main())",
    );
    let channel = primary.listening();
    let clients: Vec<_> = (0..5).map(|_| channel.deal()).collect();
    for client in clients {
        assert_eq!(client.exchange("hello"), "served");
    }
    primary.until(5, 5);
    drop(victim);
}

#[test]
fn a_vforked_child_that_closes_everything_changes_nothing_in_its_parent() {
    let primary = Primary::new(Policy::Deal);
    let victim = python(
        &primary,
        "import signal, socket, subprocess\n\
         s = socket.create_server(('127.0.0.1', 8000))\n\
         held, _ = s.accept()\n\
         for _ in range(3):\n\
         \x20   c, _ = s.accept(); c.recv(10)\n\
         \x20   out = subprocess.run(['echo', 'child'], capture_output=True, close_fds=True)\n\
         \x20   c.sendall(out.stdout); c.close()\n\
         held.sendall(b'held'); held.close()\n\
         s.accept(); signal.pause()",
    );
    let channel = primary.listening();
    let held = channel.deal();
    for served in 1..=3 {
        assert_eq!(channel.deal().exchange("hello"), "child\n");
        // The child's copies are no closes, and the parent's closes are still seen.
        primary.until(1 + served, if served == 3 { 4 } else { served });
    }
    assert_eq!(held.rest(), "held");
    primary.page().bell.ring_at.store(5, SeqCst);
    drop(channel.deal());
    assert!(primary.rung(Duration::from_secs(20)), "the doorbell was closed");
    primary.nothing_asked();
    drop(victim);
}

#[test]
fn the_library_exports_its_hooks_and_nothing_else() {
    let mut wanted: Vec<_> = include_str!("../src/hooks.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("pub unsafe extern \"C\" fn ")?.split('(').next())
        .collect();
    let output = Command::new("nm").args(["-D", "--defined-only"]).arg(library()).output().unwrap();
    let symbols = String::from_utf8(output.stdout).unwrap();
    let mut exported = Vec::new();
    for line in symbols.lines() {
        let [address, kind, name] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        assert!(u64::from_str_radix(address, 16).unwrap() != 0 && kind == "T", "{line}");
        exported.push(name);
    }
    wanted.sort_unstable();
    exported.sort_unstable();
    assert_eq!(exported, wanted);
    assert_eq!(exported.len(), 17);
}
